"""The program that holds BAG-CP to its rules: it must see a broken rule, and measure what was laid out."""

import cv2
import numpy as np
import pytest
from programs import load_program

from bafe_d2.data import BAGCopyPaste, PasteRule, TargetLibrary
from irstd_d2.synthetic import dense_config, write_densesirst


@pytest.fixture(scope="module")
def program(repo_root):
    return load_program(repo_root / "benchmarks" / "bag_cp_statistics.py")


def test_program_on_a_small_set(program, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    write_densesirst(tmp_path / "synthetic_dense", dense_config(), 4, 0, progress=False)
    arguments = ["--dataset", "synthetic_dense_train", "--runs", "40", "--size", "160"]
    program.main([*arguments, "--results", str(tmp_path / "result.md"), "--images", str(tmp_path / "images")])
    text = (tmp_path / "result.md").read_text()
    assert text.strip() == capsys.readouterr().out.strip()
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines() if line.startswith("|")]
    broken = {row[0]: row[1:] for row in rows[2:12]}
    assert len(broken) == 10
    assert set(map(tuple, broken.values())) == {("0", "0")}
    drawn = {row[0]: row for row in rows[14:]}
    assert len(drawn) == 10
    assert {row[-1] for row in drawn.values()} == {"0"}
    assert drawn["targets per area"][1] == "8 to 12"
    assert "0 runs differ between 8 and 16 bits" in text
    for name in ("bag_cp_histograms.png", "bag_cp_sheet.jpg"):
        assert cv2.imread(str(tmp_path / "images" / name)).std() > 5


def test_broken_rules_are_seen(program):
    before = np.full((20, 20, 1), 100, np.uint8)
    sky = np.zeros((20, 20), np.uint8)
    sky[:10] = 1
    boxes = np.array([[2.0, 2, 5, 5]])
    after, pasted = before.copy(), np.zeros((20, 20), bool)
    after[4, 4] = 120  # on the existing target
    after[12, 12] = 130  # outside the sky
    after[8, 15] = 90  # darker, and outside the boxes
    for y, x in ((4, 4), (12, 12), (8, 15)):
        pasted[y, x] = True
    after[0, 0] = 101  # changed, not pasted
    new = np.array([[3.0, 3, 5, 5], [12, 12, 13, 13], [12, 12, 18, 14]])
    found = program.broken_rules(before, after, boxes, sky, np.concatenate([boxes + 1, new]), pasted)
    assert found == {
        "pasted pixels outside the sky": 1,
        "pasted pixels on existing targets": 1,
        "pasted pixels outside the boxes": 1,
        "changed pixels that are not pasted": 1,
        "pixels in two pasted boxes": 1,
        "pasted boxes on existing targets": 1,
        "boxes that are not tight around their pasted pixels": 2,
        "boxes without area or beyond 5x5": 1,
        "existing boxes that changed": 1,
        "darkened pixels": 1,
        "boxes with an invisible edge": 2,
    }


def test_row_gaps_by_hand(program):
    sizes = np.array([[3, 4], [2, 2], [5, 5], [4, 1]])
    corners = np.array([[0, 0], [4, 0], [0, 6], [7, 6]])
    assert program.row_gaps(sizes, corners) == ([1, 2], [2])


def test_recording_changes_nothing(program):
    library = TargetLibrary.from_crops([np.full((3, 4), 0.8), np.full((2, 2), 0.5)])
    image, sky = np.zeros((80, 80, 3), np.uint8), np.ones((80, 80), np.uint8)
    boxes = np.zeros((0, 4), np.float32)
    recorded = program.RecordedBAGCopyPaste(library, PasteRule())
    with_record, _ = program.paste(recorded, image, boxes, sky, 3)
    without, _ = program.paste(BAGCopyPaste(library, PasteRule()), image, boxes, sky, 3)
    np.testing.assert_array_equal(with_record.image, without.image)
    assert sum(len(corners) for _, corners in recorded.layouts) == len(without.boxes)
    assert len(recorded.blends[0].brightness) == len(without.boxes)
