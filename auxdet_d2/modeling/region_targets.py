"""Which anchors are responsible for which target: by region, and by overlap.

Both work on all images and targets at once, in pieces of bounded memory where there are very many targets. Letters in
shapes: N images, M targets (padded with boxes without area), A anchors of all levels together, H and W cells of a
level. Source: Vu et al., "Cascade RPN" (NeurIPS 2019), section 3.3.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

# Results of an assignment: a target index from 0, or one of these.
NEGATIVE = -1
IGNORED = -2

# Pairs of target and anchor that are compared at once, in some 60 MB: no gain in speed beyond.
_PAIRS_AT_ONCE = 2**21


def _pieces(num_targets: int, pairs_per_target: int) -> Iterator[slice]:
    step = max(1, _PAIRS_AT_ONCE // max(1, pairs_per_target))
    return (slice(start, start + step) for start in range(0, num_targets, step))


def _with_area(boxes: Tensor) -> Tensor:
    """Whether boxes (..., 4) are more than padding: (...,)"""
    return (boxes[..., 2:] > boxes[..., :2]).all(-1)


def target_levels(boxes: Tensor, num_levels: int, smallest_anchor: float) -> Tensor:
    """Level of every target: floor(log2(sqrt(area) / smallest anchor) + 0.5), clamped.

    Args:
        boxes: (..., 4) in pixels.
        num_levels: number of levels.
        smallest_anchor: edge of the finest level's anchor in pixels.

    Returns:
        (...,) int64
    """
    scale = (boxes[..., 2:] - boxes[..., :2]).clamp(min=0).prod(-1).sqrt()
    level = (torch.log2(scale) - math.log2(smallest_anchor) + 0.5).floor()
    return level.clamp(0, num_levels - 1).long()


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


def paint(regions: Tensor, codes: Tensor, size: tuple[int, int], compact: bool) -> Tensor:
    """The largest code among the regions that cover a cell.

    A region is a run of cells in each of its rows. Every run is the union of two runs whose length is one power of two,
    that from its start and that up to its end, and is painted by two writes into the map of that length. Then the maps
    are reduced to shorter runs, the longest first. So the work is that of the covered rows and of a few maps, not that
    of all pairs of region and cell.

    Args:
        regions: (N, R, 4) x1 y1 x2 y2 in cells, ends included, low bounds at least 0.
        codes: (N, R) int32, 0 or above; 0 paints nothing.
        size: (H, W)
        compact: list the covered rows alone. This reads their number, for which a GPU would have to be waited for;
            without it all rows of all regions are listed, and those outside write 0.

    Returns:
        (N, H, W) int32, 0 where nothing is painted.
    """
    num_images, num_regions = codes.shape
    height, width = size
    device = regions.device
    left, top, right, bottom = (bound.flatten() for bound in regions.long().unbind(-1))
    right, bottom, codes = right.clamp(max=width - 1), bottom.clamp(max=height - 1), codes.flatten()
    rows = (bottom - top + 1).clamp(min=0) * ((left <= right) & (codes > 0))
    power = torch.frexp((right - left + 1).clamp(min=1).float()).exponent.long() - 1
    if compact:
        region = torch.repeat_interleave(rows)
        number = torch.arange(len(region), device=device) - (rows.cumsum(0) - rows)[region]
        codes, num_maps = codes[region], int(power.max()) + 1
    else:
        region = torch.arange(len(rows), device=device)[:, None].expand(-1, height).flatten()
        number = torch.arange(height, device=device).repeat(len(rows))
        codes, num_maps = codes[region] * (number < rows[region]), width.bit_length()
    start, end, power = left[region], right[region], power[region]
    row = (top[region] + number).clamp(max=height - 1)
    maps = torch.zeros((num_maps, num_images, height, width), dtype=torch.int32, device=device)
    first = ((power * num_images + region // num_regions) * height + row) * width
    for place in (start, end + 1 - 2**power):
        maps.view(-1).scatter_reduce_(0, first + place.clamp(0, width - 1), codes, "amax")
    for exponent in range(num_maps - 1, 0, -1):
        longer, shorter, half = maps[exponent], maps[exponent - 1], 2 ** (exponent - 1)
        torch.maximum(shorter, longer, out=shorter)
        torch.maximum(shorter[..., half:], longer[..., :-half], out=shorter[..., half:])
    return maps[0]


def assign_by_region(
    sizes: Sequence[tuple[int, int]],
    strides: Sequence[int],
    boxes: Tensor,
    *,
    anchor_scale: float,
    centre_ratio: float = 0.2,
    ignore_ratio: float = 0.5,
) -> Tensor:
    """Assign anchors whose centre lies in the central part of a target on the target's level.

    There is one anchor per cell, centred at (column * stride, row * stride). Between the central and the ignored part
    it is ignored; of several targets the last decides. On the levels next to the target's the ignored part is ignored
    whatever else holds there.

    Args:
        sizes: per level (H, W).
        strides: per level, finest first.
        boxes: (N, M, 4) in pixels.
        anchor_scale: edge of an anchor in strides.
        centre_ratio, ignore_ratio: share of a target's width and height, the first at most the second.

    Returns:
        (N, A) target index, ``NEGATIVE`` or ``IGNORED``.
    """
    num_images, num_targets = boxes.shape[:2]
    if not num_targets:
        count = sum(height * width for height, width in sizes)
        return torch.full((num_images, count), NEGATIVE, device=boxes.device)
    exists = _with_area(boxes)
    levels = target_levels(boxes, len(sizes), anchor_scale * strides[0])
    # Per target an even code for its ignored part and the odd one above it for its centre, so that the last target
    # decides and in it the centre; above all of them an even code for what is ignored on the levels next to its own.
    even = 2 * torch.arange(1, num_targets + 1, dtype=torch.int32, device=boxes.device)
    result = []
    for level, (size, stride) in enumerate(zip(sizes, strides)):
        near = central_region(boxes, ignore_ratio, stride, size)
        middle = central_region(boxes, centre_ratio, stride, size)
        here, beside = exists & (levels == level), exists & ((levels - level).abs() == 1)
        codes = torch.cat([here * even, here * (even + 1), beside * (2 * num_targets + 2)], dim=1).int()
        painted = paint(torch.cat([near, middle, near], dim=1), codes, size, boxes.device.type == "cpu").flatten(1)
        target = torch.where(painted % 2 == 1, painted // 2 - 1, IGNORED)
        result.append(torch.where(painted == 0, NEGATIVE, target).long())
    return torch.cat(result, dim=1)


def pairwise_iou(boxes: Tensor, anchors: Tensor) -> Tensor:
    """IoU of (N, M, 4) boxes and (N, A, 4) anchors: (N, M, A)."""
    x1, y1, x2, y2 = boxes[:, :, None].unbind(-1)
    u1, v1, u2, v2 = anchors[:, None].unbind(-1)
    width = (torch.minimum(x2, u2) - torch.maximum(x1, u1)).clamp(min=0)
    height = (torch.minimum(y2, v2) - torch.maximum(y1, v1)).clamp(min=0)
    intersection = width * height
    union = (x2 - x1) * (y2 - y1) + (u2 - u1) * (v2 - v1) - intersection
    return intersection / union.clamp(min=1e-6)


def assign_by_iou(
    anchors: Tensor,
    boxes: Tensor,
    *,
    positive_iou: float = 0.7,
    negative_iou: float = 0.7,
    low_quality_iou: float = 0.3,
    similarity: Callable[[Tensor, Tensor], Tensor] = pairwise_iou,
) -> Tensor:
    """Assign each anchor to the target it overlaps most, and each target's best anchors to it.

    Args:
        anchors: (N, A, 4)
        boxes: (N, M, 4)
        positive_iou: at least this is positive.
        negative_iou: below this is negative, between the two is ignored.
        low_quality_iou: the best anchors of a target are its own from this overlap on; of several targets with the
            same best anchor the last has it.
        similarity: what takes the place of IoU, of (N, M, 4) boxes and (N, A, 4) anchors: (N, M, A), 0 or above.

    Returns:
        (N, A) target index, ``NEGATIVE`` or ``IGNORED``.
    """
    shape = anchors.shape[:2]
    exists = _with_area(boxes)[..., None]
    number = torch.arange(boxes.shape[1], device=boxes.device)[None, :, None]
    best_iou = anchors.new_full(shape, -1.0)
    best = torch.full(shape, NEGATIVE, device=anchors.device)
    own = torch.full(shape, NEGATIVE, device=anchors.device)
    for part in _pieces(boxes.shape[1], math.prod(shape)):
        iou = similarity(boxes[:, part], anchors).masked_fill(~exists[:, part], -1)
        part_iou, part_best = iou.max(1)
        better = part_iou > best_iou
        best = torch.where(better, part_best + part.start, best)
        best_iou = torch.where(better, part_iou, best_iou)
        top = iou.amax(2, keepdim=True)
        mine = (iou == top) & (top >= low_quality_iou)
        own = torch.maximum(own, torch.where(mine, number[:, part], NEGATIVE).amax(1))
    assigned = torch.where(best_iou >= positive_iou, best, torch.where(best_iou < negative_iou, NEGATIVE, IGNORED))
    return torch.where(own != NEGATIVE, own, assigned)
