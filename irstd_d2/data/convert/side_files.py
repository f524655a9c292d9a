"""What lies beside the annotations in every format: images, masks, metadata tables and split files."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Collection, Iterable, Sequence
from os import PathLike
from pathlib import Path

from ...errors import DatasetError
from ..image_io import read_sky_mask
from ..layout import FolderIndex
from ..layout_writer import SKY_PALETTE, png_bytes, split_lines
from ..sidecar import SidecarEntry, check_ids, format_sidecar, read_sidecar
from .detection_set import DetectionSet, ImageRecord, Size, TargetObject

IMAGES, SKY_MASKS, TARGET_MASKS, METADATA_TABLE = "images", "SkyMasks", "masks", "metadata.csv"


class SideFiles:
    """Sky masks and metadata beside the annotations of formats that have no word for them.

    ``SkyMasks/NAME.png`` and ``metadata.csv`` of ``root`` are read where they exist; a ``sidecar`` replaces the table.

    Raises:
        DatasetError: the table has a faulty line, or none for any of the images, whose ``names`` are given.
    """

    def __init__(self, root: Path, names: Collection[str], sidecar: str | PathLike | None = None):
        self._sky_masks = FolderIndex(root / SKY_MASKS) if (root / SKY_MASKS).is_dir() else None
        path = root / METADATA_TABLE if sidecar is None else Path(sidecar)
        self._table, faults = read_sidecar(path) if sidecar is not None or path.is_file() else ({}, [])
        if faults:
            raise DatasetError(faults[0].file, faults[0].field, faults[0].problem, faults[0].fix)
        check_ids(path, self._table, names)

    def record(
        self, name: str, image: Path, size: Size, objects: Sequence[TargetObject], target_mask: Path | None = None
    ) -> ImageRecord:
        """Complete what an annotation says of one image (arguments as for :class:`ImageRecord`)."""
        entry = self._table.get(name, SidecarEntry(None, None, None, None))
        original = entry.width or size[0], entry.height or size[1]
        masks = self._sky_masks[name] if self._sky_masks else []
        return ImageRecord(
            name=name,
            image=image,
            size=size,
            objects=tuple(objects),
            platform=entry.platform,
            band=entry.band,
            original_size=None if original == size else original,
            sky_mask=self._sky_masks.folder / masks[0] if self._sky_masks and masks else None,
            target_mask=target_mask,
        )


def place_files(record: ImageRecord, folder: Path, *, link: bool) -> str:
    """Place image and sky mask in the folders of formats that prescribe none; return the image's name in its folder."""
    file_name = place_image(record, folder / IMAGES, link=link)
    place_sky_mask(record, folder / SKY_MASKS / f"{record.name}.png")
    return file_name


def place_image(record: ImageRecord, folder: Path, *, link: bool) -> str:
    """Copy or link the image of a record; return its file name in ``folder``."""
    target = in_folder(folder / f"{record.name}{record.image.suffix}")
    source = _existing(record.image)
    if link:
        target.symlink_to(source.resolve())
    else:
        shutil.copyfile(source, target)
    return target.name


def place_sky_mask(record: ImageRecord, target: Path) -> None:
    """Write the sky mask of a record as PNG; a PNG is copied byte by byte."""
    if record.sky_mask is None:
        return
    if _existing(record.sky_mask).suffix.lower() == ".png":
        shutil.copyfile(record.sky_mask, in_folder(target))
    else:
        in_folder(target).write_bytes(png_bytes(read_sky_mask(record.sky_mask), SKY_PALETTE))


def write_metadata_table(folder: Path, records: Iterable[ImageRecord], *, sizes_only: bool = False) -> None:
    """Write the metadata of the images that have any into ``metadata.csv``.

    With ``sizes_only`` platform and band are written elsewhere, and a line is needed only for an original size.
    """
    entries = {
        record.name: SidecarEntry(record.platform, record.band, *(record.original_size or (None, None)))
        for record in records
        if record.original_size or (not sizes_only and (record.platform or record.band))
    }
    if entries:
        (folder / METADATA_TABLE).write_bytes(format_sidecar(entries))


def write_splits(detection_set: DetectionSet, path_of: Callable[[str], Path], line_of: Callable[[str], str]) -> None:
    """Write the split files, if there are any, to ``path_of(split)``, with the line ``line_of(name)`` of each image."""
    for split, names in detection_set.splits.items():
        in_folder(path_of(split)).write_bytes(split_lines([line_of(name) for name in names]))


def in_folder(path: Path) -> Path:
    """A file to write, whose folder is made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


def _existing(path: Path) -> Path:
    if not path.is_file():
        raise DatasetError(path, "file", "no such file", "add it, or correct the path that names it")
    return path
