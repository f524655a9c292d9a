"""What the pixels of a tool's mask files mean: probabilities, gray levels, numbers of targets or colours."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np

from ..data.image_io import read_raw
from ..data.target_masks import MANY_LEVELS, are_flat
from ..errors import DatasetError

logger = logging.getLogger(__name__)

_MAX_SPREAD = 16  # of the channels of a gray picture that was compressed in colour


def mask_reader(files: Iterable[Path]) -> Callable[[Path, tuple[int, int]], np.ndarray]:
    """Return a reader of the probability maps of one tool, whose ``files`` are all given.

    Integers are fractions of 255, of 65535 where a file of the tool holds more than 255. They are numbers of targets
    where each file holds 1 to K without a gap, mostly beside their equals. Floats must lie in 0 to 1. Colours stand
    for targets where they are flat and on black.

    Returns:
        path and (height, width) -> (H, W) uint8 of 0 to 255, or float64 of 0 to 1; raises ``DatasetError`` for a file
        of another size, of another kind, or with values out of range.
    """
    are_numbers, highest = True, 0
    for path in files:
        values = _read_map(path)
        if values.dtype.kind != "f":
            are_numbers = are_numbers and _are_numbers(values)
            highest = max(highest, int(values.max(initial=0)))
    if are_numbers and highest > 1:
        logger.warning("%s: integers from 0 to %d are read as numbers of targets", path.parent, highest)

    def read(path: Path, size: tuple[int, int]) -> np.ndarray:
        values = read_map(path, size)
        if values.dtype.kind == "f":
            return values.astype(np.float64)
        if are_numbers:
            return (values > 0) * np.uint8(255)
        return values.astype(np.uint8) if highest <= 255 else values / 65535

    return read


def read_map(path: Path, size: tuple[int, int]) -> np.ndarray:
    """The values of one file, of any meaning: (H, W) of bool as uint8, uint8, uint16 or float of 0 to 1.

    Raises:
        DatasetError: for a file of another size than (height, width), of another kind, or with values out of range.
    """
    values = _read_map(path)
    if values.shape != size:
        problem = f"{values.shape[1]}x{values.shape[0]} pixels, its image has {size[1]}x{size[0]}"
        raise DatasetError(path, "size", problem, "save the mask in the size of its image")
    if values.dtype.kind == "f":
        low, high = float(values.min()), float(values.max())
        if not (low >= 0 and high <= 1):  # NaN is neither
            raise DatasetError(path, "pixels", f"values from {low:g} to {high:g}", "save probabilities of 0 to 1")
    return values


def _are_numbers(values: np.ndarray) -> bool:
    """Whether pixels are 0 or 1 to K without a gap, one number for all of a target."""
    present = np.unique(values[values > 0])
    if not len(present) or present[-1] == 1:
        return True
    return bool(present[-1] == len(present) < MANY_LEVELS) and are_flat(values)


def _without_colour(values: np.ndarray, path: Path) -> np.ndarray:
    """(H, W) of a picture (H, W, 3 or 4): its gray, or 255 where flat colours on black stand for targets."""
    values = values[:, :, :3]
    brightest = values.max(axis=2)
    if (brightest - values.min(axis=2)).max(initial=0) <= _MAX_SPREAD:
        return brightest
    if 2 * np.count_nonzero(brightest) > brightest.size or not are_flat(values):
        raise DatasetError(path, "pixels", "a picture in colour", "save the probability in one channel")
    return (brightest > 0) * np.uint8(255)


def _read_map(path: Path) -> np.ndarray:
    """(H, W) of bool as uint8, uint8, uint16 or float."""
    if path.suffix.lower() == ".npy":
        try:
            values = np.load(path, allow_pickle=False)
        except (OSError, ValueError) as error:
            raise DatasetError(path, "file", f"cannot be read ({error})", "save the array by numpy.save") from None
        while values.ndim > 2 and 1 in (values.shape[0], values.shape[-1]):  # of a batch or a channel
            values = values[0] if values.shape[0] == 1 else values[..., 0]
    else:
        values = read_raw(path)
        values = _without_colour(values, path) if values.ndim == 3 else values
    if values.ndim != 2:
        problem = f"an array of shape {values.shape}"
        raise DatasetError(path, "shape", problem, "save (height, width), one file per image")
    if values.dtype == bool:
        return values.astype(np.uint8)
    if values.dtype.kind in "iu" and values.dtype not in (np.dtype(np.uint8), np.dtype(np.uint16)):
        if values.min(initial=0) < 0 or values.max(initial=0) > 255:
            raise DatasetError(path, "type", f"integers of type {values.dtype}", "save uint8, uint16, bool or floats")
        return values.astype(np.uint8)
    if values.dtype.kind not in "iuf":
        raise DatasetError(path, "type", f"an array of {values.dtype}", "save uint8, uint16, bool or floats")
    return values
