"""The files of one image in a layout, as bytes; who writes them decides how (atomically, flushed, in which order)."""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from .voc_xml import VocRecord, format_voc_xml

TARGET_PALETTE = (0, 0, 0, 255, 0, 0)
SKY_PALETTE = (0, 0, 0, 128, 0, 0, 0, 128, 0)


def png_bytes(pixels: NDArray, palette: Sequence[int] | None = None) -> bytes:
    """Encode gray ``(H, W)`` or BGR ``(H, W, 3)`` pixels of 8 or 16 bits, or with a palette indices ``(H, W)``."""
    if palette is not None:
        image = Image.fromarray(pixels)
        # Pillow stores no more bits per index than the palette needs.
        missing = 3 * (int(pixels.max(initial=0)) + 1) - len(palette)
        image.putpalette([*palette, *[255] * missing])
        buffer = io.BytesIO()
        image.save(buffer, format="PNG", compress_level=4)
        return buffer.getvalue()
    done, data = cv2.imencode(".png", pixels, (cv2.IMWRITE_PNG_COMPRESSION, 4))
    if not done:
        raise ValueError(f"OpenCV could not encode a picture of shape {pixels.shape}")
    return data.tobytes()


def write_files(folder: Path, files: Iterable[tuple[str, bytes]]) -> None:
    """Write (path below ``folder``, content), as below; for folders that appear as a whole (``staged_folder``)."""
    for path, data in files:
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(data)


def write_split_files(folder: Path, names: Mapping[str, Sequence[str]]) -> None:
    """Write the names of each split to ``ImageSets/Main`` below ``folder``."""
    write_files(folder, ((f"ImageSets/Main/{split}.txt", split_lines(members)) for split, members in names.items()))


def point_lines(record: VocRecord) -> bytes:
    """Column and row of the pixel at the centre of each box, one line per target."""
    boxes = np.array([item.box for item in record.objects]).reshape(-1, 4)
    centres = np.floor((boxes[:, :2] + boxes[:, 2:]) / 2).astype(int)
    return "".join(f"{x} {y}\n" for x, y in centres.tolist()).encode()


def split_lines(names: Sequence[str]) -> bytes:
    """A split file: one image name per line."""
    return "".join(f"{name}\n" for name in names).encode()


def densesirst_files(
    name: str, image: NDArray, record: VocRecord, target_mask: NDArray, sky_mask: NDArray
) -> Iterator[tuple[str, bytes]]:
    """Yield (path below ``SIRSTdevkit``, content) of every file of one image; the boxes come last.

    Args:
        name: of the image, without suffix.
        image: ``(H, W)`` or BGR ``(H, W, 3)``, 8 or 16 bits.
        record: its annotation.
        target_mask: ``(H, W)``, not 0 on targets.
        sky_mask: ``(H, W)`` labels, 1 sky, 255 ignored; the binary mask has no sky where it is ignored.
    """
    yield f"PNGImages/{name}.png", png_bytes(image)
    targets = (target_mask > 0).astype(np.uint8)
    for task, labels, palette in (("SIRST", targets, TARGET_PALETTE), ("SkySeg", sky_mask, SKY_PALETTE)):
        yield f"{task}/BinaryMask/{name}_pixels0.png", png_bytes((labels == 1).astype(np.uint8) * np.uint8(255))
        yield f"{task}/PaletteMask/{name}.png", png_bytes(labels, palette)
    yield f"SIRST/Point_label/{name}_pixels0.txt", point_lines(record)
    depth = image.shape[2] if image.ndim == 3 else 1
    yield f"SIRST/BBox/{name}.xml", format_voc_xml(record, name, depth=depth)


def wideirstd_files(
    name: str, image: NDArray, record: VocRecord, target_mask: NDArray, sky_mask: NDArray | None = None
) -> Iterator[tuple[str, bytes]]:
    """Yield (path below ``VOC2007``, content) of every file of one image; the boxes come last.

    Arguments as of :func:`densesirst_files`; a ``sky_mask`` of ``None`` is unknown and not written.
    """
    yield f"PNGImages/{name}.png", png_bytes(image)
    yield f"Masks/{name}.png", png_bytes((target_mask > 0).astype(np.uint8) * np.uint8(255))
    if sky_mask is not None:
        yield f"SkyMasks/{name}.png", png_bytes(sky_mask, SKY_PALETTE)
    depth = image.shape[2] if image.ndim == 3 else 1
    yield f"Annotations/{name}.xml", format_voc_xml(record, f"{name}.png", depth=depth)
