"""The XML reader: exact values, every fault named, nothing hostile let in."""

import math

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from loops import for_every
from voc_files import voc_xml

from irstd_d2.data import read_voc_xml
from irstd_d2.data.faults import FaultKind
from irstd_d2.data.voc_xml import (
    MAX_XML_BYTES,
    VocObject,
    VocRecord,
    find_box_faults,
    is_plain_name,
    parse_voc_xml,
    to_convention,
)
from irstd_d2.errors import ConfigError, DatasetError

fresh_file = settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture
def parse(tmp_path):
    def run(text):
        path = tmp_path / "a.xml"
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return parse_voc_xml(path)

    return run


def test_reads_everything(parse):
    extra = "<view> Air </view><band_type>LWIR</band_type>"
    record, faults = parse(voc_xml(320, 240, [(1, 2, 3, 4), (5.5, 6, 7, 8)], extra=extra, difficult=1))
    assert faults == []
    objects = (VocObject("Target", True, (1, 2, 3, 4)), VocObject("Target", True, (5.5, 6, 7, 8)))
    assert record == VocRecord(320, 240, "Air", "LWIR", objects)


@pytest.mark.parametrize(
    ("tags", "expected"),
    [
        ("<platform>Land</platform><band>SWIR</band>", ("Land", "SWIR")),
        ("<view>Air</view><platform>Land</platform><band_type> </band_type><band>NIR</band>", ("Air", "NIR")),
        ("<platform/><band/>", (None, None)),
        ("<Platform>Land</Platform><BAND>SWIR</BAND>", ("Land", "SWIR")),
        ("<View>Air</View><View>Land</View><Band_Type/>", ("Air", None)),
    ],
)
def test_metadata_under_their_other_names(parse, tags, expected):
    record, faults = parse(voc_xml(extra=tags))
    assert faults == []
    assert (record.platform, record.band) == expected


def test_without_objects_tags_and_filename(parse):
    record, _ = parse("<annotation><size><width>9</width><height>8</height></size><view/></annotation>")
    assert record == VocRecord(9, 8, None, None, ())


def test_real_file(omni_mini):
    record = read_voc_xml(omni_mini / "VOC2007" / "Annotations" / "00003.xml")
    assert (record.width, record.height, record.platform, record.band) == (286, 186, "Land", "LWIR")
    assert [obj.box for obj in record.objects] == [(208, 116, 213, 119), (198, 118, 201, 121)]


def kinds(faults):
    return [fault.kind for fault in faults]


def test_missing_file(tmp_path):
    record, faults = parse_voc_xml(tmp_path / "no.xml")
    assert record is None
    assert kinds(faults) == [FaultKind.MISSING_XML]
    with pytest.raises(DatasetError, match=r"no\.xml: file: no such annotation\. Fix: add the XML"):
        read_voc_xml(tmp_path / "no.xml")


def test_unreadable_file(tmp_path):
    (tmp_path / "folder.xml").mkdir()
    _, faults = parse_voc_xml(tmp_path / "folder.xml")
    assert kinds(faults) == [FaultKind.BAD_XML]
    assert "Is a directory" in faults[0].problem


ENTITIES = "".join(f'<!ENTITY l{i} "{f"&l{i - 1};" * 10}">' for i in range(1, 10))
HOSTILE = {
    "billion laughs": f'<!DOCTYPE a [<!ENTITY l0 "ha">{ENTITIES}]><annotation>&l9;</annotation>',
    "quadratic blow-up": f'<!DOCTYPE a [<!ENTITY b "{"x" * 9999}">]><annotation>{"&b;" * 999}</annotation>',
    "external entity": '<!DOCTYPE a [<!ENTITY e SYSTEM "file:///etc/passwd">]><annotation><view>&e;</view></annotation>',
    "external DTD": '<!DOCTYPE a SYSTEM "http://localhost:9/a.dtd"><annotation/>',
    "parameter entity": '<!DOCTYPE a [<!ENTITY % p SYSTEM "file:///etc/passwd"> %p;]><annotation/>',
}


@for_every("name", HOSTILE)
def test_hostile_xml_is_refused(parse, name):
    record, faults = parse(HOSTILE[name])
    assert record is None
    assert kinds(faults) == [FaultKind.BAD_XML]
    assert "a DTD or entities, refused" in faults[0].problem


@for_every(
    "text",
    [
        b"",
        b"   ",
        b"<annotation>",
        b"\xff\xfe\x00",
        b"<?xml version='1.0' encoding='no-such'?><annotation/>",
        b"\0" * 9,
    ],
)
def test_not_well_formed(parse, text):
    record, faults = parse(text)
    assert record is None
    assert kinds(faults) == [FaultKind.BAD_XML]
    assert "not well-formed" in faults[0].problem


@pytest.mark.parametrize("encoding", ["gbk", "shift_jis"])
def test_other_encodings_are_to_be_saved_as_utf_8(parse, encoding):
    text = f"<?xml version='1.0' encoding='{encoding}'?>{voc_xml(name='目标')}"
    (fault,) = parse(text.encode("gbk"))[1]
    assert (fault.kind, fault.fix) == (FaultKind.BAD_XML, "save it as UTF-8")


@pytest.mark.parametrize(("mark", "difficult"), [("1", True), (" True ", True), ("0", False), ("Unspecified", False)])
def test_marks_of_difficult_objects(parse, mark, difficult):
    record, faults = parse(voc_xml(difficult=mark))
    assert not faults
    assert record.objects[0].difficult is difficult


@pytest.mark.parametrize("mark", ["yes", "2", "-1"])
def test_a_mark_that_says_neither_is_a_fault(parse, mark):
    (fault,) = parse(voc_xml(difficult=mark))[1]
    assert (fault.field, fault.problem) == ("object[0].difficult", f"'{mark}' is neither 0 nor 1")


def test_other_root(parse):
    assert kinds(parse("<svg/>")[1]) == [FaultKind.BAD_XML]


def test_too_large(parse):
    record, faults = parse(b"<annotation>" + b" " * MAX_XML_BYTES + b"</annotation>")
    assert record is None
    assert "larger than 16 MiB" in faults[0].problem


def test_deep_nesting_does_not_overflow(parse):
    record, faults = parse("<annotation>" + "<a>" * 100_000 + "</a>" * 100_000 + "</annotation>")
    assert record is None
    assert kinds(faults) == [FaultKind.MISSING_FIELD, FaultKind.MISSING_FIELD]  # width and height


@for_every("value", ["nan", "NaN", "inf", "-inf", "1e999", "", "abc", "1_0", "0x10", "１", "1 2"])
def test_coordinates_that_are_no_numbers(parse, value):
    record, faults = parse(voc_xml(boxes=[(1, 2, value, 4)]))
    assert record is None
    assert kinds(faults) == [FaultKind.MISSING_FIELD]
    assert faults[0].field == "object[0].bndbox.xmax"


def test_all_faults_of_one_file_at_once(parse):
    text = voc_xml("wide", 0, [("a", 2, 3, 4), (1, 2, 3, "nan")], name="", filename="../../etc/passwd")
    _, faults = parse(text)
    assert [fault.field for fault in faults] == [
        "filename",
        "size.width",
        "size.height",
        "object[0].name",
        "object[0].bndbox.xmin",
        "object[1].name",
        "object[1].bndbox.ymax",
    ]


@for_every("value", ["0", "-5", "3.5", "nan", ""])
def test_sizes_that_are_no_pixel_counts(parse, value):
    record, faults = parse(voc_xml(width=value))
    assert record is None
    assert [fault.field for fault in faults] == ["size.width"]


def test_missing_size_and_box(parse):
    _, faults = parse("<annotation><object><name>Target</name></object></annotation>")
    assert [f.field for f in faults] == ["size.width", "size.height"]
    _, faults = parse("<annotation><object><name>Target</name><bndbox></bndbox></object></annotation>")
    assert [f.field for f in faults][2:] == [f"object[0].bndbox.{c}" for c in ("xmin", "ymin", "xmax", "ymax")]


@for_every("name", ["C:\\data\\a.png", "frames/a.png", "/home/me/a.png", "a.png"])
def test_paths_in_filename(parse, name):
    record, faults = parse(voc_xml(filename=name))  # nothing is opened by this name
    assert (faults, len(record.objects)) == ([], 1)


def test_objects_without_box_are_no_target(parse):
    text = voc_xml(boxes=[]).replace("</annotation>", "<object><name>Target</name></object><object/></annotation>")
    record, faults = parse(text)
    assert (faults, record.objects, record.boxless) == ([], (), 2)
    record, _ = parse(voc_xml().replace("</annotation>", "<object></object></annotation>"))
    assert (len(record.objects), record.boxless) == (1, 1)


@for_every(
    ("outline", "tag"),
    [
        ("<robndbox><cx>5</cx><cy>5</cy><w>4</w><h>3</h><angle>0.1</angle></robndbox>", "robndbox"),
        ("<deleted>0</deleted><polygon><pt><x>1</x><y>1</y></pt></polygon>", "polygon"),
        ("<part><name>wing</name><bndbox><xmin>1</xmin></bndbox></part>", "part"),
    ],
)
def test_outlines_other_than_boxes_are_not_passed_over(parse, outline, tag):
    text = voc_xml().replace("</annotation>", f"<object><name>Target</name>{outline}</object></annotation>")
    record, (fault,) = parse(text)
    assert record is None
    assert fault.kind is FaultKind.MISSING_FIELD
    assert (fault.field, fault.problem) == ("object[1].bndbox", f"missing, <{tag}> is not read")


@for_every("name", ["../a.png", "..", "..\\a.png", "a/../../b.png"])
def test_path_traversal_in_filename(parse, name):
    record, faults = parse(voc_xml(filename=name))
    assert record is None
    assert kinds(faults) == [FaultKind.UNSAFE_NAME]
    assert "leads out of the image folder" in str(faults[0])


@for_every("name", ["a.png", "Misc_1", "a..b", "紅外.png", "with space.png", ".hidden"])
def test_plain_names(name):
    assert is_plain_name(name)


@for_every("name", ["", ".", "..", "a/", "/a", "a\0b"])
def test_names_that_are_not_plain(name):
    assert not is_plain_name(name)


def faults_of(*boxes, name="Target"):
    record = VocRecord(32, 24, None, None, tuple(VocObject(name, False, box) for box in boxes))
    return find_box_faults(record, "a.xml", {"target": 0})


def test_sound_boxes():
    assert faults_of((0, 0, 32, 24), (31, 23, 32, 24), (0.5, 0.5, 0.75, 0.75)) == []


@for_every("box", [(5, 5, 5, 9), (5, 5, 9, 5), (9, 5, 5, 9), (5, 5, 5, 5)])
def test_boxes_without_area(box):
    faults = faults_of((1, 1, 2, 2), box)
    assert kinds(faults) == [FaultKind.BAD_BOX]
    assert faults[0].field == "object[1].bndbox"


@for_every("box", [(-1, 0, 4, 4), (0, -0.5, 4, 4), (30, 0, 33, 4), (0, 20, 4, 24.5)])
def test_boxes_outside(box):
    faults = faults_of(box)
    assert kinds(faults) == [FaultKind.BOX_OUTSIDE]
    assert "leaves the image of 32x24" in faults[0].problem


def test_other_classes_and_case():
    assert faults_of((1, 1, 2, 2), name="TARGET") == []
    assert kinds(faults_of((2, 2, 1, 1), name="TARGET")) == [FaultKind.BAD_BOX]
    assert faults_of((2, 2, 1, 1), name="bird") == []  # left out, and with it what is wrong with it


def test_conventions():
    assert to_convention((3, 4, 6, 8), "half_open") == [3, 4, 6, 8]
    assert to_convention((3, 4, 6, 8), "paper") == [2, 3, 5, 7]
    assert to_convention((3, 4, 6, 8), "one_based") == [2, 3, 5, 7]
    assert to_convention((3, 4, 6, 8), "inclusive") == [2, 3, 6, 8]
    with pytest.raises(ConfigError, match="half_open, one_based, inclusive, paper"):
        to_convention((3, 4, 6, 8), "voc")


def test_boxes_are_judged_in_their_convention():
    def kinds_of(convention, *box):
        record = VocRecord(32, 24, None, None, (VocObject("Target", False, box),))
        return kinds(find_box_faults(record, "a.xml", {"target"}, convention))

    assert kinds_of("inclusive", 11, 11, 11, 11) == []  # one pixel
    assert kinds_of("half_open", 11, 11, 11, 11) == kinds_of("one_based", 11, 11, 11, 11) == [FaultKind.BAD_BOX]
    assert kinds_of("inclusive", 1, 1, 32, 24) == kinds_of("one_based", 1, 1, 33, 25) == []
    assert kinds_of("half_open", 0, 0, 32, 24) == kinds_of("paper", 0, 0, 32, 24) == []
    for convention in ("inclusive", "one_based"):
        assert kinds_of(convention, 0, 1, 5, 5) == [FaultKind.BOX_OUTSIDE]
    assert kinds_of("half_open", 1, 1, 33, 5) == [FaultKind.BOX_OUTSIDE]


NUMBERS = st.one_of(st.integers(-10, 60), st.floats(-5, 60, allow_nan=False).map(lambda v: round(v, 3)))


@fresh_file
@given(boxes=st.lists(st.tuples(NUMBERS, NUMBERS, NUMBERS, NUMBERS), max_size=5))
def test_boxes_come_back_as_written_and_are_judged_right(tmp_path, boxes):
    path = tmp_path / "a.xml"
    path.write_text(voc_xml(50, 40, boxes))
    record, faults = parse_voc_xml(path)
    assert faults == []
    assert [obj.box for obj in record.objects] == boxes
    bad = {i for i, (x1, y1, x2, y2) in enumerate(boxes) if not (0 <= x1 < x2 <= 50 and 0 <= y1 < y2 <= 40)}
    found = find_box_faults(record, path, {"target": 0})
    assert {int(fault.field.split("[")[1].split("]")[0]) for fault in found} == bad
    assert len(found) == len(bad)
    for box in boxes:
        shifted = to_convention(box, "paper")
        assert all(math.isclose(a - b, -1, abs_tol=1e-9) for a, b in zip(shifted, box))


TAGS = ("annotation", "size", "width", "object", "bndbox", "xmin", "name", "view", "filename")
XML_WORDS = st.sampled_from(
    [
        *(f"<{tag}>" for tag in TAGS),
        *(f"</{tag}>" for tag in TAGS),
        *("12", "nan", "-1e99", "&amp;", "&x;", "<!DOCTYPE a>", "]]>", "<!--", "-->", "<![CDATA[", "é", "\0", "../x"),
    ]
)


@settings(fresh_file, max_examples=300)
@given(data=st.one_of(st.binary(max_size=200), st.lists(XML_WORDS, max_size=40).map(lambda w: "".join(w).encode())))
def test_any_bytes_give_a_record_or_faults(tmp_path, data):
    path = tmp_path / "a.xml"
    path.write_bytes(data)
    record, faults = parse_voc_xml(path)
    assert (record is None) == bool(faults)
    for fault in faults:
        assert fault.file == str(path)
        assert fault.fix


@for_every(
    ("old", "new", "field"),
    [
        ("object>", "Object>", "object"),
        ("<object>", "<objects><object>", "object"),
        ("<annotation>", "<annotation xmlns='x'>", "file"),
        ("<object>", "<object xmlns='x'>", "object"),
        ("<bndbox>", "<bndbox/><bndbox>", "object[0].bndbox"),
    ],
)
def test_boxes_in_another_place_are_not_passed_over(parse, old, new, field):
    text = voc_xml().replace(old, new)
    record, faults = parse(text.replace("</object>", "</object></objects>") if "objects" in new else text)
    assert record is None
    assert faults[0].field == field
