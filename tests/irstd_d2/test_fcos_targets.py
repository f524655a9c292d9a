"""Points, targets and losses of FCOS: drawn examples, slow plain versions, properties."""

import math

import pytest
import torch
from detectron2.structures import Boxes, Instances
from hypothesis import given, settings
from hypothesis import strategies as st
from loops import for_every
from torchvision.ops import box_iou

from irstd_d2.modeling import fcos_targets
from irstd_d2.modeling.fcos_targets import (
    Targets,
    all_points,
    assign_targets,
    centerness,
    distances_to_boxes,
    fcos_losses,
    iou_of_distances,
    pad_instances,
)

CPU = torch.device("cpu")
K = 3


def points_of(sizes, strides, ranges):
    return all_points(sizes, strides, ranges, CPU)


def batch(*images):
    """Boxes and classes of images, each a list of (x1, y1, x2, y2, class)."""
    instances = []
    for rows in images:
        rows = torch.tensor(rows, dtype=torch.float32).reshape(-1, 5)
        instances.append(Instances((64, 64), gt_boxes=Boxes(rows[:, :4]), gt_classes=rows[:, 4].long()))
    return pad_instances(instances)


def test_points_lie_in_the_middle_of_their_cells_in_row_order():
    points = points_of([(2, 3), (1, 1)], [4, 8], [(-1, 8), (8, 16)])
    expected = [[2, 2], [6, 2], [10, 2], [2, 6], [6, 6], [10, 6], [4, 4]]
    assert points.center.tolist() == expected


def test_the_smallest_target_that_a_point_lies_strictly_inside_wins():
    # One level of 4 x 4 points at 2, 6, 10, 14; a large target of class 0 and a small one of class 1 in its corner.
    points = points_of([(4, 4)], [4], [(-1, 100)])
    boxes, classes = batch([(0, 0, 12, 12, 0), (0, 0, 7, 6, 1)], [])
    targets = assign_targets(points, boxes, classes, K)
    b = K  # background; the point at (6, 6) lies on the small target's lower edge
    assert targets.labels[0].reshape(4, 4).tolist() == [[1, 1, 0, b], [0, 0, 0, b], [0, 0, 0, b], [b, b, b, b]]
    assert targets.labels[1].unique().tolist() == [b]
    assert targets.distances[0, 1].tolist() == [6, 2, 1, 4]
    assert targets.distances[0, 5].tolist() == [6, 6, 6, 6]
    assert targets.distances[0, 3].tolist() == [0, 0, 0, 0]


@for_every(("edge", "fits"), [(7.875, False), (8.0, True), (16.0, True), (16.125, False)])
def test_both_ends_of_a_range_are_inside(edge, fits):
    points = points_of([(1, 1)], [16], [(8, 16)])  # one point at (8, 8)
    boxes, classes = batch([(8 - edge, 8 - 1, 8 + 1, 8 + 1, 0)])
    assert (assign_targets(points, boxes, classes, 1).labels.item() == 0) == fits


def test_of_equal_targets_the_first_wins():
    points = points_of([(1, 1)], [8], [(-1, 100)])
    boxes, classes = batch([(0, 0, 8, 8, 2), (0, 0, 8, 8, 1), (1, 1, 9, 9, 0)])
    assert assign_targets(points, boxes, classes, K).labels.item() == 2


def test_no_targets_at_all():
    points = points_of([(2, 2)], [8], [(-1, 100)])
    targets = assign_targets(points, *batch([], []), K)
    assert targets.labels.tolist() == [[K] * 4] * 2
    assert targets.distances.abs().sum() == 0


def assign_slowly(points, rows, ranges, strides, radius):
    """The rule, point by point and target by target."""
    labels, distances = [], []
    levels = [i for i, level in enumerate(points.levels) for _ in range(level.height * level.width)]
    for level, (x, y) in zip(levels, points.center.tolist()):
        best = None
        for x1, y1, x2, y2, cls in rows:
            sides = (x - x1, y - y1, x2 - x, y2 - y)
            if min(sides) <= 0 or not ranges[level][0] <= max(sides) <= ranges[level][1]:
                continue
            reach = radius * strides[level]
            if radius and max(abs(x - (x1 + x2) / 2), abs(y - (y1 + y2) / 2)) >= reach:
                continue
            area = (x2 - x1) * (y2 - y1)
            if best is None or area < best[0]:
                best = (area, cls, sides)
        labels.append(K if best is None else best[1])
        distances.append((0.0,) * 4 if best is None else best[2])
    return torch.tensor(labels), torch.tensor(distances)


# Quarters of a pixel, so that the arithmetic of both versions is exact.
side = st.integers(0, 160).map(lambda n: n / 4)
rows_of_image = st.lists(
    st.tuples(side, side, side, side, st.integers(0, K - 1)).map(
        lambda r: (r[0], r[1], r[0] + r[2], r[1] + r[3], r[4])  # may have no area
    ),
    max_size=6,
)


@settings(max_examples=60, deadline=None)
@given(
    images=st.lists(rows_of_image, min_size=1, max_size=3),
    radius=st.sampled_from([0.0, 0.5, 1.5]),
    pairs=st.sampled_from([1, 300, 2**26]),
)
def test_targets_equal_the_slow_version(images, radius, pairs):
    strides, ranges = [4, 8, 16], [(-1, 6), (6, 12), (12, 40)]
    points = points_of([(9, 7), (5, 4), (3, 2)], strides, ranges)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fcos_targets, "_PAIRS", pairs)  # how many comparisons are made at a time
        targets = assign_targets(points, *batch(*images), K, radius)
    for i, rows in enumerate(images):
        labels, distances = assign_slowly(points, rows, ranges, strides, radius)
        assert torch.equal(targets.labels[i], labels)
        assert torch.equal(targets.distances[i], distances)


def test_a_dense_scene_needs_little_memory():
    """2,000 targets at 512x512 on strides 4, 8, 16: never more than the bound, whatever the scene."""
    points = points_of([(128, 128), (64, 64), (32, 32)], [4, 8, 16], [(-1, 16), (16, 64), (64, 512)])
    corner = torch.rand(1, 2000, 2) * 500
    boxes = torch.cat([corner, corner + 3 + torch.rand(1, 2000, 2) * 6], dim=-1)
    classes = torch.zeros(1, 2000, dtype=torch.long)
    with torch.profiler.profile(profile_memory=True, activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        targets = assign_targets(points, boxes, classes, 1)
    largest = max((event.cpu_memory_usage for event in profile.events()), default=0)
    assert (targets.labels == 0).sum() > 2000
    assert largest < 160e6


def test_centerness_is_one_in_the_middle_and_zero_at_the_side():
    values = centerness(torch.tensor([[3.0, 5, 3, 5], [1, 2, 3, 2], [0, 1, 4, 1], [1, 1, 4, 4]]))
    assert values.tolist() == pytest.approx([1, math.sqrt(1 / 3), 0, 1 / 4])


@given(st.lists(st.tuples(*[st.floats(0.25, 40)] * 8), min_size=1, max_size=5))
def test_overlap_is_that_of_the_boxes(rows):
    rows = torch.tensor(rows)
    centre = torch.tensor([20.0, 30.0]).expand(len(rows), 2)
    iou = iou_of_distances(rows[:, :4], rows[:, 4:])
    expected = box_iou(*(distances_to_boxes(centre, d) for d in (rows[:, :4], rows[:, 4:]))).diagonal()
    torch.testing.assert_close(iou, expected, rtol=1e-4, atol=1e-5)


def losses_slowly(logits, distances, centre_logits, targets):
    """Sums over points and classes, in Python floats."""
    focal = box = centre = weights = 0.0
    positives = 0
    for n in range(logits.shape[0]):
        for p in range(logits.shape[1]):
            label = int(targets.labels[n, p])
            for k in range(logits.shape[2]):
                q = 1 / (1 + math.exp(-float(logits[n, p, k])))
                focal -= 0.25 * (1 - q) ** 2 * math.log(q) if k == label else 0.75 * q**2 * math.log(1 - q)
            if label == logits.shape[2]:
                continue
            positives += 1
            left, top, right, bottom = targets.distances[n, p].tolist()
            weight = math.sqrt(min(left, right) / max(left, right) * min(top, bottom) / max(top, bottom))
            a, b, c, d = distances[n, p].tolist()
            overlap = (min(a, left) + min(c, right)) * (min(b, top) + min(d, bottom))
            union = (a + c) * (b + d) + (left + right) * (top + bottom) - overlap
            box -= weight * math.log(overlap / union)
            weights += weight
            q = 1 / (1 + math.exp(-float(centre_logits[n, p])))
            centre -= weight * math.log(q) + (1 - weight) * math.log(1 - q)
    return {"loss_cls": focal / positives, "loss_box_reg": box / weights, "loss_centerness": centre / positives}


def predictions(num_images, num_points, num_classes=K):
    return (
        torch.randn(num_images, num_points, num_classes).requires_grad_(),
        (torch.randn(num_images, num_points, 4) + 1).exp().requires_grad_(),
        torch.randn(num_images, num_points).requires_grad_(),
    )


def test_losses_equal_the_slow_version():
    points = points_of([(6, 6), (3, 3)], [4, 8], [(-1, 8), (8, 40)])
    boxes, classes = batch([(1, 1, 9, 12, 0), (8, 4, 23, 23, 2)], [(2.5, 7, 11, 13, 1)])
    targets = assign_targets(points, boxes, classes, K)
    outputs = predictions(2, 45)
    losses = fcos_losses(*outputs, targets)
    expected = losses_slowly(*(x.detach() for x in outputs), targets)
    assert {k: v.item() for k, v in losses.items()} == pytest.approx(expected, rel=1e-5)


def test_without_targets_the_losses_are_finite_and_only_classes_learn():
    outputs = logits, distances, centre = predictions(2, 5)
    targets = Targets(torch.full((2, 5), K), torch.zeros(2, 5, 4))
    losses = fcos_losses(*outputs, targets)
    assert losses["loss_box_reg"] == 0
    assert losses["loss_centerness"] == 0
    sum(losses.values()).backward()
    assert logits.grad.abs().min() > 0
    assert distances.grad.abs().max() == 0
    assert centre.grad.abs().max() == 0


def test_a_perfect_prediction_has_no_box_loss():
    distances = torch.tensor([[[3.0, 4, 5, 6]]])
    targets = Targets(torch.zeros(1, 1, dtype=torch.long), distances)
    losses = fcos_losses(torch.full((1, 1, 1), 20.0), distances.clone(), torch.zeros(1, 1), targets)
    assert losses["loss_box_reg"].item() == pytest.approx(0, abs=1e-6)
    assert losses["loss_cls"].item() == pytest.approx(0, abs=1e-6)


def test_processes_share_their_normalisers(monkeypatch):
    """The mean over two processes of losses divided by the mean of positives is the loss of both batches in one."""
    points = points_of([(6, 6)], [4], [(-1, 100)])
    images = [(1, 1, 9, 12, 0), (8, 4, 23, 23, 2)], [(2.5, 7, 11, 13, 1)]
    outputs = predictions(2, 36)
    together = fcos_losses(*outputs, assign_targets(points, *batch(*images), K))
    parts = [assign_targets(points, *batch(rows), K) for rows in images]
    sums = []
    for part in parts:
        positive = part.labels != K
        sums.append(torch.stack([positive.sum(), centerness(part.distances[positive]).sum()]))
    monkeypatch.setattr(torch.distributed, "all_reduce", lambda totals: totals.copy_(sum(sums)))
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 2)
    apart = [
        fcos_losses(*(x[i : i + 1] for x in outputs), part, mean_over_processes=True) for i, part in enumerate(parts)
    ]
    for name, value in together.items():
        assert (apart[0][name] + apart[1][name]).item() / 2 == pytest.approx(value.item(), rel=1e-5)
