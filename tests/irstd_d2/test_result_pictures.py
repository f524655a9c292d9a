"""Pictures of detections in small and large images."""

from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.structures import Boxes, Instances

from irstd_d2.inference.pictures import INSET_EDGE, PICTURE_EDGE, brightest_of_blocks, draw_result


def detections(*boxes):
    instances = Instances((1, 1))
    instances.pred_boxes = Boxes(torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4))
    instances.scores = torch.linspace(0.9, 0.5, len(boxes))
    return instances


@pytest.mark.parametrize("shape", [(7, 11), (7, 11, 3)])
def test_blocks_keep_their_brightest_pixel(shape):
    raw = np.random.default_rng(0).integers(0, 60000, shape, np.uint16)
    reduced = brightest_of_blocks(raw, 3)
    assert reduced.shape == (2, 3, *shape[2:])
    for y in range(2):
        for x in range(3):
            assert (reduced[y, x] == raw[3 * y : 3 * y + 3, 3 * x : 3 * x + 3].max(axis=(0, 1))).all()


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_a_target_of_one_pixel_is_seen_in_a_large_image(dtype):
    raw = np.full((2600, 3100), 10, dtype)
    raw[1234, 2345] = 200
    picture = draw_result(raw, Path("a.png"), detections((2344, 1233, 2347, 1236)))
    width = picture.shape[1]
    assert PICTURE_EDGE <= width - INSET_EDGE <= 3 * PICTURE_EDGE
    inset = picture[:INSET_EDGE, width - 6 - 6 - INSET_EDGE : width - 12]
    assert (inset == 255).all(axis=2).sum() == 64  # the pixel, eight times enlarged
    overview = picture[:, : width - 12 - INSET_EDGE]
    assert (overview.min(axis=2) > 60).any()
    assert (draw_result(raw, Path("a.png"), detections()).shape[1]) == overview.shape[1] - 6


def test_small_images_are_drawn_as_ever():
    raw = np.zeros((64, 48), np.uint8)
    raw[30, 20] = 255
    assert draw_result(raw, Path("a.png"), detections(), insets=0).shape == (512, 384, 3)
    beside = draw_result(raw, Path("a.png"), detections((19, 29, 22, 32)))
    assert beside.shape[1] > 384


@pytest.mark.parametrize("shape", [(1, 3000), (3000, 1), (2, 5000), (1, 2100, 3)])
def test_a_line_of_pixels_is_drawn(shape):
    raw = np.full(shape, 10, np.uint16)
    raw[-1, -1] = 200
    height, width = shape[:2]
    picture = draw_result(raw, Path("a.png"), detections((width - 1, height - 1, width, height)))
    assert (picture.dtype, picture.shape[2]) == (np.uint8, 3)
    assert max(picture.shape[:2]) >= PICTURE_EDGE
    assert (picture[..., 0] != picture[..., 2]).any()  # the brackets
    reduced = brightest_of_blocks(raw, 2)
    assert reduced.shape[:2] == (max(1, height // 2), max(1, width // 2))
    assert reduced.max() == 200
