"""Selection of detections for a whole batch, against plain loops over images."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchvision.ops import batched_nms

from irstd_d2.export.candidates import keep_best, nms_mask, nms_mask_op
from irstd_d2.modeling.decoding import INVALID, clip_boxes, take, top_candidates


def random_boxes(generator, num_images, count, extent=40.0):
    corner = torch.rand(num_images, count, 2, generator=generator) * extent
    return torch.cat([corner, corner + 1 + torch.rand(num_images, count, 2, generator=generator) * 8], dim=-1)


@settings(deadline=None, max_examples=40)
@given(
    seed=st.integers(0, 10**6), images=st.integers(1, 4), count=st.integers(0, 30), groups=st.integers(1, 3),
    threshold=st.sampled_from([0.0, 0.3, 0.5, 0.8]), missing=st.floats(0, 1),
)  # fmt: skip
def test_nms_equals_one_image_at_a_time(seed, images, count, groups, threshold, missing):
    generator = torch.Generator().manual_seed(seed)
    boxes = random_boxes(generator, images, count)
    scores = torch.rand(images, count, generator=generator)
    scores[torch.rand(images, count, generator=generator) < missing] = INVALID
    group = torch.randint(groups, (images, count), generator=generator)
    kept = nms_mask(boxes, scores, group, groups, threshold) if count else torch.zeros(images, 0, dtype=torch.bool)
    for i in range(images):
        present = (scores[i] >= 0).nonzero()[:, 0]
        expected = present[batched_nms(boxes[i, present], scores[i, present], group[i, present], threshold)]
        assert kept[i].nonzero()[:, 0].tolist() == sorted(expected.tolist())


def test_nms_far_from_the_origin_is_exact():
    # 3x3 boxes at the far corner of the last of 64 images: one that overlaps by exactly the threshold stays.
    boxes = torch.zeros(64, 3, 4)
    boxes[:] = torch.tensor([[5997.0, 5997, 6000, 6000], [5996, 5997, 5999, 6000], [5995, 5997, 5998, 6000]])
    scores = torch.tensor([0.9, 0.8, 0.7]).expand(64, -1)
    assert nms_mask(boxes, scores, torch.zeros(64, 3, dtype=torch.int64), 1, 0.5).tolist() == [[True, True, True]] * 64
    kept = nms_mask(boxes, scores, torch.zeros(64, 3, dtype=torch.int64), 1, 0.49)
    assert kept.tolist() == [[True, False, True]] * 64


def test_nms_operator_equals_the_function():
    generator = torch.Generator().manual_seed(0)
    boxes, scores = random_boxes(generator, 2, 20), torch.rand(2, 20, generator=generator)
    group = torch.zeros(2, 20, dtype=torch.int64)
    assert torch.equal(nms_mask_op(boxes, scores, group, 1, 0.4), nms_mask(boxes, scores, group, 1, 0.4))
    torch.library.opcheck(nms_mask_op, (boxes, scores, group, 1, 0.4))


@pytest.mark.parametrize(("places", "count"), [(5, 3), (2, 10), (1, 1)])
def test_top_candidates_are_the_best_pairs(places, count):
    scores = torch.rand(3, places, 2)
    best, place, cls = top_candidates(scores, count)
    assert best.shape == place.shape == cls.shape == (3, count)
    for i in range(3):
        expected = np.sort(scores[i].flatten().numpy())[::-1][:count]
        there = best[i] >= 0
        assert there.sum() == len(expected)
        np.testing.assert_array_equal(best[i][there].numpy(), expected)
        assert torch.equal(scores[i][place[i][there], cls[i][there]], best[i][there])
    assert place.max() < places  # also where nothing is: they are looked up


def test_keep_best():
    scores = torch.tensor([[0.1, 0.9, 0.5, INVALID], [0.3, 0.2, 0.4, 0.8]])
    kept = torch.tensor([[True, False, True, False], [True, True, True, True]])
    best, index = keep_best(scores, kept, 3)
    torch.testing.assert_close(best, torch.tensor([[0.5, 0.1, INVALID], [0.8, 0.4, 0.3]]))
    assert index[0, :2].tolist() == [2, 0]
    assert index[1].tolist() == [3, 2, 0]
    assert keep_best(scores, kept, 6)[0].shape == (2, 6)


def test_take_and_clip():
    values = torch.arange(24.0).view(2, 3, 4)
    assert torch.equal(take(values, torch.tensor([[2, 0], [1, 1]])), values[[[0], [1]], [[2, 0], [1, 1]]])
    boxes = torch.tensor([[[-3.0, 2, 50, 60]], [[1, 2, 3, 4]]])
    clipped = clip_boxes(boxes, torch.tensor([[10.0, 20], [5, 5]]))
    assert clipped.tolist() == [[[0, 2, 20, 10]], [[1, 2, 3, 4]]]
