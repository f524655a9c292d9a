"""Outlines of COCO files: read as pycocotools reads them, written to masks and back without loss, nothing hostile."""

import json

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask

from irstd_d2.data.convert import read_coco, read_masks, write_set
from irstd_d2.data.segmentation import decode, encode, read_segmentation
from irstd_d2.errors import DatasetError

WIDTH, HEIGHT = 48, 40
# Two squares and a triangle that share edges, and one target alone.
POLYGONS = [
    [[5, 5, 10, 5, 10, 10, 5, 10]],
    [[10, 5, 15, 5, 15, 10, 10, 10]],
    [[5, 10, 15, 10, 10, 20]],
    [[30, 30, 34, 30, 34, 33, 30, 33]],
]


def coco_file(folder, segmentations):
    (folder / "images").mkdir(parents=True)
    Image.fromarray(np.full((HEIGHT, WIDTH), 30, np.uint8)).save(folder / "images" / "a.png")
    annotations = []
    for i, segmentation in enumerate(segmentations):
        x, y, width, height = coco_mask.toBbox(
            {"size": [HEIGHT, WIDTH], "counts": read_segmentation(segmentation, (WIDTH, HEIGHT))}
        ).tolist()
        annotations.append(
            {"id": i, "image_id": 1, "category_id": 1, "bbox": [x, y, width, height], "segmentation": segmentation}
        )
    image = {"id": 1, "file_name": "images/a.png", "width": WIDTH, "height": HEIGHT}
    content = {"images": [image], "annotations": annotations, "categories": [{"id": 1, "name": "ship"}]}
    path = folder / "instances_all.json"
    path.write_text(json.dumps(content))
    return path


def test_polygons_and_run_lengths_are_those_of_pycocotools():
    for seed in range(20):
        mask = np.random.default_rng(seed).random((HEIGHT, WIDTH)) < 0.3
        expected = coco_mask.encode(np.asfortranarray(mask, np.uint8))
        text = {"size": [HEIGHT, WIDTH], "counts": expected["counts"].decode()}
        flat = mask.ravel(order="F")
        edges = np.flatnonzero(np.diff(flat)) + 1
        lengths = np.diff(np.concatenate([[0], edges, [flat.size]])).tolist()
        numbers = {"size": [HEIGHT, WIDTH], "counts": [0, *lengths] if flat[0] else lengths}
        for segmentation in (text, numbers):
            assert read_segmentation(segmentation, (WIDTH, HEIGHT)) == expected["counts"], seed
        assert (decode(encode(mask), (WIDTH, HEIGHT)) == mask).all(), seed
    for polygons in (*POLYGONS, [[1.5, 2.5, 20.25, 3, 9, 30.5], [25, 25, 40, 25, 40, 38]]):
        parts = coco_mask.frPyObjects(polygons, HEIGHT, WIDTH)
        assert read_segmentation(polygons, (WIDTH, HEIGHT)) == coco_mask.merge(parts)["counts"]


@pytest.mark.parametrize("form", ["polygons", "text"])
def test_touching_targets_survive_masks_and_the_way_back(tmp_path, form):
    segmentations = POLYGONS
    if form == "text":
        counts = [read_segmentation(polygons, (WIDTH, HEIGHT)).decode() for polygons in POLYGONS]
        segmentations = [{"size": [HEIGHT, WIDTH], "counts": text} for text in counts]
    found = read_coco(coco_file(tmp_path / "coco", segmentations))
    assert found.unread == {}
    outlines = {obj.outline for obj in found.records[0].objects}
    assert outlines == {read_segmentation(polygons, (WIDTH, HEIGHT)) for polygons in POLYGONS}
    assert write_set(found, tmp_path / "mask", "mask").lost == {}
    masks = read_masks(tmp_path / "mask")
    assert {obj.box for obj in masks.records[0].objects} == {obj.box for obj in found.records[0].objects}
    assert write_set(masks, tmp_path / "back", "coco").lost == {}
    back = read_coco(tmp_path / "back")
    assert {obj.outline for obj in back.records[0].objects} == outlines
    areas = {a["area"] for a in json.loads((tmp_path / "back" / "instances_all.json").read_text())["annotations"]}
    assert areas == {int(decode(outline, (WIDTH, HEIGHT)).sum()) for outline in outlines}
    for target_format in ("yolo", "voc"):
        report = write_set(found, tmp_path / target_format, target_format)
        assert report.lost == {"target masks (their boxes are kept)": 1}
    assert write_set(found, tmp_path / "wide", "voc", layout="wideirstd").lost == {}


def test_shared_pixels_are_counted(tmp_path):
    overlapping = [[[5, 5, 12, 5, 12, 12, 5, 12]], [[10, 10, 20, 10, 20, 20, 10, 20]]]
    found = read_coco(coco_file(tmp_path / "coco", overlapping))
    assert (
        write_set(found, tmp_path / "mask", "mask").lost["pixels that several targets share (the last one has them)"]
        == 4
    )


@pytest.mark.parametrize(
    ("segmentation", "problem"),
    [
        ([[1, 2, 3, 4]], "at least three points"),
        ([[1, 2, 3, 4, 5, 6, 7]], "at least three points"),
        ([[1, 2, 3, 4, 5, 1e9]], "far from the image"),
        ([[1, 2, 3, 4, 5, float("nan")]], "far from the image"),
        ([[1, 2, 3, 4, 5, True]], "far from the image"),
        ("x", "neither polygons nor run lengths"),
        ({"size": [WIDTH, HEIGHT], "counts": [WIDTH * HEIGHT]}, "is not the image's"),
        ({"size": [HEIGHT, WIDTH], "counts": [5, 5]}, "make 10 pixels, the image has 1920"),
        ({"size": [HEIGHT, WIDTH], "counts": [0, 10**12]}, "make 1000000000000 pixels"),
        ({"size": [HEIGHT, WIDTH], "counts": [2000, -80]}, "whole numbers from 0"),
        ({"size": [HEIGHT, WIDTH], "counts": "PPPPPPPPPPP"}, "not in COCO's compressed form"),
        ({"size": [HEIGHT, WIDTH], "counts": "555"}, "make 15 pixels"),
        ({"size": [HEIGHT, WIDTH], "counts": "oooooooooooooooooo"}, "not in COCO's compressed form"),
        ({"size": [HEIGHT, WIDTH], "counts": "o"}, "ends within a number"),
        ({"size": [HEIGHT, WIDTH], "counts": "\x01"}, "not in COCO's compressed form"),
        ({"size": [HEIGHT, WIDTH]}, "neither a list nor text"),
    ],
)
def test_hostile_outlines_are_refused_before_they_are_drawn(tmp_path, segmentation, problem):
    with pytest.raises(ValueError, match=problem):
        read_segmentation(segmentation, (WIDTH, HEIGHT))
    path = coco_file(tmp_path / "coco", POLYGONS)
    content = json.loads(path.read_text())
    content["annotations"][1]["segmentation"] = segmentation
    path.write_text(json.dumps(content))
    with pytest.raises(DatasetError, match=r"annotations\[1\]\.segmentation: "):
        read_coco(path)
