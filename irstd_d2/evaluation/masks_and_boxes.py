"""Boxes made from masks and masks made from boxes, so that detectors and segmenters stand in one table.

From a mask: the bounds of every 8-connected component of what lies above a threshold; its score is the highest
probability inside.

From a box: the pixels that stand out of the box's surroundings by at least a tenth of what the one that stands out most
does, and that are connected with it inside the box (benchmarks/results/boxes_and_masks.md compares other shares). The
surroundings are a ring around the box, as wide as half its longer side and at least two pixels; what stands out may be
brighter or darker. A box without contrast is filled.
"""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np

from .mask_metrics import Regions

SHARE_OF_PEAK = 0.1
MASK_THRESHOLD = 0.5
_LEAST_RING = 2


def mask_to_boxes(probability: np.ndarray, threshold: float = MASK_THRESHOLD) -> tuple[np.ndarray, np.ndarray]:
    """Boxes of a mask or a probability map.

    Args:
        probability: (H, W) float in 0 to 1, or uint8 of 0 to 255.
        threshold: a pixel above it belongs to a target.

    Returns:
        (n, 4) float x1 y1 x2 y2, half-open, and (n,) scores in 0 to 1.
    """
    scale = 255.0 if probability.dtype == np.uint8 else 1.0
    regions = Regions.of(probability > threshold * scale)
    row, column = np.divmod(regions.pixels, probability.shape[1])
    count = len(regions)
    low, high = np.full((count, 2), np.iinfo(int).max), np.zeros((count, 2), int)
    score = np.zeros(count)
    for axis, values in enumerate((column, row)):
        np.minimum.at(low[:, axis], regions.owner, values)
        np.maximum.at(high[:, axis], regions.owner, values + 1)
    np.maximum.at(score, regions.owner, probability.reshape(-1)[regions.pixels] / scale)
    return np.concatenate([low, high], axis=1).astype(float), score


def boxes_to_map(
    image: np.ndarray, boxes: np.ndarray, scores: np.ndarray, share_of_peak: float = SHARE_OF_PEAK
) -> np.ndarray:
    """The probability map of detections: every pixel has the best score of the masks that hold it.

    Args:
        image: (H, W) in any range.
        boxes: (d, 4) x1 y1 x2 y2 in pixels of the image; parts outside count for nothing.
        scores: (d,) in 0 to 1.
        share_of_peak: how much of the highest contrast a pixel needs.

    Returns:
        (H, W) float64.
    """
    probability = np.zeros(image.shape)
    for box, score in zip(boxes, scores):
        (left, top, right, bottom), mask = box_mask(image, box, share_of_peak)
        part = probability[top:bottom, left:right]
        part[mask] = np.maximum(part[mask], score)
    return probability


def box_mask(
    image: np.ndarray, box: Sequence[float] | np.ndarray, share_of_peak: float = SHARE_OF_PEAK
) -> tuple[tuple[int, int, int, int], np.ndarray]:
    """The mask of one box.

    Returns:
        left, top, right, bottom of the pixels that the box touches, and (bottom - top, right - left) bool.
    """
    height, width = image.shape
    limit = np.array([width, height, width, height])
    outer = np.concatenate([np.floor(np.asarray(box[:2]) + 1e-6), np.ceil(np.asarray(box[2:]) - 1e-6)])
    left, top, right, bottom = np.clip(outer, 0, limit).astype(int).tolist()
    inside = image[top:bottom, left:right].astype(float)
    if not inside.size:
        return (left, top, left, top), np.zeros((0, 0), bool)
    ring = max(_LEAST_RING, max(inside.shape) // 2)
    y, x = max(0, top - ring), max(0, left - ring)
    around = image[y : bottom + ring, x : right + ring].astype(float)
    surroundings = np.ones(around.shape, bool)
    surroundings[top - y : bottom - y, left - x : right - x] = False
    level = np.median(around[surroundings]) if surroundings.any() else inside.min()
    contrast = inside - level
    if abs(contrast.min()) > contrast.max():
        contrast = -contrast
    peak = contrast.max()
    if peak <= 0:
        return (left, top, right, bottom), np.ones(inside.shape, bool)
    standing_out = (contrast >= share_of_peak * peak).astype(np.uint8)
    label = cv2.connectedComponents(standing_out, connectivity=8)[1]
    return (left, top, right, bottom), label == label[np.unravel_index(contrast.argmax(), contrast.shape)]
