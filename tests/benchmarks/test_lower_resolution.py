import json

import cv2
import lower_resolution
import numpy as np
import pytest
from detectron2.data import DatasetCatalog

from irstd_d2.data import register_coco_folder


@pytest.mark.parametrize(("height", "width"), [(8, 12), (9, 13), (1, 3)])
@pytest.mark.parametrize("factor", [1, 2, 4])
def test_means_over_squares(height: int, width: int, factor: int):
    image = np.random.default_rng(0).integers(0, 256, (height, width, 3)).astype(np.float32)
    small = lower_resolution.lower(image, factor)
    assert small.dtype == np.uint8
    assert small.shape == (-(-height // factor), -(-width // factor), 3)
    for row in range(height // factor):
        for column in range(width // factor):
            part = image[row * factor : (row + 1) * factor, column * factor : (column + 1) * factor]
            assert np.abs(small[row, column] - part.mean((0, 1))).max() <= 0.5


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
    lower_resolution.write("lower_in", tmp_path / "out")
    register_coco_folder("lower_out", str(tmp_path / "out/lower_in.json"), str(tmp_path / "out/images"))
    register_coco_folder("lower_quarter", str(tmp_path / "out/lower_in_4.json"), str(tmp_path / "out/images"))
    records = DatasetCatalog.get("lower_out")
    found = [(r["width"], r["height"], r["annotations"][0]["bbox"]) for r in records]
    assert found == [(60, 40, [8, 4, 14, 6]), (30, 20, [4, 2, 7, 3]), (15, 10, [2, 1, 3.5, 1.5])]
    assert [r["metadata"]["width"] for r in records] == [60, 30, 15]
    assert all(tags.items() <= r["metadata"].items() for r in records)
    assert [r["metadata"]["height"] for r in DatasetCatalog.get("lower_quarter")] == [10]
    assert all((cv2.imread(r["file_name"]) == 7).all() for r in records)
