"""Outlines of targets in COCO files: polygons and run lengths, exactly as pycocotools understands them."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as coco_mask

_COUNT_BITS, _MORE, _SIGN = 0x1F, 0x20, 0x10


def read_segmentation(segmentation: Any, size: tuple[int, int]) -> bytes:
    """Read the ``segmentation`` of an annotation.

    Args:
        segmentation: list of polygons ``[x1, y1, x2, y2, ...]``, or ``{"size": [height, width], "counts": ...}`` with
            run lengths as a list of numbers or in COCO's compressed text.
        size: (width, height) of the image.

    Returns:
        Run lengths in COCO's compressed form, for :func:`decode`.

    Raises:
        ValueError: it is none of these, or does not fit the image.
    """
    width, height = size
    if isinstance(segmentation, dict):
        if segmentation.get("size") != [height, width]:
            raise ValueError(f"size {segmentation.get('size')!r:.40} is not the image's {[height, width]}")
        counts = _run_lengths(segmentation.get("counts"))
        if sum(counts) != height * width:  # pycocotools would write beyond the image
            raise ValueError(f"the run lengths make {sum(counts)} pixels, the image has {height * width}")
        return coco_mask.frPyObjects({"size": [height, width], "counts": counts}, height, width)["counts"]
    if not (isinstance(segmentation, list) and segmentation):
        raise ValueError("neither polygons nor run lengths")
    for polygon in segmentation:
        if not (isinstance(polygon, list) and len(polygon) >= 6 and len(polygon) % 2 == 0):
            raise ValueError("a polygon is a list of at least three points x1, y1, x2, y2, ...")
        for value, side in zip(polygon, [width, height] * (len(polygon) // 2)):
            number = isinstance(value, (int, float)) and not isinstance(value, bool)
            if not (number and -side <= value <= 2 * side):  # pycocotools allocates by the length of the outline
                raise ValueError(f"a point of a polygon is {value!r:.40}, far from the image of {width}x{height}")
    return coco_mask.merge(coco_mask.frPyObjects(segmentation, height, width))["counts"]


def decode(counts: bytes, size: tuple[int, int]) -> NDArray[np.bool_]:
    """``(H, W)`` bool of run lengths from :func:`read_segmentation` or :func:`encode`; ``size`` is (width, height)."""
    return coco_mask.decode({"size": size[::-1], "counts": counts}).astype(bool)


def encode(mask: NDArray[np.bool_]) -> bytes:
    """Run lengths of a mask ``(H, W)`` in COCO's compressed form."""
    return coco_mask.encode(np.asfortranarray(mask, np.uint8))["counts"]


def _run_lengths(counts: Any) -> list[int]:
    """Run lengths of a list or of COCO's compressed text.

    The text holds numbers in groups of 5 bits, the lowest first, each group as the character of 48 + group, with bit 6
    set where another group follows; from the fourth number on, differences to the number before the last are written.
    """
    if isinstance(counts, list):
        if not all(isinstance(count, int) and not isinstance(count, bool) and count >= 0 for count in counts):
            raise ValueError("run lengths are whole numbers from 0")
        return counts
    if not (isinstance(counts, str) and counts.isascii()):
        raise ValueError("counts is neither a list nor text")
    lengths: list[int] = []
    value = shift = 0
    for code in counts.encode():
        group = code - 48
        if not 0 <= group < 64 or shift > 35:
            raise ValueError("counts is not in COCO's compressed form")
        value |= (group & _COUNT_BITS) << shift
        shift += 5
        if group & _MORE:
            continue
        if group & _SIGN:
            value -= 1 << shift
        if len(lengths) > 2:
            value += lengths[-2]
        if value < 0:
            raise ValueError("run lengths are whole numbers from 0")
        lengths.append(value)
        value = shift = 0
    if shift:
        raise ValueError("counts ends within a number")
    return lengths
