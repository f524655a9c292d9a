"""Every fault in a VOC folder: refused with file, field and fix, or skipped and counted."""

import logging
from collections import Counter

import pytest
from voc_files import three_images, voc_xml

from irstd_d2.data import load_voc
from irstd_d2.data.faults import FaultKind, refuse_or_skip
from irstd_d2.data.voc import scan_voc
from irstd_d2.errors import DatasetError


@pytest.fixture
def folder(tmp_path):
    return three_images(tmp_path / "set")


def write_a(text):
    """A damage: the annotation of image a becomes this text."""
    return lambda voc: voc.xml("a").write_text(text)


def write_split(text):
    return lambda voc: voc.split("train", text)


def break_table(voc):
    (voc.root / "metadata.tsv").write_text("a\tAir\tLWIR\t-3\t5\n")
    voc.split("train", "b\n")


BOMB = '<!DOCTYPE a [<!ENTITY x "y">]><annotation>&x;</annotation>'
BOX = r"a.xml: object\[0\].bndbox"
OUTSIDE = write_a(voc_xml(boxes=[(1, 2, 40, 5)]))
NO_IMAGE = lambda voc: voc.image("a").unlink()  # noqa: E731
DAMAGES = {
    "missing XML": (lambda voc: voc.xml("a").unlink(), FaultKind.MISSING_XML, "a.xml: file"),
    "entity bomb": (write_a(BOMB), FaultKind.BAD_XML, "a.xml: file"),
    "box outside": (OUTSIDE, FaultKind.BOX_OUTSIDE, BOX),
    "box without area": (write_a(voc_xml(boxes=[(1, 2, 1, 5)])), FaultKind.BAD_BOX, BOX),
    "NaN": (write_a(voc_xml(boxes=[("nan", 2, 3, 5)])), FaultKind.MISSING_FIELD, BOX + ".xmin"),
    "path in filename": (write_a(voc_xml(filename="../../x.png")), FaultKind.UNSAFE_NAME, "a.xml: filename"),
    "missing image": (NO_IMAGE, FaultKind.MISSING_IMAGE, "PNGImages/a: file"),
    "image twice": (
        lambda voc: voc.image("a", ".bmp").touch(), FaultKind.AMBIGUOUS_IMAGE, "PNGImages/a.bmp: file"
    ),
    "empty line": (write_split("b\n\n"), FaultKind.EMPTY_LINE, "train.txt: line 2"),
    "line twice": (write_split(b"b\r\nb\r\n"), FaultKind.DUPLICATE_LINE, "train.txt: line 2"),
    "path in split": (write_split("b\n../a\n"), FaultKind.UNSAFE_NAME, "train.txt: line 2"),
    "negative size in table": (break_table, FaultKind.BAD_RECORD, "metadata.tsv: line 1"),
}  # fmt: skip


@pytest.mark.parametrize(("damage", "kind", "where"), DAMAGES.values(), ids=DAMAGES)
def test_fault_is_refused_or_skipped(folder, damage, kind, where, caplog):
    damage(folder)
    with pytest.raises(DatasetError, match=rf"{where}: .*\. Fix: "):
        load_voc(folder.root, "train")
    caplog.set_level(logging.WARNING, logger="irstd_d2")
    dicts = load_voc(folder.root, "train", skip_bad=True)
    assert [sample["image_id"] for sample in dicts] == ["b"]
    assert len(caplog.records) == 1
    assert f"1 x {kind}" in caplog.text


def test_all_faults_together(folder, caplog):
    OUTSIDE(folder)
    NO_IMAGE(folder)
    folder.xml("b").write_text("<")
    folder.split("train", "a\nb\nc\n\n")
    scan = scan_voc(folder.root, "train")
    assert [sample["image_id"] for sample in scan.dicts] == ["c"]
    assert Counter(fault.kind for fault in scan.faults) == Counter(
        [FaultKind.MISSING_IMAGE, FaultKind.BAD_XML, FaultKind.EMPTY_LINE]
    )
    with pytest.raises(DatasetError, match=r"2 more faults listed above"):
        load_voc(folder.root, "train")
    load_voc(folder.root, "train", skip_bad=True)
    assert "1 x unreadable XML" in caplog.text


def test_a_fault_of_one_image_does_not_take_others(folder):
    folder.xml("a").write_text(voc_xml(boxes=[(1, 1, 2, 2), (5, 5, 5, 5)]))
    assert [s["image_id"] for s in load_voc(folder.root, "train", skip_bad=True)] == ["b"]


def test_nothing_to_refuse():
    refuse_or_skip([], skip_bad=False, source="x")
