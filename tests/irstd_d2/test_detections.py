"""What a predictor takes and what it returns: kinds of images, other libraries' forms, files and figures."""

import csv
import json

import matplotlib
import numpy as np
import pytest
import torch
from detectron2.structures import Boxes, Instances
from PIL import Image

from irstd_d2.data import read_voc_xml
from irstd_d2.data.classes import ClassTable
from irstd_d2.errors import ConfigError, DatasetError
from irstd_d2.inference import Detections
from irstd_d2.inference.inputs import to_array

matplotlib.use("Agg")
GRAY = np.arange(48, dtype=np.uint8).reshape(6, 8)
COLOUR = np.stack([GRAY, GRAY + 50, GRAY + 100], axis=2)  # BGR
RGB = np.ascontiguousarray(COLOUR[..., ::-1])


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (GRAY, GRAY),
        (GRAY[..., None], GRAY),
        (GRAY.astype(np.uint16) * 200, GRAY.astype(np.uint16) * 200),
        (GRAY.astype(np.float16), GRAY.astype(np.float32)),
        (COLOUR, COLOUR),
        (Image.fromarray(GRAY), GRAY),
        (Image.fromarray(RGB), COLOUR),
        (Image.fromarray(GRAY.astype(np.uint16) * 200), GRAY.astype(np.uint16) * 200),
        (Image.fromarray(GRAY.astype(np.float32)), GRAY.astype(np.float32)),
        (Image.fromarray(GRAY > 20), np.where(GRAY > 20, 255, 0).astype(np.uint8)),
        (Image.fromarray(RGB).convert("RGBA"), np.dstack([COLOUR, np.full_like(GRAY, 255)])),
        (torch.from_numpy(GRAY), GRAY),
        (torch.from_numpy(GRAY)[None], GRAY),
        (torch.from_numpy(RGB).permute(2, 0, 1), COLOUR),
        (torch.from_numpy(GRAY).to(torch.bfloat16), GRAY.astype(np.float32)),
    ],
)
def test_every_kind_of_image_becomes_what_a_file_of_it_is_read_as(given, expected):
    array = to_array(given)
    assert array.dtype == expected.dtype
    assert np.array_equal(array, expected)


@pytest.mark.parametrize(
    ("given", "field"),
    [
        (np.zeros((2, 3, 4, 3), np.uint8), "shape"),
        (np.zeros((6, 8, 2), np.uint8), "shape"),
        (np.zeros((0, 8), np.uint8), "shape"),
        (torch.zeros(6, 8, 3), "shape"),
        (np.zeros((6, 8), bool), "type"),
        (np.zeros((6, 8), complex), "type"),
        ([[1, 2]], "type"),
    ],
)
def test_what_is_no_image_is_refused(given, field):
    with pytest.raises(DatasetError, match=f"image in memory: {field}: "):
        to_array(given)


@pytest.fixture
def found():
    instances = Instances((60, 80))
    instances.pred_boxes = Boxes(torch.tensor([[10.0, 20, 14, 23], [70, 50, 80, 60], [0, 0, 3, 3]]))
    instances.scores = torch.tensor([0.9, 0.5, 0.1])
    instances.pred_classes = torch.tensor([1, 0, 1])
    raw = np.zeros((60, 80), np.uint16)
    raw[20:23, 10:14] = 3000
    return Detections(instances, raw, "folder/a.png", ClassTable(("Bird", "Drone"), {5: 0, 3: 1}), "minmax")


def test_numbers(found):
    assert found.boxes[0].tolist() == [10, 20, 14, 23]
    assert found.classes == ["Drone", "Bird", "Drone"]
    assert found.category_ids == [3, 5, 3]
    best = found[found.scores > 0.3]
    assert isinstance(best, Detections)
    assert best.classes == ["Drone", "Bird"]
    assert found.to_coco()[1] == {
        "image_id": "a", "file_name": "folder/a.png", "category_id": 5, "category_name": "Bird",
        "bbox": [70, 50, 10, 10], "score": 0.5,
    }  # fmt: skip
    assert {row["image_id"] for row in found.to_coco(17)} == {17}


def test_supervision(found):
    pytest.importorskip("supervision", reason="supervision is not installed")
    other = found.to_supervision()
    assert other.xyxy.tolist() == found.boxes.tolist()
    assert other.class_id.tolist() == [1, 0, 1]
    assert other.data["class_name"].tolist() == found.classes
    assert len(found[found.scores > 1].to_supervision()) == 0


def test_files(found, tmp_path):
    for name in ("a.png", "new/a.json", "a.csv", "a.xml", "a.txt"):
        found.save(tmp_path / name)
    assert Image.open(tmp_path / "a.png").size == (found.picture().shape[1], found.picture().shape[0])
    assert [row["category_name"] for row in json.loads((tmp_path / "new/a.json").read_text())] == found.classes
    assert [row["class"] for row in csv.DictReader((tmp_path / "a.csv").open())] == found.classes
    assert [obj.name for obj in read_voc_xml(tmp_path / "a.xml").objects] == found.classes
    assert (tmp_path / "a.txt").read_text().startswith("1 0.15000000 0.35833333 0.05000000 0.05000000 0.9\n")
    with pytest.raises(ConfigError, match=r"none of \.png"):
        found.save(tmp_path / "a.doc")


def test_figures(found):
    figure = found.surface(0, margin=3)
    (axes,) = figure.axes
    assert axes.get_title() == "Drone 0.90 at (12, 22)"
    assert axes.get_zlim()[1] >= 3000
    assert found.surface(1).axes[0].get_xlim()[1] <= 81  # at the edge of the image
    with pytest.raises(IndexError, match="detection 3 of 3"):
        found.surface(3)
    assert found.show().axes[0].get_images()[0].get_array().shape == found.picture().shape
