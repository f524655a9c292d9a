import json

import cv2
import numpy as np
import pytest
from programs import load_program

from irstd_d2.data.voc_xml import VocObject, VocRecord, format_voc_xml, read_voc_xml


@pytest.fixture(scope="module")
def tool(repo_root):
    return load_program(repo_root / "tools" / "generate_densesirst.py")


@pytest.fixture
def sparse(tmp_path):
    """Two images in SIRST-V2's layout, and a folder of sky masks beside it."""
    root = tmp_path / "open-sirst-v2"
    for folder in ("mixed", "annotations/bboxes", "splits", "../sky"):
        (root / folder).mkdir(parents=True, exist_ok=True)
    for name, brightness in (("a", 200), ("b", 250)):
        image = np.full((80, 80), 30, np.uint8)
        image[70:74, 70:74] = brightness
        cv2.imwrite(str(root / f"mixed/{name}.png"), image)
        cv2.imwrite(str(tmp_path / f"sky/{name}_pixels0.png"), np.full((80, 80), 255, np.uint8))
        record = VocRecord(80, 80, None, None, (VocObject("Target", False, (70, 70, 74, 74)),))
        (root / f"annotations/bboxes/{name}.xml").write_bytes(format_voc_xml(record, name))
    (root / "splits/train_full.txt").write_text("a\n")
    (root / "splits/test_full.txt").write_text("b\n")
    return root


def test_command_line(tool, sparse, tmp_path, capsys):
    arguments = [str(sparse), str(tmp_path / "out"), "--sky-masks", str(tmp_path / "sky"), "--seed", "4"]
    arguments += ["--areas", "1", "1", "--targets", "3", "4", "--brightness", "0.9", "1", "--area-edge", "18"]
    arguments += ["--library-split", "train_full", "--gaps", "2", "2", "--gain", "0.5"]
    assert tool.main(arguments) == 0
    folder = tmp_path / "out/SIRSTdevkit"
    assert f"{folder}: 2 images" in capsys.readouterr().out
    assert 4 <= len(read_voc_xml(folder / "SIRST/BBox/a.xml").objects) <= 5
    assert (folder / "Splits/test_v2.txt").read_text() == "b\n"
    config = json.loads((folder / "generated.json").read_text())["config"]
    assert config["library"].startswith("1 targets")
    assert (config["seed"], config["gain"]) == (4, 0.5)
    rule = config["rule"]
    assert (rule["areas"], rule["targets"], rule["brightness"], rule["area_edge"], rule["gaps"]) == (
        [1, 1],
        [3, 4],
        [0.9, 1],
        18,
        [2, 2],
    )


def test_recipes_and_overwrite(tool, sparse, tmp_path, capsys):
    arguments = [str(sparse), str(tmp_path / "out"), "--sky-masks", str(tmp_path / "sky")]
    assert tool.main(arguments) == 0
    assert tool.main([*arguments, "--recipe", "fitted"]) == 2
    assert "--overwrite" in capsys.readouterr().err
    assert tool.main([*arguments, "--recipe", "fitted", "--overwrite"]) == 0
    assert json.loads((tmp_path / "out/SIRSTdevkit/generated.json").read_text())["config"]["fill"] is True


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (["--gaps", "3", "1"], "GAPS"),
        (["--jobs", "0"], "processes"),
        (["--gain", "0"], "gain"),
        (["--split", "val_full"], "val_full"),
        (["--sky-masks", "nowhere"], "no such folder"),
        (["--library-split", "nothing"], "nothing"),
    ],
)
def test_mistakes_are_named(tool, sparse, tmp_path, capsys, change, message):
    arguments = [str(sparse), str(tmp_path / "out"), "--sky-masks", str(tmp_path / "sky"), *change]
    assert tool.main(arguments) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
