"""The whole image at low resolution beside what a crop or tile shows of it.

Targets need native pixels, the background needs the layout of the whole image: a window of 128 pixels does not tell
sky from a smooth wall. A sample of a detector with context carries three more entries::

    sample["context"] = context_image(image)             # the whole image, small
    sample["context_sem_seg"] = context_mask(sky)        # in training
    sample["context_window"] = torch.tensor([x1, y1, x2, y2])  # what sample["image"] shows of it, in image pixels
    sample["context_size"] = (height, width)             # of the whole image

A window whose corners are swapped (x1 > x2 or y1 > y2) stands for a mirrored image; the detector then mirrors the
context as well. At test time a sample without these entries shows the whole image.
"""

from __future__ import annotations

from collections.abc import Callable

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


def context_image(
    image: np.ndarray, size: tuple[int, int] = (128, 160), prepare: Callable[[np.ndarray], np.ndarray] | None = None
) -> Tensor:
    """Shrink a whole image (H, W) or (H, W, C) by averaging areas: (h, w) float32 within ``size`` (height, width).

    ``prepare`` leads from some rows of the image to the values that are averaged, of the same size: then only the rows
    of one cell are in memory at a time, and the image may be memory-mapped.
    """
    height, width = fit(image.shape[:2], size)
    if prepare is not None and image.shape[0] > height:
        image = _means_of_rows(image, height, prepare)
    elif prepare is not None:
        image = prepare(image)
    gray = np.ascontiguousarray(image if image.ndim == 2 else image.mean(axis=2), dtype=np.float32)
    return torch.from_numpy(_average_areas(gray, (height, width)))


def _means_of_rows(image: np.ndarray, cells: int, prepare: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    """Average (H, W, ...) over ``cells`` equal stretches of rows; rows on a seam count for their share."""
    height = image.shape[0]
    means = []
    for i in range(cells):
        low, high = i * height / cells, (i + 1) * height / cells
        rows = np.arange(int(low), min(height, int(np.ceil(high))))
        weights = (np.minimum(rows + 1, high) - np.maximum(rows, low)).astype(np.float32)
        band = prepare(image[rows[0] : rows[-1] + 1]).astype(np.float32, copy=False)
        means.append(np.tensordot(weights / weights.sum(), band, axes=1))
    return np.stack(means)


def _average_areas(values: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Average (H, W) float32 over the areas of (h, w) cells; pixels on a seam count for their share."""
    height, width = values.shape
    if height >= size[0] and width >= size[1]:
        return cv2.resize(values, size[::-1], interpolation=cv2.INTER_AREA)
    # OpenCV interpolates here.
    rows, columns = (
        area_weights(torch.tensor([float(n)]), torch.tensor([float(cells)]), n, cells)[0]
        for n, cells in zip((height, width), size)
    )
    return (rows @ torch.from_numpy(values) @ columns.T).numpy()


def area_weights(lengths: Tensor, fitted: Tensor, positions: int, cells: int) -> Tensor:
    """How much each pixel of an axis counts in the mean of each cell: (N, cells, positions), whose rows sum to 1.

    ``lengths`` (N,) are pixels of each image along the axis, ``fitted`` (N,) the cells that they are divided among,
    evenly; ``positions`` are of the padded axis, and ``cells`` of the padded context behind ``fitted`` get nothing.
    """
    step = (lengths / fitted)[:, None, None]
    start = torch.arange(cells, device=lengths.device, dtype=torch.float32)[:, None] * step
    pixel = torch.arange(positions, device=lengths.device, dtype=torch.float32)
    end = torch.minimum(torch.minimum(start + step, pixel + 1), lengths[:, None, None])
    return (end - torch.maximum(start, pixel)).clamp(min=0) / step


def context_mask(sem_seg: np.ndarray, size: tuple[int, int] = (128, 160)) -> Tensor:
    """The share of sky in every pixel of the context, of a mask (H, W): 1 sky, 0 other, 255 ignore.

    Returns:
        (h, w) float32 in 0..1, -1 where half of a cell or more is ignored.
    """
    height, width = fit(sem_seg.shape, size)
    known, sky = (sem_seg != 255).astype(np.float32), (sem_seg == 1).astype(np.float32)
    known, sky = (_average_areas(x, (height, width)) for x in (known, sky))
    return torch.from_numpy(np.where(known > 0.5, sky / np.maximum(known, 1e-6), IGNORED).astype(np.float32))


def window_of(transforms: T.TransformList, network_size: tuple[int, int]) -> Tensor:
    """What a network's input of ``network_size`` (height, width) shows of the image, after crops, resizes and flips.

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
