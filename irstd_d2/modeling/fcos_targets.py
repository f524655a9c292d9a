"""Points, targets and losses of FCOS as pure functions.

Letters in shapes: N images, P points over all levels, M targets (padded), K classes.
Source: Tian et al., "FCOS: Fully Convolutional One-Stage Object Detection" (ICCV 2019), in the variant of BAFE-Net:
no centre sampling, -log IoU weighted by centreness, no stride in the distances.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from detectron2.structures import Instances
from torch import Tensor
from torch.nn import functional as F

# Targets compared with all points at a time: bounds the memory of dense scenes to P x _CHUNK.
_CHUNK = 128


@dataclass(frozen=True)
class Points:
    """Where the predictions of all levels sit, level after level.

    Attributes:
        centre: (P, 2) x and y in network pixels.
        stride: (P,) of the point's level.
        low, high: (P,) a target belongs to the point when its largest side distance is within, ends included.
    """

    centre: Tensor
    stride: Tensor
    low: Tensor
    high: Tensor


@dataclass(frozen=True)
class Targets:
    """What each point should predict.

    Attributes:
        labels: (N, P) class, or K for background.
        distances: (N, P, 4) left, top, right, bottom in pixels; 0 for background.
    """

    labels: Tensor
    distances: Tensor


def level_points(height: int, width: int, stride: int, device: torch.device) -> Tensor:
    """Points of one level in row order, at ((column + 0.5) * stride, (row + 0.5) * stride): (height * width, 2)."""
    y, x = torch.meshgrid(
        torch.arange(height, device=device, dtype=torch.float32),
        torch.arange(width, device=device, dtype=torch.float32),
        indexing="ij",
    )
    return (torch.stack([x, y], dim=-1).reshape(-1, 2) + 0.5) * stride


def all_points(
    sizes: Sequence[tuple[int, int]],
    strides: Sequence[int],
    ranges: Sequence[tuple[float, float]],
    device: torch.device,
) -> Points:
    """Concatenate the points of all levels.

    Args:
        sizes: (height, width) of each level.
        strides: of each level.
        ranges: per level the smallest and largest side distance that it is responsible for.
        device: of the result.
    """
    counts = torch.tensor([h * w for h, w in sizes], device=device)
    per_level = torch.tensor(
        [[s, low, high] for s, (low, high) in zip(strides, ranges)], device=device, dtype=torch.float32
    )
    stride, low, high = per_level.repeat_interleave(counts, dim=0, output_size=sum(h * w for h, w in sizes)).unbind(1)
    centre = torch.cat([level_points(h, w, s, device) for (h, w), s in zip(sizes, strides)])
    return Points(centre, stride, low, high)


def pad_instances(instances: Sequence[Instances]) -> tuple[Tensor, Tensor]:
    """Stack the targets of a batch: boxes (N, M, 4), with rows of zeros behind, and classes (N, M)."""
    boxes = torch.nn.utils.rnn.pad_sequence([i.gt_boxes.tensor for i in instances], batch_first=True)
    classes = torch.nn.utils.rnn.pad_sequence([i.gt_classes for i in instances], batch_first=True)
    return boxes, classes


def assign_targets(
    points: Points, boxes: Tensor, classes: Tensor, num_classes: int, centre_radius: float = 0.0
) -> Targets:
    """Give every point the smallest target that it lies inside and whose size fits its level.

    Args:
        points: P points.
        boxes: (N, M, 4) x1 y1 x2 y2 in network pixels; boxes without area are padding.
        classes: (N, M)
        num_classes: K, also the label of background.
        centre_radius: above 0, points must also lie within so many strides of the target's centre.
    """
    num_images, num_targets = classes.shape
    num_points = len(points.centre)
    best_area = boxes.new_full((num_images, num_points), math.inf)
    best = torch.zeros(num_images, num_points, dtype=torch.long, device=boxes.device)
    area = (boxes[..., 2:] - boxes[..., :2]).prod(-1)
    for start in range(0, num_targets, _CHUNK):
        part = boxes[:, None, start : start + _CHUNK]  # (N, 1, m, 4)
        centre = points.centre[None, :, None]  # (1, P, 1, 2)
        distances = torch.cat([centre - part[..., :2], part[..., 2:] - centre], dim=-1)
        largest = distances.amax(-1)
        fits = (distances.amin(-1) > 0) & (largest >= points.low[:, None]) & (largest <= points.high[:, None])
        if centre_radius > 0:
            offset = (centre - (part[..., :2] + part[..., 2:]) / 2).abs().amax(-1)
            fits &= offset < centre_radius * points.stride[:, None]
        chunk_area = torch.where(fits, area[:, None, start : start + _CHUNK], math.inf)
        smallest, index = chunk_area.min(dim=2)
        # Of equal targets the first one wins, within a chunk by min, between chunks by the strict comparison.
        better = smallest < best_area
        best = torch.where(better, index + start, best)
        best_area = torch.where(better, smallest, best_area)
    positive = torch.isfinite(best_area)
    if num_targets:
        labels = torch.where(positive, classes.gather(1, best), num_classes)
        chosen = boxes.gather(1, best[..., None].expand(-1, -1, 4))
    else:
        labels = torch.full_like(best, num_classes)
        chosen = boxes.new_zeros(num_images, num_points, 4)
    distances = torch.cat([points.centre - chosen[..., :2], chosen[..., 2:] - points.centre], dim=-1)
    return Targets(labels, torch.where(positive[..., None], distances, 0.0))


def centreness(distances: Tensor) -> Tensor:
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


def fcos_losses(
    logits: Tensor,
    distances: Tensor,
    centreness_logits: Tensor,
    targets: Targets,
    *,
    alpha: float = 0.25,
    gamma: float = 2.0,
    mean_over_processes: bool = False,
) -> dict[str, Tensor]:
    """Compute the three losses of FCOS.

    Args:
        logits: (N, P, K) class logits.
        distances: (N, P, 4) predicted side distances in pixels, positive.
        centreness_logits: (N, P)
        targets: of the same points.
        alpha, gamma: of the focal loss.
        mean_over_processes: normalise by the mean of positives over all processes.

    Returns:
        ``loss_cls`` focal loss / positives, ``loss_box_reg`` -log IoU weighted by the centreness target / sum of the
        weights, ``loss_centerness`` binary cross entropy / positives.
    """
    positive = targets.labels != logits.shape[-1]
    one_hot = F.one_hot(targets.labels, logits.shape[-1] + 1)[..., :-1].to(logits.dtype)
    # Outside the positives the ratio is 0/0; it is replaced before it can reach a loss.
    weight = torch.where(positive, centreness(torch.where(positive[..., None], targets.distances, 1.0)), 0.0)
    totals = torch.stack([positive.sum().to(logits.dtype), weight.sum()])
    if mean_over_processes:
        torch.distributed.all_reduce(totals)
        totals = totals / torch.distributed.get_world_size()
    num_positive, weight_sum = totals[0].clamp(min=1.0), totals[1].clamp(min=1e-6)

    probability = logits.sigmoid()
    cross_entropy = F.binary_cross_entropy_with_logits(logits, one_hot, reduction="none")
    miss = probability + one_hot - 2 * probability * one_hot
    balance = alpha * one_hot + (1 - alpha) * (1 - one_hot)
    iou = iou_of_distances(distances, targets.distances).clamp(min=1e-6)
    box = torch.where(positive, -iou.log(), 0.0) * weight
    centre = F.binary_cross_entropy_with_logits(centreness_logits, weight, reduction="none")
    return {
        "loss_cls": (balance * miss**gamma * cross_entropy).sum() / num_positive,
        "loss_box_reg": box.sum() / weight_sum,
        "loss_centerness": torch.where(positive, centre, 0.0).sum() / num_positive,
    }
