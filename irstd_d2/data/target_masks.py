"""Masks of targets, and the boxes of their connected components."""

from __future__ import annotations

from os import PathLike

import cv2
import numpy as np

from ..errors import DatasetError
from .image_io import read_raw


def read_target_mask(path: str | PathLike, size: tuple[int, int], threshold: float = 0.5) -> np.ndarray:
    """Read a mask of targets: any image in which targets are brighter than the rest.

    Args:
        path: an image file, e.g. with 0 and 255, or labels 0 and 1.
        size: (width, height) that it must have.
        threshold: share of the mask's highest value above which a pixel belongs to a target; masks that were resized
            or saved as JPEG have values in between.

    Returns:
        ``(H, W)`` bool.

    Raises:
        DatasetError: the file cannot be read or has another size.
    """
    mask = read_raw(path)
    if mask.ndim == 3:
        mask = mask[:, :, :3].max(axis=2)
    height, width = mask.shape
    if (width, height) != size:
        problem = f"{width}x{height} pixels, but its image has {size[0]}x{size[1]}"
        raise DatasetError(path, "size", problem, "replace the mask or the image, or take both out of the set")
    return mask > threshold * max(float(mask.max()), 1e-12)


def component_boxes(mask: np.ndarray) -> np.ndarray:
    """Bounds of the 8-connected components of a mask.

    Args:
        mask: ``(H, W)``; what is not zero belongs to a target.

    Returns:
        ``(N, 4)`` int, XYXY in pixels, half-open.
    """
    _, _, rows, _ = cv2.connectedComponentsWithStats((mask != 0).astype(np.uint8), connectivity=8)
    boxes = rows[1:, :4].astype(int)
    boxes[:, 2:] += boxes[:, :2]
    return boxes
