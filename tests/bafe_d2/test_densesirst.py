"""Finding, counting and placing a downloaded DenseSIRST set."""

import shutil

import cv2
import numpy as np
import pytest
from detectron2.data import DatasetCatalog

from bafe_d2.data import densesirst as module
from bafe_d2.data.densesirst import (
    FILES,
    SPLITS,
    count_densesirst,
    find_densesirst,
    place_densesirst,
    require_complete,
)
from irstd_d2.data.layout_writer import densesirst_files
from irstd_d2.data.voc_xml import VocObject, VocRecord
from irstd_d2.errors import DatasetError


@pytest.fixture
def small(tmp_path, monkeypatch):
    """A complete set of three images, and the counts that belong to it."""
    root = tmp_path / "download/data/SIRSTdevkit"
    mask = np.zeros((16, 16), np.uint8)
    mask[2:4, 2:5] = 1
    for name in ("a", "b", "c"):
        record = VocRecord(16, 16, None, None, (VocObject("Target", False, (2, 2, 5, 4)),) * (1 + (name == "c")))
        for path, data in densesirst_files(name, mask * 200, record, mask, 1 - mask):
            (root / path).parent.mkdir(parents=True, exist_ok=True)
            (root / path).write_bytes(data)
    (root / "Splits").mkdir()
    names = {"train": "a", "val": "b", "trainval": "a\nb", "test": "c"}
    for split in SPLITS:
        (root / f"Splits/{split}.txt").write_text(names[split.split("_")[0]])  # no line end after the last name
    counts = {"train": (1, 1), "val": (1, 1), "trainval": (2, 2), "test": (1, 2)}
    monkeypatch.setattr(module, "IMAGES", 3)
    monkeypatch.setattr(module, "SPLITS", {split: counts[split.split("_")[0]] for split in SPLITS})
    return root


def test_found_at_and_above_its_folder(small, tmp_path):
    for path in (small, small.parent, small.parent.parent):
        assert find_densesirst(path) == small
    shutil.copytree(small, tmp_path / "download/SIRSTdevkit")
    assert find_densesirst(tmp_path / "download") == tmp_path / "download/SIRSTdevkit"  # the nearest


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("nowhere", "no such folder"),
        ("archive.zip", "unpack the archive"),
        ("empty", "no SIRSTdevkit"),
        (".", "2 copies"),
    ],
)
def test_not_found(small, tmp_path, path, message):
    (tmp_path / "archive.zip").write_bytes(b"PK")
    (tmp_path / "empty").mkdir()
    top = tmp_path / "several" if path == "." else tmp_path / path
    if path == ".":
        shutil.copytree(small, top / "one/SIRSTdevkit")
        shutil.copytree(small, top / "two/SIRSTdevkit")
    with pytest.raises(DatasetError, match=message):
        find_densesirst(top)


def test_a_complete_set_passes(small):
    counts, faults = count_densesirst(small)
    assert all(count.ok for count in counts), counts
    assert faults == []
    assert {count.what: count.found for count in counts}["trainval_v2 targets"] == 2
    require_complete(small, counts, faults)


def test_everything_that_is_missing_is_named(small):
    (small / "SkySeg/BinaryMask/b_pixels0.png").unlink()
    (small / "Splits/test_v2.txt").unlink()
    counts, faults = count_densesirst(small)
    with pytest.raises(DatasetError, match=r"SkySeg/BinaryMask 2 of 3; test_v2 images 0 of 1; test_v2 targets 0 of 2"):
        require_complete(small, counts, faults)


def test_what_nothing_reads_may_be_missing(small):
    shutil.rmtree(small / "SIRST/Point_label")
    (small / "Splits/test_v1.txt").unlink()
    counts, faults = count_densesirst(small)
    wrong = [count.what for count in counts if not count.ok]
    assert wrong == ["SIRST/Point_label", "test_v1 images", "test_v1 targets"]
    require_complete(small, counts, faults)


def test_damaged_annotations_are_named(small):
    (small / "SIRST/BBox/a.xml").write_text("<annotation>")
    counts, faults = count_densesirst(small)
    with pytest.raises(DatasetError, match=r"a\.xml: not well-formed"):
        require_complete(small, counts, faults)


@pytest.mark.parametrize("copy", [False, True])
def test_placed_where_it_is_looked_for(small, tmp_path, monkeypatch, copy):
    datasets = tmp_path / "data sets"
    target = place_densesirst(small, datasets, copy=copy)
    assert target.is_symlink() != copy
    monkeypatch.setenv("DETECTRON2_DATASETS", str(datasets))
    (sample,) = DatasetCatalog.get("densesirst_v2_test")
    assert len(sample["annotations"]) == 2
    assert cv2.imread(sample["file_name"], -1).shape == (16, 16)
    assert place_densesirst(target, datasets) == target  # a set that is in place stays
    if copy:
        with pytest.raises(DatasetError, match="something else"):
            place_densesirst(small, datasets)
    else:
        assert place_densesirst(small, datasets) == target


def test_broken_links_and_interrupted_copies_are_replaced(small, tmp_path):
    datasets = tmp_path / "sets"
    (datasets / ".SIRSTdevkit.partial").mkdir(parents=True)
    (datasets / ".SIRSTdevkit.partial/rest").write_text("")
    (datasets / "SIRSTdevkit").symlink_to(tmp_path / "gone")
    assert place_densesirst(small, datasets, copy=True).is_dir()
    assert sorted(path.name for path in datasets.iterdir()) == ["SIRSTdevkit"]
    assert not (datasets / "SIRSTdevkit/rest").exists()


@pytest.mark.slow
def test_the_real_set_is_complete(real_densesirst):
    counts, faults = count_densesirst(find_densesirst(real_densesirst))
    assert faults == []
    assert [count for count in counts if not count.ok] == []
    assert len(counts) == len(FILES) + 2 * len(SPLITS)
