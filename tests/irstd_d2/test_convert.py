"""Converters: round trips exact to the box, and an honest account of what gets lost."""

import json
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from voc_files import VocSet, voc_xml

from irstd_d2.convert import (
    DetectionSet,
    ImageRecord,
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
from irstd_d2.convert.coco_format import to_xywh
from irstd_d2.convert.yolo_format import read_labels
from irstd_d2.data import read_sky_mask, register_voc_folder
from irstd_d2.data.target_masks import component_boxes, read_target_mask
from irstd_d2.errors import ConfigError, DatasetError

READERS = {"voc": read_voc, "coco": read_coco, "mask": read_masks, "yolo": read_yolo}
WIDTH, HEIGHT = 60, 40


@pytest.fixture(scope="module")
def pixels(tmp_path_factory):
    """An image and a sky mask that records can share."""
    folder = tmp_path_factory.mktemp("pixels")
    cv2.imwrite(str(folder / "image.png"), np.arange(HEIGHT * WIDTH, dtype=np.uint16).reshape(HEIGHT, WIDTH))
    sky = np.zeros((HEIGHT, WIDTH), np.uint8)
    sky[:20], sky[20] = 1, 255
    cv2.imwrite(str(folder / "sky.png"), sky)
    return folder


def make_record(pixels, name="a", boxes=((3, 4, 6, 8),), **values):
    objects = tuple(TargetObject("Target", box) for box in boxes)
    return ImageRecord(name, pixels / "image.png", (WIDTH, HEIGHT), **{"objects": objects, **values})


def as_set(*records, **values):
    return DetectionSet(tuple(records), **{"class_names": ("Target",), **values})


def facts(detection_set):
    """What must survive a round trip: everything but the places of files."""
    return {
        record.name: (
            record.size,
            sorted(record.objects),
            record.platform,
            record.band,
            record.original_size,
            None if record.sky_mask is None else record.sky_mask.read_bytes(),
            record.image.read_bytes(),
        )
        for record in detection_set.records
    }, {split: sorted(names) for split, names in detection_set.splits.items()}


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


@given(mask=st.integers(0, 2**36 - 1))
@settings(max_examples=100, deadline=None)
def test_components_are_those_of_a_flood_fill(mask):
    grid = np.array([int(bit) for bit in f"{mask:036b}"]).reshape(6, 6)
    left, expected = {(int(y), int(x)) for y, x in zip(*grid.nonzero())}, set()
    while left:
        component, edge = set(), {left.pop()}
        while edge:
            component |= edge
            edge = {(y + dy, x + dx) for y, x in edge for dy in (-1, 0, 1) for dx in (-1, 0, 1)} & left
            left -= edge
        ys, xs = zip(*component)
        expected.add((min(xs), min(ys), max(xs) + 1, max(ys) + 1))
    assert sorted({tuple(box) for box in component_boxes(grid).tolist()}) == sorted(expected)


@given(low=st.floats(0, 1e6), high=st.integers(1, 10**6))
@settings(max_examples=300)
def test_coco_boxes_end_at_whole_pixels_exactly(low, high):
    low = min(low, high - 1e-6)
    x, y, width, height = to_xywh((low, 0.0, high, high))
    assert x + width == high
    assert (y, height) == (0.0, high)


def test_masks_count_what_they_cannot_hold(pixels, tmp_path):
    touching = make_record(pixels, "touching", [(0, 0, 3, 3), (3, 3, 5, 5), (10, 10, 12, 12)])
    fraction = make_record(pixels, "fraction", [(1.5, 2, 4, 5)])
    difficult = make_record(pixels, "difficult", objects=(TargetObject("Bird", (1, 1, 2, 2), True),))
    found = as_set(touching, fraction, difficult, class_names=("Bird", "Target"))
    report = write_set(found, tmp_path / "out", "mask")
    assert report.lost == {
        "boxes that are not the bounds of one component of the mask": 3,
        "difficult marks": 1,
        "class names": 5,
    }
    assert "lost, as the format cannot hold it: 5 x class names, 3 x boxes that" in str(report)
    again = {r.name: [o.box for o in r.objects] for r in read_masks(tmp_path / "out").records}
    assert again == {
        "difficult": [(1, 1, 2, 2)],
        "fraction": [(1, 2, 4, 5)],
        "touching": [(0, 0, 5, 5), (10, 10, 12, 12)],
    }


def test_target_masks_are_kept_where_there_is_a_place(pixels, tmp_path):
    mask = np.zeros((HEIGHT, WIDTH), np.uint8)
    mask[4, 3], mask[5, 4] = 255, 255  # one component across a corner
    cv2.imwrite(str(tmp_path / "mask.png"), mask)
    record = make_record(pixels, boxes=[(3, 4, 5, 6)], target_mask=tmp_path / "mask.png")
    assert not write_set(as_set(record), tmp_path / "omni", "voc", layout="wideirstd").lost
    assert not write_set(as_set(record), tmp_path / "masks", "mask").lost
    for again in (read_voc(tmp_path / "omni"), read_masks(tmp_path / "masks")):
        (record_again,) = again.records
        assert (cv2.imread(str(record_again.target_mask), 0) == mask).all()
        assert [obj.box for obj in record_again.objects] == [(3, 4, 5, 6)]
    for target_format in ("voc", "coco", "yolo"):
        report = write_set(as_set(record), tmp_path / target_format, target_format)
        assert report.lost == {"target masks (their boxes are kept)": 1}
    plain = make_record(pixels, sky_mask=pixels / "sky.png")
    assert write_set(as_set(plain), tmp_path / "v2", "voc", layout="sirstv2").lost == {"sky masks": 1}


def test_masks_of_many_kinds(tmp_path):
    path = tmp_path / "mask.png"
    for pixels_of_mask in (
        np.array([[0, 1], [0, 0]], np.uint8),
        np.array([[0, 65535], [9, 0]], np.uint16),
        np.stack([np.array([[0, 255], [100, 0]], np.uint8)] * 3, axis=2),
    ):
        cv2.imwrite(str(path), pixels_of_mask)
        assert read_target_mask(path, (2, 2)).tolist() == [[False, True], [False, False]]
    assert read_target_mask(path, (2, 2), threshold=0.1).tolist() == [[False, True], [True, False]]
    cv2.imwrite(str(path), np.zeros((2, 2), np.uint8))
    assert not read_target_mask(path, (2, 2)).any()
    with pytest.raises(DatasetError, match=r"mask\.png: size: 2x2 pixels, but its image has 3x2"):
        read_target_mask(path, (3, 2))


@pytest.fixture
def mask_folder(tmp_path):
    """As IRSTD-1K is published: two folders and lists of names."""
    root = tmp_path / "IRSTD-1K"
    for folder in ("IRSTD1k_Img", "IRSTD1k_Label"):
        (root / folder).mkdir(parents=True)
    for i in range(3):
        mask = np.zeros((20, 30), np.uint8)
        mask[i : i + 2, 5:8] = 255
        cv2.imwrite(str(root / "IRSTD1k_Img" / f"XDU{i}.png"), np.full((20, 30), 50, np.uint8))
        cv2.imwrite(str(root / "IRSTD1k_Label" / f"XDU{i}{'_pixels0' if i else ''}.png"), mask)
    (root / "trainval.txt").write_text("XDU0\nXDU2.png\n")
    (root / "lists").mkdir()
    (root / "lists" / "test_IRSTD-1K.txt").write_text("XDU1\n")
    return root


def test_a_published_mask_set(mask_folder):
    places = {"images": "IRSTD1k_Img", "masks": "IRSTD1k_Label"}
    found = read_masks(mask_folder, **places)
    assert found.splits == {"trainval": ("XDU0", "XDU2")}
    assert {record.name: record.objects[0].box for record in found.records} == {
        "XDU0": (5, 0, 8, 2),
        "XDU2": (5, 2, 8, 4),
    }
    found = read_masks(mask_folder, **places, splits={"test": "lists/test_IRSTD-1K.txt"}, class_name="ship")
    assert found.splits == {"test": ("XDU1",)}
    assert found.records[0].objects == (TargetObject("ship", (5, 1, 8, 3)),)
    assert len(read_masks(mask_folder, **places, splits={}).records) == 3
    table = mask_folder / "table.csv"
    table.write_text("id,platform,width\nXDU1,Land,300\n")
    (record,) = read_masks(mask_folder, **places, splits={"t": "lists/test_IRSTD-1K.txt"}, sidecar=table).records
    assert (record.platform, record.band, record.original_size) == ("Land", None, (300, 20))
    table.write_text("id,width\nXDU1,wide\n")
    with pytest.raises(DatasetError, match=r"table\.csv: line 2: width 'wide'"):
        read_masks(mask_folder, **places, sidecar=table)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda root: (root / "IRSTD1k_Label" / "XDU0.png").unlink(), r"XDU0: file: no such mask\. Fix: add the mask"),
        (
            lambda root: (root / "IRSTD1k_Img" / "XDU0.bmp").touch(),
            r"XDU0\.bmp: file: XDU0\.bmp, XDU0\.png all stand for",
        ),
        (lambda root: (root / "trainval.txt").write_text(""), r"trainval\.txt: file: no image name"),
    ],
)
def test_faulty_mask_sets_name_the_file(mask_folder, damage, message):
    damage(mask_folder)
    with pytest.raises(DatasetError, match=message):
        read_masks(mask_folder, images="IRSTD1k_Img", masks="IRSTD1k_Label")


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
    assert found.unread == {"<owner> of XML files": 1, "<pose> of objects": 1, "<truncated> of objects": 1}
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
        tmp_path / "instances_train.json", entries[:1], [box | {"segmentation": [[1, 2, 3]], "score": 0}]
    )
    write_json(tmp_path / "instances_val.json", [entries[0] | {"license": 4}, entries[1]], [box])
    found = read_coco(tmp_path)
    assert found.splits == {"train": ("a__x",), "val": ("a__x", "b__x")}
    assert found.records[0].objects == (TargetObject("Bird", (1, 2, 4, 6)),)
    assert found.unread == {"'segmentation' of annotations": 1, "'license' of images": 1}
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


@pytest.mark.parametrize("decimals", [4, 6, 8, 17])
def test_rounded_yolo_numbers_are_read_to_the_whole_pixel(tmp_path, decimals):
    rng = np.random.default_rng(decimals)
    width, height = 640, 512
    x1, y1 = rng.integers(0, 600, 50), rng.integers(0, 500, 50)
    boxes = np.stack([x1, y1, x1 + rng.integers(1, 40, 50), y1 + rng.integers(1, 12, 50)], 1).astype(float)
    lines = [
        f"0 {(a + c) / 2 / width:.{decimals}f} {(b + d) / 2 / height:.{decimals}f} "
        f"{(c - a) / width:.{decimals}f} {(d - b) / height:.{decimals}f}\n"
        for a, b, c, d in boxes
    ]
    path = tmp_path / "a.txt"
    path.write_text("\n".join(lines))
    assert [box for _, box in read_labels(path, (width, height), 1)] == [tuple(box) for box in boxes]


def test_coarse_yolo_numbers_are_taken_as_they_are(tmp_path):
    (tmp_path / "a.txt").write_text("0 0.5 0.5 0.5 0.5\n")
    assert read_labels(tmp_path / "a.txt", (101, 50), 1) == [(0, (25.25, 12.5, 75.75, 37.5))]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("0 .5 .5 .1", "line 2: 4 values, not 5"),
        ("0 .5 .5 .1 .1 .9", "line 2: 6 values, not 5"),
        ("-1 .5 .5 .1 .1", "line 2: class '-1'"),
        ("2 .5 .5 .1 .1", "line 2: class 2 of 2. Fix: name it in data.yaml"),
        ("0 .5 .5 .1 nan", "line 2: '.5 .5 .1 nan' are not numbers"),
        ("0 .5 .5 .1 x", "line 2: '.5 .5 .1 x' are not numbers"),
        ("0 .5 .5 0 .1", "line 2: '0 .5 .5 0 .1' has no area or leaves the image of 60x40"),
        ("0 .99 .5 .1 .1", "leaves the image of 60x40"),
    ],
)
def test_faulty_yolo_lines(pixels, tmp_path, line, message):
    write_set(as_set(make_record(pixels), class_names=("Target", "Bird")), tmp_path / "out", "yolo")
    path = tmp_path / "out" / "labels" / "a.txt"
    path.write_text(f"0 .5 .5 .1 .1\n{line}\n")
    with pytest.raises(DatasetError) as error:
        read_yolo(tmp_path / "out")
    assert str(path) in str(error.value)
    assert message in str(error.value)


def test_yolo_folders_of_other_projects(pixels, tmp_path):
    for split in ("train", "val"):
        (tmp_path / "images" / split).mkdir(parents=True)
        (tmp_path / "images" / split / "x.png").write_bytes((pixels / "image.png").read_bytes())
    (tmp_path / "labels" / "val").mkdir(parents=True)
    (tmp_path / "labels" / "val" / "x.txt").write_text("1 0.5 0.5 0.1 0.1\n")
    found = read_yolo(tmp_path)
    assert found.class_names == ("class0", "class1")
    assert {r.name: r.objects for r in found.records} == {
        "train__x": (),
        "val__x": (TargetObject("class1", (27, 18, 33, 22)),),
    }
    description = tmp_path / "data.yaml"
    description.write_text("train: images/train\nval: [images/val]\nnc: 2\nnames: [Bird, Plane]\n")
    found = read_yolo(tmp_path)
    assert found.splits == {"train": ("train__x",), "val": ("val__x",)}
    assert found.records[1].objects[0].class_name == "Plane"
    for text, message in (
        ("names: {1: Bird}", "names: {1: 'Bird'} does not name the classes"),
        ("names: [Bird, Plane]\ntrain: images/test", "splits: no images/test"),
        ("names: [Bird, Plane]\ntrain: ../other", "'../other' leads out of"),
        ("[1", "not YAML"),
        ("3", "not a list of keys"),
    ):
        description.write_text(text)
        with pytest.raises(DatasetError) as error:
            read_yolo(tmp_path)
        assert message in str(error.value)
    description.write_text("names: [Bird, Plane]\ntrain: train.txt")
    (tmp_path / "train.txt").write_text("./images/train/x.png\n\nimages/y.png\n")
    with pytest.raises(DatasetError, match=r"train\.txt: line 3: no image 'images/y\.png'"):
        read_yolo(tmp_path)
    with pytest.raises(DatasetError, match=r"no image\. Fix: a YOLO set has the folders"):
        read_yolo(tmp_path / "labels")


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
    with pytest.raises(DatasetError, match=r"absent\.png: file: no such file"):
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
    """300 real images with 407 targets; only masks lose two targets, which touch."""
    original = read_voc(omni_mini)
    assert (len(original.records), original.num_objects) == (300, 407)
    expected = {r.name: (sorted(r.objects), r.platform, r.band, r.size) for r in original.records}
    for target_format in ("voc", "coco", "yolo"):
        assert not write_set(original, tmp_path / target_format, target_format, link=True).lost
        again = READERS[target_format](tmp_path / target_format)
        assert {r.name: (sorted(r.objects), r.platform, r.band, r.size) for r in again.records} == expected
        assert again.splits == original.splits
    report = write_set(original, tmp_path / "mask", "mask", link=True)
    assert report.lost == {"boxes that are not the bounds of one component of the mask": 2}
    again = READERS["mask"](tmp_path / "mask")
    differing = [r.name for r in again.records if (sorted(r.objects), r.platform, r.band, r.size) != expected[r.name]]
    assert differing == ["00164"]
    assert Path(tmp_path / "mask" / "metadata.csv").read_text().startswith("id,platform,band,width,height\n00001,Air,")
