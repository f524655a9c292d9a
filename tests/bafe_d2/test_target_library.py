"""The library of targets that BAG-CP pastes: what it cuts out of images, and its file."""

import cv2
import numpy as np
import pytest
from detectron2.data import DatasetCatalog
from detectron2.structures import BoxMode

from bafe_d2.data import TargetLibrary
from irstd_d2.errors import DatasetError


def test_library_shrinks_large_targets_and_keeps_small_ones():
    library = TargetLibrary.from_crops([np.full((10, 20), 0.5), np.full((3, 2), 0.25), np.full((1, 40), 1.0)])
    assert library.sizes.tolist() == [[5, 2], [2, 3], [5, 1]]
    np.testing.assert_allclose(library.patches[0, :2, :5], 0.5)
    assert library.patches[1].sum() == pytest.approx(6 * 0.25)
    with pytest.raises(ValueError, match="without targets"):
        TargetLibrary.from_crops([])


def test_library_is_kept_on_disk_and_made_anew_when_the_data_change(tmp_path):
    name = "library_test_set"
    path = tmp_path / "image.png"
    cv2.imwrite(str(path), np.full((32, 32), 128, np.uint8))
    box = {"bbox": [4, 4, 7, 8], "bbox_mode": BoxMode.XYXY_ABS, "category_id": 0}
    difficult = {**box, "bbox": [10, 10, 12, 12], "iscrowd": 1}
    dicts = [
        {"file_name": str(path), "image_id": 0, "annotations": [box, difficult]},
        {"file_name": str(path), "image_id": 1, "annotations": []},
    ]
    DatasetCatalog.register(name, lambda: dicts)
    try:
        first = TargetLibrary.from_datasets([name], tmp_path / "cache")
        (stored,) = (tmp_path / "cache").iterdir()
        assert first.sizes.tolist() == [[3, 4]]
        np.testing.assert_allclose(first.patches[0, :4, :3], 128 / 255, rtol=1e-6)
        again = TargetLibrary.from_datasets([name], tmp_path / "cache")
        np.testing.assert_array_equal(first.patches, again.patches)
        box["bbox"] = [4, 4, 6, 6]
        assert TargetLibrary.from_datasets([name], tmp_path / "cache").sizes.tolist() == [[2, 2]]
        assert TargetLibrary.from_datasets([name]).sizes.tolist() == [[2, 2]]
        stored.write_bytes(b"torn")
        with pytest.raises(DatasetError, match="is no target library"):
            TargetLibrary.load(stored)
    finally:
        DatasetCatalog.remove(name)


@pytest.mark.parametrize("box", [[-10, 5, -4, 9], [5, -10, 9, -4], [70, 5, 80, 9]])
def test_the_library_passes_over_boxes_beside_the_image(tmp_path, box):
    image = np.zeros((50, 60), np.uint8)
    image[10:13, 10:13] = 200
    cv2.imwrite(str(tmp_path / "a.png"), image)
    boxes = [{"bbox": b, "bbox_mode": BoxMode.XYXY_ABS, "category_id": 0} for b in (box, [10, 10, 13, 13])]
    found = TargetLibrary.from_dicts([{"file_name": str(tmp_path / "a.png"), "annotations": boxes}])
    assert found.sizes.tolist() == [[3, 3]]
    np.testing.assert_allclose(found.patches[0, :3, :3], 200 / 255)
