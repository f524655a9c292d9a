"""Images of which only the parts that are looked at enter memory."""

from __future__ import annotations

import struct
from os import PathLike
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import TiffImagePlugin

from ..errors import DatasetError
from .image_io import read_raw

_WIDTH, _HEIGHT, _BITS, _COMPRESSION, _COLOURS = 256, 257, 258, 259, 262
_OFFSETS, _CHANNELS, _COUNTS, _PLANES, _TILE_WIDTH, _KIND = 273, 277, 279, 284, 322, 339
_PLAIN, _BLACK_IS_ZERO, _RGB, _INTERLEAVED = 1, 1, 2, 1
_ORDERS = {b"II*\0": "<", b"MM\0*": ">"}
_KINDS = {(1, 8): "u1", (1, 16): "u2", (3, 32): "f4"}


class _Block(NamedTuple):
    """Pixels that lie in a file in one piece."""

    dtype: str
    offset: int
    shape: tuple[int, ...]


def open_raw(path: str | PathLike) -> np.ndarray:
    """Read an image as :func:`irstd_d2.data.image_io.read_raw` does, but map it where the file allows it.

    An uncompressed TIFF of gray or RGB pixels (8 or 16 bits, or 32-bit floats) in one piece is mapped: memory holds the
    parts in use only, and there is no bound on its size. Other files are read as a whole.

    Returns:
        Gray ``(H, W)``, or BGR or BGRA ``(H, W, 3 | 4)``, read-only where mapped.

    Raises:
        DatasetError: see :func:`irstd_d2.data.read_image`.
    """
    path = Path(path)
    block = _find_block(path)
    if block is None:
        return read_raw(path)
    needed = block.offset + int(np.prod(block.shape)) * np.dtype(block.dtype).itemsize
    if path.stat().st_size < needed:
        raise DatasetError(path, "pixels", "a truncated TIFF", "copy the file again from its source")
    pixels = np.memmap(path, dtype=block.dtype, mode="r", offset=block.offset, shape=block.shape)
    return pixels[:, :, ::-1] if pixels.ndim == 3 else pixels


def _find_block(path: Path) -> _Block | None:
    """Where the pixels of an uncompressed TIFF lie; ``None`` for any other file."""
    try:
        with path.open("rb") as file:
            header = file.read(8)
            order = _ORDERS.get(header[:4])
            if order is None:
                return None
            tags = TiffImagePlugin.ImageFileDirectory_v2(header)
            file.seek(tags.next)
            tags.load(file)
    except (OSError, ValueError, KeyError, TypeError, SyntaxError, struct.error):
        return None  # read_raw says what is wrong
    return _block_of(tags, order)


def _block_of(tags: Any, order: str) -> _Block | None:
    if tags.get(_COMPRESSION, _PLAIN) != _PLAIN or _TILE_WIDTH in tags or tags.get(_PLANES, 1) != _INTERLEAVED:
        return None
    channels, bits = tags.get(_CHANNELS, 1), set(tags.get(_BITS, (1,)))
    if (channels, tags.get(_COLOURS)) not in ((1, _BLACK_IS_ZERO), (3, _RGB)) or len(bits) != 1:
        return None
    kind = _KINDS.get((tags.get(_KIND, (1,))[0], bits.pop()))
    offsets, counts = tags.get(_OFFSETS, ()), tags.get(_COUNTS, ())
    if kind is None or not offsets or len(offsets) != len(counts):
        return None
    if any(start + count != after for start, count, after in zip(offsets, counts, offsets[1:])):
        return None
    shape = (int(tags[_HEIGHT]), int(tags[_WIDTH])) + ((3,) if channels == 3 else ())
    if min(shape) < 1 or sum(counts) != int(np.prod(shape)) * np.dtype(kind).itemsize:
        return None
    return _Block(order + kind, int(offsets[0]), shape)
