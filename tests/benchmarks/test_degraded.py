import json

import cv2
import degraded
import numpy as np
import pytest
from detectron2.data import DatasetCatalog

from irstd_d2.data import register_coco_folder


@pytest.mark.parametrize(("height", "width"), [(8, 12), (9, 13), (1, 3)])
@pytest.mark.parametrize("factor", [1, 2, 4])
def test_means_over_squares(height: int, width: int, factor: int):
    image = np.random.default_rng(0).integers(0, 256, (height, width, 3)).astype(np.float32)
    small = degraded.lower(image, factor)
    assert small.dtype == np.uint8
    assert small.shape == (-(-height // factor), -(-width // factor), 3)
    for row in range(height // factor):
        for column in range(width // factor):
            part = image[row * factor : (row + 1) * factor, column * factor : (column + 1) * factor]
            assert np.abs(small[row, column] - part.mean((0, 1))).max() <= 0.5


@pytest.mark.parametrize("bits", [1, 3, 5, 8])
def test_levels_of_fewer_bits(bits: int):
    image = np.arange(256, dtype=np.float32).reshape(16, 16, 1)
    found = degraded.rounded(image, bits)
    levels = np.linspace(0, 255, 2**bits)
    assert np.abs(found - levels[np.abs(image - levels).argmin(-1)][..., None]).max() <= 0.5
    assert np.unique(found).size == 2**bits


def test_boxes_and_sizes_follow_the_resolution(tmp_path):
    (tmp_path / "in").mkdir()
    cv2.imwrite(str(tmp_path / "in" / "a.png"), np.full((40, 60), 7, np.uint8))
    tags = {"platform": "Land", "band": "LWIR"}
    annotation = {"id": 1, "image_id": 1, "category_id": 1, "bbox": [8, 4, 6, 2], "area": 12, "iscrowd": 0}
    coco = {
        "images": [{"id": 1, "file_name": "a.png", "width": 60, "height": 40, **tags}],
        "annotations": [annotation],
        "categories": [{"id": 1, "name": "target"}],
    }
    (tmp_path / "in.json").write_text(json.dumps(coco))
    register_coco_folder("lower_in", str(tmp_path / "in.json"), str(tmp_path / "in"))
    degraded.write("lower_in", tmp_path / "out")
    register_coco_folder("lower_out", str(tmp_path / "out/lower_in.json"), str(tmp_path / "out/images"))
    register_coco_folder("lower_quarter", str(tmp_path / "out/lower_in_4.json"), str(tmp_path / "out/images"))
    records = DatasetCatalog.get("lower_out")
    found = [(r["width"], r["height"], r["annotations"][0]["bbox"]) for r in records]
    assert found == [(60, 40, [8, 4, 14, 6]), (30, 20, [4, 2, 7, 3]), (15, 10, [2, 1, 3.5, 1.5])]
    assert [r["metadata"]["width"] for r in records] == [60, 30, 15]
    assert all(tags.items() <= r["metadata"].items() for r in records)
    assert [r["metadata"]["height"] for r in DatasetCatalog.get("lower_quarter")] == [10]
    assert all((cv2.imread(r["file_name"]) == 7).all() for r in records)


def test_bits_keep_sizes_and_boxes(tmp_path, monkeypatch):
    (tmp_path / "in").mkdir()
    cv2.imwrite(str(tmp_path / "in" / "a.png"), np.full((9, 13), 100, np.uint8))
    annotation = {"id": 1, "image_id": 1, "category_id": 1, "bbox": [8, 4, 3, 2], "area": 6, "iscrowd": 0}
    coco = {
        "images": [{"id": 1, "file_name": "a.png", "width": 13, "height": 9}],
        "annotations": [annotation],
        "categories": [{"id": 1, "name": "target"}],
    }
    (tmp_path / "in.json").write_text(json.dumps(coco))
    register_coco_folder("bits_in", str(tmp_path / "in.json"), str(tmp_path / "in"))
    monkeypatch.setattr("sys.argv", ["degraded.py", "bits_in", "--bits", "8", "2", "--output", str(tmp_path / "out")])
    degraded.main()
    register_coco_folder("bits_out", str(tmp_path / "out/bits_in.json"), str(tmp_path / "out/images"))
    records = DatasetCatalog.get("bits_out")
    assert [(r["width"], r["height"], r["annotations"][0]["bbox"]) for r in records] == 2 * [(13, 9, [8, 4, 11, 6])]
    assert [int(cv2.imread(r["file_name"]).max()) for r in records] == [100, 85]
    assert (tmp_path / "out/bits_in_2bit.json").exists()
