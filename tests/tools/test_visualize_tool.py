"""tools/visualize.py: sheets and single pictures of a data set, with and without predictions."""

import json
import runpy
import sys

import cv2
import numpy as np
import pytest
import toy_training as toy
from detectron2.data import DatasetCatalog, MetadataCatalog
from toy_training import TEST
from voc_files import VocSet

from irstd_d2.visualization import FALSE_COLOUR, SKY_COLOUR, TARGET_COLOUR, TRUE_COLOUR


@pytest.fixture
def tool(repo_root, tmp_path, monkeypatch):
    monkeypatch.chdir(repo_root)
    images = tmp_path / "images"
    images.mkdir()
    toy.register(images)

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["visualize", *map(str, arguments)])
        with pytest.raises(SystemExit) as end:
            runpy.run_path("tools/visualize.py", run_name="__main__")
        return end.value.code

    yield run
    toy.unregister()


def colours(path):
    picture = cv2.imread(str(path))[..., ::-1].reshape(-1, 3)
    return {tuple(map(int, colour)) for colour in np.unique(picture, axis=0)}


def test_a_sheet_of_targets(tool, tmp_path):
    path = tmp_path / "new" / "sheet.png"
    assert tool("--dataset", TEST, "--output", path, "--count", "2", "--columns", "1") == 0
    sheet = cv2.imread(str(path))
    assert sheet.shape[1] == 588 + 6
    assert sheet.shape[0] == 2 * (20 + 588 + 4 + 196 + 6)
    found = colours(path)
    assert TARGET_COLOUR in found
    assert not {TRUE_COLOUR, FALSE_COLOUR, SKY_COLOUR} & found


def test_pictures_of_chosen_images_with_detections_and_skyline(tool, tmp_path):
    (record, _, other) = toy.make_dicts(tmp_path / "images", 3, 1)
    sky = np.zeros((64, 64), np.uint8)
    sky[:20] = 255
    cv2.imwrite(str(tmp_path / "sky.png"), sky)
    for name, registered in ((r["image_id"], r) for r in toy.DatasetCatalog.get(TEST)):
        if name == record["image_id"]:
            registered["sem_seg_file_name"] = str(tmp_path / "sky.png")
    x1, y1, x2, y2 = record["annotations"][0]["bbox"]
    rows = [
        {"image_id": record["image_id"], "category_id": 0, "bbox": [x1, y1, x2 - x1, y2 - y1], "score": 0.9},
        {"image_id": record["image_id"], "category_id": 0, "bbox": [0, 60, 3, 3], "score": 0.8},
        {"image_id": other["image_id"], "category_id": 0, "bbox": [0, 60, 3, 3], "score": 0.1},
    ]
    predictions = tmp_path / "results.json"
    predictions.write_text(json.dumps(rows))
    names = [record["image_id"], other["image_id"]]
    out = tmp_path / "pictures"
    assert tool("--dataset", TEST, "--output", out, "--predictions", predictions, "--images", *names) == 0
    assert {p.name for p in out.iterdir()} == {f"{name}.png" for name in names}
    assert {TRUE_COLOUR, FALSE_COLOUR, TARGET_COLOUR, SKY_COLOUR} <= colours(out / f"{names[0]}.png")
    assert not {TRUE_COLOUR, FALSE_COLOUR} & colours(out / f"{names[1]}.png")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--dataset", "nothing_of_that_name"], "is not registered"),
        (["--dataset", TEST, "--images", "absent"], "has no absent"),
        (["--dataset", TEST, "--output", "sheet.txt"], "sheet.txt is neither a .png nor a folder"),
        (["--dataset", TEST, "--output", "sheet.jpg"], "sheet.jpg is neither a .png nor a folder"),
        (["--dataset", TEST, "--predictions", "absent.json"], "absent.json: predictions: cannot be read"),
    ],
)
def test_what_is_wrong_is_said(tool, tmp_path, capsys, arguments, message):
    assert tool("--output", tmp_path / "a.png", *arguments) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "a.png").exists()


def test_a_set_that_a_configuration_registers_is_drawn(tool, tmp_path):
    VocSet(tmp_path / "mine").add("a").split("val", "a\n")
    config = tmp_path / "config.yaml"
    config.write_text(f"DATASETS: {{OWN: [[visualize_mine, {tmp_path / 'mine'}, val]]}}\n")
    try:
        arguments = ["--dataset", "visualize_mine", "--config-file", config, "--output", tmp_path / "a.png"]
        assert tool(*arguments) == 0
    finally:
        DatasetCatalog.remove("visualize_mine")
        MetadataCatalog.remove("visualize_mine")
    assert TARGET_COLOUR in colours(tmp_path / "a.png")


@pytest.mark.parametrize("kind", ["folder", "coco"])
def test_sets_that_are_not_registered(tool, tmp_path, kind):
    root = VocSet(tmp_path / "mine").add("a").add("b").root
    source = root
    if kind == "coco":
        box = {"id": 1, "image_id": 1, "category_id": 7, "bbox": [3, 4, 3, 4]}
        image = {"id": 1, "file_name": "PNGImages/a.png", "width": 32, "height": 24}
        source = root / "mine.json"
        content = {"images": [image], "annotations": [box], "categories": [{"id": 7, "name": "drone"}]}
        source.write_text(json.dumps(content))
    try:
        assert tool("--dataset", source, "--output", tmp_path / "out", "--edge", "300") == 0
    finally:
        DatasetCatalog.remove(str(source))
        MetadataCatalog.remove(str(source))
    written = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert written == (["a.png"] if kind == "coco" else ["a.png", "b.png"])
    assert all(TARGET_COLOUR in colours(tmp_path / "out" / name) for name in written)


def test_images_of_one_name_have_a_picture_each(tool, tmp_path):
    for i, record in enumerate(DatasetCatalog.get(TEST)[:2]):
        path = tmp_path / f"s{i}" / "0001.png"
        path.parent.mkdir()
        path.write_bytes((tmp_path / "images" / record["file_name"].rpartition("/")[2]).read_bytes())
        record["file_name"] = str(path)
    out = tmp_path / "pictures.v2"
    assert tool("--dataset", TEST, "--output", out, "--images", "0001") == 0
    first, second = (out / name for name in ("0001.png", "0001_2.png"))
    assert {path.name for path in out.iterdir()} == {first.name, second.name}
    assert first.read_bytes() != second.read_bytes()
