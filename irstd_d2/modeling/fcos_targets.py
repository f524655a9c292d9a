"""Points, targets and losses of FCOS as pure functions.

Letters in shapes: N images, P points over all levels, M targets (padded), K classes.
Source: Tian et al., "FCOS: Fully Convolutional One-Stage Object Detection" (ICCV 2019), in the variant of BAFE-Net:
no centre sampling, -log IoU weighted by centerness, no stride in the distances.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from detectron2.structures import Instances
from torch import Tensor
from torch.nn import functional as F

# Pairs of a point and a target that are compared at a time, one byte each: bounds the memory of dense scenes.
_PAIRS = 2**26


@dataclass(frozen=True)
class Level:
    """The grid of points of one pyramid level.

    Attributes:
        height, width: points per column and per row.
        stride: pixels between points.
        low, high: a target belongs to a point when its largest side distance is within, ends included.
    """

    height: int
    width: int
    stride: int
    low: float
    high: float

    def axes(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """Coordinates (index + 0.5) * stride in network pixels: y of the rows (height,), x of the columns (width,)."""
        y, x = (torch.arange(n, device=device, dtype=torch.float32) for n in (self.height, self.width))
        return (y + 0.5) * self.stride, (x + 0.5) * self.stride


@dataclass(frozen=True)
class Points:
    """Where the predictions of all levels sit, level after level, in row order.

    Attributes:
        levels: the grids.
        center: (P, 2) x and y in network pixels.
    """

    levels: tuple[Level, ...]
    center: Tensor


@dataclass(frozen=True)
class Targets:
    """What each point should predict.

    Attributes:
        labels: (N, P) class, or K for background.
        distances: (N, P, 4) left, top, right, bottom in pixels; 0 for background.
        centerness: (N, P), 0 or above; ``None`` for that of the distances.
    """

    labels: Tensor
    distances: Tensor
    centerness: Tensor | None = None


def all_points(
    sizes: Sequence[tuple[int, int]],
    strides: Sequence[int],
    ranges: Sequence[tuple[float, float]],
    device: torch.device,
) -> Points:
    """Build the points of all levels from their (height, width), strides and ranges of side distances."""
    levels = tuple(Level(*size, stride, *bounds) for size, stride, bounds in zip(sizes, strides, ranges))
    grids = [torch.meshgrid(*level.axes(device), indexing="ij") for level in levels]
    return Points(levels, torch.cat([torch.stack([x, y], dim=-1).reshape(-1, 2) for y, x in grids]))


def pad_instances(instances: Sequence[Instances]) -> tuple[Tensor, Tensor]:
    """Stack the targets of a batch: boxes (N, M, 4), with rows of zeros behind, and classes (N, M)."""
    boxes = torch.nn.utils.rnn.pad_sequence([i.gt_boxes.tensor for i in instances], batch_first=True)
    classes = torch.nn.utils.rnn.pad_sequence([i.gt_classes for i in instances], batch_first=True)
    return boxes, classes


def assign_targets(
    points: Points, boxes: Tensor, classes: Tensor, num_classes: int, center_sampling_radius: float = 0.0
) -> Targets:
    """Give every point the smallest target that it lies inside and whose size fits its level.

    Args:
        points: P points.
        boxes, classes: (N, M, 4) x1 y1 x2 y2 in network pixels, without area where padded, and (N, M).
        num_classes: K, also the label of background.
        center_sampling_radius: above 0, points must also lie within so many strides of the target's centre.
    """
    # Of the targets that fit a point, the first is the answer.
    boxes, classes = sort_by_area(boxes, classes)
    firsts = [_first_fit(level, boxes, center_sampling_radius) for level in points.levels]
    positive, index = (torch.cat(column, dim=1) for column in zip(*firsts))
    return targets_of_points(points, boxes, classes, num_classes, positive, index)


def sort_by_area(boxes: Tensor, classes: Tensor) -> tuple[Tensor, Tensor]:
    """Sort the targets (N, M, 4) and (N, M) of each image from small to large; without any, give one without area."""
    if not classes.shape[1]:
        boxes, classes = boxes.new_zeros(len(boxes), 1, 4), classes.new_zeros(len(classes), 1)
    order = (boxes[..., 2:] - boxes[..., :2]).prod(-1).argsort(dim=1, stable=True)
    return boxes.gather(1, order[..., None].expand(-1, -1, 4)), classes.gather(1, order)


def targets_of_points(
    points: Points, boxes: Tensor, classes: Tensor, num_classes: int, positive: Tensor, index: Tensor
) -> Targets:
    """What points predict whose targets are known.

    ``boxes`` (N, M, 4) and ``classes`` (N, M) are the targets; ``positive`` (N, P) says whether a point has one, and
    ``index`` (N, P) which. The label of background is ``num_classes``, K.
    """
    labels = torch.where(positive, classes.gather(1, index), num_classes)
    chosen = boxes.gather(1, index[..., None].expand(-1, -1, 4))
    distances = torch.cat([points.center - chosen[..., :2], chosen[..., 2:] - points.center], dim=-1)
    return Targets(labels, torch.where(positive[..., None], distances, 0.0))


def _first_fit(level: Level, boxes: Tensor, center_sampling_radius: float) -> tuple[Tensor, Tensor]:
    """Find the first of the boxes (N, M, 4) that fits each point: whether there is one and its index, (N, P) each.

    A point's conditions are those of its row and of its column, so only their conjunction is formed for every point.
    """
    y, x = level.axes(boxes.device)
    inside_x, long_x = _fit_axis(x, boxes[..., 0], boxes[..., 2], level, center_sampling_radius)
    inside_y, long_y = _fit_axis(y, boxes[..., 1], boxes[..., 3], level, center_sampling_radius)
    found = boxes.new_zeros(len(boxes), level.height, level.width, dtype=torch.bool)
    index = torch.zeros_like(found, dtype=torch.long)
    step = max(1, _PAIRS // max(1, found.numel()))
    for start in range(0, boxes.shape[1], step):
        part = slice(start, start + step)
        fits = inside_y[:, :, None, part] & inside_x[:, None, :, part]
        fits &= long_y[:, :, None, part] | long_x[:, None, :, part]
        any_fits, first = fits.max(dim=-1)  # the first of the largest, here of the true ones
        index = torch.where(any_fits & ~found, first + start, index)
        found |= any_fits
    return found.flatten(1), index.flatten(1)


def _fit_axis(
    position: Tensor, start: Tensor, end: Tensor, level: Level, center_sampling_radius: float
) -> tuple[Tensor, Tensor]:
    """Compare positions (L,) with the extents (N, M) of boxes along one axis; (N, L, M) each.

    Whether the position is inside, no side is too far and the centre near enough; whether a side is as far as the level
    asks for, which one axis must fulfil.
    """
    before, after = position[:, None] - start[:, None], end[:, None] - position[:, None]
    inside = (torch.minimum(before, after) > 0) & (torch.maximum(before, after) <= level.high)
    if center_sampling_radius > 0:
        inside &= (before - after).abs() / 2 < center_sampling_radius * level.stride
    return inside, torch.maximum(before, after) >= level.low


def centerness(distances: Tensor) -> Tensor:
    """sqrt(min / max of left and right x min / max of top and bottom) of (..., 4) distances: (...,)."""
    horizontal, vertical = distances[..., 0::2], distances[..., 1::2]
    ratio = horizontal.amin(-1) / horizontal.amax(-1) * vertical.amin(-1) / vertical.amax(-1)
    return ratio.clamp(min=0).sqrt()


def distances_to_boxes(centre: Tensor, distances: Tensor) -> Tensor:
    """Boxes (..., 4) x1 y1 x2 y2 around points (..., 2) with side distances (..., 4)."""
    return torch.cat([centre - distances[..., :2], centre + distances[..., 2:]], dim=-1)


def iou_of_distances(predicted: Tensor, target: Tensor) -> Tensor:
    """IoU of boxes around the same points, given by their side distances (..., 4): (...,)."""
    overlap = torch.minimum(predicted, target)
    width_height = overlap[..., :2] + overlap[..., 2:]
    intersection = width_height.clamp(min=0).prod(-1)
    area = (predicted[..., :2] + predicted[..., 2:]).prod(-1) + (target[..., :2] + target[..., 2:]).prod(-1)
    return intersection / (area - intersection).clamp(min=1e-6)


def log_iou_loss(predicted: Tensor, target: Tensor) -> Tensor:
    """-log IoU of boxes around the same points, given by their side distances (..., 4): (...,)."""
    return -iou_of_distances(predicted, target).clamp(min=1e-6).log()


def fcos_losses(
    logits: Tensor,
    distances: Tensor,
    centerness_logits: Tensor,
    targets: Targets,
    *,
    alpha: float = 0.25,
    gamma: float = 2.0,
    box_loss: Callable[[Tensor, Tensor], Tensor] = log_iou_loss,
    mean_over_processes: bool = False,
) -> dict[str, Tensor]:
    """Compute the three losses of FCOS.

    Args:
        logits: (N, P, K) class logits.
        distances: (N, P, 4) predicted side distances in pixels, positive.
        centerness_logits: (N, P)
        targets: of the same points.
        alpha, gamma: of the focal loss.
        box_loss: of predicted and of target side distances (..., 4) each: (...,).
        mean_over_processes: normalise by the mean of positives over all processes.

    Returns:
        ``loss_cls`` focal loss / positives, ``loss_box_reg`` the box loss weighted by the centerness target / sum of
        the weights, ``loss_centerness`` binary cross entropy / positives.
    """
    positive = targets.labels != logits.shape[-1]
    one_hot = F.one_hot(targets.labels, logits.shape[-1] + 1)[..., :-1].to(logits.dtype)
    # Outside the positives ratios are 0/0; they are replaced before they can reach a loss.
    sides = torch.where(positive[..., None], targets.distances, 1.0)
    weight = torch.where(positive, centerness(sides) if targets.centerness is None else targets.centerness, 0.0)
    totals = torch.stack([positive.sum().to(logits.dtype), weight.sum()])
    processes = 1
    if mean_over_processes:
        torch.distributed.all_reduce(totals)
        processes = torch.distributed.get_world_size()
    # The bounds hold for the whole batch, so that its division among processes changes nothing.
    num_positive, weight_sum = totals[0].clamp(min=1.0) / processes, totals[1].clamp(min=1e-6) / processes

    probability = logits.sigmoid()
    cross_entropy = F.binary_cross_entropy_with_logits(logits, one_hot, reduction="none")
    miss = probability + one_hot - 2 * probability * one_hot
    balance = alpha * one_hot + (1 - alpha) * (1 - one_hot)
    box = torch.where(positive, box_loss(distances, sides), 0.0) * weight
    centre = F.binary_cross_entropy_with_logits(centerness_logits, weight, reduction="none")
    return {
        "loss_cls": (balance * miss**gamma * cross_entropy).sum() / num_positive,
        "loss_box_reg": box.sum() / weight_sum,
        "loss_centerness": torch.where(positive, centre, 0.0).sum() / num_positive,
    }
