"""Which values of an image become 0 and 255: those of its number type, or those that it uses."""

from __future__ import annotations

import logging
from os import PathLike

import cv2
import numpy as np
from detectron2.utils.logger import log_first_n
from numpy.typing import NDArray

from ..errors import DatasetError

# Of single precision: 64-bit floats beyond it are no pixels, and differences below it are none.
_LARGEST, _SMALLEST = float(np.finfo(np.float32).max), float(np.finfo(np.float32).tiny)
_PERCENTILES = (0.1, 99.9)
# "auto" stretches images whose values span no more than the first share of their type's range (14 bits of 16), and
# without single outliers less than the second: counts of a sensor, but at most one of 800 real images from the ground
# and the air that fill their type.
_PART, _SMALL_PART = 1 / 4, 1 / 8
_STRIP = 1024  # rows


def value_limits(raw: np.ndarray, path: str | PathLike, high_bit_depth: str = "auto") -> tuple[float, float]:
    """The values of a whole image, in its own number type, that become 0 and 255; 8 bits are never stretched.

    ``high_bit_depth`` as for :func:`irstd_d2.data.image_io.read_image`; ``path`` is for messages.

    Raises:
        DatasetError: the image holds NaN or infinity, or floats beyond 0 to 1 with ``full_range``.
    """
    if raw.dtype == np.uint8:
        return 0.0, 255.0
    image = raw[:, :, :3] if raw.ndim == 3 else raw
    is_float = image.dtype.kind == "f"
    if is_float and not max(-float(image.min()), float(image.max())) <= _LARGEST:  # NaN is never below
        raise DatasetError(path, "pixels", "NaN or infinite values", "replace them before saving the image")
    lowest, highest = float(image.min()), float(image.max())
    if high_bit_depth == "minmax":
        return lowest, highest
    whole = type_range(image.dtype)
    if high_bit_depth == "full_range":
        if lowest < whole[0] or highest > whole[1]:
            fix = "set INPUT.HIGH_BIT_DEPTH to auto, minmax or percentile, or rescale the file"
            raise DatasetError(path, "pixels", f"floats from {lowest:g} to {highest:g}, expected 0 to 1", fix)
        if uses_small_part(image):
            log_first_n(
                logging.WARNING,
                f"{path}: values from {lowest:g} to {highest:g}, a small part of {image.dtype}, are mapped by all of "
                "its range: targets may be too faint; INPUT.HIGH_BIT_DEPTH auto stretches them",
            )
        return whole
    if high_bit_depth == "percentile":
        low, high = (float(value) for value in np.percentile(image, _PERCENTILES))
        return low, high
    if whole[0] <= lowest and highest <= whole[1] and not uses_small_part(image):
        return whole
    low, high = steady_range(image)
    log_first_n(
        logging.WARNING,
        f"{path}: values from {lowest:g} to {highest:g}, which is not what {image.dtype} can hold: {low:g} to {high:g} "
        "(without single outliers) become 0 to 255, and so in other images like it (INPUT.HIGH_BIT_DEPTH)",
    )
    return low, high


def type_range(dtype: np.dtype) -> tuple[float, float]:
    """The values of a number type that ``"full_range"`` maps to 0 and 255."""
    if dtype.kind == "f":
        return 0.0, 1.0
    return float(np.iinfo(dtype).min), float(np.iinfo(dtype).max)


def uses_small_part(image: np.ndarray) -> bool:
    """Whether the values of an image fill so little of their type, as counts of a sensor do, that ``"auto"`` stretches.

    Images of 8 bits never do.
    """
    if image.dtype == np.uint8:
        return False
    whole = type_range(image.dtype)
    if float(image.max()) - float(image.min()) > _PART * (whole[1] - whole[0]):
        return False
    low, high = steady_range(image)
    return high - low < _SMALL_PART * (whole[1] - whole[0])


def steady_range(image: np.ndarray) -> tuple[float, float]:
    """Lowest and highest value after a 3x3 median, without the rim: a few stuck pixels of a sensor do not decide.

    Of an image that is flat without them, the lowest and highest of all pixels. ``image`` is (H, W) or (H, W, C), C at
    least 3, of which the first three count.
    """
    height, width = image.shape[:2]
    if min(height, width) < 3:
        return float(image.min()), float(image.max())
    dtype = image.dtype if image.dtype in (np.uint8, np.uint16) else np.dtype(np.float32)
    low, high = np.inf, -np.inf
    for top in range(0, height - 2, _STRIP):  # strips, as the image may be larger than the memory
        strip = image[top : top + _STRIP + 2]
        for plane in (strip,) if image.ndim == 2 else np.moveaxis(strip[:, :, :3], 2, 0):
            inner = cv2.medianBlur(np.ascontiguousarray(plane, dtype=dtype), 3)[1:-1, 1:-1]
            low, high = min(low, float(inner.min())), max(high, float(inner.max()))
    if low < high:
        return low, high
    used = image[:, :, :3] if image.ndim == 3 else image
    return float(used.min()), float(used.max())


def stretch(image: np.ndarray, limits: tuple[float, float]) -> np.ndarray:
    """Map an image of more than 8 bits to float32 in ``[0, 255]``; alpha, if any, is dropped first."""
    image = image[:, :, :3] if image.ndim == 3 else image
    low, high = limits
    scale = 255.0 / (high - low) if high - low > _SMALLEST else 0.0
    # Double precision for 32-bit integers only: single precision holds every 16-bit value exactly.
    wide: NDArray[np.floating] = image.astype(np.float64 if image.dtype.itemsize > 2 else np.float32)
    wide -= low
    wide *= scale
    return np.clip(wide, 0.0, 255.0, out=wide).astype(np.float32, copy=False)
