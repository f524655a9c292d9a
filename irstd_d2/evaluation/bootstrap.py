"""Confidence intervals and paired comparison by resampling images.

Verdicts on detections do not depend on which images are drawn, so they are taken once (``Outcome``); a draw only
changes how often each image counts. One draw then costs a cumulative sum or two.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, partial

import numpy as np

from .average_precision import EXACT, PAPER, Verdicts, coco_verdicts, voc_verdicts
from .detection_probability import centre_verdicts, points_within
from .matching import DetectionTable, TargetTable, last_of_each_score, select_class

_COCO_RECALLS = np.linspace(0, 1, 101)
_COCO_THRESHOLDS = tuple(np.linspace(0.5, 0.95, 10).tolist())


@dataclass(frozen=True)
class Outcome:
    """What became of each detection, with what a metric of resampled images needs beside it.

    Attributes:
        scores: (D,) descending.
        image: (D,) index of the image.
        true, false: (D,) bool, see ``Verdicts``.
        area: (D,) pixels in each detection's box.
        targets: (I,) targets of each image that are not ignored.
        pixels: (I,) of each image.
    """

    scores: np.ndarray
    image: np.ndarray
    true: np.ndarray
    false: np.ndarray
    area: np.ndarray
    targets: np.ndarray
    pixels: np.ndarray

    @classmethod
    def of(
        cls, verdicts: Verdicts, detections: DetectionTable, targets: TargetTable, image_pixels: np.ndarray
    ) -> Outcome:
        size = np.maximum(detections.boxes[:, 2:] - detections.boxes[:, :2], 0)
        return cls(
            scores=detections.scores,
            image=detections.image,
            true=verdicts.true,
            false=verdicts.false,
            area=size.prod(1),
            targets=np.bincount(targets.image[~targets.ignored], minlength=len(image_pixels)),
            pixels=image_pixels,
        )

    @cached_property
    def operating_points(self) -> np.ndarray:
        """``last_of_each_score``, found once for all draws."""
        return last_of_each_score(self.scores)

    def beside(self, other: Outcome) -> Outcome:
        """Join two runs on the same images: image i of the other becomes image I + i."""
        order = np.argsort(-np.concatenate([self.scores, other.scores]), kind="stable")
        rows = {
            name: np.concatenate([getattr(self, name), getattr(other, name)])[order]
            for name in ("scores", "true", "false", "area")
        }
        return Outcome(
            image=np.concatenate([self.image, other.image + len(self.targets)])[order],
            targets=np.tile(self.targets, 2),
            pixels=np.tile(self.pixels, 2),
            **rows,
        )


Rule = Callable[[DetectionTable, TargetTable], Verdicts]
Measure = Callable[[Outcome, np.ndarray], np.ndarray]


@dataclass(frozen=True)
class ResampledMetric:
    """A metric that can be computed when image i counts ``weights[b, i]`` times.

    Attributes:
        rules: that detections are judged by; the metric is averaged over them.
        value: an outcome and (B, I) weights -> (B,); NaN for a draw that has nothing to measure.
        by_class: whether it is averaged over the classes as well, each judged by itself.
        score_thresh: detections below it do not count.
    """

    rules: Sequence[Rule]
    value: Measure
    by_class: bool = True
    score_thresh: float = -np.inf

    def outcomes(
        self, detections: DetectionTable, targets: TargetTable, image_pixels: np.ndarray, num_classes: int
    ) -> list[Outcome]:
        """The outcomes that the metric is averaged over; ``image_pixels`` (I,)."""
        kept = detections.rows(detections.scores >= self.score_thresh)
        parts = [(kept, targets)]
        if self.by_class:
            parts = [select_class(kept, targets, category) for category in range(num_classes)]
        return [Outcome.of(rule(*part), *part, image_pixels) for rule in self.rules for part in parts]

    def values(self, outcomes: Sequence[Outcome], weights: np.ndarray) -> np.ndarray:
        """The metric of each draw, (B,), averaged over the outcomes that have something to measure in it."""
        rows = np.array([self.value(outcome, weights) for outcome in outcomes]).reshape(-1, len(weights))
        measured = np.isfinite(rows)
        count = measured.sum(0)
        return np.where(count > 0, np.where(measured, rows, 0).sum(0) / np.maximum(count, 1), np.nan)


def _precision_at_recall(outcome: Outcome, weight: np.ndarray, num_targets: int) -> tuple[np.ndarray, np.ndarray]:
    """Recall and envelope of precision at the true detections; precision peaks at those only."""
    true = np.flatnonzero(outcome.true)
    repeat = weight[outcome.image]
    false_before = np.cumsum(repeat * outcome.false)[true]
    found = np.cumsum(repeat[true])
    precision = found / np.maximum(found + false_before, 1)
    return found / num_targets, np.maximum.accumulate(precision[::-1])[::-1]


def _of_each_draw(
    measure: Callable[[Outcome, np.ndarray, int], float], outcome: Outcome, weights: np.ndarray
) -> np.ndarray:
    """A measure of an outcome, the weights (I,) of a draw and the number of its targets; NaN without targets."""
    counts = (weights @ outcome.targets).tolist()
    return np.array([measure(outcome, weight, n) if n else np.nan for weight, n in zip(weights, counts)])


def _average_precision(outcome: Outcome, weight: np.ndarray, num_targets: int) -> float:
    """AP in area mode."""
    recall, envelope = _precision_at_recall(outcome, weight, num_targets)
    return (np.diff(recall, prepend=0.0) * envelope).sum()


def _interpolated_precision(outcome: Outcome, weight: np.ndarray, num_targets: int) -> float:
    """COCO's mean of the envelope at 101 recalls."""
    recall, envelope = _precision_at_recall(outcome, weight, num_targets)
    return np.append(envelope, 0)[np.searchsorted(recall, _COCO_RECALLS, side="left")].mean()


def _best_f1(outcome: Outcome, weight: np.ndarray, num_targets: int) -> float:
    last = outcome.operating_points
    repeat = weight[outcome.image]
    found = np.cumsum(repeat * outcome.true)[last]
    kept = np.cumsum(repeat * (outcome.true | outcome.false))[last]
    return (2 * found / (kept + num_targets)).max(initial=0)


def _pd_at_false_alarms(outcome: Outcome, weight: np.ndarray, num_targets: int, *, rate: float) -> float:
    """The highest Pd without more than ``rate`` false alarms per image."""
    last = outcome.operating_points
    repeat = weight[outcome.image]
    false = np.cumsum(repeat * outcome.false)[last]
    allowed = points_within(false, rate, weight.sum())
    found = np.cumsum(repeat * outcome.true)[last[:allowed]]
    return found[-1] / num_targets if allowed else 0.0


def _rate(numerator: np.ndarray, denominator: np.ndarray) -> np.ndarray:
    return np.where(denominator > 0, numerator / np.maximum(denominator, 1), np.nan)


def _per_image(outcome: Outcome, values: np.ndarray) -> np.ndarray:
    return np.bincount(outcome.image, values, minlength=len(outcome.targets))


def _detection_probability(outcome: Outcome, weights: np.ndarray) -> np.ndarray:
    return _rate(weights @ _per_image(outcome, outcome.true), weights @ outcome.targets)


def _false_alarm_rate(outcome: Outcome, weights: np.ndarray) -> np.ndarray:
    area = _per_image(outcome, outcome.area * outcome.false)
    return _rate(weights @ area, weights @ outcome.pixels)


def resampled_metrics(score_thresh: float = 0.5, max_detections: int = 100) -> dict[str, ResampledMetric]:
    """The metrics that can be resampled, by the names that the evaluators give them, as fractions of one.

    ``score_thresh`` is for Pd and Fa, ``max_detections`` per image and class for COCO's metrics.
    """
    coco = [partial(coco_verdicts, iou_threshold=t, max_detections=max_detections) for t in _COCO_THRESHOLDS]
    interpolated, area, f1, pd_at_rate = (
        partial(_of_each_draw, measure)
        for measure in (_interpolated_precision, _average_precision, _best_f1, partial(_pd_at_false_alarms, rate=1.0))
    )
    centre = partial(ResampledMetric, [centre_verdicts])
    return {
        "bbox/AP": ResampledMetric(coco, interpolated),
        "bbox/AP50": ResampledMetric(coco[:1], interpolated),
        "voc_exact/AP50_area": ResampledMetric([partial(voc_verdicts, protocol=EXACT)], area),
        "voc_paper/AP50_area": ResampledMetric([partial(voc_verdicts, protocol=PAPER)], area),
        "centre/AP@3px": centre(area),
        "pd_fa/Pd": centre(_detection_probability, by_class=False, score_thresh=score_thresh),
        "pd_fa/Fa": centre(_false_alarm_rate, by_class=False, score_thresh=score_thresh),
        "pd_fa/F1": centre(f1, by_class=False),
        "pd_fa/Pd@FAPI1": centre(pd_at_rate, by_class=False),
    }


@dataclass(frozen=True)
class Interval:
    """A value with its percentile interval over the draws."""

    value: float
    low: float
    high: float

    @classmethod
    def of(cls, values: np.ndarray, level: float = 0.95) -> Interval:
        """From (1 + B,) values: that of the data set itself, then those of the draws; NaN where nothing is measured."""
        drawn = values[1:][np.isfinite(values[1:])]
        low, high = np.quantile(drawn, [(1 - level) / 2, (1 + level) / 2]) if len(drawn) else (np.nan, np.nan)
        return cls(float(values[0]), float(low), float(high))


@dataclass(frozen=True)
class Comparison:
    """Difference of two runs on the same images.

    Attributes:
        difference: second minus first, with its interval.
        p_value: two-sided probability, under random exchange of the two runs image by image, of a difference at least
            as large; NaN when nothing is measured.
    """

    difference: Interval
    p_value: float


def image_draws(num_images: int, draws: int, seed: int = 0) -> np.ndarray:
    """How often each image is drawn when as many images are drawn with replacement: (draws, num_images)."""
    if not num_images:
        return np.zeros((draws, 0), int)
    return np.random.default_rng(seed).multinomial(num_images, np.full(num_images, 1 / num_images), size=draws)


def draws_with_data_set(num_images: int, draws: int, seed: int) -> np.ndarray:
    """``image_draws`` below a first row that counts every image once: (1 + draws, num_images)."""
    return np.concatenate([np.ones((1, num_images), int), image_draws(num_images, draws, seed)])


def metric_interval(
    metric: ResampledMetric, outcomes: Sequence[Outcome], *, draws: int = 1000, level: float = 0.95, seed: int = 0
) -> Interval:
    """A metric with its bootstrap percentile interval over images, which covers with probability ``level``.

    ``outcomes`` are what ``metric.outcomes`` made of a run.
    """
    return Interval.of(metric.values(outcomes, draws_with_data_set(len(outcomes[0].targets), draws, seed)), level)


def compare_metric(
    metric: ResampledMetric,
    first: Sequence[Outcome],
    second: Sequence[Outcome],
    *,
    draws: int = 1000,
    level: float = 0.95,
    seed: int = 0,
) -> Comparison:
    """Compare a metric of two runs on the same images by a paired bootstrap and a permutation test over images.

    ``first`` and ``second`` are what ``metric.outcomes`` made of the runs; ``draws`` is the number of resamplings and
    of permutations, ``level`` the probability that the interval covers.
    """
    num_images = len(first[0].targets)
    weights = draws_with_data_set(num_images, draws, seed)
    difference = metric.values(second, weights) - metric.values(first, weights)
    if not np.isfinite(difference[0]):
        return Comparison(Interval.of(difference, level), float("nan"))
    # Exchange: an image's detections come from the other run. The weights choose which copy of an image counts.
    both = [a.beside(b) for a, b in zip(first, second)]
    swap = exchanges(num_images, draws, seed)
    left = np.concatenate([~swap, swap], axis=1).astype(int)
    exchanged = metric.values(both, 1 - left) - metric.values(both, left)
    return Comparison(Interval.of(difference, level), p_value(exchanged, float(difference[0])))


def exchanges(num_images: int, draws: int, seed: int) -> np.ndarray:
    """(draws, num_images) bool: whether the two runs change places on an image."""
    return np.random.default_rng(seed + 1).random((draws, num_images)) < 0.5


def p_value(exchanged: np.ndarray, difference: float) -> float:
    """Two-sided probability of a difference at least as large as the one found, from those of exchanged runs."""
    extreme = np.abs(exchanged) >= abs(difference) - 1e-12
    return float((1 + extreme.sum()) / (len(exchanged) + 1)) if np.isfinite(difference) else float("nan")
