"""Precision, recall and average precision as Pascal VOC and the papers of this field define them.

Two conventions make the papers' numbers: boxes keep Pascal's old widths (x2 - x1 + 1), and the 11-point mode is called
VOC2007, the area mode VOC2012. For a 3x3 target shifted by one pixel the first alone turns an IoU of 0.50 into 0.60,
so a protocol is part of every result (``VOCProtocol.name``).

The papers' readers also subtract one from every annotated coordinate. That is a matter of the data set's registration
(``box_convention``), which training and evaluation share: shifting targets and detections alike changes no overlap.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Literal

import numpy as np

from .matching import NO_TARGET, DetectionTable, TargetTable, close_pairs, match_best, match_greedy, pair_iou

Mode = Literal["area", "11points"]


@dataclass(frozen=True)
class VOCProtocol:
    """How boxes are measured: ``legacy_widths`` are x2 - x1 + 1; ``dtype`` is of IoU and precision."""

    legacy_widths: bool = False
    dtype: type = np.float64

    @property
    def name(self) -> str:
        return "paper" if self == PAPER else "exact" if self == EXACT else "custom"


EXACT = VOCProtocol()
PAPER = VOCProtocol(legacy_widths=True, dtype=np.float32)


@dataclass(frozen=True)
class PrecisionRecall:
    """Precision and recall at every detection, in descending order of score.

    Attributes:
        precision, recall, scores: (D,); a detection on an ignored target leaves precision and recall as they were.
        num_targets: targets that are not ignored.
    """

    precision: np.ndarray
    recall: np.ndarray
    scores: np.ndarray
    num_targets: int

    @property
    def max_recall(self) -> float:
        """Recall of all detections together; 0 without any."""
        return float(self.recall[-1]) if len(self.recall) else 0.0

    @property
    def last_precision(self) -> float:
        """Precision of all detections together; 0 without any."""
        return float(self.precision[-1]) if len(self.precision) else 0.0


@dataclass(frozen=True)
class Verdicts:
    """What became of each detection.

    Attributes:
        true, false: (D,) bool; both False where the best target is an ignored one, or where a detection outside the
            judged part finds nothing.
        target: (D,) the target that a true detection found, else ``NO_TARGET``.
    """

    true: np.ndarray
    false: np.ndarray
    target: np.ndarray


def voc_verdicts(
    detections: DetectionTable, targets: TargetTable, iou_threshold: float = 0.5, protocol: VOCProtocol = EXACT
) -> Verdicts:
    """Judge every detection by Pascal VOC's rule; ``detections`` are sorted by score.

    A detection belongs to the target it overlaps most. It is true when the overlap reaches the threshold and no better
    scored detection has that target; there is no second choice. On an ignored target it is neither true nor false.
    """
    overlap = partial(pair_iou, legacy_widths=protocol.legacy_widths, dtype=protocol.dtype)
    pair_detection, pair_target, iou = close_pairs(detections, targets, overlap, iou_threshold)
    best = match_best(pair_detection, pair_target, iou, targets, len(detections))
    hit = best != NO_TARGET
    target = np.full(len(detections), NO_TARGET)
    target[hit] = pair_target[best[hit]]
    on_ignored = hit.copy()
    on_ignored[hit] = targets.ignored[target[hit]]
    candidates = np.flatnonzero(hit & ~on_ignored)
    # The table is sorted by score, so the first detection of a target is its best.
    _, first = np.unique(target[candidates], return_index=True)
    true = np.zeros(len(detections), bool)
    true[candidates[first]] = True
    target[~true] = NO_TARGET
    return Verdicts(true=true, false=~(true | on_ignored | detections.outside), target=target)


def coco_verdicts(
    detections: DetectionTable, targets: TargetTable, iou_threshold: float = 0.5, max_detections: int = 100
) -> Verdicts:
    """Judge every detection by COCO's rule, with verdicts that can be resampled; its metrics come from its own library.

    The detections, sorted by score, each take the free target that they overlap most, by ``iou_threshold`` or more. One
    that finds none is excused by an ignored target (a crowd) that covers as much of its own area, however many others
    lie there too. Beyond ``max_detections`` per image and class, best first, all are neither true nor false.
    """
    numbers = len(detections), len(targets)
    kept = _rank_in_image(detections) < max_detections
    limit = min(iou_threshold, 1 - 1e-10)
    pair_detection, pair_target, iou = close_pairs(detections, targets, pair_iou, limit)
    use = kept[pair_detection] & ~targets.ignored[pair_target]
    # Among equals COCO takes the last target, the matching here the first.
    last_first = numbers[1] - 1 - pair_target[use]
    matched = match_greedy(pair_detection[use], last_first, iou[use], *numbers)
    true = matched != NO_TARGET
    matched[true] = numbers[1] - 1 - matched[true]
    crowds = targets.rows(targets.ignored)
    covered, _, _ = close_pairs(detections, crowds, _covered_part, limit)
    excused = ~kept | detections.outside
    excused[covered] = True
    return Verdicts(true=true, false=~true & ~excused, target=matched)


def _covered_part(boxes: np.ndarray, crowds: np.ndarray) -> np.ndarray:
    """Part of each box that lies in its crowd."""
    overlap = np.minimum(boxes[:, 2:], crowds[:, 2:]) - np.maximum(boxes[:, :2], crowds[:, :2])
    return np.maximum(overlap, 0).prod(1) / np.maximum((boxes[:, 2:] - boxes[:, :2]).prod(1), 1e-12)


def _rank_in_image(detections: DetectionTable) -> np.ndarray:
    """(D,) how many better detections of the same class its image has."""
    order = np.lexsort((detections.category, detections.image))
    image, category = detections.image[order], detections.category[order]
    new_run = np.append(True, (np.diff(image) != 0) | (np.diff(category) != 0))[: len(order)]
    position = np.arange(len(order))
    rank = np.empty(len(order), int)
    rank[order] = position - np.maximum.accumulate(np.where(new_run, position, 0))
    return rank


def precision_recall(
    verdicts: Verdicts, scores: np.ndarray, num_targets: int, dtype: type = np.float64
) -> PrecisionRecall:
    """Accumulate verdicts on detections sorted by score, with ``scores`` (D,), into the precision-recall curve.

    ``num_targets`` are those that are not ignored; ``dtype`` is of precision.
    """
    true, false = np.cumsum(verdicts.true), np.cumsum(verdicts.false)
    counted = true + false
    precision = true.astype(dtype) / np.maximum(counted, 1).astype(dtype)
    return PrecisionRecall(precision, true / max(num_targets, 1), scores, num_targets)


def average_precision(curve: PrecisionRecall, mode: Mode = "area") -> float:
    """Average precision of a curve, in [0, 1]; NaN when there is no target to find.

    ``mode`` is ``area``, under the monotone envelope (VOC 2010 and later), or ``11points``, the mean of the best
    precision at the recalls 0, 0.1, ..., 1 (VOC 2007).
    """
    if curve.num_targets == 0:
        return float("nan")
    if mode == "11points":
        # As in the papers' implementation the fourth recall is 0.30000000000000004.
        reached = curve.recall[:, None] >= np.arange(0, 1.001, 0.1)[None]
        best = np.where(reached, curve.precision[:, None], 0).max(0, initial=0)
        return float(best.mean())
    if mode != "area":
        raise ValueError(f"mode is {mode!r}; known are 'area' and '11points'")
    envelope = np.maximum.accumulate(curve.precision[::-1])[::-1]
    return float((np.diff(curve.recall, prepend=0.0) * envelope).sum())
