"""Which anchors are responsible for which target: by region, and by overlap.

Both work on all targets and images at once. Letters in shapes: N images, M targets (padded with boxes without area),
A anchors of all levels together. Source: Vu et al., "Cascade RPN" (NeurIPS 2019), section 3.3.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

# Results of an assignment: a target index from 0, or one of these.
NEGATIVE = -1
IGNORED = -2


def target_levels(boxes: Tensor, num_levels: int, smallest_anchor: float) -> Tensor:
    """Level of every target: floor(log2(sqrt(area) / smallest anchor) + 0.5), clamped.

    Args:
        boxes: (..., 4) in pixels.
        num_levels: number of levels.
        smallest_anchor: edge of the finest level's anchor in pixels.

    Returns:
        (...,) int64
    """
    scale = (boxes[..., 2:] - boxes[..., :2]).prod(-1).clamp(min=0).sqrt()
    level = (torch.log2(scale) - math.log2(smallest_anchor) + 0.5).floor()
    return level.clamp(0, num_levels - 1).nan_to_num(0).long()


def central_region(boxes: Tensor, ratio: float, stride: float, size: tuple[int, int]) -> Tensor:
    """The central part of boxes on a feature grid, rounded to cells and clamped to the grid.

    Args:
        boxes: (..., 4) in pixels.
        ratio: share of width and height that is kept.
        stride: of the grid.
        size: (height, width) of the grid in cells.

    Returns:
        (..., 4) x1 y1 x2 y2 in cells, both ends included.
    """
    edge = (1 - ratio) / 2
    boxes = boxes / stride
    low = ((1 - edge) * boxes[..., :2] + edge * boxes[..., 2:]).round()
    high = (edge * boxes[..., :2] + (1 - edge) * boxes[..., 2:]).round()
    limit = torch.tensor([size[1], size[0]], dtype=boxes.dtype, device=boxes.device)
    return torch.cat([torch.minimum(low.clamp(min=0), limit), torch.minimum(high.clamp(min=0), limit)], dim=-1)


def _inside(centre: Tensor, region: Tensor) -> Tensor:
    """Whether (A, 2) centres lie in (N, M, 4) regions, ends included: (N, M, A)."""
    centre, region = centre[None, None], region[:, :, None]
    return ((centre >= region[..., :2]) & (centre <= region[..., 2:])).all(-1)


def assign_by_region(
    anchors: Sequence[Tensor],
    strides: Sequence[int],
    sizes: Sequence[tuple[int, int]],
    boxes: Tensor,
    *,
    anchor_scale: float,
    centre_ratio: float = 0.2,
    ignore_ratio: float = 0.5,
) -> Tensor:
    """Assign anchors whose centre lies in the central part of a target on the target's level.

    Between the central and the ignored part an anchor is ignored; of several targets the last decides. On the levels
    next to the target's the ignored part is ignored whatever else holds there.

    Args:
        anchors: per level (A_l, 4) in pixels, the same for all images.
        strides: per level.
        sizes: per level (height, width) in cells.
        boxes: (N, M, 4) in pixels.
        anchor_scale: edge of an anchor in strides.
        centre_ratio, ignore_ratio: share of a target's width and height.

    Returns:
        (N, A) target index, ``NEGATIVE`` or ``IGNORED``.
    """
    num_images, num_targets = boxes.shape[:2]
    valid = ((boxes[..., 2:] - boxes[..., :2]) > 0).all(-1)
    levels = target_levels(boxes, len(anchors), anchor_scale * strides[0])
    number = torch.arange(num_targets, device=boxes.device)[None, :, None]
    result = []
    for level, (anchor, stride, size) in enumerate(zip(anchors, strides, sizes)):
        assigned = torch.full((num_images, len(anchor)), NEGATIVE, device=boxes.device)
        if num_targets:
            centre = (anchor[:, :2] + anchor[:, 2:]) / 2 / stride
            near = _inside(centre, central_region(boxes, ignore_ratio, stride, size)) & valid[..., None]
            middle = _inside(centre, central_region(boxes, centre_ratio, stride, size)) & valid[..., None]
            own = (levels == level)[..., None]
            last = torch.where((near | middle) & own, number, NEGATIVE).amax(1)
            in_middle = (middle & own).gather(1, last.clamp(min=0)[:, None]).squeeze(1)
            assigned = torch.where(last == NEGATIVE, NEGATIVE, torch.where(in_middle, last, IGNORED))
            beside = ((levels - level).abs() == 1)[..., None]
            assigned = assigned.masked_fill((near & beside).any(1), IGNORED)
        result.append(assigned)
    return torch.cat(result, dim=1)


def pairwise_iou(boxes: Tensor, anchors: Tensor) -> Tensor:
    """IoU of (N, M, 4) boxes and (N, A, 4) anchors: (N, M, A)."""
    low = torch.maximum(boxes[:, :, None, :2], anchors[:, None, :, :2])
    high = torch.minimum(boxes[:, :, None, 2:], anchors[:, None, :, 2:])
    intersection = (high - low).clamp(min=0).prod(-1)
    area = (boxes[..., 2:] - boxes[..., :2]).prod(-1)[:, :, None]
    union = area + (anchors[..., 2:] - anchors[..., :2]).prod(-1)[:, None] - intersection
    return intersection / union.clamp(min=1e-6)


def assign_by_iou(
    anchors: Tensor,
    boxes: Tensor,
    *,
    positive_iou: float = 0.7,
    negative_iou: float = 0.7,
    low_quality_iou: float = 0.3,
) -> Tensor:
    """Assign each anchor to the target it overlaps most, and each target's best anchors to it.

    Args:
        anchors: (N, A, 4)
        boxes: (N, M, 4)
        positive_iou: at least this is positive.
        negative_iou: below this is negative, between the two is ignored.
        low_quality_iou: the best anchors of a target are its own from this overlap on; of several targets with the
            same best anchor the last has it.

    Returns:
        (N, A) target index, ``NEGATIVE`` or ``IGNORED``.
    """
    if not boxes.shape[1]:
        return torch.full(anchors.shape[:2], NEGATIVE, device=anchors.device)
    valid = ((boxes[..., 2:] - boxes[..., :2]) > 0).all(-1)[..., None]
    iou = pairwise_iou(boxes, anchors).masked_fill(~valid, -1)
    best_iou, best = iou.max(1)
    assigned = torch.where(best_iou >= positive_iou, best, torch.where(best_iou < negative_iou, NEGATIVE, IGNORED))
    top = iou.amax(2, keepdim=True)
    number = torch.arange(boxes.shape[1], device=boxes.device)[None, :, None]
    own = torch.where((iou == top) & (top >= low_quality_iou), number, NEGATIVE).amax(1)
    return torch.where(own != NEGATIVE, own, assigned)
