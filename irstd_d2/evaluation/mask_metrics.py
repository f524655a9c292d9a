"""Metrics of masks as the segmentation side of the field reports them: pixels, targets by centroid, hierarchical IoU.

Every metric is a function of counts per image, so that one pass over the images is enough for all of them, for groups
of images and for resampling. A pixel belongs to a predicted target where its probability is above the threshold;
targets are 8-connected components.

Sources, with what their released code does:

* IoU, nIoU, F1, ROC, PR, hIoU and its error terms: Pang et al., "Rethinking Evaluation of Infrared Small Target
  Detection" (NeurIPS 2025), package ``pyirstdmetrics``.
* Pd and Fa: the rule of BasicIRSTD; ``Fa_area`` as DNA-Net's code counts it; ``Pd_shooting`` and ``Fa_shooting``: Li et
  al., "Direction-Coded Temporal U-Shape Module" (TNNLS 2023).
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

import cv2
import numpy as np

CENTROID_DISTANCE = 3.0  # pixels; a distance below it counts
MIN_IOU = 0.5
LEVELS = 256
_SHOOTING_HIT, _SHOOTING_FREE = 1, 4  # pixels around a target: a hit inside the first, no false alarm inside the second


@dataclass(frozen=True)
class Regions:
    """The 8-connected components of a mask, in the order of their first pixel, row by row.

    Attributes:
        pixels: (n,) flat indices of the pixels of all components, ascending.
        owner: (n,) component of each pixel.
        area: (R,) pixels of each component.
        centroid: (R, 2) row and column.
    """

    pixels: np.ndarray
    owner: np.ndarray
    area: np.ndarray
    centroid: np.ndarray

    def __len__(self) -> int:
        return len(self.area)

    @classmethod
    def of(cls, mask: np.ndarray) -> Regions:
        """Find the components of an (H, W) bool mask."""
        pixels = np.flatnonzero(mask)
        if not len(pixels):
            return cls(pixels, pixels, np.zeros(0, int), np.zeros((0, 2)))
        width = mask.shape[1]
        row, column = np.divmod(pixels, width)
        top, left = row[0], column.min()
        part = np.ascontiguousarray(mask[top : row[-1] + 1, left : column.max() + 1]).view(np.uint8)
        label = cv2.connectedComponents(part, connectivity=8)[1][row - top, column - left]
        # OpenCV numbers components by blocks of pixels; what the field's rules call the first is the first by rows.
        _, first, owner = np.unique(label, return_index=True, return_inverse=True)
        rank = np.empty(len(first), int)
        rank[np.argsort(first)] = np.arange(len(first))
        owner = rank[owner]
        area = np.bincount(owner)
        centroid = np.stack([np.bincount(owner, row), np.bincount(owner, column)], axis=1) / area[:, None]
        return cls(pixels, owner, area, centroid)


@dataclass(frozen=True)
class MaskCounts:
    """What one image adds to every metric at one threshold.

    Attributes:
        pixels: of the image.
        true_pixels, false_pixels, missed_pixels: predicted and target, predicted only, target only.
        image_iou: IoU of the image's pixels; 0 where neither mask has any, as in the published code.
        targets, found: components of the target mask, and those that a predicted one lies close to.
        false_area: pixels of the predicted components that were close to no free target.
        false_area_by_value: the same, without components whose area equals that of any matched one.
        shot, shooting_false: the shooting rule's hits and false pixels.
        matched, false_objects, missed_objects: by overlap first, then by distance.
        empty_false, empty_missed: 1 where the image has no predicted, no target component; the published code counts
            such an image as one false, one missed object.
        overlap: sum of the IoU of matched pairs; ``merging``, ``interference``, ``perception`` are sums of their parts
            of the union: pixels of other targets, of the background, and those left out.
        false_interference, false_merged, missed_perception, missed_split: of the unmatched, those with no partner
            within reach, and those whose partner another object took.
    """

    pixels: int
    true_pixels: int
    false_pixels: int
    missed_pixels: int
    image_iou: float
    targets: int
    found: int
    false_area: int
    false_area_by_value: int
    shot: int
    shooting_false: int
    matched: int
    false_objects: int
    missed_objects: int
    empty_false: int
    empty_missed: int
    overlap: float
    merging: float
    interference: float
    perception: float
    false_interference: int
    false_merged: int
    missed_perception: int
    missed_split: int


COLUMNS = tuple(field.name for field in fields(MaskCounts))


def count_masks(predicted: np.ndarray, target: np.ndarray) -> MaskCounts:
    """Compare the masks of one image, (H, W) bool."""
    found, truth = Regions.of(predicted), Regions.of(target)
    shared = _shared_pixels(found, truth, target.shape)
    true_pixels = int(shared.sum())
    union = len(found.pixels) + len(truth.pixels) - true_pixels
    distance = _distances(truth, found)
    centre_matched = _first_free_within(distance, CENTROID_DISTANCE)
    missed_area = found.area[~centre_matched]
    shot, shooting_false = _shooting_rule(found, truth, target.shape)
    return MaskCounts(
        pixels=target.size,
        true_pixels=true_pixels,
        false_pixels=len(found.pixels) - true_pixels,
        missed_pixels=len(truth.pixels) - true_pixels,
        image_iou=true_pixels / union if union else 0.0,
        targets=len(truth),
        found=int(centre_matched.sum()),
        false_area=int(missed_area.sum()),
        false_area_by_value=int(missed_area[~np.isin(missed_area, found.area[centre_matched])].sum()),
        shot=shot,
        shooting_false=shooting_false,
        **_match_objects(found, truth, shared, distance),
    )


def _shared_pixels(found: Regions, truth: Regions, shape: tuple[int, ...]) -> np.ndarray:
    """(T, F) pixels that each target shares with each predicted component."""
    if not (len(found) and len(truth)):
        return np.zeros((len(truth), len(found)), int)
    owner = np.full(shape[0] * shape[1], -1, np.int32)
    owner[truth.pixels] = truth.owner
    at_found = owner[found.pixels]
    both = at_found >= 0
    key = at_found[both] * len(found) + found.owner[both]
    return np.bincount(key, minlength=len(truth) * len(found)).reshape(len(truth), len(found))


def _distances(truth: Regions, found: Regions) -> np.ndarray:
    difference = truth.centroid[:, None] - found.centroid[None]
    return np.sqrt((difference * difference).sum(-1))


def _first_free_within(distance: np.ndarray, reach: float) -> np.ndarray:
    """(F,) bool: the targets, in their order, each take the first free component that is close enough."""
    taken = np.zeros(distance.shape[1], bool)
    for near in distance < reach:
        free = np.flatnonzero(near & ~taken)
        taken[free[:1]] = True
    return taken


def _shooting_rule(found: Regions, truth: Regions, shape: tuple[int, ...]) -> tuple[int, int]:
    """Targets with a predicted pixel within one pixel of theirs, and predicted pixels far from every target."""
    if not len(found.pixels):
        return 0, 0
    if not len(truth.pixels):
        return 0, len(found.pixels)
    height, width = shape
    row, column = np.divmod(found.pixels, width)
    target = np.zeros((height, width), np.uint8)
    target.reshape(-1)[truth.pixels] = 1
    size = 2 * _SHOOTING_FREE + 1
    free = cv2.dilate(target, np.ones((size, size), np.uint8))
    predicted = np.zeros((height + 2, width + 2), bool)
    predicted[row + 1, column + 1] = True
    target_row, target_column = np.divmod(truth.pixels, width)
    hit = np.zeros(len(truth.pixels), bool)
    for dy in range(2 * _SHOOTING_HIT + 1):
        for dx in range(2 * _SHOOTING_HIT + 1):
            hit |= predicted[target_row + dy, target_column + dx]
    return len(np.unique(truth.owner[hit])), int((free[row, column] == 0).sum())


def _match_objects(found: Regions, truth: Regions, shared: np.ndarray, distance: np.ndarray) -> dict[str, Any]:
    """Match by overlap first, then what is left by distance, each as one assignment of least total distance."""
    from scipy.optimize import linear_sum_assignment

    union = truth.area[:, None] + found.area[None] - shared
    iou = shared / np.maximum(union, 1)
    overlapping, near = iou >= MIN_IOU, distance < CENTROID_DISTANCE
    matched = np.zeros(distance.shape, bool)
    if overlapping.any():
        rows, columns = linear_sum_assignment(distance)
        matched[rows, columns] = overlapping[rows, columns]
    if near.any():
        free_rows = np.flatnonzero(~matched.any(1))
        free_columns = np.flatnonzero(~matched.any(0))
        rows, columns = linear_sum_assignment(distance[np.ix_(free_rows, free_columns)])
        rows, columns = free_rows[rows], free_columns[columns]
        matched[rows, columns] |= near[rows, columns]
    rows, columns = np.nonzero(matched)
    area_shared, area_union = shared[rows, columns], union[rows, columns]
    of_others = shared.sum(0)[columns] - area_shared
    reachable = overlapping | near
    false_objects, missed_objects = len(found) - len(columns), len(truth) - len(rows)
    false_alone, missed_alone = int((~reachable.any(0)).sum()), int((~reachable.any(1)).sum())
    return {
        "matched": len(rows),
        "false_objects": false_objects,
        "missed_objects": missed_objects,
        "empty_false": int(not len(found)),
        "empty_missed": int(not len(truth)),
        "overlap": float((area_shared / area_union).sum()),
        "merging": float((of_others / area_union).sum()),
        "interference": float(((found.area[columns] - area_shared - of_others) / area_union).sum()),
        "perception": float(((truth.area[rows] - area_shared) / area_union).sum()),
        "false_interference": false_alone,
        "false_merged": false_objects - false_alone,
        "missed_perception": missed_alone,
        "missed_split": missed_objects - missed_alone,
    }


def mask_metrics(sums: dict[str, np.ndarray], num_images: np.ndarray) -> dict[str, np.ndarray]:
    """Metrics of summed counts, whatever images were summed.

    Args:
        sums: name of ``MaskCounts`` -> (B,) sums over B draws of images.
        num_images: (B,)

    Returns:
        metric -> (B,). In percent, ``Fa`` per million pixels. 0 where there is nothing to divide by, as in the
        published code.

        * ``IoU``, ``precision``, ``recall``, ``F1`` of all pixels together; ``nIoU``, the mean of the images' IoU.
        * ``Pd``, ``Fa``: targets with a component whose centroid is less than 3 pixels away, and pixels in the other
          components. ``Fa_area``, ``Pd_shooting``, ``Fa_shooting``: the variants of DNA-Net and of the shooting rule.
        * ``hIoU`` = ``loc_IoU`` x ``seg_IoU``: matched targets among all objects, and mean IoU of the matched; errors
          of location: ``loc_interference`` (false alone), ``loc_merged`` and ``loc_split`` (several on one),
          ``loc_perception`` (missed alone); of segmentation: ``seg_merging``, ``seg_interference``,
          ``seg_perception``. An image without components on one side counts as one object there, as published;
          ``hIoU_exact`` does without.
    """
    s = sums
    labelled = s["true_pixels"] + s["missed_pixels"]
    predicted = s["true_pixels"] + s["false_pixels"]
    objects = s["matched"] + s["false_objects"] + s["missed_objects"]
    published = objects + s["empty_false"] + s["empty_missed"]
    seg_iou = _ratio(s["overlap"], s["matched"])
    loc_iou = _ratio(s["matched"], published)
    return {
        "IoU": 100 * _ratio(s["true_pixels"], labelled + s["false_pixels"]),
        "nIoU": 100 * _ratio(s["image_iou"], num_images),
        "precision": 100 * _ratio(s["true_pixels"], predicted),
        "recall": 100 * _ratio(s["true_pixels"], labelled),
        "F1": 100 * _ratio(2 * s["true_pixels"], labelled + predicted),
        "Pd": 100 * _ratio(s["found"], s["targets"]),
        "Fa": 1e6 * _ratio(s["false_area"], s["pixels"]),
        "Fa_area": 1e6 * _ratio(s["false_area_by_value"], s["pixels"]),
        "Pd_shooting": 100 * _ratio(s["shot"], s["targets"]),
        "Fa_shooting": 1e6 * _ratio(s["shooting_false"], s["pixels"]),
        "hIoU": 100 * loc_iou * seg_iou,
        "hIoU_exact": 100 * _ratio(s["matched"], objects) * seg_iou,
        "loc_IoU": 100 * loc_iou,
        "loc_interference": 100 * _ratio(s["false_interference"] + s["empty_false"], published),
        "loc_merged": 100 * _ratio(s["false_merged"], published),
        "loc_perception": 100 * _ratio(s["missed_perception"] + s["empty_missed"], published),
        "loc_split": 100 * _ratio(s["missed_split"], published),
        "seg_IoU": 100 * seg_iou,
        "seg_merging": 100 * _ratio(s["merging"], s["matched"]),
        "seg_interference": 100 * _ratio(s["interference"], s["matched"]),
        "seg_perception": 100 * _ratio(s["perception"], s["matched"]),
    }


def _ratio(numerator: np.ndarray, denominator: np.ndarray) -> np.ndarray:
    return np.divide(numerator, denominator, out=np.zeros(np.shape(numerator)), where=np.asarray(denominator) != 0)


def level_counts(probability: np.ndarray, target: np.ndarray, levels: int = LEVELS) -> tuple[np.ndarray, np.ndarray]:
    """True and false pixels when all pixels from each level on are kept.

    Args:
        probability: (H, W) float in 0 to 1, or uint8 of 0 to 255.
        target: (H, W) bool.
        levels: thresholds 1 - 1 / (levels - 1), ..., 1 / (levels - 1), 0.

    Returns:
        (levels - 1,) true and (levels - 1,) false pixels, in descending order of the threshold.
    """
    edges = np.linspace(0, 1, levels)
    if probability.dtype == np.uint8:
        index = cv2.LUT(probability, _level_of(np.arange(256) / 255, edges).astype(_level_type(levels)))
    else:
        index = _level_of(probability.reshape(-1), edges).astype(_level_type(levels)).reshape(probability.shape)
    if index.dtype == np.uint8 and index.size < 1 << 24:  # OpenCV counts in single precision
        everything = cv2.calcHist([index], [0], None, [256], [0, 256]).reshape(-1)[: levels - 1].astype(np.int64)
    else:
        everything = np.bincount(index.reshape(-1), minlength=levels - 1)
    true = np.bincount(index[target], minlength=levels - 1)
    return np.cumsum(true[::-1]), np.cumsum((everything - true)[::-1])


def _level_type(levels: int) -> type:
    return np.uint8 if levels <= 257 else np.int32


def _level_of(values: np.ndarray, edges: np.ndarray) -> np.ndarray:
    """Index of the interval of each value; the last one holds its upper end, 1, too."""
    last = len(edges) - 2
    position = values * (last + 1)
    index = position.astype(np.int32)
    # Rounding may put a value that lies on an edge on its wrong side. Zero, the most common, is where it belongs.
    position -= index
    position -= 0.5
    near = np.flatnonzero((np.abs(position, out=position) > 0.5 - 1e-6) & (values > 0))
    index[near] = np.searchsorted(edges, values[near], side="right") - 1
    return np.minimum(index, last, out=index)


@dataclass(frozen=True)
class PixelCurves:
    """ROC and precision-recall of pixels.

    Attributes:
        thresholds: (L,) descending.
        true_rate, false_rate, precision: (L,) at each.
    """

    thresholds: np.ndarray
    true_rate: np.ndarray
    false_rate: np.ndarray
    precision: np.ndarray

    @property
    def roc_area(self) -> float:
        """Area under the ROC by trapezoids, from (0, 0)."""
        return float(np.trapezoid(np.append(0, self.true_rate), np.append(0, self.false_rate)))

    @property
    def pr_area(self) -> float:
        """Area under precision and recall by steps."""
        return float((np.diff(self.true_rate, prepend=0.0) * self.precision).sum())


def pixel_curves(
    true: np.ndarray, false: np.ndarray, targets: np.ndarray, background: np.ndarray, *, per_image: bool = False
) -> PixelCurves:
    """Curves over all thresholds.

    Args:
        true, false: (I, L) of ``level_counts`` of every image.
        targets, background: (I,) pixels of each kind.
        per_image: mean of the images' curves, as the published code, in place of the curve of all pixels together.
    """
    if not per_image:
        true, false = true.sum(0, keepdims=True), false.sum(0, keepdims=True)
        targets, background = targets.sum(keepdims=True), background.sum(keepdims=True)
    levels = true.shape[1]
    rate = [_ratio(true, np.broadcast_to(targets[:, None], true.shape)).mean(0)]
    rate.append(_ratio(false, np.broadcast_to(background[:, None], false.shape)).mean(0))
    return PixelCurves(np.linspace(0, 1, levels + 1)[-2::-1], rate[0], rate[1], _ratio(true, true + false).mean(0))
