"""Pictures of detections in images of any size: memory grows with the picture, not with the image."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from detectron2.structures import Instances

from ..data.image_io import to_float_image
from ..data.pixel_values import value_limits
from ..visualization import choose_parts, contact_sheet, draw_detections

PICTURE_EDGE = 512  # of the overview, in pixels; an image that is longer than twice this is reduced first
INSET_EDGE = 256


def draw_result(
    raw: np.ndarray, path: Path, instances: Instances, *, high_bit_depth: str = "auto", insets: int = 3
) -> np.ndarray:
    """Draw detections, best first, in an image, with zoomed parts beside it: RGB (height, width, 3) uint8.

    A large image is reduced to the brightest of each block of pixels, so that small targets stay; its zoomed parts show
    the pixels of the image itself.

    Args:
        raw: gray (H, W) or BGR (H, W, 3) in its own number type; may be memory-mapped.
        high_bit_depth: see :func:`irstd_d2.data.read_image`.
        insets: number of zoomed parts.
    """
    limits = value_limits(raw, path, high_bit_depth)
    boxes, scores = instances.pred_boxes.tensor.numpy(), instances.scores.numpy()
    step = max(raw.shape[:2]) // (2 * PICTURE_EDGE)
    if step <= 1:
        pixels = to_float_image(raw, path, high_bit_depth=high_bit_depth, limits=limits)
        return draw_detections(pixels, boxes=boxes, scores=scores, edge=PICTURE_EDGE, insets=insets)

    def draw(part: np.ndarray, boxes: np.ndarray, edge: int) -> np.ndarray:
        pixels = to_float_image(part, path, high_bit_depth=high_bit_depth, limits=limits)
        return draw_detections(pixels, boxes=boxes, scores=scores, edge=edge, insets=0)

    overview = draw(brightest_of_blocks(raw, step), boxes / np.minimum(step, raw.shape[1::-1] * 2), PICTURE_EDGE)
    parts = [
        draw(np.ascontiguousarray(raw[y : y + side, x : x + side]), boxes - [x, y, x, y], INSET_EDGE)
        for x, y, side in choose_parts(list(boxes), insets, (raw.shape[0], raw.shape[1]))
    ]
    return contact_sheet([overview, contact_sheet(parts, columns=1)], columns=2) if parts else overview


def brightest_of_blocks(raw: np.ndarray, step: int) -> np.ndarray:
    """Reduce an image (H, W, ...) to (H // step, W // step, ...), one row of blocks in memory at a time.

    A side shorter than ``step`` becomes one pixel.
    """
    high, wide = (min(step, side) for side in raw.shape[:2])
    rows, columns = raw.shape[0] // high, raw.shape[1] // wide
    reduced = np.empty((rows, columns, *raw.shape[2:]), raw.dtype)
    for i in range(rows):
        block = raw[i * high : (i + 1) * high, : columns * wide].max(axis=0)
        reduced[i] = block.reshape(columns, wide, *raw.shape[2:]).max(axis=1)
    return reduced
