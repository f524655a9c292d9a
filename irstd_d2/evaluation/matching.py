"""Matching of detections to targets over a whole data set at once.

All detection metrics of the project start from two tables (columns over all images) and the list of close pairs inside
each image; matching then is a few array operations, whatever the number of images.

Letters in shapes: D detections, G targets, P candidate pairs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields

import numpy as np

NO_TARGET = -1

# Few enough for a processor's cache.
_PAIRS_AT_ONCE = 1 << 15


@dataclass(frozen=True)
class TargetTable:
    """Ground truth of a data set in columns.

    Attributes:
        boxes: (G, 4) float64 x1 y1 x2 y2, original pixels.
        image: (G,) index of the image.
        category: (G,) class index.
        ignored: (G,) bool; difficult or crowd targets count neither as found nor as missed.
    """

    boxes: np.ndarray
    image: np.ndarray
    category: np.ndarray
    ignored: np.ndarray

    def __len__(self) -> int:
        return len(self.boxes)

    def rows(self, keep: np.ndarray) -> TargetTable:
        """Return the rows that a (G,) bool or an index array names."""
        return TargetTable(*(getattr(self, column.name)[keep] for column in fields(self)))


@dataclass(frozen=True)
class DetectionTable:
    """Detections of a data set in columns, in descending order of score (equal scores in their order of arrival).

    Attributes:
        boxes: (D, 4) float64 x1 y1 x2 y2, original pixels.
        image: (D,) index of the image.
        category: (D,) class index.
        scores: (D,)
        outside: (D,) bool; a detection outside the part that is judged is no false alarm when it finds nothing.
    """

    boxes: np.ndarray
    image: np.ndarray
    category: np.ndarray
    scores: np.ndarray
    outside: np.ndarray

    def __len__(self) -> int:
        return len(self.boxes)

    def rows(self, keep: np.ndarray) -> DetectionTable:
        """Return the rows that a (D,) bool or an ascending index array names."""
        return DetectionTable(*(getattr(self, column.name)[keep] for column in fields(self)))


def _columns(rows: Sequence[np.ndarray], width: int | None, dtype: type) -> np.ndarray:
    shape = (-1,) if width is None else (-1, width)
    arrays: list[np.ndarray] = [np.asarray(r, dtype).reshape(shape) for r in rows]
    return np.concatenate(arrays) if arrays else np.zeros(0 if width is None else (0, width), dtype)


def _image_index(rows: Sequence[np.ndarray]) -> np.ndarray:
    return np.repeat(np.arange(len(rows)), [len(r) for r in rows])


def target_table(
    boxes: Sequence[np.ndarray],
    categories: Sequence[np.ndarray] | None = None,
    ignored: Sequence[np.ndarray] | None = None,
) -> TargetTable:
    """Build a table from boxes (g, 4), class indices (g,), all 0 by default, and ignored flags (g,) of each image."""
    table = _columns(boxes, 4, float)
    zeros = np.zeros(len(table), int)
    return TargetTable(
        boxes=table,
        image=_image_index(boxes),
        category=zeros if categories is None else _columns(categories, None, int),
        ignored=zeros.astype(bool) if ignored is None else _columns(ignored, None, bool),
    )


def rows_by_image(table: DetectionTable | TargetTable, num_images: int) -> list[np.ndarray]:
    """The indices of each image's rows, in their order."""
    order = np.argsort(table.image, kind="stable")
    return np.split(order, np.searchsorted(table.image[order], np.arange(1, num_images)))[:num_images]


def select_class(detections: DetectionTable, targets: TargetTable, category: int) -> tuple[DetectionTable, TargetTable]:
    """The rows of one class."""
    return detections.rows(detections.category == category), targets.rows(targets.category == category)


def last_of_each_score(scores: np.ndarray) -> np.ndarray:
    """Indices of the operating points: equal scores, which descend, fall under the same threshold."""
    return np.flatnonzero(np.append(np.diff(scores) != 0, True)[: len(scores)])


def detection_table(
    boxes: Sequence[np.ndarray], scores: Sequence[np.ndarray], categories: Sequence[np.ndarray] | None = None
) -> DetectionTable:
    """Build a table from boxes (d, 4), scores (d,) and class indices (d,), all 0 by default, of each image.

    It is sorted by score, stably.

    Raises:
        ValueError: for a score or a coordinate that is not finite; such a detection has no place in any ranking.
    """
    table, score = _columns(boxes, 4, float), _columns(scores, None, float)
    if len(table) != len(score):
        raise ValueError(f"{len(table)} boxes but {len(score)} scores")
    finite = np.isfinite(score) & np.isfinite(table).all(1)
    if not finite.all():
        image = int(_image_index(boxes)[~finite][0])
        count = int((~finite).sum())
        raise ValueError(f"{count} detections have a score or box that is not finite, first in image {image}")
    order = np.argsort(-score, kind="stable")
    category = np.zeros(len(table), int) if categories is None else _columns(categories, None, int)
    inside = np.zeros(len(table), bool)
    return DetectionTable(table[order], _image_index(boxes)[order], category[order], score[order], outside=inside)


def close_pairs(
    detections: DetectionTable,
    targets: TargetTable,
    closeness: Callable[[np.ndarray, np.ndarray], np.ndarray],
    minimum: float,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """List the candidate pairs that are close; memory grows with their number, not with that of all pairs.

    ``closeness`` is of paired boxes, (n, 4) and (n, 4) -> (n,), higher is closer, ``minimum`` the least that is listed.

    Returns:
        (P,) detection indices, ascending, (P,) target indices, ascending within a detection, (P,) closeness.
    """
    by_key, first, count = _targets_of(detections, targets)
    total = np.cumsum(count)
    parts = []
    start = 0
    while start < len(count):
        before = total[start] - count[start]
        stop = max(start + 1, int(np.searchsorted(total, before + _PAIRS_AT_ONCE, "right")))
        pair_detection, pair_target = _pairs(np.arange(start, stop), by_key, first[start:stop], count[start:stop])
        value = closeness(detections.boxes[pair_detection], targets.boxes[pair_target])
        near = value >= minimum
        parts.append((pair_detection[near], pair_target[near], value[near]))
        start = stop
    nothing = (np.zeros(0, int), np.zeros(0, int), np.zeros(0))
    found = tuple(np.concatenate(column) for column in zip(*(parts or [nothing])))
    return found[0], found[1], found[2]


def _targets_of(detections: DetectionTable, targets: TargetTable) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Sort the targets so that those of one image and class are one run, and find the run of each detection.

    Returns the (G,) target indices in that order, and where each detection's run starts in it and how long it is.
    """
    top = 1 + max(targets.category.max(initial=0), detections.category.max(initial=0))
    target_key = targets.image * top + targets.category
    key = detections.image * top + detections.category
    by_key = np.argsort(target_key, kind="stable")
    sorted_key = target_key[by_key]
    first = np.searchsorted(sorted_key, key, "left")
    return by_key, first, np.searchsorted(sorted_key, key, "right") - first


def _pairs(
    detection: np.ndarray, by_key: np.ndarray, first: np.ndarray, count: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Pair each of some detections with its run of targets."""
    start = np.cumsum(count) - count
    within = np.arange(count.sum()) - np.repeat(start, count)
    return np.repeat(detection, count), by_key[np.repeat(first, count) + within]


def pair_iou(a: np.ndarray, b: np.ndarray, *, legacy_widths: bool = False, dtype: type = np.float64) -> np.ndarray:
    """Intersection over union of paired boxes, (P, 4) x1 y1 x2 y2: (P,) of ``dtype``.

    With ``legacy_widths`` widths and heights are x2 - x1 + 1, as in the Pascal VOC tool kit and both papers' protocol,
    whose implementation computes in float32.
    """
    one = dtype(1 if legacy_widths else 0)
    ax1, ay1, ax2, ay2 = np.ascontiguousarray(a.T, dtype)
    bx1, by1, bx2, by2 = np.ascontiguousarray(b.T, dtype)
    overlap_x = np.maximum(np.minimum(ax2, bx2) - np.maximum(ax1, bx1) + one, 0)
    overlap_y = np.maximum(np.minimum(ay2, by2) - np.maximum(ay1, by1) + one, 0)
    intersection = overlap_x * overlap_y
    area_a = (ax2 - ax1 + one) * (ay2 - ay1 + one)
    area_b = (bx2 - bx1 + one) * (by2 - by1 + one)
    return intersection / np.maximum(area_a + area_b - intersection, dtype(1e-6))


def pair_centre_distance(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Distance of box centres in pixels. Args: (P, 4) each. Returns: (P,)."""
    x, y = ((a[:, :2] + a[:, 2:] - b[:, :2] - b[:, 2:]) / 2).T
    return np.sqrt(x * x + y * y)


def match_best(
    pair_detection: np.ndarray, pair_target: np.ndarray, quality: np.ndarray, targets: TargetTable, num_detections: int
) -> np.ndarray:
    """Give each detection the target it overlaps most, taken or not (Pascal VOC's rule).

    Among equals a target that is not ignored comes first, then the lower index.

    Args:
        pair_detection, pair_target, quality: (P,) from ``close_pairs``; higher is better.
        num_detections: D.

    Returns:
        (D,) index into the pairs, ``NO_TARGET`` for a detection that is in no pair.
    """
    order = np.lexsort((pair_target, targets.ignored[pair_target], -quality, pair_detection))
    detection, first = np.unique(pair_detection[order], return_index=True)
    best = np.full(num_detections, NO_TARGET)
    best[detection] = order[first]
    return best


def match_greedy(
    pair_detection: np.ndarray, pair_target: np.ndarray, quality: np.ndarray, num_detections: int, num_targets: int
) -> np.ndarray:
    """Let the detections, best score first, each take the best target that is still free.

    Deferred acceptance: every free detection asks its best remaining target, which keeps the better-scored of those
    that ask. As all targets rank the detections alike, the outcome is that of the sequential rule, and a cut at any
    score keeps the pairs above it.

    Args:
        pair_detection, pair_target: (P,) admissible pairs; a lower detection index is a better score.
        quality: (P,) higher is better; equal qualities go to the lower target index.
        num_detections, num_targets: D, G.

    Returns:
        (D,) target index or ``NO_TARGET``.
    """
    order = np.lexsort((pair_target, -quality, pair_detection))
    wish = pair_target[order]
    start = np.searchsorted(pair_detection[order], np.arange(num_detections + 1))
    position, end = start[:-1].copy(), start[1:]
    holder = np.full(num_targets, num_detections)
    matched = np.full(num_detections, NO_TARGET)
    asking = np.flatnonzero(position < end)
    while len(asking):
        target = wish[position[asking]]
        position[asking] += 1
        before = holder.copy()
        np.minimum.at(holder, target, asking)
        changed = np.unique(target[holder[target] != before[target]])
        lost = before[changed]
        lost = lost[lost < num_detections]
        matched[lost] = NO_TARGET
        matched[holder[changed]] = changed
        refused = asking[holder[target] != asking]
        asking = np.concatenate([refused, lost])
        asking = asking[position[asking] < end[asking]]
    return matched
