"""VOC and COCO as sources of a conversion: what is read, what is counted as unread, what is refused."""

import json

import pytest
from detection_sets import as_set, make_record
from hypothesis import given, settings
from hypothesis import strategies as st
from voc_files import VocSet, voc_xml

from irstd_d2.data.convert import (
    TargetObject,
    read_coco,
    read_voc,
    write_set,
)
from irstd_d2.data.convert.coco_format import to_xywh
from irstd_d2.errors import DatasetError


def test_voc_reads_the_named_images_and_counts_what_it_does_not_read(tmp_path):
    voc = VocSet(tmp_path)
    for name, class_name in (("a", "Bird"), ("b", "Target"), ("c", "bird")):
        voc.add(name).xml(name).write_text(voc_xml(name=class_name, difficult=int(name == "a")))
    pose = voc_xml().replace(
        "<difficult>0", "<pose>Left</pose><truncated>1</truncated><occluded>0</occluded><difficult>0"
    )
    voc.xml("b").write_text(pose.replace("<size>", "<segmented>0</segmented><owner><name>me</name></owner><size>"))
    assert read_voc(tmp_path).class_names == ("Bird", "Target")
    voc.split("train", "a\nb\n")
    found = read_voc(tmp_path)
    assert [record.name for record in found.records] == ["a", "b"]
    assert found.records[0].objects == (TargetObject("Bird", (3, 4, 6, 8), True),)
    tags = {"<owner> of XML files": 1, "<pose> of objects": 1, "<truncated> of objects": 1}
    assert found.unread == tags | {"images in no list": 1}
    assert len(read_voc(tmp_path, use_splits=False).records) == 3
    voc.xml("b").write_text("torn")
    with pytest.raises(DatasetError, match=r"b\.xml"):
        read_voc(tmp_path)
    assert [record.name for record in read_voc(tmp_path, skip_bad=True).records] == ["a"]


def test_voc_refuses_names_that_xml_cannot_hold(pixels, tmp_path):
    with pytest.raises(DatasetError, match="'A\\\\x01' cannot stand in XML"):
        write_set(as_set(make_record(pixels, platform="A\x01")), tmp_path / "out", "voc")
    assert list(tmp_path.iterdir()) == []


def write_json(path, images, annotations=(), categories=({"id": 3, "name": "Bird"},)):
    path.write_text(json.dumps({"images": images, "annotations": annotations, "categories": categories}))
    return path


def test_coco_names_images_by_their_path_and_counts_what_it_does_not_read(tmp_path):
    entries = [{"id": i, "file_name": f"{folder}/x.png", "width": 8, "height": 9} for i, folder in enumerate("ab")]
    box = {"id": 1, "image_id": 0, "category_id": 3, "bbox": [1, 2, 3, 4]}
    first = write_json(
        tmp_path / "instances_train.json", entries[:1], [box | {"segmentation": [], "attributes": {"x": 1}, "score": 0}]
    )
    write_json(tmp_path / "instances_val.json", [entries[0] | {"license": 4}, entries[1]], [box])
    found = read_coco(tmp_path)
    assert found.splits == {"train": ("a__x",), "val": ("a__x", "b__x")}
    assert found.records[0].objects == (TargetObject("Bird", (1, 2, 4, 6)),)
    assert found.unread == {"'attributes' of annotations": 1, "'license' of images": 1}
    write_json(first, entries[:1], [box | {"iscrowd": 1}])
    with pytest.raises(DatasetError, match=r"instances_val\.json: images: x\.png is described otherwise in"):
        read_coco(tmp_path)
    assert not read_coco(write_json(tmp_path / "mine.json", entries)).splits
    (tmp_path / "empty").mkdir()
    with pytest.raises(DatasetError, match="no file instances_"):
        read_coco(tmp_path / "empty")


def test_coco_refuses_images_of_one_name(tmp_path):
    entries = [
        {"id": i, "file_name": f"x.{suffix}", "width": 8, "height": 9} for i, suffix in enumerate(("png", "tif"))
    ]
    with pytest.raises(DatasetError, match=r"x\.tif: file name: the same name as .*x\.png: 'x'"):
        read_coco(write_json(tmp_path / "mine.json", entries))
    files = []
    for folder, entry in zip("ab", entries):
        (tmp_path / folder).mkdir()
        files.append(write_json(tmp_path / folder / "instances_train.json", [entry]))
    with pytest.raises(DatasetError, match="two images have the same name"):
        read_coco(files)


@given(low=st.floats(0, 1e6), high=st.integers(1, 10**6))
@settings(max_examples=300)
def test_coco_boxes_end_at_whole_pixels_exactly(low, high):
    low = min(low, high - 1e-6)
    x, y, width, height = to_xywh((low, 0.0, high, high))
    assert x + width == high
    assert (y, height) == (0.0, high)
