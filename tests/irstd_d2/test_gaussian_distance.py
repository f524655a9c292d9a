"""Similarity of boxes by Gaussians: values by hand, the definition, properties, and gradients where boxes are equal."""

import math

import pytest
import torch
from detectron2.modeling.matcher import Matcher
from detectron2.structures import Boxes
from hypothesis import given, settings
from hypothesis import strategies as st
from loops import for_every

from irstd_d2.modeling.gaussian_distance import pairwise_nwd, wasserstein_similarities, wasserstein_similarity

number = st.floats(-50, 50, width=32)
box = st.tuples(number, number, st.floats(0, 40, width=32), st.floats(0, 40, width=32)).map(
    lambda b: [b[0], b[1], b[0] + b[2], b[1] + b[3]]
)


def by_definition(first, second, scale):
    """With centres and half edges, as the paper writes it, in Python floats."""
    x1, y1, x2, y2 = first
    u1, v1, u2, v2 = second
    squared = ((x1 + x2) / 2 - (u1 + u2) / 2) ** 2 + ((y1 + y2) / 2 - (v1 + v2) / 2) ** 2
    squared += ((x2 - x1) / 2 - (u2 - u1) / 2) ** 2 + ((y2 - y1) / 2 - (v2 - v1) / 2) ** 2
    return math.exp(-math.sqrt(squared) / scale)


@for_every(
    ("other", "distance"),
    [
        ((0, 0, 4, 4), 0),
        ((3, 4, 7, 8), 5),  # moved by (3, 4)
        ((-3, 0, 7, 4), 3),  # wider by 6
        ((0, 0, 12, 4), math.sqrt(4**2 + 4**2)),  # wider by 8, so its centre moves by 4
        ((100, 0, 104, 4), 100),
    ],
)
def test_values_by_hand(other, distance):
    first, second = torch.tensor([0.0, 0, 4, 4]), torch.tensor(other, dtype=torch.float32)
    assert wasserstein_similarity(first, second, 12.8).item() == pytest.approx(math.exp(-distance / 12.8), rel=1e-5)
    assert wasserstein_similarity(first, second, 2.0).item() == pytest.approx(math.exp(-distance / 2), rel=1e-5)


@settings(max_examples=40, deadline=None)
@given(st.lists(box, min_size=1, max_size=4), st.lists(box, min_size=1, max_size=4), st.sampled_from([1.0, 12.8, 40.0]))
def test_all_pairs_equal_the_definition(first, second, scale):
    found = pairwise_nwd(Boxes(torch.tensor(first)), Boxes(torch.tensor(second)), scale)
    expected = [[by_definition(a, b, scale) for b in second] for a in first]
    assert found.shape == (len(first), len(second))
    torch.testing.assert_close(found, torch.tensor(expected), rtol=1e-3, atol=1e-4)
    assert ((found >= 0) & (found <= 1)).all()
    paired = wasserstein_similarity(torch.tensor(first)[:, None], torch.tensor(second)[None], scale)
    torch.testing.assert_close(found, paired, rtol=1e-5, atol=1e-6)


@settings(max_examples=40, deadline=None)
@given(st.lists(box, min_size=1, max_size=4), st.lists(box, min_size=1, max_size=4), number, number)
def test_symmetric_and_the_same_everywhere(first, second, dx, dy):
    first, second, moved = torch.tensor(first), torch.tensor(second), torch.tensor([dx, dy, dx, dy])
    found = wasserstein_similarities(first, second, 10.0)
    torch.testing.assert_close(found, wasserstein_similarities(second, first, 10.0).T)
    torch.testing.assert_close(found, wasserstein_similarities(first + moved, second + moved, 10.0), rtol=0, atol=1e-5)


def test_far_from_the_origin_a_pixel_still_counts():
    # Products of coordinates in float32 would lose it.
    boxes = torch.tensor([[20000.0, 20000, 20003, 20003], [20001, 20000, 20004, 20003]])
    found = wasserstein_similarities(boxes, boxes, 1.0)
    torch.testing.assert_close(found, torch.tensor([[1, math.exp(-1)], [math.exp(-1), 1]]))


def test_images_side_by_side():
    boxes, anchors = torch.rand(2, 3, 4) * 20, torch.rand(2, 5, 4) * 20
    found = wasserstein_similarities(boxes, anchors, 8.0)
    assert found.shape == (2, 3, 5)
    for image in range(2):
        torch.testing.assert_close(found[image], pairwise_nwd(Boxes(boxes[image]), Boxes(anchors[image]), 8.0))


def test_equal_boxes_have_no_gradient_and_others_one_towards_each_other():
    target = torch.tensor([[0.0, 0, 1, 1]] * 3)
    found = torch.tensor([[0.0, 0, 1, 1], [5, 0, 6, 1], [1e-20, 0, 1, 1]], requires_grad=True)
    wasserstein_similarity(found, target, 12.8).sum().backward()
    assert found.grad[0].tolist() == [0, 0, 0, 0]
    assert torch.isfinite(found.grad).all()
    # Apart, where the overlap is 0 and has no gradient: both sides move left.
    assert (found.grad[1, [0, 2]] < 0).all()
    # A small step in a direction: the slope is bounded by 1 / (sqrt(2) C) whatever the distance.
    assert found.grad.norm(dim=1).max() <= 1 / (math.sqrt(2) * 12.8) + 1e-6


def test_gradients_are_those_of_differences():
    first = torch.tensor([[0.0, 0, 1, 1], [5, 0, 6, 1]], dtype=torch.float64, requires_grad=True)
    second = torch.tensor([[0.5, 2, 3, 4], [5, 0, 6, 1.25]], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda a, b: wasserstein_similarity(a, b, 4.0), (first, second))
    assert torch.autograd.gradcheck(lambda a, b: wasserstein_similarities(a, b, 4.0), (first, second))


def test_in_front_of_detectron2s_matcher_it_finds_boxes_that_do_not_overlap():
    targets, proposals = Boxes(torch.tensor([[10.0, 10, 12, 12]])), Boxes(torch.tensor([[12.0, 10, 14, 12]]))
    matcher = Matcher([0.5], [0, 1])
    matches, labels = matcher(pairwise_nwd(targets, proposals, 12.8))
    assert (matches.tolist(), labels.tolist()) == ([0], [1])
    empty = matcher(pairwise_nwd(Boxes(torch.zeros(0, 4)), proposals, 12.8))
    assert empty[1].tolist() == [0]
