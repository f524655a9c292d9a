"""The crop that finds targets."""

import numpy as np
import pytest
from detectron2.data import transforms as T
from hypothesis import given
from hypothesis import strategies as st

from irstd_d2.data.transforms import TargetCrop
from irstd_d2.errors import ConfigError

SIDE = st.integers(1, 40)


@given(SIDE, SIDE, SIDE, SIDE, st.floats(0, 1), st.floats(0, 1), st.integers(0, 9), st.integers(0, 2**32 - 1))
def test_the_crop_is_inside_and_holds_the_target(height, width, crop_height, crop_width, x, y, size, seed):
    np.random.seed(seed)
    x, y = x * (width - 1), y * (height - 1)
    box = np.array([[x, y, min(width, x + 1 + size), min(height, y + 1 + size / 2)]])
    crop = TargetCrop("absolute", (crop_height, crop_width), 1.0).get_transform(np.zeros((height, width, 3)), box)
    assert (crop.w, crop.h) == (min(width, crop_width), min(height, crop_height))
    assert 0 <= crop.x0 <= width - crop.w
    assert 0 <= crop.y0 <= height - crop.h
    for start, length, low, high in ((crop.x0, crop.w, *box[0, ::2]), (crop.y0, crop.h, *box[0, 1::2])):
        if np.ceil(high) - np.floor(low) <= length:
            assert start <= low
            assert high <= start + length
        else:
            assert low - 1 < start
            assert start + length < high + 1


def test_every_place_of_the_target_and_every_target_occur():
    boxes = np.array([[10.0, 10, 13, 13], [30, 20, 33, 23]])
    crop = TargetCrop("absolute", (6, 6), 1.0)
    corners = {(t.x0, t.y0) for t in (crop.get_transform(np.zeros((40, 40)), boxes) for _ in range(2000))}
    assert corners == {(x + i, y + j) for x, y in ((7, 7), (27, 17)) for i in range(4) for j in range(4)}


@pytest.mark.parametrize(("boxes", "prob"), [(None, 1.0), (np.zeros((0, 4)), 1.0), (np.array([[0, 0, 3, 3]]), 0.0)])
def test_without_targets_it_is_the_plain_crop(boxes, prob):
    crop = TargetCrop("absolute", (8, 8), prob)
    corners = np.array([(t.x0, t.y0) for t in (crop.get_transform(np.zeros((64, 64)), boxes) for _ in range(300))])
    assert corners.min() < 8
    assert corners.max() > 48


def test_share_of_crops_with_a_target():
    crop = TargetCrop("absolute", (4, 4), 0.5)
    boxes = np.array([[50.0, 50, 53, 53]])
    found = [
        t.x0 in (49, 50) and t.y0 in (49, 50)
        for t in (crop.get_transform(np.zeros((100, 100)), boxes) for _ in range(1000))
    ]
    assert 0.44 < np.mean(found) < 0.56


def test_it_works_in_a_list_of_augmentations():
    image = np.arange(32 * 32, dtype=np.float32).reshape(32, 32)
    sample = T.AugInput(image, boxes=np.array([[20.0, 5, 23, 8]]))
    T.AugmentationList([TargetCrop("absolute", (8, 8), 1.0)])(sample)
    x0, y0, x1, y1 = sample.boxes[0].astype(int)
    np.testing.assert_array_equal(sample.image[y0:y1, x0:x1], image[5:8, 20:23])


def test_bad_probability():
    with pytest.raises(ConfigError, match=r"INPUT\.CROP\.TARGET_PROB is 1\.5"):
        TargetCrop("absolute", (8, 8), 1.5)


@pytest.mark.parametrize(
    ("kind", "size"),
    [("relative", (1.2, 0.5)), ("relative_range", (0.5, 0)), ("absolute", (0, 8)), ("absolute_range", (0.9, 0.9))],
)
def test_crops_that_no_image_has_are_refused(kind, size):
    """A relative crop beyond the image became the strip from its far side."""
    with pytest.raises(ConfigError, match=r"INPUT\.CROP\.SIZE is"):
        TargetCrop(kind, size, 1.0)
    whole = TargetCrop("relative", (1.0, 1.0), 1.0).get_transform(np.zeros((9, 7)), np.array([[2.0, 2, 4, 4]]))
    assert (whole.x0, whole.y0, whole.w, whole.h) == (0, 0, 7, 9)
