"""Which anchors learn which target: by region, and by overlap.

Both assign all images and targets at once, in pieces of bounded memory where there are very many targets. Letters in
shapes: N images, M targets (padded with boxes without area), A anchors of all levels together, H and W cells of a
level. Source: Vu et al., "Cascade RPN" (NeurIPS 2019), section 3.3.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torchvision.ops import box_iou

from irstd_d2.errors import ConfigError

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
    """Level of every target: floor(log2(sqrt(area) / smallest anchor) + 0.5), clamped: (..., 4) -> (...,) int64.

    ``smallest_anchor`` is the edge of the finest level's anchor; all in pixels.
    """
    scale = (boxes[..., 2:] - boxes[..., :2]).clamp(min=0).prod(-1).sqrt()
    level = (torch.log2(scale) - math.log2(smallest_anchor) + 0.5).floor()
    return level.clamp(0, num_levels - 1).long()


def central_region(boxes: Tensor, ratio: float, stride: float, size: tuple[int, int]) -> Tensor:
    """The central part of boxes on a feature grid, rounded to cells and clamped to its ``size`` (height, width).

    ``boxes`` (..., 4) and the grid's ``stride`` are in pixels; ``ratio`` is the share of width and height that is kept.

    Returns:
        (..., 4) x1 y1 x2 y2 in cells, both ends included.
    """
    edge = (1 - ratio) / 2
    boxes = boxes / stride
    low = ((1 - edge) * boxes[..., :2] + edge * boxes[..., 2:]).round()
    high = (edge * boxes[..., :2] + (1 - edge) * boxes[..., 2:]).round()
    limit = torch.tensor([size[1], size[0]], dtype=boxes.dtype, device=boxes.device)
    return torch.cat([torch.minimum(low.clamp(min=0), limit), torch.minimum(high.clamp(min=0), limit)], dim=-1)


class _Runs(NamedTuple):
    """Runs of cells, each within one row of one image."""

    row: Tensor  # among all rows of all images (N * H)
    start: Tensor  # first and last column, both included
    end: Tensor
    codes: Tensor  # 0 where a run does not exist


def highest_covering(regions: Tensor, codes: Tensor, size: tuple[int, int], compact: bool) -> Tensor:
    """The largest code among the regions that cover a cell.

    A region is one run of cells per row. This is the sparse table of range maxima read backwards: with runs of lengths
    1, 2, 4, ... every run is the union of two overlapping ones of the same length, from its start and up to its end,
    and so costs two writes into the map of that length. Each map is then handed down to the map of half its length, as
    a run is two of its halves. So the work is that of the covered rows and of a few maps, not that of all pairs of
    region and cell.

    Args:
        regions: (N, R, 4) x1 y1 x2 y2 in cells, ends included, low bounds at least 0.
        codes: (N, R) int32, 0 or above; 0 covers nothing.
        size: (H, W)
        compact: list the covered rows alone. This reads their number, for which a GPU would have to be waited for;
            without it all rows of all regions are listed, and those outside have the code 0.

    Returns:
        (N, H, W) int32, 0 where nothing covers.
    """
    runs = _runs_of_regions(regions, codes, size, compact)
    length = runs.end - runs.start + 1
    exponent = torch.frexp(length.clamp(min=1).float()).exponent.long() - 1  # of the largest power of two within
    num_maps = int(exponent.max()) + 1 if compact and len(exponent) else size[1].bit_length()
    maps = torch.zeros((num_maps, len(codes), *size), dtype=torch.int32, device=regions.device)
    first = (exponent * len(codes) * size[0] + runs.row) * size[1]
    for column in (runs.start, runs.end + 1 - 2**exponent):
        maps.view(-1).scatter_reduce_(0, first + column.clamp(0, size[1] - 1), runs.codes, "amax")
    return _hand_down(maps)


def _runs_of_regions(regions: Tensor, codes: Tensor, size: tuple[int, int], compact: bool) -> _Runs:
    """The rows of regions as runs; see ``highest_covering``."""
    num_regions, (height, width) = codes.shape[1], size
    device = regions.device
    left, top, right, bottom = (bound.flatten() for bound in regions.long().unbind(-1))
    right, bottom, codes = right.clamp(max=width - 1), bottom.clamp(max=height - 1), codes.flatten()
    num_rows = (bottom - top + 1).clamp(min=0) * ((left <= right) & (codes > 0))
    if compact:
        region = torch.repeat_interleave(num_rows)
        number = torch.arange(len(region), device=device) - (num_rows.cumsum(0) - num_rows)[region]
        codes = codes[region]
    else:
        region = torch.arange(len(num_rows), device=device)[:, None].expand(-1, height).flatten()
        number = torch.arange(height, device=device).repeat(len(num_rows))
        codes = codes[region] * (number < num_rows[region])
    row = (top[region] + number).clamp(max=height - 1)
    return _Runs((region // max(1, num_regions)) * height + row, left[region], right[region], codes)


def _hand_down(maps: Tensor) -> Tensor:
    """Maxima of runs of 2 ** e cells, (e, N, H, W) by first cell, to maxima of the single cells (N, H, W), in place."""
    for exponent in range(len(maps) - 1, 0, -1):
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
    center_ratio: float = 0.2,
    ignore_ratio: float = 0.5,
) -> Tensor:
    """Assign anchors whose centre lies in the central part of a target on the target's level.

    There is one anchor per cell, centred at (column * stride, row * stride). Between the central and the ignored part
    it is ignored; of several targets the last decides. On the levels next to the target's the ignored part is ignored
    whatever else holds there.

    Args:
        sizes, strides: (H, W) and stride per level, finest first.
        boxes: (N, M, 4) in pixels.
        anchor_scale: edge of an anchor in strides.
        center_ratio, ignore_ratio: share of a target's width and height, the first at most the second.

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
        middle = central_region(boxes, center_ratio, stride, size)
        here, beside = exists & (levels == level), exists & ((levels - level).abs() == 1)
        codes = torch.cat([here * even, here * (even + 1), beside * (2 * num_targets + 2)], dim=1).int()
        regions = torch.cat([near, middle, near], dim=1)
        code = highest_covering(regions, codes, size, compact=boxes.device.type == "cpu").flatten(1)
        target = torch.where(code % 2 == 1, code // 2 - 1, IGNORED)
        result.append(torch.where(code == 0, NEGATIVE, target).long())
    return torch.cat(result, dim=1)


def assign_by_iou(
    anchors: Tensor,
    boxes: Tensor,
    *,
    positive_iou: float = 0.7,
    negative_iou: float = 0.7,
    low_quality_iou: float = 0.3,
    similarity: Callable[[Tensor, Tensor], Tensor] = box_iou,
) -> Tensor:
    """Assign each anchor to the target it overlaps most, and each target's best anchors to it.

    Args:
        anchors, boxes: (N, A, 4) and (N, M, 4).
        positive_iou, negative_iou: at least the first is positive, below the second negative, between the two ignored.
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


@dataclass(frozen=True)
class AnchorGrid:
    """One square anchor per cell of every level, centred at (column * stride, row * stride), ``scale`` strides wide.

    ``sizes`` (H, W) and ``strides`` are per level, finest first.
    """

    sizes: Sequence[tuple[int, int]]
    strides: Sequence[int]
    scale: float

    def anchors(self, device: torch.device) -> list[Tensor]:
        """Per level (H * W, 4) in pixels."""
        return [grid_anchors(size, s, self.scale * s, device) for size, s in zip(self.sizes, self.strides)]


def grid_anchors(size: tuple[int, int], stride: int, edge: float, device: torch.device) -> Tensor:
    """The anchors of one level, edge in pixels: (height * width, 4); see ``AnchorGrid``."""
    y, x = torch.meshgrid(
        torch.arange(size[0], device=device) * float(stride),
        torch.arange(size[1], device=device) * float(stride),
        indexing="ij",
    )
    center = torch.stack([x, y], dim=-1).reshape(-1, 2)
    return torch.cat([center - edge / 2, center + edge / 2], dim=1)


class Selection(NamedTuple):
    """Which anchors enter a loss, (N, A) bool each, and its divisor, ()."""

    positive: Tensor
    negative: Tensor
    divisor: Tensor


@dataclass(frozen=True)
class RegionAssigner:
    """Anchors in the central part of a target learn it, all of them; see ``assign_by_region``.

    The loss is divided by the number of anchors / ``loss_divisor``.

    Raises:
        ConfigError: for a center that is larger than the ignored part.
    """

    center_ratio: float = 0.2
    ignore_ratio: float = 0.5
    loss_divisor: float = 200.0

    def __post_init__(self) -> None:
        if self.center_ratio > self.ignore_ratio:
            raise ConfigError(
                f"MODEL.CASCADE_RPN.CENTER_RATIO is {self.center_ratio}, IGNORE_RATIO {self.ignore_ratio}; the center "
                "of a target must lie in its ignored part, so the first must not be the larger"
            )

    def assign(self, grid: AnchorGrid, anchors: Tensor, boxes: Tensor) -> Tensor:  # noqa: ARG002  one interface
        """Assign targets (N, M, 4) to the anchors of a grid, (N, A); see ``assign_by_region``."""
        ratios = {"center_ratio": self.center_ratio, "ignore_ratio": self.ignore_ratio}
        return assign_by_region(grid.sizes, grid.strides, boxes, anchor_scale=grid.scale, **ratios)

    def select_for_loss(self, assigned: Tensor) -> Selection:
        """Take all positives and negatives of (N, A)."""
        divisor = torch.tensor(assigned.numel() / self.loss_divisor, device=assigned.device)
        return Selection(assigned >= 0, assigned == NEGATIVE, divisor)


@dataclass(frozen=True)
class OverlapAssigner:
    """Anchors that overlap a target enough learn it (``assign_by_iou``), of which some are drawn.

    ``batch_size`` are drawn at random per image, at most a share ``positive_fraction`` of them positives, and the loss
    is divided by their number.
    """

    positive_iou: float = 0.7
    negative_iou: float = 0.7
    low_quality_iou: float = 0.3
    batch_size: int = 256
    positive_fraction: float = 0.5
    similarity: Callable[[Tensor, Tensor], Tensor] = box_iou

    def assign(self, grid: AnchorGrid, anchors: Tensor, boxes: Tensor) -> Tensor:  # noqa: ARG002  one interface
        """Assign targets (N, M, 4) to anchors (N, A, 4): (N, A); see ``assign_by_iou``."""
        return assign_by_iou(
            anchors,
            boxes,
            positive_iou=self.positive_iou,
            negative_iou=self.negative_iou,
            low_quality_iou=self.low_quality_iou,
            similarity=self.similarity,
        )

    def select_for_loss(self, assigned: Tensor) -> Selection:
        """Draw from the positives and fill up with negatives of (N, A)."""
        positive, negative = sample(assigned >= 0, assigned == NEGATIVE, self.batch_size, self.positive_fraction)
        counts = positive.sum(1).clamp(min=1) + negative.sum(1).clamp(min=1)
        return Selection(positive, negative, counts.sum())


def sample(positive: Tensor, negative: Tensor, batch_size: int, positive_fraction: float) -> tuple[Tensor, Tensor]:
    """Draw at random from the positives and fill up with negatives, per image: (N, A) bool each, as the result.

    ``batch_size`` are drawn per image, if there are enough, of them at most a share ``positive_fraction`` of positives.
    """
    order = torch.rand(positive.shape, device=positive.device).argsort(1)
    back = order.argsort(1)
    limit = torch.full((len(positive),), int(batch_size * positive_fraction), device=positive.device)
    kept_positive = first_n(positive.gather(1, order), limit)
    kept_negative = first_n(negative.gather(1, order), batch_size - kept_positive.sum(1))
    return kept_positive.gather(1, back), kept_negative.gather(1, back)


def first_n(candidates: Tensor, count: Tensor) -> Tensor:
    """Keep the first ``count`` (N,) true entries of each row of (N, A) bool, in order: (N, A) bool."""
    return candidates & (candidates.cumsum(1) <= count[:, None])
