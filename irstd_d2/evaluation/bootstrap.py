"""Confidence intervals and paired comparison by resampling images.

Verdicts on detections do not depend on which images are drawn, so they are taken once; a draw only changes how often
each image counts. One draw then costs two cumulative sums.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .average_precision import EXACT, VOCProtocol, voc_verdicts
from .matching import DetectionTable, TargetTable


@dataclass(frozen=True)
class Interval:
    """A value with its percentile interval over the draws."""

    value: float
    low: float
    high: float


def resampled_average_precision(
    detections: DetectionTable,
    targets: TargetTable,
    num_images: int,
    weights: np.ndarray,
    iou_threshold: float = 0.5,
    protocol: VOCProtocol = EXACT,
) -> np.ndarray:
    """Average precision (area mode, one class) when image i counts ``weights[b, i]`` times.

    Args:
        detections, targets: of the whole data set.
        num_images: I.
        weights: (B, I) non-negative counts.
        iou_threshold, protocol: see ``voc_verdicts``.

    Returns:
        (B,) in [0, 1]; NaN for a draw without targets.
    """
    if weights.shape[1] != num_images:
        raise ValueError(f"weights are for {weights.shape[1]} images, the data set has {num_images}")
    verdicts = voc_verdicts(detections, targets, iou_threshold, protocol)
    target_image = targets.image[~targets.ignored]
    result = np.full(len(weights), np.nan)
    for draw, weight in enumerate(weights):
        num_targets = weight[target_image].sum()
        if not num_targets:
            continue
        repeat = weight[detections.image]
        true, false = np.cumsum(repeat * verdicts.true), np.cumsum(repeat * verdicts.false)
        precision = true / np.maximum(true + false, 1)
        envelope = np.maximum.accumulate(precision[::-1])[::-1]
        result[draw] = (np.diff(true / num_targets, prepend=0.0) * envelope).sum()
    return result


def image_draws(num_images: int, draws: int, seed: int = 0) -> np.ndarray:
    """How often each image is drawn when as many images are drawn with replacement: (draws, num_images)."""
    rng = np.random.default_rng(seed)
    return rng.multinomial(num_images, np.full(num_images, 1 / max(num_images, 1)), size=draws)


def average_precision_interval(
    detections: DetectionTable,
    targets: TargetTable,
    num_images: int,
    *,
    draws: int = 1000,
    level: float = 0.95,
    seed: int = 0,
    iou_threshold: float = 0.5,
    protocol: VOCProtocol = EXACT,
) -> Interval:
    """Average precision with its bootstrap percentile interval over images.

    Args:
        detections, targets: of the whole data set, one class.
        num_images: images in the set, those without targets included.
        draws: number of resamplings.
        level: probability that the interval covers.
        seed: of the draws.
        iou_threshold, protocol: see ``voc_verdicts``.
    """
    weights = np.concatenate([np.ones((1, num_images), int), image_draws(num_images, draws, seed)])
    values = resampled_average_precision(detections, targets, num_images, weights, iou_threshold, protocol)
    low, high = np.nanquantile(values[1:], [(1 - level) / 2, (1 + level) / 2])
    return Interval(float(values[0]), float(low), float(high))


@dataclass(frozen=True)
class Comparison:
    """Difference of two runs on the same images.

    Attributes:
        difference: second minus first, with its interval.
        p_value: two-sided probability, under random exchange of the two runs image by image, of a difference at least
            as large.
    """

    difference: Interval
    p_value: float


def compare_runs(
    first: DetectionTable,
    second: DetectionTable,
    targets: TargetTable,
    num_images: int,
    *,
    draws: int = 1000,
    level: float = 0.95,
    seed: int = 0,
    iou_threshold: float = 0.5,
    protocol: VOCProtocol = EXACT,
) -> Comparison:
    """Compare the average precision of two runs by a paired bootstrap and a permutation test over images.

    Args:
        first, second: detections of the two runs on the same images.
        targets: ground truth, one class.
        num_images: images in the set.
        draws: number of resamplings and of permutations.
        level: probability that the interval covers.
        seed: of both.
        iou_threshold, protocol: see ``voc_verdicts``.
    """
    weights = np.concatenate([np.ones((1, num_images), int), image_draws(num_images, draws, seed)])
    a, b = (
        resampled_average_precision(run, targets, num_images, weights, iou_threshold, protocol)
        for run in (first, second)
    )
    low, high = np.nanquantile((b - a)[1:], [(1 - level) / 2, (1 + level) / 2])
    observed = float(b[0] - a[0])

    # Exchange: an image's detections come from the other run. Both runs stand in one table, image i of the second as
    # image I + i with the same targets, and the weights choose which copy counts.
    both_targets = TargetTable(
        np.tile(targets.boxes, (2, 1)),
        np.concatenate([targets.image, targets.image + num_images]),
        np.tile(targets.category, 2),
        np.tile(targets.ignored, 2),
    )
    order = np.argsort(-np.concatenate([first.scores, second.scores]), kind="stable")
    both = DetectionTable(
        np.concatenate([first.boxes, second.boxes])[order],
        np.concatenate([first.image, second.image + num_images])[order],
        np.concatenate([first.category, second.category])[order],
        np.concatenate([first.scores, second.scores])[order],
    )
    swap = np.random.default_rng(seed + 1).random((draws, num_images)) < 0.5
    left = np.concatenate([~swap, swap], axis=1).astype(int)
    right = 1 - left
    x, y = (
        resampled_average_precision(both, both_targets, 2 * num_images, choice, iou_threshold, protocol)
        for choice in (left, right)
    )
    extreme = np.abs(y - x) >= abs(observed) - 1e-12
    return Comparison(Interval(observed, float(low), float(high)), float((1 + extreme.sum()) / (draws + 1)))
