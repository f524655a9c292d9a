"""Pd, Fa, F1 and FROC: what the infrared small-target field reports beside average precision.

A target counts as found when the centre of a detection lies within a few pixels of its own; the size of the box plays
no role. Every detection, best score first, takes the nearest target that is still free.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from .average_precision import Verdicts
from .matching import (
    NO_TARGET,
    DetectionTable,
    TargetTable,
    close_pairs,
    last_of_each_score,
    match_greedy,
    pair_centre_distance,
)

# Pixels of the original image, as in the WideIRSTD challenge.
CENTRE_DISTANCE = 3.0


@dataclass(frozen=True)
class OperatingCurve:
    """Found targets and false alarms when all detections down to each score are kept.

    Attributes:
        scores: (T,) distinct scores, descending.
        found: (T,) targets found so far.
        false_alarms: (T,) detections that found nothing.
        false_pixels: (T,) area of those detections in pixels.
        num_targets: targets that are not ignored.
        num_images: images in the set.
        num_pixels: pixels of all images together.
    """

    scores: np.ndarray
    found: np.ndarray
    false_alarms: np.ndarray
    false_pixels: np.ndarray
    num_targets: int
    num_images: int
    num_pixels: int

    @property
    def pd(self) -> np.ndarray:
        """(T,) probability of detection: found targets / targets."""
        return self.found / max(self.num_targets, 1)

    @property
    def fa_pixels(self) -> np.ndarray:
        """(T,) false-alarm rate: area of false detections / pixels of the images."""
        return self.false_pixels / max(self.num_pixels, 1)

    @property
    def fa_boxes(self) -> np.ndarray:
        """(T,) false detections per pixel of the images."""
        return self.false_alarms / max(self.num_pixels, 1)

    @property
    def f1(self) -> np.ndarray:
        """(T,) harmonic mean of precision and recall."""
        return 2 * self.found / np.maximum(self.found + self.false_alarms + self.num_targets, 1)

    def at_score(self, threshold: float) -> dict[str, float]:
        """Pd, Fa, precision and F1 when detections with at least this score are kept."""
        index = int(np.searchsorted(-self.scores, -threshold, side="right")) - 1
        if index < 0:
            return {"Pd": 0.0, "Fa": 0.0, "Fa_boxes": 0.0, "precision": 0.0, "F1": 0.0}
        kept = self.found[index] + self.false_alarms[index]
        return {
            "Pd": float(self.pd[index]),
            "Fa": float(self.fa_pixels[index]),
            "Fa_boxes": float(self.fa_boxes[index]),
            "precision": float(self.found[index] / max(kept, 1)),
            "F1": float(self.f1[index]),
        }

    def best_f1(self) -> tuple[float, float]:
        """The highest F1 and the score threshold that gives it; (0, inf) without detections."""
        if not len(self.scores):
            return 0.0, float("inf")
        best = int(self.f1.argmax())
        return float(self.f1[best]), float(self.scores[best])

    def false_alarms_per_image(self, recalls: Sequence[float]) -> np.ndarray:
        """FROC: false alarms per image at the first threshold that reaches each recall; infinite where none does."""
        index = np.searchsorted(self.pd, np.asarray(recalls) - 1e-12)
        rate = np.append(self.false_alarms / max(self.num_images, 1), np.inf)
        return rate[index]

    def at_false_alarms_per_image(self, rate: float) -> tuple[float, float]:
        """The highest Pd without more false alarms per image than ``rate``, and the lowest score threshold for it.

        (0, inf) where even the best detection brings more.
        """
        index = points_within(self.false_alarms, rate, self.num_images) - 1
        return (0.0, float("inf")) if index < 0 else (float(self.pd[index]), float(self.scores[index]))

    def pd_at_fa(self, rates: Sequence[float]) -> np.ndarray:
        """Highest Pd that the curve reaches without more false-alarm pixels per image pixel than each rate."""
        index = np.searchsorted(self.fa_pixels, np.asarray(rates) + 1e-15, side="right")
        return np.concatenate([[0.0], self.pd])[index]


# Detection and target indices, (P,) each and ascending, and distances of centres, (P,) pixels.
CentrePairs = tuple[np.ndarray, np.ndarray, np.ndarray]


def centre_pairs(detections: DetectionTable, targets: TargetTable, reach: float) -> CentrePairs:
    """List the detections and targets of the same image and class that are at most ``reach`` pixels apart."""
    detection, target, closeness = close_pairs(detections, targets, lambda a, b: -pair_centre_distance(a, b), -reach)
    return detection, target, -closeness


def centre_verdicts(
    detections: DetectionTable,
    targets: TargetTable,
    max_distance: float = CENTRE_DISTANCE,
    pairs: CentrePairs | None = None,
) -> Verdicts:
    """Judge every detection by the distance of box centres; ``detections`` are sorted by score.

    One that finds no target is excused by an ignored target within reach.

    Args:
        max_distance: pixels; a detection exactly this far still finds its target.
        pairs: of these tables, with at least this reach, where they are at hand.
    """
    detection, target, distance = pairs or centre_pairs(detections, targets, max_distance)
    near = distance <= max_distance
    ignored = targets.ignored[target]
    use = near & ~ignored
    matched = match_greedy(detection[use], target[use], -distance[use], len(detections), len(targets))
    true = matched != NO_TARGET
    excused = detections.outside.copy()
    excused[detection[near & ignored]] = True
    return Verdicts(true=true, false=~true & ~excused, target=matched)


def points_within(false_alarms: np.ndarray, rate: float, num_images: int) -> int:
    """How many operating points, (T,) ascending counts of false alarms, bring no more per image than ``rate``."""
    return int(np.searchsorted(false_alarms, rate * num_images + 1e-9, side="right"))


def operating_curve(
    detections: DetectionTable,
    targets: TargetTable,
    image_pixels: Sequence[int] | np.ndarray,
    max_distance: float = CENTRE_DISTANCE,
) -> OperatingCurve:
    """Count found targets and false alarms at every score threshold, of detections that are sorted by score.

    ``image_pixels`` are height times width of each image, ``max_distance`` pixels as in ``centre_verdicts``.
    """
    verdicts = centre_verdicts(detections, targets, max_distance)
    true, false = verdicts.true, verdicts.false
    size = np.maximum(detections.boxes[:, 2:] - detections.boxes[:, :2], 0)
    last = last_of_each_score(detections.scores)
    return OperatingCurve(
        scores=detections.scores[last],
        found=np.cumsum(true)[last],
        false_alarms=np.cumsum(false)[last],
        false_pixels=np.cumsum(size.prod(1) * false)[last],
        num_targets=int((~targets.ignored).sum()),
        num_images=len(image_pixels),
        num_pixels=int(np.sum(image_pixels)),
    )
