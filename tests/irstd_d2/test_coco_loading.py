"""COCO files: the same boxes, every fault named, nothing hostile let in."""

import json
import logging
import math

import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.structures import BoxMode
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from irstd_d2.data import load_coco, register_coco_folder
from irstd_d2.data.coco import is_contained, scan_coco
from irstd_d2.data.faults import FaultKind
from irstd_d2.errors import DatasetError


def content():
    return {
        "images": [
            {"id": 7, "file_name": "b.png", "width": 32, "height": 24, "view": "Air", "band": "LWIR"},
            {"id": 3, "file_name": "sub/a.png", "width": 16, "height": 16, "sem_seg_file_name": "sky/a.png"},
        ],
        "annotations": [
            {"image_id": 7, "category_id": 5, "bbox": [1, 2, 3, 4]},
            {"image_id": 7, "category_id": 2, "bbox": [0.5, 0, 31.5, 24], "iscrowd": 1},
        ],
        "categories": [{"id": 5, "name": "Target"}, {"id": 2, "name": "bird"}],
    }


@pytest.fixture
def write(tmp_path):
    def run(data):
        path = tmp_path / "instances.json"
        path.write_text(data if isinstance(data, str) else json.dumps(data), encoding="utf-8")
        return path

    return run


def test_loads(write, tmp_path):
    dicts, names = load_coco(write(content()), tmp_path)
    assert names == ["bird", "Target"]
    assert [sample["image_id"] for sample in dicts] == [3, 7]
    assert dicts[0] == {
        "file_name": str(tmp_path / "sub" / "a.png"),
        "sem_seg_file_name": str(tmp_path / "sky" / "a.png"),
        "image_id": 3,
        "height": 16,
        "width": 16,
        "metadata": {"platform": None, "band": None, "width": 16, "height": 16},
        "annotations": [],
    }
    assert dicts[1]["metadata"] == {"platform": "Air", "band": "LWIR", "width": 32, "height": 24}
    assert dicts[1]["annotations"] == [
        {"bbox": [1, 2, 4, 6], "bbox_mode": BoxMode.XYXY_ABS, "category_id": 1, "iscrowd": 0},
        {"bbox": [0.5, 0, 32, 24], "bbox_mode": BoxMode.XYXY_ABS, "category_id": 0, "iscrowd": 1},
    ]


@pytest.mark.parametrize(
    ("top", "inside", "expected"),
    [
        ({}, {"platform": "Space", "band": "NIR"}, ("Space", "NIR", 32, 24)),
        ({}, {"view": "Space", "band_type": "NIR"}, ("Space", "NIR", 32, 24)),
        ({"platform": "Air"}, {"platform": "Space", "band": "NIR"}, ("Air", "NIR", 32, 24)),
        ({"Platform": "Space", "BAND": "NIR"}, {}, ("Space", "NIR", 32, 24)),
        ({}, {"View": "Space", "Band_Type": "NIR"}, ("Space", "NIR", 32, 24)),
        ({"platform": ""}, {"platform": "Space"}, ("Space", None, 32, 24)),
        ({}, {"width": 640, "height": 512}, (None, None, 640, 512)),
        ({}, {"original_width": 640, "original_height": 512}, (None, None, 640, 512)),
        ({"original_width": 64}, {"width": 640, "height": 512}, (None, None, 64, 512)),
        ({}, {"width": "640", "height": -1, "platform": 3, "band": ""}, ("3", None, 640, 24)),
        ({"original_width": 640.0, "original_height": "512"}, {"platform": " Air "}, ("Air", None, 640, 512)),
        ({"platform": 0, "band": ["LWIR"]}, {"width": "wide", "height": True}, ("0", None, 32, 24)),
    ],
)
def test_metadata_may_stand_in_their_object(write, tmp_path, top, inside, expected):
    image = {"id": 1, "file_name": "a.png", "width": 32, "height": 24, **top, "metadata": inside}
    ((sample,), _) = load_coco(write({"images": [image], "annotations": [], "categories": []}), tmp_path)
    assert tuple(sample["metadata"][key] for key in ("platform", "band", "width", "height")) == expected


def test_chosen_classes(write, tmp_path):
    data = content()
    del data["annotations"][1]
    dicts, names = load_coco(write(data), tmp_path, class_names=["target"])
    assert names == ["target"]
    assert dicts[1]["annotations"][0]["category_id"] == 0
    scan = scan_coco(write(content()), tmp_path, class_names=["target"])
    assert (scan.faults, dict(scan.left_out), len(scan.dicts)) == ([], {"bird": 1}, 2)


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "3", '{"images": []}', '{"images": {}, "annotations": [], "categories": []}']
)
def test_not_coco(write, tmp_path, text):
    with pytest.raises(DatasetError, match=r"instances\.json: (file|images|annotations): not"):
        load_coco(write(text), tmp_path)


def test_too_deep(write, tmp_path):
    with pytest.raises(DatasetError, match="not JSON"):
        load_coco(write("[" * 200_000), tmp_path)


def test_missing_or_too_large(tmp_path, write, monkeypatch):
    with pytest.raises(DatasetError, match="cannot be opened"):
        load_coco(tmp_path / "none.json", tmp_path)
    monkeypatch.setattr("irstd_d2.data.coco.MAX_JSON_BYTES", 5)
    with pytest.raises(DatasetError, match="larger than"):
        load_coco(write(content()), tmp_path)


@pytest.mark.parametrize("category", [{}, {"id": 1}, {"name": "a"}, {"id": 1.5, "name": "a"}, None])
def test_bad_categories(write, tmp_path, category):
    data = content()
    data["categories"].append(category)
    with pytest.raises(DatasetError, match=r"categories\[2\]: without id or name"):
        load_coco(write(data), tmp_path)


IMAGE, BOX = ("images", 0), ("annotations", 0)
FAULTS = [
    (IMAGE, "id", None, FaultKind.BAD_RECORD, "images[0].id"),
    (IMAGE, "id", True, FaultKind.BAD_RECORD, "images[0].id"),
    (IMAGE, "id", 3, FaultKind.BAD_RECORD, "images[1].id"),
    (IMAGE, "width", 0, FaultKind.MISSING_FIELD, "images[0]"),
    (IMAGE, "height", "24", FaultKind.MISSING_FIELD, "images[0]"),
    (IMAGE, "file_name", "../b.png", FaultKind.UNSAFE_NAME, "images[0].file_name"),
    (IMAGE, "file_name", "/etc/passwd", FaultKind.UNSAFE_NAME, "images[0].file_name"),
    (IMAGE, "file_name", "a/../../b", FaultKind.UNSAFE_NAME, "images[0].file_name"),
    (IMAGE, "file_name", None, FaultKind.MISSING_FIELD, "images[0].file_name"),
    (IMAGE, "file_name", "..\\b.png", FaultKind.UNSAFE_NAME, "images[0].file_name"),
    (IMAGE, "file_name", "C:\\b.png", FaultKind.UNSAFE_NAME, "images[0].file_name"),
    (IMAGE, "file_name", "\\b.png", FaultKind.UNSAFE_NAME, "images[0].file_name"),
    (IMAGE, "sem_seg_file_name", "../m.png", FaultKind.UNSAFE_NAME, "images[0].sem_seg_file_name"),
    (IMAGE, "sem_seg_file_name", 5, FaultKind.MISSING_FIELD, "images[0].sem_seg_file_name"),
    (BOX, "image_id", 99, FaultKind.BAD_RECORD, "annotations[0].image_id"),
    (BOX, "image_id", [7], FaultKind.BAD_RECORD, "annotations[0].image_id"),
    (BOX, "category_id", 1, FaultKind.UNKNOWN_CLASS, "annotations[0].category_id"),
    (BOX, "category_id", {}, FaultKind.UNKNOWN_CLASS, "annotations[0].category_id"),
    (BOX, "iscrowd", "1", FaultKind.BAD_RECORD, "annotations[0].iscrowd"),
    (BOX, "iscrowd", 2, FaultKind.BAD_RECORD, "annotations[0].iscrowd"),
    (BOX, "bbox", [1, 2, 3], FaultKind.MISSING_FIELD, "annotations[0].bbox"),
    (BOX, "bbox", [1, 2, math.nan, 4], FaultKind.MISSING_FIELD, "annotations[0].bbox"),
    (BOX, "bbox", [1, 2, math.inf, 4], FaultKind.MISSING_FIELD, "annotations[0].bbox"),
    (BOX, "bbox", [1, 2, True, 4], FaultKind.MISSING_FIELD, "annotations[0].bbox"),
    (BOX, "bbox", "1,2,3,4", FaultKind.MISSING_FIELD, "annotations[0].bbox"),
    (BOX, "bbox", [1, 2, 0, 4], FaultKind.BAD_BOX, "annotations[0].bbox"),
    (BOX, "bbox", [1, 2, 3, -4], FaultKind.BAD_BOX, "annotations[0].bbox"),
    (BOX, "bbox", [-1, 2, 3, 4], FaultKind.BOX_OUTSIDE, "annotations[0].bbox"),
    (BOX, "bbox", [30, 2, 3, 4], FaultKind.BOX_OUTSIDE, "annotations[0].bbox"),
]


@pytest.mark.parametrize(("place", "key", "value", "kind", "field"), FAULTS)
def test_faults(write, tmp_path, place, key, value, kind, field, caplog):
    data = content()
    del data["annotations"][1]
    data[place[0]][place[1]][key] = value
    path = write(data)
    faults = scan_coco(path, tmp_path).faults
    assert (kind, field) in [(fault.kind, fault.field) for fault in faults]
    with pytest.raises(DatasetError, match=r"instances\.json.*Fix: "):
        load_coco(path, tmp_path)
    caplog.set_level(logging.WARNING, logger="irstd_d2")
    dicts, _ = load_coco(path, tmp_path, skip_bad=True)
    assert 7 not in [sample["image_id"] for sample in dicts] or field == "annotations[0].image_id"
    assert f" x {kind}" in caplog.text


def test_entries_that_are_no_objects(write, tmp_path):
    data = content()
    data["images"].append(5)
    data["annotations"].append("x")
    scan = scan_coco(write(data), tmp_path)
    assert len(scan.dicts) == 2
    assert [fault.field for fault in scan.faults] == ["images[2].id", "annotations[2].image_id"]


@pytest.mark.parametrize("name", ["sub\\a.png", "sub/a.png", ".\\sub\\a.png"])
def test_windows_separators(write, tmp_path, name):
    data = content()
    data["images"][1] |= {"file_name": name, "sem_seg_file_name": name}
    sample = load_coco(write(data), tmp_path)[0][0]
    assert sample["file_name"] == sample["sem_seg_file_name"] == str(tmp_path / "sub" / "a.png")


def test_an_image_without_file_name_says_so(write, tmp_path):
    data = content()
    del data["images"][0]["file_name"]
    with pytest.raises(DatasetError, match=r"images\[0\]\.file_name: missing\. Fix: write a path"):
        load_coco(write(data), tmp_path)


def test_string_and_number_ids_together(write, tmp_path):
    data = content()
    data["images"].append({"id": "x", "file_name": "x.png", "width": 4, "height": 4})
    assert [sample["image_id"] for sample in load_coco(write(data), tmp_path)[0]] == [3, 7, "x"]


@pytest.mark.parametrize("name", ["a.png", "a/b/c.png", "紅外.png", "..a/b", "a..b"])
def test_contained(name):
    assert is_contained(name)


@pytest.mark.parametrize("name", ["", "..", "../a", "a/..", "/a", "C:/a", "C:a", "a\\b", "..\\a", "a\0"])
def test_not_contained(name):
    assert not is_contained(name)


def test_registration(write, tmp_path):
    register_coco_folder("coco_loading_test", write(content()), tmp_path)
    register_coco_folder("coco_loading_named", write(content()), tmp_path, class_names=["bird", "target"])
    try:
        assert MetadataCatalog.get("coco_loading_named").thing_classes == ["bird", "target"]
        assert len(DatasetCatalog.get("coco_loading_test")) == 2
        assert MetadataCatalog.get("coco_loading_test").thing_classes == ["bird", "Target"]
        assert MetadataCatalog.get("coco_loading_test").evaluator_type == "coco"
    finally:
        for name in ("coco_loading_test", "coco_loading_named"):
            DatasetCatalog.remove(name)
            MetadataCatalog.remove(name)


JSON = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(-5, 40), st.floats(), st.sampled_from(["a.png", "../x", "Target"])),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(["id", "bbox", "name"]), inner),
    max_leaves=8,
)
ENTRY = st.fixed_dictionaries(
    {},
    optional=dict.fromkeys(("id", "file_name", "width", "height", "image_id", "category_id", "bbox", "iscrowd"), JSON),
)


@settings(deadline=None, max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(images=st.lists(ENTRY | JSON, max_size=3), annotations=st.lists(ENTRY | JSON, max_size=4))
def test_any_json(tmp_path, images, annotations):
    path = tmp_path / "any.json"
    base = content()
    path.write_text(json.dumps({**base, "images": base["images"] + images, "annotations": annotations}))
    scan = scan_coco(path, tmp_path)
    for sample in scan.dicts:
        assert str(tmp_path) in sample["file_name"]
        for obj in sample["annotations"]:
            x1, y1, x2, y2 = obj["bbox"]
            assert 0 <= x1 < x2 <= sample["width"]
            assert 0 <= y1 < y2 <= sample["height"]
    assert len(scan.dicts) + len(scan.faults) >= 2


@pytest.mark.parametrize("name", ["b.png", "sub/b.png", "sub\\b.png"])
def test_two_entries_of_one_file_would_each_lack_targets(write, tmp_path, name):
    data = content()
    data["images"][0]["file_name"] = "sub/b.png" if "sub" in name else name
    data["images"].append({"id": 9, "file_name": name, "width": 32, "height": 24})
    data["annotations"].append({"image_id": 9, "category_id": 5, "bbox": [9, 9, 3, 4]})
    with pytest.raises(DatasetError, match=r"images\[2\].file_name: that of image 7 too"):
        load_coco(write(data), tmp_path)
    dicts, _ = load_coco(write(data), tmp_path, skip_bad=True)
    assert [sample["image_id"] for sample in dicts] == [3]


@pytest.mark.parametrize("box", [[0.25, 0.5, 0.25, 0.5], [0, 0, 1, 0.5]])
def test_boxes_in_fractions_are_refused(write, tmp_path, box):
    data = content() | {"annotations": [{"image_id": 7, "category_id": 5, "bbox": box}] * 2}
    with pytest.raises(DatasetError, match="boxes: all 2 lie within the first pixel: they seem to be fractions"):
        load_coco(write(data), tmp_path)


@pytest.mark.parametrize("box", [[0.5, 0.5, 0.5, 0.75], [0, 0, 1, 1]])
def test_small_boxes_are_no_fractions(write, tmp_path, box):
    data = content() | {"annotations": [{"image_id": 7, "category_id": 5, "bbox": box}]}
    x, y, width, height = box
    assert load_coco(write(data), tmp_path)[0][1]["annotations"][0]["bbox"] == [x, y, x + width, y + height]


@pytest.mark.parametrize(("mode", "sound"), [(None, True), (1, True), (0, False), ("xyxy", False)])
def test_boxes_of_another_mode_are_refused(write, tmp_path, mode, sound):
    data = content()
    data["annotations"][0]["bbox_mode"] = mode
    faults = scan_coco(write(data), tmp_path).faults
    assert [fault.field for fault in faults] == ([] if sound else ["annotations[0].bbox_mode"])
