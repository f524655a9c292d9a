"""YOLO folders: rounded numbers, faulty lines, sets of other projects."""

import numpy as np
import pytest
from detection_sets import as_set, make_record

from irstd_d2.convert import (
    TargetObject,
    read_yolo,
    write_set,
)
from irstd_d2.convert.yolo_format import read_labels
from irstd_d2.errors import DatasetError


@pytest.mark.parametrize("decimals", [4, 6, 8, 17])
def test_rounded_yolo_numbers_are_read_to_the_whole_pixel(tmp_path, decimals):
    rng = np.random.default_rng(decimals)
    width, height = 640, 512
    x1, y1 = rng.integers(0, 600, 50), rng.integers(0, 500, 50)
    boxes = np.stack([x1, y1, x1 + rng.integers(1, 40, 50), y1 + rng.integers(1, 12, 50)], 1).astype(float)
    lines = [
        f"0 {(a + c) / 2 / width:.{decimals}f} {(b + d) / 2 / height:.{decimals}f} "
        f"{(c - a) / width:.{decimals}f} {(d - b) / height:.{decimals}f}\n"
        for a, b, c, d in boxes
    ]
    path = tmp_path / "a.txt"
    path.write_text("\n".join(lines))
    assert [box for _, box in read_labels(path, (width, height), 1)] == [tuple(box) for box in boxes]


def test_coarse_yolo_numbers_are_taken_as_they_are(tmp_path):
    (tmp_path / "a.txt").write_text("0 0.5 0.5 0.5 0.5\n")
    assert read_labels(tmp_path / "a.txt", (101, 50), 1) == [(0, (25.25, 12.5, 75.75, 37.5))]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("0 .5 .5 .1", "line 2: 4 values, not 5"),
        ("0 .5 .5 .1 .1 .9", "line 2: 6 values, not 5"),
        ("-1 .5 .5 .1 .1", "line 2: class '-1'"),
        ("99999 .5 .5 .1 .1", "line 2: class '99999'"),
        ("2 .5 .5 .1 .1", "line 2: class 2 of 2. Fix: name it in data.yaml"),
        ("0 .5 .5 .1 nan", "line 2: '.5 .5 .1 nan' are not numbers"),
        ("0 .5 .5 .1 x", "line 2: '.5 .5 .1 x' are not numbers"),
        ("0 .5 .5 0 .1", "line 2: '0 .5 .5 0 .1' has no area or leaves the image of 60x40"),
        ("0 .99 .5 .1 .1", "leaves the image of 60x40"),
    ],
)
def test_faulty_yolo_lines(pixels, tmp_path, line, message):
    write_set(as_set(make_record(pixels), class_names=("Target", "Bird")), tmp_path / "out", "yolo")
    path = tmp_path / "out" / "labels" / "a.txt"
    path.write_text(f"0 .5 .5 .1 .1\n{line}\n")
    with pytest.raises(DatasetError) as error:
        read_yolo(tmp_path / "out")
    assert str(path) in str(error.value)
    assert message in str(error.value)


def test_files_that_are_no_text_are_named(pixels, tmp_path):
    write_set(as_set(make_record(pixels), splits={"train": ("a",)}), tmp_path / "out", "yolo")
    for name in ("labels/a.txt", "train.txt"):
        path = tmp_path / "out" / name
        before = path.read_bytes()
        path.write_bytes(before + b"\xff\n")
        with pytest.raises(DatasetError, match=rf"{path}: byte {len(before)}: not UTF-8 text"):
            read_yolo(tmp_path / "out")
        path.write_bytes(before)
    assert len(read_yolo(tmp_path / "out").records) == 1


def test_yolo_folders_of_other_projects(pixels, tmp_path):
    for split in ("train", "val"):
        (tmp_path / "images" / split).mkdir(parents=True)
        (tmp_path / "images" / split / "x.png").write_bytes((pixels / "image.png").read_bytes())
    (tmp_path / "labels" / "val").mkdir(parents=True)
    (tmp_path / "labels" / "val" / "x.txt").write_text("1 0.5 0.5 0.1 0.1\n")
    found = read_yolo(tmp_path)
    assert found.class_names == ("class0", "class1")
    assert {r.name: r.objects for r in found.records} == {
        "train__x": (),
        "val__x": (TargetObject("class1", (27, 18, 33, 22)),),
    }
    description = tmp_path / "data.yaml"
    description.write_text("train: images/train\nval: [images/val]\nnc: 2\nnames: [Bird, Plane]\n")
    found = read_yolo(tmp_path)
    assert found.splits == {"train": ("train__x",), "val": ("val__x",)}
    assert found.records[1].objects[0].class_name == "Plane"
    for text, message in (
        ("names: {1: Bird}", "names: {1: 'Bird'} does not name the classes"),
        ("names: [Bird, Plane]\ntrain: images/test", "splits: no images/test"),
        ("names: [Bird, Plane]\ntrain: ../other", "'../other' leads out of"),
        ("[1", "not YAML"),
        ("3", "not a list of keys"),
    ):
        description.write_text(text)
        with pytest.raises(DatasetError) as error:
            read_yolo(tmp_path)
        assert message in str(error.value)
    description.write_text("names: [Bird, Plane]\ntrain: train.txt")
    (tmp_path / "train.txt").write_text("./images/train/x.png\n\nimages/y.png\n")
    with pytest.raises(DatasetError, match=r"train\.txt: line 3: no image 'images/y\.png'"):
        read_yolo(tmp_path)
    with pytest.raises(DatasetError, match=r"no image\. Fix: a YOLO set has the folders"):
        read_yolo(tmp_path / "labels")
