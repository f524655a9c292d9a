"""Where the files of a data set lie below its root."""

from __future__ import annotations

import functools
import logging
import os
import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass, replace
from os import PathLike
from pathlib import Path

from ..errors import DatasetError
from ..files import is_leftover, list_files
from .image_io import IMAGE_SUFFIXES

_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class VocLayout:
    """Folders and name patterns of one layout, relative to the root of a set.

    Args:
        images: folder of the images.
        annotations: folder of the XML files.
        split: pattern of the split files, with ``{split}``.
        sky_masks: patterns of the sky masks with ``{name}``, the preferred one first.
        target_masks: patterns of the target masks with ``{name}``.
        sidecars: metadata tables that are read where they exist.
        box_convention: of the boxes, see :func:`irstd_d2.data.voc_xml.to_convention`.
    """

    images: str
    annotations: str
    split: str
    sky_masks: tuple[str, ...] = ()
    target_masks: tuple[str, ...] = ()
    sidecars: tuple[str, ...] = ("metadata.tsv", "metadata.csv")
    box_convention: str = "half_open"

    def target_mask_of(self, root: Path, image_id: object) -> Path | None:
        """The target mask of an image of the set at ``root``, ``None`` where there is none."""
        candidates = (root / pattern.format(name=image_id) for pattern in self.target_masks)
        return next((path for path in candidates if path.is_file()), None)


LAYOUTS = {
    "densesirst": VocLayout(
        images="PNGImages",
        annotations="SIRST/BBox",
        split="Splits/{split}.txt",
        sky_masks=("SkySeg/BinaryMask/{name}_pixels0.png", "SkySeg/PaletteMask/{name}.png"),
        target_masks=("SIRST/BinaryMask/{name}_pixels0.png",),
    ),
    "sirstv2": VocLayout(
        images="mixed",
        annotations="annotations/bboxes",
        split="splits/{split}.txt",
        target_masks=("annotations/masks/{name}_pixels0.png",),
        box_convention="one_based",
    ),
    "wideirstd": VocLayout(
        images="VOC2007/PNGImages",
        annotations="VOC2007/Annotations",
        split="VOC2007/ImageSets/Main/{split}.txt",
        sky_masks=("VOC2007/SkyMasks/{name}.png",),
        target_masks=("VOC2007/Masks/{name}.png",),
    ),
    "voc": VocLayout(
        images="JPEGImages",
        annotations="Annotations",
        split="ImageSets/Main/{split}.txt",
        sky_masks=("SkyMasks/{name}.png",),
    ),
}
LAYOUTS["voc_png"] = replace(LAYOUTS["voc"], images="PNGImages")


def get_layout(layout: str | VocLayout | None, root: str | PathLike) -> VocLayout:
    """Return a layout by name, as given, or (``None``) the one whose folders exist below ``root``.

    Raises:
        DatasetError: there is no such layout, or none fits.
    """
    if isinstance(layout, VocLayout):
        return layout
    if layout is not None:
        if layout not in LAYOUTS:
            raise DatasetError(root, "layout", f"unknown layout {layout!r}", f"use one of {', '.join(LAYOUTS)}")
        return LAYOUTS[layout]
    root = Path(root)
    for candidate in LAYOUTS.values():
        if (root / candidate.images).is_dir() and (root / candidate.annotations).is_dir():
            return candidate
    known = f"arrange the files as one of {', '.join(LAYOUTS)} (datasets/README.md)"
    problem = "no known layout" if root.is_dir() else "no such folder"
    fix = f"check the root (DETECTRON2_DATASETS), or {known}"
    if root.is_dir() and (coco := list_files(root, (".json",))):
        fix = f"name the COCO file itself, such as {coco[0]}, or {known}"
    raise DatasetError(root, "folder", problem, fix)


def list_splits(root: str | PathLike, layout: VocLayout) -> list[str]:
    """Names of the split files below ``root``, sorted."""
    pattern = Path(root) / layout.split
    return [path.stem for path in list_files(pattern.parent) if path.match(pattern.name.format(split="*"))]


@functools.lru_cache(maxsize=1024)  # once for each folder
def _warn_of_subfolder(folder: Path, suffixes: tuple[str, ...]) -> None:
    files = [] if is_leftover(folder.name) else list_files(folder, suffixes, recursive=True)
    if files:
        fix = "put them beside the folder, or make a set of it"
        _logger.warning("%s: %d files in a folder of the folder are not read; %s", folder, len(files), fix)


class FolderIndex:
    """File names of one folder by stem, read with one listing; ``suffixes`` are those to list, in lower case.

    Stems are compared in Unicode form NFC, since file systems and split files differ in it.

    Raises:
        DatasetError: there is no such folder.
    """

    def __init__(self, folder: Path, suffixes: Iterable[str] = IMAGE_SUFFIXES):
        self.folder = folder
        suffixes = tuple(suffixes)
        self._names: dict[str, list[str]] = {}
        try:
            listing = os.listdir(folder)  # noqa: PTH208  strings, several times faster than paths
        except OSError as error:
            fix = "check the data root (DETECTRON2_DATASETS)"
            raise DatasetError(folder, "folder", f"cannot be listed ({error.strerror})", fix) from None
        for name in listing:
            stem, suffix = os.path.splitext(name)  # noqa: PTH122
            if suffix.lower() in suffixes and not is_leftover(name):
                self._names.setdefault(unicodedata.normalize("NFC", stem), []).append(name)
            elif not suffix:
                _warn_of_subfolder(folder / name, suffixes)

    def __getitem__(self, stem: str) -> list[str]:
        """Sorted names of all files with this stem; empty when there is none."""
        return sorted(self._names.get(stem, ()))

    def stems(self) -> list[str]:
        return sorted(self._names)
