"""Masks of targets, and the boxes of the targets in them."""

from __future__ import annotations

from os import PathLike
from typing import Literal, NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from ..errors import DatasetError
from .image_io import read_palette_indices, read_raw

MaskValues = Literal["auto", "labels", "levels"]
MASK_VALUES: tuple[MaskValues, ...] = ("auto", "labels", "levels")
_IGNORE = 255  # of palette masks in Pascal VOC's form: the border of objects
_NOISE = 0.1  # share of the highest value; what lies below is compression noise
MANY_LEVELS = 250  # of 8 bits: a mask that uses so many holds gray levels, not numbers


class TargetMask(NamedTuple):
    """What a mask says.

    Args:
        labels: ``(H, W)`` int32: 0 no target, else a number; pixels of different numbers belong to different targets.
        left_out: pixels that are neither clearly a target nor clearly none, taken for none.
    """

    labels: NDArray[np.int32]
    left_out: int


def read_target_labels(
    path: str | PathLike, size: tuple[int, int], *, threshold: float = 0.5, values: MaskValues = "auto"
) -> TargetMask:
    """Read a mask of targets.

    Args:
        size: (width, height) that it must have.
        threshold: of ``"levels"``: share of the mask's highest value above which a pixel belongs to a target; masks
            that were resized or saved as JPEG have values in between.
        values: what values other than 0 mean: ``"labels"`` numbers or colours of targets or classes, ``"levels"`` gray
            levels. ``"auto"`` takes labels where the values are 1 to K without a gap, in palette files, where no two
            values touch, and where colours are flat.

    Raises:
        DatasetError: the file cannot be read, has another size, or holds its mask as transparency.
    """
    indices = read_palette_indices(path)
    mask = read_raw(path) if indices is None else indices
    height, width = mask.shape[:2]
    if (width, height) != size:
        problem = f"{width}x{height} pixels, but its image has {size[0]}x{size[1]}"
        raise DatasetError(path, "size", problem, "replace the mask or the image, or take both out of the set")
    if mask.ndim == 3 and mask.shape[2] == 4 and not mask[:, :, :3].any() and np.ptp(mask[:, :, 3]):
        raise DatasetError(path, "pixels", "black, with the mask in its alpha channel", "save the mask as gray values")
    return target_labels(mask, threshold=threshold, values=values, palette=indices is not None)


def target_labels(
    mask: np.ndarray, *, threshold: float = 0.5, values: MaskValues = "auto", palette: bool = False
) -> TargetMask:
    """What the pixels of a mask say; see :func:`read_target_labels`.

    Args:
        mask: ``(H, W)`` or ``(H, W, 3 or 4)``, or indices ``(H, W)`` of a palette file (``palette``).
    """
    numbers = _one_number_per_pixel(mask)
    left_out = 0
    present = np.unique(numbers[numbers > 0])
    if palette and len(present) > 1 and present[-1] == _IGNORE:
        left_out = int((numbers == _IGNORE).sum())
        numbers = np.where(numbers == _IGNORE, 0, numbers)
        present = present[:-1]
    if len(present) <= 1:
        return TargetMask((numbers > 0).astype(np.int32), left_out)
    if values == "auto":
        certain = palette or _are_numbers(present, mask.dtype) or _are_apart(numbers)
        certain = certain or (mask.ndim == 3 and bool((numbers != mask[:, :, 0]).any()) and are_flat(numbers))
        values = "labels" if certain else "levels"
    if values == "labels":
        return TargetMask(np.searchsorted(np.concatenate([[0], present]), numbers).astype(np.int32), left_out)
    levels = mask[:, :, :3].max(axis=2) if mask.ndim == 3 else mask
    peak = float(levels.max())
    found = levels > threshold * peak
    noise = 0 if _are_numbers(present[:-1], mask.dtype) else _NOISE * peak  # 1 beside 255 is no noise, but says little
    return TargetMask(found.astype(np.int32), int(((levels > noise) & ~found).sum()))


def component_boxes(mask: np.ndarray) -> np.ndarray:
    """Bounds of the 8-connected components of what is not zero in a mask ``(H, W)``.

    Returns:
        ``(N, 4)`` int, XYXY in pixels, half-open.
    """
    _, _, rows, _ = cv2.connectedComponentsWithStats((mask != 0).astype(np.uint8), connectivity=8)
    boxes = rows[1:, :4].astype(int)
    boxes[:, 2:] += boxes[:, :2]
    return boxes


def label_boxes(labels: np.ndarray) -> np.ndarray:
    """Bounds of the 8-connected components of each number, in the form of :func:`component_boxes`."""
    parts = [component_boxes(labels == number) for number in np.unique(labels[labels > 0])]
    return np.concatenate([np.zeros((0, 4), int), *parts])


def number_targets(masks: list[NDArray[np.bool_]], size: tuple[int, int]) -> NDArray[np.integer]:
    """Put masks of single targets ``(H, W)`` into one that :func:`read_target_labels` reads as the same targets.

    Where two overlap, the later one gets the pixels; ``size`` is (width, height).

    Returns:
        ``(H, W)`` of 0 and 255 where no two targets touch, else of numbers 1, 2, ...; 8 or 16 bits.
    """
    labels = np.zeros(size[::-1], np.int32)
    for number, mask in enumerate(masks, start=1):
        labels[mask] = number
    return compact_labels(labels)


def compact_labels(labels: NDArray[np.int32]) -> NDArray[np.integer]:
    """Labels as :func:`number_targets` writes them."""
    if len(component_boxes(labels)) == len(label_boxes(labels)):
        return (labels > 0).astype(np.uint8) * np.uint8(255)
    present, numbers = np.unique(labels, return_inverse=True)
    numbers = numbers.reshape(labels.shape) + int(present[0] != 0)
    return numbers.astype(np.uint8 if numbers.max() < MANY_LEVELS else np.uint16)


def are_flat(values: np.ndarray) -> bool:
    """Whether at least half of the neighbours that are not 0 are equal; (H, W) or (H, W, channels)."""
    values = values.reshape(*values.shape[:2], -1)
    pairs = equal = 0
    for one, other in ((values[:, 1:], values[:, :-1]), (values[1:], values[:-1])):
        both = one.any(-1) & other.any(-1)
        pairs += int(both.sum())
        equal += int((both & (one == other).all(-1)).sum())
    return 2 * equal >= pairs


def _one_number_per_pixel(mask: np.ndarray) -> np.ndarray:
    """Gray stays as it is; of colours, each gets its own number."""
    if mask.ndim == 2:
        return mask
    blue, green, red = (mask[:, :, channel].astype(np.int64) for channel in range(3))
    if (blue == green).all() and (green == red).all():
        return blue
    bits = 8 * mask.dtype.itemsize
    return (red << 2 * bits) | (green << bits) | blue


def _are_numbers(present: np.ndarray, dtype: np.dtype) -> bool:
    """Whether the values are 1 to K without a gap."""
    if present[-1] != len(present):
        return False
    return not (dtype == np.uint8 and present[-1] >= MANY_LEVELS)


def _are_apart(numbers: np.ndarray) -> bool:
    """Whether each 8-connected component of what is not 0 has one value only."""
    _, components = cv2.connectedComponents((numbers > 0).astype(np.uint8), connectivity=8)
    inside = components > 0
    own = components[inside]
    _, first = np.unique(own, return_index=True)
    found = numbers[inside]
    return bool((found == found[first][own - 1]).all())
