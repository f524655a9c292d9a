"""What went wrong: each false alarm and each miss falls in one class, with the AP that mending the class would give.

Detections are judged as by ``voc_exact`` (``voc_verdicts``, IoU 0.5). The first class that fits counts.

A false alarm:

* ``duplicate``: what it overlaps by 0.5, or lies within 3 pixels of, was found by another detection.
* ``merged neighbours``: the centres of two or more targets lie inside.
* ``part of a target``: more than half of it lies in a target at least twice as large.
* ``size``: within 3 pixels of a target, and the target's size at its own place would overlap by 0.5.
* ``off by 1 pixel``, ``off by 2 pixels``, ``off by 3 pixels``: others within 3 pixels, by the distance of the centres,
  rounded up.
* ``edge of the image``: it comes within 2 pixels of the edge.
* ``clutter``: everything else; with a sky mask ``clutter in the sky`` and ``clutter outside the sky``.

A miss has the class of the best false alarm that explains it (the classes from ``merged neighbours`` to
``off by 3 pixels``). Of the others, ``missed beside another``: the centre of another target is at most 10 pixels away;
``missed at the edge``; ``missed at low contrast``: local contrast below 1.2 (``breakdown``); ``missed otherwise``.

Mending a class turns each of its false alarms into a find if it explains a target that is still missed, the best first,
takes the others away, and does not ask for the rest of its misses. This is the way of TIDE (Bolya et al., ECCV 2020),
with classes for targets of a few pixels.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from .average_precision import EXACT, Verdicts, average_precision, precision_recall, voc_verdicts
from .breakdown import CONTRAST_BOUNDS, TARGET_KEYS, ImageFiles
from .ground_truth import GroundTruth
from .matching import NO_TARGET, DetectionTable, TargetTable, pair_iou, rows_by_image

REACH, EDGE, NEIGHBOUR = 3.0, 2.0, 10.0
CLASSES = (
    "duplicate",
    "merged neighbours",
    "part of a target",
    "size",
    "off by 1 pixel",
    "off by 2 pixels",
    "off by 3 pixels",
    "edge of the image",
    "clutter in the sky",
    "clutter outside the sky",
    "clutter",
    "missed beside another",
    "missed at the edge",
    "missed at low contrast",
    "missed otherwise",
)
_INDEX = {name: index for index, name in enumerate(CLASSES)}
NO_ERROR = -1
_LOW_CONTRAST = list(CONTRAST_BOUNDS).index("<1.2")


@dataclass(frozen=True)
class ErrorRow:
    """One class of errors of ``CLASSES``, counted from the score threshold on.

    ``ap_gain`` is what mending all of the class, at every score, adds to AP50, in percent.
    """

    name: str
    false_alarms: int
    misses: int
    ap_gain: float


@dataclass(frozen=True)
class ErrorAnalysis:
    """Errors of a run on a data set.

    Attributes:
        threshold: score from which detections count in the rows.
        average_precision: as it is, in percent.
        detections: (D,) class of each false alarm, else ``NO_ERROR``.
        targets: (G,) class of each target that is missed at the threshold, else ``NO_ERROR``.
        rows: of the classes that occur, the largest gain first.
    """

    threshold: float
    average_precision: float
    detections: np.ndarray
    targets: np.ndarray
    rows: tuple[ErrorRow, ...]


@dataclass(frozen=True)
class _Classified:
    """Errors of one class of targets; ``explains`` a missed target that a false alarm explains, or ``NO_TARGET``."""

    verdicts: Verdicts
    false: np.ndarray  # (d,) class of each false alarm
    explains: np.ndarray  # (d,)
    missed: np.ndarray  # (g,) class of each miss


def analyse_errors(detections: DetectionTable, truth: GroundTruth, *, threshold: float = 0.0) -> ErrorAnalysis:
    """Sort the errors of a run into classes; images and sky masks are read where they exist.

    ``detections`` are of the whole data set, sorted by score. Errors are counted from the score ``threshold`` on; AP is
    over all scores.
    """
    targets = truth.targets
    of_detections, of_targets = np.full(len(detections), NO_ERROR), np.full(len(targets), NO_ERROR)
    before, after = [], []
    for category in range(len(truth.class_names)):
        rows, columns = (np.flatnonzero(table.category == category) for table in (detections, targets))
        found, wanted = detections.rows(rows), targets.rows(columns)
        everything = _classify(found, wanted, truth)
        of_detections[rows] = everything.false
        kept = found.scores >= threshold
        of_targets[columns] = _classify(found.rows(kept), wanted, truth).missed
        if not wanted.ignored.all():
            before.append(_ap(everything, found, wanted))
            after.append([_ap(everything, found, wanted, mended=index) for index in range(len(CLASSES))])
    ap = 100 * float(np.mean(before)) if before else float("nan")
    gains = 100 * np.mean(after, axis=0) - ap if after else np.full(len(CLASSES), np.nan)
    counted = of_detections[detections.scores >= threshold]
    table = [
        ErrorRow(name, int((counted == index).sum()), int((of_targets == index).sum()), float(gains[index]))
        for index, name in enumerate(CLASSES)
    ]
    occurring = [row for row in table if row.false_alarms or row.misses or row.ap_gain > 0]
    rows_by_gain = sorted(occurring, key=lambda row: -np.nan_to_num(row.ap_gain))
    return ErrorAnalysis(threshold, ap, of_detections, of_targets, tuple(rows_by_gain))


def _ap(errors: _Classified, detections: DetectionTable, targets: TargetTable, mended: int | None = None) -> float:
    true, false = errors.verdicts.true.copy(), errors.verdicts.false.copy()
    left_out = np.zeros(len(targets), bool)
    if mended is not None:
        of_class = errors.false == mended
        false &= ~of_class
        candidates = np.flatnonzero(of_class & (errors.explains != NO_TARGET))
        found, best = np.unique(errors.explains[candidates], return_index=True)
        true[candidates[best]] = True  # the table is sorted by score
        left_out = errors.missed == mended
        left_out[found] = False
    verdicts = Verdicts(true, false, errors.verdicts.target)
    curve = precision_recall(verdicts, detections.scores, int((~targets.ignored & ~left_out).sum()))
    value = average_precision(curve)
    return 1.0 if np.isnan(value) else value  # nothing is left to find


def _classify(detections: DetectionTable, targets: TargetTable, truth: GroundTruth) -> _Classified:
    verdicts = voc_verdicts(detections, targets, protocol=EXACT)
    found = np.zeros(len(targets), bool)
    found[verdicts.target[verdicts.true]] = True
    false = np.full(len(detections), NO_ERROR)
    explains = np.full(len(detections), NO_TARGET)
    missed = np.full(len(targets), NO_ERROR)
    by_image = [rows_by_image(table, len(truth.image_ids)) for table in (detections, targets)]
    for image, (all_rows, columns) in enumerate(zip(*by_image)):
        rows = all_rows[verdicts.false[all_rows]]
        counted = columns[~targets.ignored[columns]]
        files = _present(truth.files[image])
        if len(rows):
            boxes = detections.boxes[rows]
            near = _near_targets(boxes, targets.boxes[counted], found[counted])
            false[rows] = np.where(near[0] == NO_ERROR, _background(boxes, files), near[0])
            explained = near[1] != NO_TARGET
            explains[rows[explained]] = counted[near[1][explained]]
        absent = counted[~found[counted]]
        if len(absent):
            missed[absent] = _reason_of_miss(targets.boxes[absent], targets.boxes[counted], files)
            for row in rows[::-1]:  # the best last, so that it counts
                if explains[row] != NO_TARGET:
                    missed[explains[row]] = false[row]
            merged = rows[false[rows] == _INDEX["merged neighbours"]]
            inside = _contains(detections.boxes[merged], targets.boxes[absent]).any(0)
            alone = missed[absent] >= _INDEX["missed beside another"]
            missed[absent[inside & alone]] = _INDEX["merged neighbours"]
    return _Classified(verdicts, false, explains, missed)


def _contains(boxes: np.ndarray, others: np.ndarray) -> np.ndarray:
    """(n, m) bool: whether the centre of each other box lies inside."""
    centre = (others[:, :2] + others[:, 2:]) / 2
    return ((boxes[:, None, :2] <= centre) & (centre <= boxes[:, None, 2:])).all(-1)


def _pairs(
    function: Callable[[np.ndarray, np.ndarray], np.ndarray], boxes: np.ndarray, others: np.ndarray
) -> np.ndarray:
    """(n, m) of a function of paired boxes."""
    shape = len(boxes), len(others)
    left, right = np.repeat(boxes, shape[1], axis=0), np.tile(others, (shape[0], 1))
    return function(left, right).reshape(shape)


def _near_targets(boxes: np.ndarray, targets: np.ndarray, found: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Classes that have to do with a target, or ``NO_ERROR``, and the missed target that each box explains."""
    kind, explains = np.full(len(boxes), NO_ERROR), np.full(len(boxes), NO_TARGET)
    if not len(targets):
        return kind, explains
    iou = _pairs(pair_iou, boxes, targets)
    centres = (boxes[:, None, :2] + boxes[:, None, 2:] - targets[:, :2] - targets[:, 2:]) / 2
    distance = np.sqrt((centres * centres).sum(-1))
    inside = _contains(boxes, targets)
    size, target_size = boxes[:, 2:] - boxes[:, :2], targets[:, 2:] - targets[:, :2]
    shared = np.minimum(boxes[:, None, 2:], targets[:, 2:]) - np.maximum(boxes[:, None, :2], targets[:, :2])
    covered = np.maximum(shared, 0).prod(-1) / np.maximum(size.prod(-1), 1e-12)[:, None]
    part = (covered > 0.5) & (target_size.prod(-1) >= 2 * size.prod(-1)[:, None])
    near = distance <= REACH
    nearest_missed = np.where(found, np.inf, distance)
    for i in range(len(boxes)):
        missed_near = near[i] & ~found
        if ((iou[i] >= 0.5) | near[i]).any() and not missed_near.any() and inside[i].sum() < 2:
            kind[i] = _INDEX["duplicate"]
        elif inside[i].sum() >= 2:
            kind[i] = _INDEX["merged neighbours"]
            explains[i] = _first_of(nearest_missed[i], inside[i] & ~found)
        elif part[i].any():
            kind[i] = _INDEX["part of a target"]
            explains[i] = _first_of(nearest_missed[i], part[i] & ~found)
        elif missed_near.any():
            target = _first_of(nearest_missed[i], missed_near)
            explains[i] = target
            shift = distance[i, target]
            resized = targets[target] + np.tile(centres[i, target], 2)
            right_size = pair_iou(resized[None], targets[target][None])[0] >= 0.5
            ring = min(max(int(np.ceil(shift)), 1), 3)
            named = "off by 1 pixel" if ring == 1 else f"off by {ring} pixels"
            kind[i] = _INDEX["size" if right_size else named]
    return kind, explains


def _first_of(distance: np.ndarray, allowed: np.ndarray) -> int:
    choice = np.flatnonzero(allowed)
    return int(choice[distance[choice].argmin()]) if len(choice) else NO_TARGET


def _present(files: ImageFiles) -> ImageFiles:
    """Without the files that are not there."""
    image, mask = (path if path and Path(path).is_file() else None for path in (files.image, files.sky_mask))
    return replace(files, image=image, sky_mask=mask)


def _at_edge(boxes: np.ndarray, files: ImageFiles) -> np.ndarray:
    limit = np.array([files.width, files.height]) - EDGE
    return np.asarray((boxes[:, :2] < EDGE).any(1) | (boxes[:, 2:] > limit).any(1))


def _background(boxes: np.ndarray, files: ImageFiles) -> np.ndarray:
    sky, _ = TARGET_KEYS["sky"].measure(files, boxes)
    clutter = np.select(
        [sky == 0, sky == 1], [_INDEX["clutter in the sky"], _INDEX["clutter outside the sky"]], _INDEX["clutter"]
    )
    return np.where(_at_edge(boxes, files), _INDEX["edge of the image"], clutter)


def _reason_of_miss(boxes: np.ndarray, all_boxes: np.ndarray, files: ImageFiles) -> np.ndarray:
    centres, others = ((table[:, :2] + table[:, 2:]) / 2 for table in (boxes, all_boxes))
    distance = np.sqrt(((centres[:, None] - others) ** 2).sum(-1))
    crowded = (distance <= NEIGHBOUR).sum(1) > 1  # one is the target itself
    dim = np.zeros(len(boxes), bool)
    if files.image is not None:
        dim = TARGET_KEYS["contrast"].measure(files, boxes)[0] == _LOW_CONTRAST
    names = ("missed beside another", "missed at the edge", "missed at low contrast")
    return np.select(
        [crowded, _at_edge(boxes, files), dim], [_INDEX[name] for name in names], _INDEX["missed otherwise"]
    )
