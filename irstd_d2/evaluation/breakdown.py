"""Classes that metrics are repeated for: of images (platform, band, ...) and of single targets (size, contrast, sky).

What counts in a class:

* A class of images is judged as if its images were the whole data set.
* In a class of targets all others are ignored: finding one is neither right nor wrong. A detection that finds no target
  is a false alarm in the class that it belongs to itself, by its own box, and does not count in the others. This is how
  COCO treats areas, applied to every metric.

Boxes of the class "none", such as those on pixels that a sky mask leaves open, count in no class.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np

from ..data.image_io import OTHER, SKY, check_size, read_raw, read_sky_mask
from ..data.statistics import local_contrast
from ..errors import DatasetError
from .matching import DetectionTable, TargetTable

# Square pixels of the original image: from the first, up to but not including the second. COCO's own rule includes the
# upper bound, which would count the most common target, of 3x3 pixels, twice.
AREA_BOUNDS = {"<9": (0, 9), "9-25": (9, 25), "25-81": (25, 81), "81-1024": (81, 1024)}
# Mean of the box over the mean of its surroundings (data.statistics.local_contrast); bounds as above.
CONTRAST_BOUNDS = {"<1.2": (0, 1.2), "1.2-1.5": (1.2, 1.5), "1.5-2": (1.5, 2), ">=2": (2, np.inf)}
NO_CLASS = -1

# Results per image that are kept for the next evaluator, which asks for the same image at once.
_CACHE = 16


@dataclass(frozen=True)
class ImageFiles:
    """Where the pixels of an image are: file names or ``None``, and its size in pixels."""

    image: str | None
    sky_mask: str | None
    height: int
    width: int


@dataclass(frozen=True)
class TargetKey:
    """A property of single boxes that metrics are broken down by.

    Attributes:
        measure: image files and (n, 4) boxes -> (n,) class index or ``NO_CLASS``, and (C,) pixels of the image in which
            a box of each class can be.
    """

    names: tuple[str, ...]
    measure: Callable[[ImageFiles, np.ndarray], tuple[np.ndarray, np.ndarray]]


@dataclass(frozen=True)
class Breakdown:
    """Classes of one key over a data set.

    Attributes:
        names: of the C classes.
        targets: (G,) class index of each target, or ``NO_CLASS``.
        detections: (D,) class index of each detection, or ``NO_CLASS``.
        pixels: (C, I) pixels of each image that belong to a class.
    """

    names: tuple[str, ...]
    targets: np.ndarray
    detections: np.ndarray
    pixels: np.ndarray

    def part(
        self, index: int, detections: DetectionTable, targets: TargetTable
    ) -> tuple[DetectionTable, TargetTable, np.ndarray]:
        """Return what counts in one class: detections, targets, and the pixels of each of its images."""
        pixels = self.pixels[index]
        images = pixels > 0
        number = np.cumsum(images) - 1  # of the images that are left
        found = replace(detections, outside=self.detections != index).rows(images[detections.image])
        wanted = replace(targets, ignored=targets.ignored | (self.targets != index)).rows(images[targets.image])
        return replace(found, image=number[found.image]), replace(wanted, image=number[wanted.image]), pixels[images]


def image_breakdown(
    groups: dict[str, np.ndarray], image_pixels: np.ndarray, detections: DetectionTable, targets: TargetTable
) -> Breakdown:
    """Break down by groups of images, name -> (I,) bool, of ``GroundTruth.image_groups``; ``image_pixels`` is (I,)."""
    masks = np.array(list(groups.values()), bool).reshape(len(groups), len(image_pixels))
    label = masks.argmax(0) if len(groups) else np.zeros(len(image_pixels), int)
    return Breakdown(tuple(groups), label[targets.image], label[detections.image], masks * image_pixels)


def _class_of(values: np.ndarray, bounds: Sequence[tuple[float, float]]) -> np.ndarray:
    """Index of the interval that holds each value, or ``NO_CLASS``; intervals adjoin and ascend."""
    index = np.searchsorted([low for low, _ in bounds], values, side="right") - 1
    return np.where(values < bounds[-1][1], index, NO_CLASS)


def _measure_size(files: ImageFiles, boxes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    area = np.maximum(boxes[:, 2:] - boxes[:, :2], 0).prod(1)
    return _class_of(area, list(AREA_BOUNDS.values())), _whole_image(files, len(AREA_BOUNDS))


def _measure_contrast(files: ImageFiles, boxes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    pixels = _whole_image(files, len(CONTRAST_BOUNDS))
    if not len(boxes):
        return np.zeros(0, int), pixels
    if files.image is None:
        fix = "take 'contrast' out of TEST.GROUP_BY"
        raise DatasetError("data set", "file_name", "images without files have no contrast", fix)
    contrast = _contrast(files.image, np.ascontiguousarray(boxes, float).tobytes(), (files.height, files.width))
    return _class_of(contrast, list(CONTRAST_BOUNDS.values())), pixels


@lru_cache(_CACHE)
def _contrast(path: str, boxes: bytes, size: tuple[int, int]) -> np.ndarray:
    raw = read_raw(path)
    check_size(path, raw.shape, size)
    gray = raw if raw.ndim == 2 else raw[:, :, :3].mean(axis=2)
    return local_contrast(gray, np.frombuffer(boxes).reshape(-1, 4))


def _measure_sky(files: ImageFiles, boxes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    if files.sky_mask is None:
        return np.full(len(boxes), NO_CLASS), np.zeros(2, np.int64)
    return _sky(files.sky_mask, np.ascontiguousarray(boxes, float).tobytes(), (files.height, files.width))


@lru_cache(_CACHE)
def _sky(path: str, boxes: bytes, size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Classes of boxes by their central pixel, and pixels of sky and of other."""
    mask = read_sky_mask(path)
    check_size(path, mask.shape, size)
    corners = np.frombuffer(boxes).reshape(-1, 4)
    centre = np.floor((corners[:, :2] + corners[:, 2:]) / 2)
    x, y = np.clip(centre, 0, (size[1] - 1, size[0] - 1)).astype(int).T
    label = mask[y, x]
    classes = np.select([label == SKY, label == OTHER], [0, 1], NO_CLASS)
    return classes, np.array([np.count_nonzero(mask == SKY), np.count_nonzero(mask == OTHER)], np.int64)


def _whole_image(files: ImageFiles, count: int) -> np.ndarray:
    return np.full(count, files.height * files.width, np.int64)


TARGET_KEYS = {
    "size": TargetKey(tuple(AREA_BOUNDS), _measure_size),
    "contrast": TargetKey(tuple(CONTRAST_BOUNDS), _measure_contrast),
    "sky": TargetKey(("sky", "non-sky"), _measure_sky),
}
