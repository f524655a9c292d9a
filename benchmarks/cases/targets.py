"""Assignment of targets and suppression, beside loops over the targets."""

from __future__ import annotations

import math

import torch
from detectron2.layers import batched_nms
from detectron2.modeling.anchor_generator import DefaultAnchorGenerator
from detectron2.modeling.matcher import Matcher
from detectron2.structures import Boxes, pairwise_iou
from harness import Bench
from torch import Tensor

from auxdet_d2.modeling.anchor_targets import IGNORED, NEGATIVE, assign_by_iou, assign_by_region, grid_anchors
from irstd_d2.modeling.fcos_targets import all_points, assign_targets

from .scenes import small_boxes


def region_loop(sizes: list[tuple[int, int]], strides: list[int], boxes: Tensor, scale: float) -> Tensor:
    """Region targets of one image, (M, 4) boxes one after the other, painted into the maps of their levels."""
    assigned = [torch.full(size, NEGATIVE) for size in sizes]
    beside = [torch.zeros(size, dtype=torch.bool) for size in sizes]

    def region(box: Tensor, ratio: float, level: int) -> tuple[slice, slice]:
        height, width = sizes[level]
        edge = (1 - ratio) / 2
        x1, y1, x2, y2 = (box / strides[level]).unbind()
        left = int(((1 - edge) * x1 + edge * x2).round().clamp(0, width))
        right = int((edge * x1 + (1 - edge) * x2).round().clamp(0, width))
        top = int(((1 - edge) * y1 + edge * y2).round().clamp(0, height))
        bottom = int((edge * y1 + (1 - edge) * y2).round().clamp(0, height))
        return slice(top, bottom + 1), slice(left, right + 1)

    for number, box in enumerate(boxes):
        edge = math.sqrt(float((box[2] - box[0]) * (box[3] - box[1])))
        level = min(max(math.floor(math.log2(edge) - math.log2(scale * strides[0]) + 0.5), 0), len(sizes) - 1)
        assigned[level][region(box, 0.5, level)] = IGNORED
        assigned[level][region(box, 0.2, level)] = number
        for other in (level - 1, level + 1):
            if 0 <= other < len(sizes):
                beside[other][region(box, 0.5, other)] = True
    return torch.cat([a.masked_fill(b, IGNORED).flatten() for a, b in zip(assigned, beside)])


def run(bench: Bench) -> None:
    size, count = (128, 20) if bench.quick else (1024, 500)
    device = bench.device
    strides = [4, 8]
    sizes = [(size // s, size // s) for s in strides]
    boxes = small_boxes(count, size).to(device)
    ours = assign_by_region(sizes, strides, boxes[None], anchor_scale=8.0)
    assert torch.equal(ours[0].cpu(), region_loop(sizes, strides, boxes.cpu(), 8.0))
    bench.compare(
        f"region targets, {count} targets, {size}x{size}",
        ("all at once", lambda: assign_by_region(sizes, strides, boxes[None], anchor_scale=8.0)),
        ("loop over targets", lambda: region_loop(sizes, strides, boxes.cpu(), 8.0), 1 / 20),
    )
    bench.memory("region targets", f"{count} targets", lambda: assign_by_region(
        sizes, strides, boxes[None], anchor_scale=8.0))  # fmt: skip

    anchors = torch.cat([grid_anchors(s, t, 8.0 * t, device) for s, t in zip(sizes, strides)])
    some = boxes[: max(1, count // 10)]
    matcher = Matcher([0.7], [0, 1], allow_low_quality_matches=True)
    bench.compare(
        f"IoU targets, {len(some)} targets, {len(anchors)} anchors",
        ("assign_by_iou", lambda: assign_by_iou(anchors[None], some[None])),
        ("detectron2's Matcher", lambda: matcher(pairwise_iou(Boxes(some), Boxes(anchors))), None),
    )
    _fcos(bench, size, boxes)
    _nms(bench, size)


def _fcos(bench: Bench, size: int, boxes: Tensor) -> None:
    strides, ranges = [8, 16, 32], [(-1.0, 64.0), (64.0, 128.0), (128.0, 256.0)]
    sizes = [(size // s, size // s) for s in strides]
    points = all_points(sizes, strides, ranges, bench.device)
    classes = torch.zeros((1, len(boxes)), dtype=torch.int64, device=bench.device)
    generator = DefaultAnchorGenerator(sizes=[[s] for s in strides], aspect_ratios=[1.0], strides=strides)
    maps = [torch.zeros(1, 1, *s, device=bench.device) for s in sizes]

    def matrix() -> Tensor:
        """detectron2's way: a matrix of all points and targets, every condition on each of its entries."""
        anchors = Boxes.cat(generator.to(bench.device)(maps))
        centre, edge = anchors.get_centers(), anchors.tensor[:, 2] - anchors.tensor[:, 0]
        x, y = centre.unsqueeze(2).unbind(1)
        x1, y1, x2, y2 = boxes.unsqueeze(1).unbind(2)
        distances = torch.stack([x.T - x1, y.T - y1, x2 - x.T, y2 - y.T], dim=2)
        largest = distances.amax(2)
        fits = (distances.amin(2) > 0) & (largest > 4 * edge) & (largest < 8 * edge)
        area = Boxes(boxes).area()[:, None]
        return torch.where(fits, 1e8 - area, 0).max(0).indices

    bench.compare(
        f"FCOS targets, {len(boxes)} targets, {size}x{size}",
        ("assign_targets", lambda: assign_targets(points, boxes[None], classes, 1)),
        ("matrix of points and targets", matrix, None),
    )


def _nms(bench: Bench, size: int) -> None:
    count = 100 if bench.quick else 2000
    boxes = small_boxes(count, size).to(bench.device)
    scores = torch.rand(count, device=bench.device)
    levels = torch.arange(count, device=bench.device) % 2

    def loop() -> list[int]:
        kept: list[int] = []
        for level in range(2):
            order = scores.masked_fill(levels != level, -1).argsort(descending=True)[: int((levels == level).sum())]
            overlap = pairwise_iou(Boxes(boxes[order]), Boxes(boxes[order])) > 0.8
            gone = torch.zeros(len(order), dtype=torch.bool, device=boxes.device)
            for i, index in enumerate(order.tolist()):
                if not gone[i]:
                    kept.append(index)
                    gone |= overlap[i]
        return kept

    assert sorted(loop()) == sorted(batched_nms(boxes, scores, levels, 0.8).tolist())
    bench.compare(
        f"NMS of {count} boxes on two levels",
        ("batched_nms", lambda: batched_nms(boxes, scores, levels, 0.8)),
        ("loop over boxes", loop, None),
    )
