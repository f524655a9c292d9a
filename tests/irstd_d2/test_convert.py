"""Conversion as a whole: round trips exact to the box, complete or not at all, every format found out."""

import json
from dataclasses import replace
from pathlib import Path

import cv2
import pytest
from detection_sets import HEIGHT, WIDTH, as_set, facts, make_record
from detectron2.data import DatasetCatalog, MetadataCatalog
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from PIL import Image
from voc_files import VocSet

from irstd_d2.data import read_sky_mask, register_voc_folder
from irstd_d2.data.convert import (
    DetectionSet,
    TargetObject,
    detect_format,
    read_coco,
    read_masks,
    read_registered,
    read_voc,
    read_yolo,
    with_metadata,
    write_set,
)
from irstd_d2.errors import ConfigError, DatasetError

READERS = {"voc": read_voc, "coco": read_coco, "mask": read_masks, "yolo": read_yolo}


def number(low, high):
    whole, any_float = st.integers(low, high).map(float), st.floats(low, high, allow_subnormal=False)
    return whole | any_float | any_float.map(lambda value: round(value, 3))


@st.composite
def free_boxes(draw):
    x1, x2 = sorted(draw(st.tuples(number(0, WIDTH), number(0, WIDTH))))
    y1, y2 = sorted(draw(st.tuples(number(0, HEIGHT), number(0, HEIGHT))))
    return (x1, y1, x2, y2)


def boxes_with_area(least):
    return free_boxes().filter(lambda box: box[2] - box[0] > least and box[3] - box[1] > least)


names = st.text("abcxyz_ü 0123456789", min_size=1, max_size=8).filter(lambda name: name == name.strip())


words = st.none() | st.sampled_from(["Air", "Land", "Space", "LWIR", "NIR", "X, Y"])


@st.composite
def records(draw, pixels, least_side, difficult=True, class_names=("Target", "Vogel ö")):
    objects = draw(
        st.lists(
            st.builds(
                TargetObject,
                st.sampled_from(class_names),
                boxes_with_area(least_side),
                st.booleans() if difficult else st.just(False),
                st.none(),
            ),
            max_size=5,
        )
    )
    return make_record(
        pixels,
        draw(names),
        objects=tuple(objects),
        platform=draw(words),
        band=draw(words),
        original_size=draw(st.none() | st.just((600, 400))),
        sky_mask=draw(st.none() | st.just(pixels / "sky.png")),
    )


@st.composite
def sets(draw, pixels, **options):
    found = draw(st.lists(records(pixels, **options), min_size=1, max_size=4, unique_by=lambda r: r.name.lower()))
    all_names = [record.name for record in found]
    cut = draw(st.integers(0, len(all_names)))
    splits = {"train_v2": tuple(all_names[:cut]), "val": tuple(all_names[cut:])} if 0 < cut < len(all_names) else {}
    return DetectionSet(tuple(found), ("Target", "Vogel ö"), splits)


many = settings(
    max_examples=15,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
    phases=(Phase.explicit, Phase.reuse, Phase.generate),  # shrinking would write thousands of folders
)


@pytest.mark.parametrize(("target_format", "error"), [("voc", 0), ("coco", 1e-14), ("yolo", 1e-9)])
@given(data=st.data())
@many
def test_what_comes_back_is_what_went_in(pixels, tmp_path, target_format, error, data):
    yolo = target_format == "yolo"
    original = data.draw(sets(pixels, least_side=1e-3 if yolo else 1e-9, difficult=not yolo))
    assert not write_set(original, tmp_path / target_format, target_format, overwrite=True).lost
    again = READERS[target_format](tmp_path / target_format)
    assert not again.unread
    assert facts(again)[1] == facts(original)[1]
    known = {record.name: record for record in again.records}
    assert len(known) == len(original.records)
    for record in original.records:
        found = known[record.name]
        assert facts(as_set(replace(found, objects=()))) == facts(as_set(replace(record, objects=())))
        assert [obj._replace(box=()) for obj in found.objects] == [obj._replace(box=()) for obj in record.objects]
        for obj, other in zip(record.objects, found.objects):
            for value, read in zip(obj.box, other.box):
                assert read == value if float(value).is_integer() else abs(read - value) <= error


@st.composite
def separate_boxes(draw):
    """Whole boxes in cells of a grid, a pixel apart, so that no two components touch."""
    cells = draw(st.sets(st.tuples(st.integers(0, 5), st.integers(0, 3)), max_size=8))
    boxes = []
    for x, y in cells:
        left, top = draw(st.integers(0, 4)), draw(st.integers(0, 4))
        right, bottom = draw(st.integers(left + 1, 9)), draw(st.integers(top + 1, 9))
        boxes.append((x * 10 + left, y * 10 + top, x * 10 + right, y * 10 + bottom))
    return boxes


@given(boxes=separate_boxes())
@many
def test_boxes_that_do_not_touch_survive_masks_and_every_other_format(pixels, tmp_path, boxes):
    original = as_set(make_record(pixels, boxes=boxes, platform="Air", sky_mask=pixels / "sky.png"))
    current = original
    for target_format in ("mask", "coco", "mask", "yolo", "mask", "voc"):
        report = write_set(current, tmp_path / target_format, target_format, overwrite=target_format != "voc")
        assert set(report.lost) <= {"target masks (their boxes are kept)"}
        # Read before the folder is replaced.
        current = READERS[target_format](tmp_path / target_format)
        assert facts(current) == facts(original)
        current = replace(
            current,
            records=tuple(
                replace(r, image=pixels / "image.png", sky_mask=pixels / "sky.png", target_mask=None)
                for r in current.records
            ),
        )
    (tmp_path / "voc").rename(tmp_path / f"voc{len(list(tmp_path.iterdir()))}")


def test_registered_sets(tmp_path):
    VocSet(tmp_path).add("a", extra="<view>Air</view>").add("b", boxes=())
    register_voc_folder("convert_test", tmp_path)
    try:
        found = read_registered("convert_test")
    finally:
        DatasetCatalog.remove("convert_test")
        MetadataCatalog.remove("convert_test")
    assert found.splits == {"convert_test": ("a", "b")}
    assert [(r.platform, len(r.objects)) for r in found.records] == [("Air", 1), (None, 0)]
    given_all = with_metadata(found, "Land", "NIR")
    assert [(r.platform, r.band) for r in given_all.records] == [("Air", "NIR"), ("Land", "NIR")]


def test_formats_are_found_out(pixels, tmp_path):
    for target_format in READERS:
        write_set(as_set(make_record(pixels)), tmp_path / target_format, target_format)
        assert detect_format(tmp_path / target_format) == target_format
    assert detect_format(tmp_path / "coco" / "instances_all.json") == "coco"
    (tmp_path / "images").mkdir()
    assert detect_format(tmp_path) == "voc"


def test_nothing_appears_unless_everything_is_written(pixels, tmp_path):
    absent = replace(make_record(pixels, "b"), image=tmp_path / "absent.png")
    with pytest.raises(DatasetError, match=r"absent\.png: file: cannot be opened"):
        write_set(as_set(make_record(pixels), absent), tmp_path / "out", "voc")
    assert list(tmp_path.iterdir()) == []
    write_set(as_set(make_record(pixels)), tmp_path / "out", "voc")
    with pytest.raises(DatasetError, match=r"out: folder: exists\. Fix: choose another folder, or pass --overwrite"):
        write_set(as_set(make_record(pixels, "b")), tmp_path / "out", "voc")
    before = read_voc(tmp_path / "out")
    with pytest.raises(DatasetError, match="holds the set that is read"):
        write_set(before, tmp_path / "out", "coco", overwrite=True)
    with pytest.raises(DatasetError, match="absent"):
        write_set(as_set(absent), tmp_path / "out", "voc", overwrite=True)
    assert facts(read_voc(tmp_path / "out")) == facts(before)
    write_set(as_set(make_record(pixels, "b")), tmp_path / "out", "voc", overwrite=True)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    with pytest.raises(DatasetError, match="the set holds no image"):
        write_set(as_set(), tmp_path / "empty", "voc")
    with pytest.raises(ConfigError, match="the format is 'png'"):
        write_set(as_set(make_record(pixels)), tmp_path / "png", "png")


def test_links_and_foreign_sky_masks(pixels, tmp_path):
    cv2.imwrite(str(tmp_path / "sky.bmp"), cv2.imread(str(pixels / "sky.png"), 0))
    record = make_record(pixels, sky_mask=tmp_path / "sky.bmp")
    write_set(as_set(record), tmp_path / "out", "coco", link=True)
    (again,) = read_coco(tmp_path / "out").records
    assert again.image.is_symlink()
    assert again.image.resolve() == (pixels / "image.png").resolve()
    assert (read_sky_mask(again.sky_mask) == read_sky_mask(pixels / "sky.png")).all()


def test_real_images_survive_every_format(omni_mini, tmp_path):
    """300 real images with 407 targets, two of which touch."""
    original = read_voc(omni_mini)
    assert (len(original.records), original.num_objects) == (300, 407)
    expected = {r.name: (sorted(r.objects), r.platform, r.band, r.size) for r in original.records}
    for target_format in ("voc", "coco", "yolo", "mask"):
        assert not write_set(original, tmp_path / target_format, target_format, link=True).lost
        again = READERS[target_format](tmp_path / target_format)
        assert {r.name: (sorted(r.objects), r.platform, r.band, r.size) for r in again.records} == expected
        assert again.splits == original.splits
    assert Path(tmp_path / "mask" / "metadata.csv").read_text().startswith("id,platform,band,width,height\n00001,Air,")


def _coco(pixels, folder, width, height):
    image = {"id": 1, "file_name": "image.png", "width": width, "height": height}
    target = {"id": 1, "image_id": 1, "category_id": 1, "bbox": [5, 6, 4, 4]}
    (folder / "image.png").write_bytes((pixels / "image.png").read_bytes())
    content = {"images": [image], "annotations": [target], "categories": [{"id": 1, "name": "Target"}]}
    (folder / "instances_all.json").write_text(json.dumps(content))
    return read_coco(folder)


@pytest.mark.parametrize("target_format", ["yolo", "mask", "voc", "coco"])
@pytest.mark.parametrize(("width", "height"), [(40, 60), (60, 41)])
def test_images_of_another_size_than_annotated_are_not_written(pixels, tmp_path, target_format, width, height):
    """Fractions of a YOLO file would be those of another image."""
    found = _coco(pixels, tmp_path, width, height)
    with pytest.raises(DatasetError, match=rf"image\.png: size: 60x40 pixels, but annotated as {width}x{height}"):
        write_set(found, tmp_path / "out", target_format)
    assert not (tmp_path / "out").exists()
    with pytest.raises(DatasetError, match="the set holds no image"):
        write_set(found, tmp_path / "out", target_format, skip_bad=True)


def test_an_upright_size_is_that_of_a_turned_jpeg(pixels, tmp_path):
    turned = Image.Exif()
    turned[0x0112] = 6
    found = _coco(pixels, tmp_path, 40, 60)
    Image.open(tmp_path / "image.png").convert("L").save(tmp_path / "image.png", format="JPEG", exif=turned)
    assert write_set(found, tmp_path / "out", "yolo").images == 1
