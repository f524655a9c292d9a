"""Reading images and sky masks of any common kind into one defined form.

Every image becomes ``(H, W, 3)`` float32 in ``[0, 255]``, whatever its file holds:

* 8-bit gray, palette, RGB and RGBA keep their values; gray is repeated three times, alpha is dropped.
* Deeper integers and floats are mapped to ``[0, 255]`` by ``high_bit_depth`` (see :func:`read_image`).
* The orientation of a JPEG or TIFF is applied, as detectron2 does; boxes refer to the upright image. PNG and BMP are
  read as stored; a TIFF whose 0 is white is inverted, and integers of 9 to 15 bits fill 16.
* Of a file with several pages or frames the first is read, with a warning; :func:`read_pages` reads all of a TIFF.

``irstd_d2/export/runtime.py`` reads the same without this project; one table of cases tests both.
"""

from __future__ import annotations

import functools
import io
import logging
import re
import struct
from collections.abc import Iterator, Sequence
from os import PathLike
from pathlib import Path
from typing import IO, Literal, NamedTuple

import cv2
import numpy as np
import tifffile
from PIL import Image, ImageOps, TiffImagePlugin, UnidentifiedImageError

from ..errors import DatasetError, check_known
from .pixel_values import stretch, value_limits

IMAGE_SUFFIXES = (".png", ".tif", ".tiff", ".bmp", ".jpg", ".jpeg")
_IMAGE_SUFFIX = re.compile("(?:" + "|".join(map(re.escape, IMAGE_SUFFIXES)) + ")$", re.IGNORECASE)
HIGH_BIT_DEPTH_MODES = ("auto", "full_range", "minmax", "percentile")
SKY, OTHER, IGNORE = 1, 0, 255

MAX_SIDE = 1 << 20  # pixels; of what annotations say about images
# A file that announces more is refused as a decompression bomb before anything is allocated (11585 x 11585).
MAX_PIXELS = 1 << 27
# Deflate packs at most 1032 bytes into one; 8 pixels of one bit make a byte. Rounded up.
_MAX_PIXELS_PER_BYTE = 1 << 14
# Every scan of a progressive JPEG takes a pass over all pixels; encoders write some ten.
_MAX_JPEG_SCANS = 100
_JPEG_SIGNATURE, _JPEG_SCAN = b"\xff\xd8\xff", b"\xff\xda"
_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_PNG_PALETTE = b"\x03"  # colour type, byte 25 of the file
_TIFF_SUFFIXES = (".tif", ".tiff")
_TIFF_SIGNATURES = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_TIFF_WHITE_IS_ZERO, _TIFF_BLACK_IS_ZERO, _TIFF_RGB, _TIFF_CMYK = 0, 1, 2, 5
_TIFF_UNSIGNED = 1
_MAX_PAGES = 100_000
_logger = logging.getLogger(__name__)
_INVALID = 2
_BINARY_TO_LABEL = np.full(256, _INVALID, np.uint8)
_BINARY_TO_LABEL[[0, 255]] = OTHER, SKY
_LABEL_TO_LABEL = np.full(256, _INVALID, np.uint8)
_LABEL_TO_LABEL[[OTHER, SKY, IGNORE]] = OTHER, SKY, IGNORE
_TILES = "cut the image into tiles"
_REWRITE = "copy the file again from its source, or take it out"


def strip_image_suffix(name: str) -> str:
    """Take the suffix of an image file, and no other, off a name."""
    return _IMAGE_SUFFIX.sub("", name)


def read_image(path: str | PathLike, format: str = "RGB", high_bit_depth: str = "auto") -> np.ndarray:
    """Read an image of any supported kind as three float channels.

    Args:
        path: a PNG, TIFF, BMP or JPEG file.
        format: order of the channels, ``"RGB"`` or ``"BGR"``.
        high_bit_depth: how values of more than 8 bits become ``[0, 255]``: ``"full_range"`` maps the whole range of an
            integer type (16 bits: divided by 257) and takes floats as ``[0, 1]``; ``"minmax"`` maps the lowest and
            highest value of the image; ``"percentile"`` its 0.1 % and 99.9 % quantiles, clipping the rest; ``"auto"``
            maps lowest and highest value without single outliers (:func:`steady_range`) of images that use a small
            part of their range, as counts of a sensor do, and of floats beyond ``[0, 1]``; else it is
            ``"full_range"``.

    Returns:
        ``(H, W, 3)`` float32 array, C-contiguous, values in ``[0, 255]``.

    Raises:
        DatasetError: the file is missing, truncated, of another kind, too large, or holds NaN or infinity.
        ConfigError: ``format`` or ``high_bit_depth`` is not one of the above.
    """
    return to_float_image(read_raw(path), path, format, high_bit_depth)


def to_float_image(
    raw: np.ndarray,
    path: str | PathLike,
    format: str = "RGB",
    high_bit_depth: str = "auto",
    limits: tuple[float, float] | None = None,
    keep_gray: bool = False,
) -> np.ndarray:
    """Turn what :func:`read_raw` returned for ``path`` into what :func:`read_image` returns.

    For a part of an image, ``limits`` are :func:`value_limits` of the whole, so that all parts are stretched alike.
    With ``keep_gray`` a gray image stays ``(H, W)``, a third of the work for all that treats its channels alike.
    """
    check_known("INPUT.FORMAT", format, ("RGB", "BGR"))
    check_known("INPUT.HIGH_BIT_DEPTH", high_bit_depth, HIGH_BIT_DEPTH_MODES)
    image = raw if raw.dtype == np.uint8 else stretch(raw, limits or value_limits(raw, path, high_bit_depth))
    if image.ndim == 2:
        image = image if keep_gray else cv2.cvtColor(image, cv2.COLOR_GRAY2BGR)
    elif format == "RGB":
        image = cv2.cvtColor(image, cv2.COLOR_BGRA2RGB if image.shape[2] == 4 else cv2.COLOR_BGR2RGB)
    elif image.shape[2] == 4:
        image = cv2.cvtColor(image, cv2.COLOR_BGRA2BGR)
    return np.ascontiguousarray(image, dtype=np.float32)


def read_raw(path: str | PathLike) -> np.ndarray:
    """Read an image in its own number type: gray ``(H, W)``, or BGR or BGRA ``(H, W, 3 | 4)``."""
    path = Path(path)
    return _decode(_read_bytes(path), path)


def open_raw(path: str | PathLike) -> np.ndarray:
    """Read an image as :func:`read_raw` does, but map it where the file allows it.

    An uncompressed TIFF of gray or RGB pixels in one piece is mapped: memory holds the parts in use only, and there is
    no bound on its size. Other files are read as a whole.

    Returns:
        Gray ``(H, W)``, or BGR ``(H, W, 3)``, read-only where mapped.

    Raises:
        DatasetError: see :func:`read_image`.
    """
    path = Path(path)
    with _open(path) as file:
        if not file.read(4).startswith(_TIFF_SIGNATURES):
            return read_raw(path)
        head = _read_tiff_head(file, path)
    if not head.is_plain:
        return read_raw(path)
    try:
        pixels = tifffile.memmap(path, page=0, mode="r")
    except Exception:  # compressed, or damaged in one of many ways: then read_raw says how
        return read_raw(path)
    _warn_of_pages(path, len(head.pages))
    return _turn_upright(pixels[:, :, ::-1] if pixels.ndim == 3 else pixels, head.orientation)


def count_pages(path: str | PathLike) -> int:
    """Number of images in a file: 1 but for TIFFs of several pages. Thumbnails do not count, nor do damaged files."""
    path = Path(path)
    if path.suffix.lower() not in _TIFF_SUFFIXES:
        return 1
    try:
        with _open(path) as file:
            return len(_read_tiff_head(file, path).pages) if file.read(4).startswith(_TIFF_SIGNATURES) else 1
    except DatasetError:
        return 1


def read_pages(path: str | PathLike) -> Iterator[np.ndarray]:
    """Read the pages of a TIFF one after the other, each as :func:`read_raw` reads the first one.

    Raises:
        DatasetError: see :func:`read_image`.
    """
    path = Path(path)
    data = _read_bytes(path)
    big = b"+" in data[:4]
    order: Literal["little", "big"] = "little" if data.startswith(b"I") else "big"
    start, end = (8, 16) if big else (4, 8)
    for offset in _read_tiff_head(io.BytesIO(data), path).pages:
        # A file whose header leads to a page begins with that page.
        yield _decode(data[:start] + offset.to_bytes(end - start, order) + data[end:], path, of_several=True)


def read_sky_mask(path: str | PathLike) -> np.ndarray:
    """Read a sky mask: binary (0 and 255) or labels (0, 1 and 255; as palette indices or as gray values).

    A gray mask that holds only 0 and 255 is binary; a palette or any 1 makes it labels.

    Returns:
        ``(H, W)`` uint8 array: 1 sky, 0 other, 255 ignore.

    Raises:
        DatasetError: the file cannot be read or holds other values.
    """
    path = Path(path)
    data = _read_bytes(path)
    is_palette = _has_palette(data)
    mask = _decode_with_pillow(data, path) if is_palette else _decode(data, path)
    if mask.ndim == 3:
        mask = np.ascontiguousarray(mask[:, :, 0])
    if mask.dtype != np.uint8:
        raise DatasetError(path, "pixels", f"a sky mask of type {mask.dtype}", "store it as an 8-bit PNG")
    if not is_palette:
        binary = cv2.LUT(mask, _BINARY_TO_LABEL)
        if binary.max() <= SKY:
            return binary
    labels = cv2.LUT(mask, _LABEL_TO_LABEL)
    if (labels == _INVALID).any():
        values = np.setdiff1d(mask, (OTHER, SKY, IGNORE))[:5].tolist()
        raise DatasetError(
            path, "pixels", f"a sky mask with the values {values}", "use 0 and 255, or 0 other and 1 sky"
        )
    return labels


def read_palette_indices(path: str | PathLike) -> np.ndarray | None:
    """The indices ``(H, W)`` of a palette PNG, ``None`` for any other file."""
    path = Path(path)
    data = _read_bytes(path)
    return _decode_with_pillow(data, path) if _has_palette(data) else None


def read_image_size(path: str | PathLike) -> tuple[int, int]:
    """Return ``(height, width)`` of an image file in pixels, as :func:`read_image` would give it.

    Reads the header alone where that is enough.
    """
    path = Path(path)
    with _open(path) as file:
        head = file.read(26)
        if head.startswith(_PNG_SIGNATURE):
            return _png_size(head, path, path.stat().st_size)
        return _decode(head + file.read(), path).shape[:2]


def check_size(path: str | PathLike, shape: Sequence[int], size: tuple[int, int]) -> None:
    """Refuse a file whose pixels (H, W, ...) are not of the annotated (height, width).

    Raises:
        DatasetError: with the field ``size``.
    """
    height, width = shape[:2]
    if (height, width) != size:
        problem = f"{width}x{height} pixels, but annotated as {size[1]}x{size[0]}"
        raise DatasetError(path, "size", problem, "correct <size> in the annotation or replace the file")


def _open(path: Path):
    try:
        return path.open("rb")
    except (OSError, ValueError) as error:  # ValueError: characters that no file name can hold
        reason = error.strerror if isinstance(error, OSError) else error
        raise DatasetError(path, "file", f"cannot be opened ({reason})", "check the name and the rights") from None


def _read_bytes(path: Path) -> bytes:
    with _open(path) as file:
        return file.read()


def _decode(data: bytes, path: Path, *, of_several: bool = False) -> np.ndarray:
    """Decode an image; with ``of_several`` the first page of a TIFF without a word on the others."""
    if data.startswith(_PNG_SIGNATURE):
        _png_size(data, path, len(data))
        if not _has_all_chunks(data):
            raise DatasetError(path, "pixels", "a truncated PNG", _REWRITE)
        return _decode_with_opencv(data, path)
    if data.startswith(_TIFF_SIGNATURES):
        head = _read_tiff_head(io.BytesIO(data), path, all_pages=not of_several)
        _check_pixel_count(head.height, head.width, path, len(data))
        _warn_of_pages(path, len(head.pages))
        if head.bits > 8 or head.sample_format != _TIFF_UNSIGNED:
            return _turn_upright(_decode_with_tifffile(data, path, head), head.orientation)
    if data.startswith(_JPEG_SIGNATURE) and data.count(_JPEG_SCAN) > _MAX_JPEG_SCANS:
        raise DatasetError(path, "header", f"a JPEG of more than {_MAX_JPEG_SCANS} scans", "save it again")
    image = _decode_with_pillow(data, path)
    return image[:, :, ::-1] if image.ndim == 3 else image


def _decode_with_opencv(data: bytes, path: Path) -> np.ndarray:
    try:
        image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    except cv2.error:
        image = None
    if image is None:
        raise DatasetError(path, "pixels", "a truncated or damaged image", _REWRITE)
    return image


def _decode_with_pillow(data: bytes, path: Path) -> np.ndarray:
    """Decode an 8-bit file to gray or palette indices ``(H, W)``, or to RGB ``(H, W, 3)``."""
    try:
        with Image.open(io.BytesIO(data), formats=("PNG", "BMP", "JPEG", "TIFF")) as file:
            _check_pixel_count(file.height, file.width, path, len(data))
            image: Image.Image = ImageOps.exif_transpose(file) if file.format == "JPEG" else file
            palette_is_labels = file.mode == "P" and file.format == "PNG"
            as_stored = image.mode == "L" or palette_is_labels
            return np.array(image if as_stored else image.convert("L" if image.mode == "1" else "RGB"))
    except DatasetError:
        raise
    except Image.DecompressionBombError:
        raise DatasetError(path, "header", f"more than {MAX_PIXELS} pixels", _TILES) from None
    except UnidentifiedImageError:
        problem = "not a readable PNG, TIFF, BMP or JPEG" if data else "an empty file"
        raise DatasetError(path, "pixels", problem, f"save it as one of these, or {_REWRITE}") from None
    except Exception as error:  # Pillow lets whatever its parsers stumble over through: TypeError, KeyError, ...
        raise DatasetError(path, "pixels", f"not a readable PNG, TIFF, BMP or JPEG ({error})", _REWRITE) from None


def _has_palette(data: bytes) -> bool:
    return data.startswith(_PNG_SIGNATURE) and data[25:26] == _PNG_PALETTE


def _png_size(head: bytes, path: Path, file_size: int) -> tuple[int, int]:
    if len(head) < 26:
        raise DatasetError(path, "header", "a truncated PNG", _REWRITE)
    width, height = struct.unpack(">II", head[16:24])
    _check_pixel_count(height, width, path, file_size)
    return height, width


def _has_all_chunks(data: bytes) -> bool:
    """Whether a PNG is complete up to its end chunk; decoders allocate whatever length a damaged chunk announces."""
    position = len(_PNG_SIGNATURE)
    while position + 12 <= len(data):
        length = int.from_bytes(data[position : position + 4], "big")
        if data[position + 4 : position + 8] == b"IEND":
            return length == 0
        position += 12 + length
    return False


class _TiffHead(NamedTuple):
    """What the first directory of a TIFF says, and where those of its pages are (thumbnails do not count)."""

    width: int
    height: int
    bits: int
    sample_format: int
    colours: int
    channels: int
    interleaved: bool
    orientation: int
    pages: tuple[int, ...]

    @property
    def is_plain(self) -> bool:
        """Whether the pixels as they are stored are gray or RGB in the range of their type."""
        whole_bytes = self.bits in (8, 16, 32, 64)
        kinds = ((_TIFF_BLACK_IS_ZERO, 1), (_TIFF_RGB, 3))
        return whole_bytes and self.interleaved and (self.colours, self.channels) in kinds


def _read_tiff_head(file: IO[bytes], path: Path, *, all_pages: bool = True) -> _TiffHead:
    """Read the directories of a TIFF, or the first alone, and refuse what would be misread."""
    try:
        file.seek(0)
        header = file.read(8)
        big = b"+" in header[:4]
        directory = TiffImagePlugin.ImageFileDirectory_v2(header + file.read(8) if big else header)
        pages = [directory.next]
        file.seek(directory.next)
        directory.load(file)
        width, height = int(directory[256]), int(directory[257])
        bits, sample_format = int(max(directory.get(258, (1,)))), int(max(directory.get(339, (_TIFF_UNSIGNED,))))
        colours, channels = int(directory.get(262, _TIFF_BLACK_IS_ZERO)), int(directory.get(277, 1))
        interleaved, orientation = int(directory.get(284, 1)) == 1, int(directory.get(274, 1))
        seen = {0, *pages}
        while all_pages and directory.next not in seen and len(seen) < _MAX_PAGES:
            start = directory.next
            seen.add(start)
            file.seek(start)
            directory.reset()
            directory.load(file)
            pages += [] if int(directory.get(254, 0)) & 1 else [start]
    except (OSError, ValueError, KeyError, TypeError, SyntaxError, struct.error):
        raise DatasetError(path, "header", "a damaged TIFF directory", _REWRITE) from None
    if colours == _TIFF_CMYK:
        raise DatasetError(path, "header", "a CMYK image", "convert it to gray or RGB")
    return _TiffHead(width, height, bits, sample_format, colours, channels, interleaved, orientation, tuple(pages))


def _decode_with_tifffile(data: bytes, path: Path, head: _TiffHead) -> np.ndarray:
    """Decode a TIFF of more than 8 bits, or of numbers with a sign."""
    try:
        with tifffile.TiffFile(io.BytesIO(data)) as file:
            page = file.pages[0]
            ends = [start + count for start, count in zip(page.dataoffsets, page.databytecounts)]
            if max(ends, default=0) > len(data):
                raise DatasetError(path, "pixels", "a truncated TIFF", _REWRITE)
            pixels, axes = page.asarray(), page.axes
            if pixels.shape != page.shape:  # without data it decodes to nothing
                raise DatasetError(path, "pixels", "a TIFF without pixels", _REWRITE)
    except DatasetError:
        raise
    except Exception as error:  # tifffile lets whatever it stumbles over through
        raise DatasetError(path, "pixels", f"a damaged TIFF ({error})", _REWRITE) from None
    if axes == "SYX":
        pixels, axes = np.moveaxis(pixels, 0, 2), "YXS"
    if axes not in ("YX", "YXS") or pixels.dtype.kind not in "uif" or head.colours > _TIFF_RGB:
        problem = f"a TIFF of {pixels.dtype} with axes {axes} and colour space {head.colours}"
        raise DatasetError(path, "header", problem, "store it as gray or RGB")
    pixels = pixels.astype(pixels.dtype.newbyteorder("="), copy=False)
    if pixels.dtype.kind == "u" and head.bits < 8 * pixels.dtype.itemsize:  # 4095 of 12 bits becomes 65535 of 16
        scale = int(np.iinfo(pixels.dtype).max) / (2**head.bits - 1)
        pixels = np.rint(pixels.astype(np.float64) * scale).astype(pixels.dtype)
    if head.colours != _TIFF_RGB:  # further channels of a gray image are no colours
        pixels = pixels if pixels.ndim == 2 else np.ascontiguousarray(pixels[:, :, 0])
        if head.colours == _TIFF_WHITE_IS_ZERO:
            return 1 - pixels if pixels.dtype.kind == "f" else ~pixels
        return pixels
    return np.ascontiguousarray(np.concatenate([pixels[:, :, 2::-1], pixels[:, :, 3:4]], axis=2))


def _turn_upright(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """Turn stored pixels as tag 274 says: 5 to 8 exchange rows and columns, then sides are mirrored."""
    if orientation in (5, 6, 7, 8):
        pixels = pixels.swapaxes(0, 1)
    return pixels[:: -1 if orientation in (3, 4, 7, 8) else 1, :: -1 if orientation in (2, 3, 6, 7) else 1]


@functools.lru_cache(maxsize=1024)  # once for each file, not in every epoch
def _warn_of_pages(path: Path, pages: int) -> None:
    if pages > 1:
        _logger.warning(
            "%s holds %d pages: the first is read, %d are left out; save them as files", path, pages, pages - 1
        )


def _check_pixel_count(height: int, width: int, path: Path, file_size: int) -> None:
    """Refuse sizes beyond any image or beyond what a file of so many bytes can hold."""
    if not 0 < height * width <= MAX_PIXELS:
        raise DatasetError(path, "header", f"{width}x{height}, not 1 to {MAX_PIXELS} pixels", _TILES)
    if height * width > _MAX_PIXELS_PER_BYTE * file_size:
        raise DatasetError(path, "header", f"{width}x{height} pixels in {file_size} bytes: truncated", _REWRITE)
