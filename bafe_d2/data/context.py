"""The whole image at low resolution beside what a crop or tile shows of it.

Targets need native pixels, the background needs the layout of the whole image: a window of 128 pixels does not tell
sky from a smooth wall. A sample of a detector with context carries three more entries::

    sample["context"] = context_image(image)             # the whole image, small
    sample["context_sem_seg"] = context_mask(sky)        # in training
    sample["context_window"] = torch.tensor([x1, y1, x2, y2])  # what sample["image"] shows of it, in image pixels
    sample["context_size"] = (height, width)             # of the whole image

Without them a detector takes the sample's image for the whole.
"""

from __future__ import annotations

import cv2
import numpy as np
import torch
from detectron2.data import transforms as T
from torch import Tensor

IGNORED = -1.0


def fit(image_size: tuple[int, int], size: tuple[int, int]) -> tuple[int, int]:
    """The largest size within ``size`` that keeps the aspect ratio of an image; all sizes are (height, width)."""
    scale = min(size[0] / image_size[0], size[1] / image_size[1])
    return max(1, round(image_size[0] * scale)), max(1, round(image_size[1] * scale))


def context_image(image: np.ndarray, size: tuple[int, int] = (128, 160)) -> Tensor:
    """Shrink a whole image by averaging areas.

    Args:
        image: (H, W) or (H, W, C), any type of numbers.
        size: (height, width) that the result fits into.

    Returns:
        (h, w) float32
    """
    gray = np.ascontiguousarray(image if image.ndim == 2 else image.mean(axis=2), dtype=np.float32)
    height, width = fit(gray.shape[:2], size)
    return torch.from_numpy(cv2.resize(gray, (width, height), interpolation=cv2.INTER_AREA))


def context_mask(sem_seg: np.ndarray, size: tuple[int, int] = (128, 160)) -> Tensor:
    """The share of sky in every pixel of the context.

    Args:
        sem_seg: (H, W): 1 sky, 0 other, 255 ignore.
        size: see ``context_image``.

    Returns:
        (h, w) float32 in 0..1, -1 where half of the pixel or more is ignored.
    """
    height, width = fit(sem_seg.shape, size)
    known, sky = (sem_seg != 255).astype(np.float32), (sem_seg == 1).astype(np.float32)
    known, sky = (cv2.resize(x, (width, height), interpolation=cv2.INTER_AREA) for x in (known, sky))
    return torch.from_numpy(np.where(known > 0.5, sky / np.maximum(known, 1e-6), IGNORED).astype(np.float32))


def window_of(transforms: T.TransformList, network_size: tuple[int, int]) -> Tensor:
    """What a network's input shows of the image, after crops, resizes and flips.

    Args:
        transforms: what was done to the image.
        network_size: (height, width) of the result.

    Returns:
        (4,) float32: x and y of its left top and its right bottom corner in the image; a flip swaps them.

    Raises:
        ValueError: for a transform that shears or turns by 90 degrees.
    """
    origin, right, down = transforms.apply_coords(np.array([[0.0, 0], [1, 0], [0, 1]]))
    (x_gain, shear), (turn, y_gain) = right - origin, down - origin
    if abs(shear) + abs(turn) > 1e-6 * (abs(x_gain) + abs(y_gain)):
        raise ValueError("context needs transforms that keep the axes: crops, resizes and flips")
    height, width = network_size
    corners = [-origin[0] / x_gain, -origin[1] / y_gain]
    corners += [(width - origin[0]) / x_gain, (height - origin[1]) / y_gain]
    return torch.tensor(corners, dtype=torch.float32)
