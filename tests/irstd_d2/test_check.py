"""The check of a whole set, and the tool around it."""

import json

import cv2
import numpy as np
import pytest
import tifffile
from detectron2.data import DatasetCatalog, MetadataCatalog
from PIL import Image
from programs import load_program
from voc_files import VocSet, voc_xml

from irstd_d2.data import register_coco_folder, register_voc_folder
from irstd_d2.data.check import check_collection, collect
from irstd_d2.data.convert import read_voc, write_set
from irstd_d2.data.faults import FaultKind
from irstd_d2.errors import DatasetError


@pytest.fixture
def folder(tmp_path):
    """Four sound images in DenseSIRST's layout: two in train, one in test, one in no split."""
    voc = VocSet(tmp_path / "set", "densesirst")
    for name in "abcd":
        voc.add(name)
        for kind in ("SIRST", "SkySeg"):
            path = voc.root / kind / "BinaryMask" / f"{name}_pixels0.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            mask = np.zeros((24, 32), np.uint8)
            mask[4:8, 3:6] = 255
            cv2.imwrite(str(path), mask)
    voc.split("train_v2", "a\nb\n")
    voc.split("test_v2", "c\n")
    return voc


@pytest.fixture
def tool(repo_root):
    return load_program(repo_root / "tools" / "check_dataset.py")


def check(source, **options):
    return check_collection(collect(source, **options))


def test_sound_set(folder):
    report = check(folder.root)
    assert report.faults == []
    assert report.notes == ["1 images are in no split: d"]
    assert report.statistics.split_rows() == [("test_v2", 1, 1, 0), ("train_v2", 2, 2, 0), ("all", 3, 3, 0)]
    text = str(report)
    assert text.startswith(f"{folder.root}\n\n3 images, 3 targets; pixels: 3 gray, 8 bits")
    assert "Most common target size: 3x4 pixels (3 targets, 100.0%)" in text
    assert "Local contrast: 5.00 to 5.00, 0.0% below 2" in text
    assert text.endswith("Faults: none")


def test_without_split_files_all_images_count(folder):
    for name in ("train_v2", "test_v2"):
        (folder.root / "Splits" / f"{name}.txt").unlink()
    report = check(folder.root)
    assert report.statistics.split_rows() == [("all", 4, 4, 0)]
    assert report.notes == []


def test_chosen_splits(folder):
    assert check(folder.root, splits=["test_v2"]).statistics.split_rows() == [("test_v2", 1, 1, 0), ("all", 1, 1, 0)]


def test_every_fault_at_once(folder):
    voc = folder
    voc.xml("a").write_text(voc_xml(boxes=[(1, 2, 40, 5), (3, 3, 3, 9)]))
    voc.image("b").write_bytes(voc.image("b").read_bytes()[:60])
    voc.add("big", width=40).xml("big").write_text(voc_xml())
    voc.add("sky")
    (voc.root / "SkySeg" / "BinaryMask" / "sky_pixels0.png").write_bytes(b"no image")
    voc.add("mask")
    cv2.imwrite(str(voc.root / "SIRST" / "BinaryMask" / "mask_pixels0.png"), np.zeros((5, 5), np.uint8))
    voc.split("train_v2", "a\nb\n\nbig\nsky\nmask\nlost\na\n../x\n")
    voc.split("val_v2", b"\xff")
    report = check(voc.root)
    assert {(fault.kind, fault.file.removeprefix(f"{voc.root}/"), fault.field) for fault in report.faults} == {
        (FaultKind.BOX_OUTSIDE, "SIRST/BBox/a.xml", "object[0].bndbox"),
        (FaultKind.BAD_BOX, "SIRST/BBox/a.xml", "object[1].bndbox"),
        (FaultKind.BAD_IMAGE, "PNGImages/b.png", "pixels"),
        (FaultKind.SIZE_MISMATCH, "PNGImages/big.png", "size"),
        (FaultKind.BAD_MASK, "SkySeg/BinaryMask/sky_pixels0.png", "pixels"),
        (FaultKind.SIZE_MISMATCH, "SIRST/BinaryMask/mask_pixels0.png", "size"),
        (FaultKind.MISSING_IMAGE, "PNGImages/lost", "file"),
        (FaultKind.MISSING_XML, "SIRST/BBox/lost.xml", "file"),
        (FaultKind.EMPTY_LINE, "Splits/train_v2.txt", "line 3"),
        (FaultKind.DUPLICATE_LINE, "Splits/train_v2.txt", "line 8"),
        (FaultKind.UNSAFE_NAME, "Splits/train_v2.txt", "line 9"),
        (FaultKind.BAD_SPLIT, "Splits/val_v2.txt", "byte 0"),
    }
    text = str(report)
    assert "Faults: 2 x size differs from the annotation" in text
    assert all(str(fault) in text for fault in report.faults)


def test_boxes_beside_their_masks_are_noted(folder):
    folder.xml("a").write_text(voc_xml(boxes=[(4, 5, 7, 9), (20, 20, 22, 22), (3, 4, 6, 7), (2, 4, 6, 8)]))
    report = check(folder.root)
    assert report.faults == []
    assert report.notes[1:] == [
        "a: object[0].bndbox (4, 5, 7, 9) shifted by (1, 1) from its mask (3, 4, 6, 8), IoU 0.33; kept as written",
        "a: object[1].bndbox (20, 20, 22, 22) holds no pixel of the target mask",
        "a: object[2].bndbox (3, 4, 6, 7) differs from its mask (3, 4, 6, 8), IoU 0.75; kept as written",
        "a: object[3].bndbox (2, 4, 6, 8) differs from its mask (3, 4, 6, 8), IoU 0.75; kept as written",
        "4 boxes or targets of masks contradict each other (train_v2: 4)",
    ]


def test_targets_of_the_mask_without_a_box_are_noted(folder):
    path = str(folder.root / "SIRST/BinaryMask/a_pixels0.png")
    mask = cv2.imread(path, 0)
    mask[20, 20:24], mask[10:12, 1] = 255, 255
    cv2.imwrite(path, mask)
    assert "a: 2 targets of the mask have no box: (1, 10, 2, 12), (20, 20, 24, 21)" in check(folder.root).notes
    folder.xml("a").write_text(voc_xml(boxes=[]))
    assert any(note.startswith("a: 3 targets of the mask have no box: ") for note in check(folder.root).notes)


def test_masks_with_numbers_of_touching_targets(folder):
    mask = np.zeros((24, 32), np.uint8)
    mask[4:8, 3:6], mask[4:8, 6:9] = 1, 2
    cv2.imwrite(str(folder.root / "SIRST/BinaryMask/a_pixels0.png"), mask)
    folder.xml("a").write_text(voc_xml(boxes=[(3, 4, 6, 8), (6, 4, 9, 8)]))
    report = check(folder.root)
    assert (report.faults, report.notes) == ([], ["1 images are in no split: d"])
    cv2.imwrite(str(folder.root / "SIRST/BinaryMask/a_pixels0.png"), 255 * (mask > 0).astype(np.uint8))
    assert check(folder.root).notes == ["1 images are in no split: d"]  # two boxes fill one component


def test_mixed_depths_and_counts_of_a_sensor_are_noted(folder):
    counts = np.full((24, 32), 500, np.uint16)
    counts[4:8, 3:6] = 2000
    cv2.imwrite(str(folder.image("b")), counts)
    notes = check(folder.root).notes
    assert any(
        note.startswith("images of different depths: 2 of 8 bits, 1 of 16 bits; INPUT.HIGH_BIT_DEPTH") for note in notes
    )
    assert any(note.startswith("1 images of gray, 16 bits hold values from 500 to 2000 only") for note in notes)
    for name in "ac":
        counts[0, 0] = 65535 if name == "a" else 0
        cv2.imwrite(str(folder.image(name)), counts)
    (note,) = (note for note in check(folder.root).notes if "hold values" in note)
    assert note.startswith("2 images of gray, 16 bits hold values from 0 to 2000 only")
    assert "the other 1 are not" in note


def test_platforms_and_bands_that_no_model_knows_are_noted(folder):
    """Spellings of known ones are not; the note counts images and gives the key, with the value to train with."""
    for name, band, platform in (("a", "MWIR", "uav"), ("b", "MWIR", "Land"), ("c", "near-infrared", "Ship")):
        tags = f"<view>{platform}</view><band_type>{band}</band_type>"
        folder.xml(name).write_text(voc_xml(extra=tags), encoding="utf-8")
    notes = [note for note in check(folder.root).notes if " have the " in note]
    unknown = "and is treated as unknown; a model that is trained with MODEL.METADATA."
    assert notes == [
        f"2 images have the band 'MWIR', which is not among ('LWIR', 'NIR', 'SWIR') {unknown}"
        """BANDS '("LWIR", "NIR", "SWIR", "MWIR")' tells it apart""",
        f"1 images have the platform 'Ship', which is not among ('Air', 'Space', 'Land') {unknown}"
        """PLATFORMS '("Air", "Space", "Land", "Ship")' tells it apart""",
    ]


def test_pages_that_are_left_out_are_counted(folder):
    for name, pages in (("a", 3), ("b", 5)):
        folder.image(name).unlink()
        pixels = np.full((pages, 24, 32), 40, np.uint16)
        tifffile.imwrite(folder.image(name, ".tif"), pixels, photometric="minisblack")
    notes = [note for note in check(folder.root).notes if "pages" in note]
    assert notes == [
        "2 images are TIFFs of several pages, 8 in all: the first of each is read, 6 are left out; save them as files"
    ]
    report = write_set(read_voc(folder.root), folder.root.parent / "coco", "coco")
    assert report.unread["further page of a TIFF"] == 6


def test_colour_images_and_shared_splits_are_noted(folder):
    Image.fromarray(np.zeros((24, 32, 4), np.uint8)).save(folder.image("b"))
    folder.split("test_v2", "c\nb\n")
    report = check(folder.root)
    assert report.faults == []
    assert "the splits train_v2 and test_v2 share 1 images: b" in report.notes
    assert "1 of 3 images have colour channels; all are read as three: b" in report.notes
    assert "2 gray, 8 bits, 1 RGB with alpha, 8 bits" in str(report)


def test_high_bit_depth_is_passed_on(folder):
    Image.fromarray(np.full((24, 32), 900, np.float32)).save(folder.image("a", ".tif"))
    folder.image("a").unlink()
    report = check_collection(collect(folder.root), high_bit_depth="full_range")
    assert [fault.kind for fault in report.faults] == [FaultKind.BAD_IMAGE]
    report = check_collection(collect(folder.root), high_bit_depth="minmax", workers=2, progress=True)
    assert report.faults == []
    assert report.statistics.pixel_kinds()["gray, 32 bits float"] == 1


@pytest.fixture
def names():
    added = []
    yield added
    for name in added:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)


def test_registered_sets(folder, names):
    names += ["check_test_voc", "check_test_foreign"]
    register_voc_folder("check_test_voc", folder.root, "train_v2", box_convention="paper")
    folder.xml("b").unlink()
    report = check("check_test_voc")
    assert report.title == f"check_test_voc: {folder.root}"
    assert report.statistics.split_rows() == [("check_test_voc", 1, 1, 0), ("all", 1, 1, 0)]
    assert [fault.kind for fault in report.faults] == [FaultKind.MISSING_XML]
    sample = collect(folder.root).dicts[0]
    DatasetCatalog.register("check_test_foreign", lambda: [sample])
    assert check("check_test_foreign").statistics.num_targets == 1


def test_coco_file(folder, names):
    path = folder.root / "instances.json"
    entries = [
        {"id": i, "file_name": f"PNGImages/{n}.png", "width": 32, "height": 24} for i, n in enumerate(["a", "no"])
    ]
    boxes = [{"image_id": 0, "category_id": 1, "bbox": [3, 4, 3, 4]}]
    path.write_text(json.dumps({"images": entries, "annotations": boxes, "categories": [{"id": 1, "name": "t"}]}))
    report = check(path)
    assert [fault.kind for fault in report.faults] == [FaultKind.MISSING_IMAGE]
    assert report.statistics.num_targets == 1
    names.append("check_test_coco")
    register_coco_folder("check_test_coco", path, folder.root)
    assert check("check_test_coco").statistics.num_targets == 1
    assert len(check(path, image_root=folder.root / "nowhere").faults) == 2


def test_unknown_source(tmp_path):
    with pytest.raises(DatasetError, match="no such folder"):
        collect(tmp_path / "none")


def test_tool_prints_and_plots(folder, tool, capsys, tmp_path):
    assert tool.main([str(folder.root), "--output-dir", str(tmp_path / "out"), "--workers", "1"]) == 0
    output = capsys.readouterr().out
    assert "3 images, 3 targets" in output
    assert "Faults: none" in output
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["domains.png", "targets.png"]


def test_tool_ends_with_one_on_faults_unless_told_otherwise(folder, tool, capsys):
    folder.xml("a").unlink()
    assert tool.main([str(folder.root)]) == 1
    assert "1 x missing XML" in capsys.readouterr().out
    assert tool.main([str(folder.root), "--skip-bad"]) == 0


def test_tool_names_a_missing_set(tool, capsys, tmp_path):
    assert tool.main([str(tmp_path / "none")]) == 2
    assert "error: " in capsys.readouterr().err


@pytest.mark.slow
def test_real_densesirst(real_densesirst):
    report = check_collection(collect(real_densesirst / "SIRSTdevkit"), workers=2)
    assert report.faults == []
    rows = {row[0]: row[1:] for row in report.statistics.split_rows()}
    assert rows["all"] == (1024, 13655, 0)
    assert rows["test_v2"] == (256, 3454, 0)
    assert report.statistics.sizes().most_common(1) == [((3, 3), 3681)]
    assert report.statistics.pixel_kinds() == {"gray, 8 bits": 1017, "RGB, 8 bits": 7}
    summary = next(note for note in report.notes if "contradict each other" in note)
    assert summary.startswith("21 boxes")
    assert "test_v2: 5," in summary
    assert len(report.notes) == 23
    shifted = [note for note in report.notes if "shifted by (1, 1) from its mask" in note]
    assert len(shifted) == 21


def test_real_omni(omni_mini, monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    report = check(omni_mini)
    assert (report.faults, report.notes) == ([], [])
    assert report.statistics.split_rows() == [("train", 210, 281, 6), ("val", 90, 126, 1), ("all", 300, 407, 7)]
    assert [row[:4] for row in report.statistics.domain_rows()] == [
        ("Air", "LWIR", 170, 234),
        ("Land", "LWIR", 130, 173),
    ]
