import json
import sys

import pytest
from PIL import Image
from programs import load_program

from irstd_d2.cli.synthesize import draw_scene, get_parser, parse_size
from irstd_d2.synthetic import SceneConfig, SceneGenerator
from irstd_d2.visualization import FALSE_COLOUR, TARGET_COLOUR


@pytest.fixture(scope="module")
def tool(repo_root):
    return load_program(repo_root / "tools" / "make_synthetic.py")


def test_both_layouts(tool, tmp_path):
    arguments = ["--output", str(tmp_path), "--layout", "both", "--train", "3", "--val", "1", "--size", "96x64"]
    arguments += ["--seed", "5", "--domain-conflict", "0.25", "--balance", "uniform", "--bits", "16"]
    assert tool.main(arguments) == 0
    omni = tmp_path / "synthetic_omni" / "VOC2007"
    dense = tmp_path / "synthetic_dense" / "SIRSTdevkit"
    config = json.loads((omni / "synthetic.json").read_text())["config"]
    assert (config["seed"], config["size"], config["bits"]) == (5, [96, 64], 16)
    assert (config["balance"], config["domain_conflict"]) == ("uniform", 0.25)
    assert (dense / "Splits/trainval_v2.txt").read_text().split() == [
        "train_000000",
        "train_000001",
        "train_000002",
        "val_000000",
    ]
    assert Image.open(dense / "PNGImages/val_000000.png").size == (96, 64)


def test_default_output_is_the_folder_of_the_data_sets(tool, tmp_path, monkeypatch):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    assert tool.main(["--train", "1", "--val", "0", "--size", "64x64"]) == 0
    assert (tmp_path / "synthetic_omni/VOC2007/ImageSets/Main/train.txt").exists()
    monkeypatch.delenv("DETECTRON2_DATASETS")
    assert str(get_parser().parse_args([]).output) == "datasets"


def test_second_run_with_other_parameters_says_what_to_do(tool, tmp_path, capsys):
    arguments = ["--output", str(tmp_path), "--train", "1", "--val", "0", "--size", "64x64"]
    assert tool.main(arguments) == 0
    assert tool.main([*arguments, "--seed", "1"]) == 2
    printed = capsys.readouterr().err
    assert "config.seed" in printed
    assert "--overwrite" in printed
    assert tool.main([*arguments, "--seed", "1", "--overwrite"]) == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--domain-conflict", "2"], "'2' is not a number from 0 to 1"),
        (["--size", "16x16"], "needed"),
        (["--train", "-1"], "'-1' is not a whole number of at least 0"),
    ],
)
def test_bad_values(tool, tmp_path, arguments, message, capsys):
    with pytest.raises(SystemExit) as stop:
        sys.exit(tool.main(["--output", str(tmp_path), *arguments]))
    assert stop.value.code == 2
    assert message in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("size", ["large", "64", "64x", "-1x5"])
def test_bad_size(tool, size, capsys):
    with pytest.raises(SystemExit):
        tool.main(["--size", size])
    assert "size" in capsys.readouterr().err


@pytest.mark.parametrize("layout", ["wideirstd", "both"])
def test_preview(tool, tmp_path, layout):
    picture = tmp_path / "preview.png"
    assert tool.main(["--preview", str(picture), "--size", "64x64", "--layout", layout, "--output", str(tmp_path)]) == 0
    assert Image.open(picture).size == (6 * 134, 4 * 154)  # enlarged twice, 20 pixels of text, 6 between them
    assert list(tmp_path.iterdir()) == [picture]


def test_size_words(tool):
    assert [parse_size(text) for text in ("small", "real", "160x128")] == ["small", "real", (160, 128)]


def test_targets_and_look_alikes_are_told_apart_in_the_preview():
    scene = SceneGenerator(SceneConfig(domain_conflict=1.0, size=(128, 128))).scene(1)
    picture = draw_scene(scene)
    assert picture.shape == (276, 256, 3)
    for boxes, color in ((scene.boxes, TARGET_COLOUR), (scene.clutter_boxes, FALSE_COLOUR)):
        marks = (picture[20:] == color).all(axis=2)
        for x1, y1, x2, y2 in (2 * boxes).astype(int):
            assert marks[y1 - 5 : y2 + 5, x1 - 5 : x2 + 5].any()
            assert not marks[y1:y2, x1:x2].any()
