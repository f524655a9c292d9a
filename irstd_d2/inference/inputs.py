"""What to detect in: images, folders, patterns and videos, and what is known of them."""

from __future__ import annotations

import glob
from collections.abc import Iterator, Mapping, Sequence
from os import PathLike, fspath
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np

from ..data.image_io import IMAGE_SUFFIXES
from ..data.sidecar import SidecarTable, read_table
from ..data.voc_xml import read_voc_xml
from ..errors import DatasetError
from ..files import is_leftover, list_files

VIDEO_SUFFIXES = (".avi", ".mp4", ".mkv", ".mov", ".mpg", ".mpeg", ".m4v", ".webm")


class Source(NamedTuple):
    """An image or a video, and the name that its results are written under."""

    name: str
    path: Path

    @property
    def is_video(self) -> bool:
        return self.path.suffix.lower() in VIDEO_SUFFIXES


def find_sources(inputs: Sequence[str | PathLike]) -> list[Source]:
    """List images and videos under names that differ.

    Args:
        inputs: files, folders (with all below them) and patterns such as ``run_*/*.tif`` or ``**/*.png``.

    Raises:
        DatasetError: an input does not exist or holds no image and no video.
    """
    found: dict[str, Path] = {}
    for given in map(Path, inputs):
        paths = [given] if given.is_file() else _search(given)
        if not paths:
            raise DatasetError(
                given, "--input", "is not an image, a folder of images or a pattern of some", "check the path"
            )
        for path in paths:
            inside = path.relative_to(given) if given.is_dir() else Path(path.name)
            base = "__".join(inside.with_suffix("").parts)
            name, number = base, 2
            while name in found:
                name, number = f"{base}_{number}", number + 1
            found[name] = path
    return [Source(name, path) for name, path in found.items()]


def _search(given: Path) -> list[Path]:
    known = (*IMAGE_SUFFIXES, *VIDEO_SUFFIXES)
    if given.is_dir():
        return list_files(given, known, recursive=True)
    fits = map(Path, glob.glob(fspath(given), recursive=True))  # noqa: PTH207
    below = (path for path in fits if not (is_leftover(path.name) or "__MACOSX" in path.parts))
    return sorted(path for path in below if path.suffix.lower() in known and path.is_file())


class MetadataLookup:
    """What is known of an image: what is given for all, else its row of a table, else the tags of its XML file.

    Args:
        given: ``platform`` and ``band`` of all images, where they are known.
        table: side-car table; its rows are found by the stem of the image.
        xml_folder: folder of annotation files with the stem of the image.

    Raises:
        DatasetError: the table cannot be read or has a faulty line; the folder does not exist.
    """

    def __init__(
        self,
        given: Mapping[str, str | None] | None = None,
        table: str | PathLike | None = None,
        xml_folder: str | PathLike | None = None,
    ):
        self._given = {key: value for key, value in (given or {}).items() if value}
        self._table = read_table(table) if table is not None else SidecarTable({}, {}, [])
        for fault in self._table.faults:
            raise DatasetError(fault.file, fault.field, fault.problem, fault.fix)
        self._xml_folder = None if xml_folder is None else Path(xml_folder)
        if self._xml_folder is not None and not self._xml_folder.is_dir():
            raise DatasetError(self._xml_folder, "folder", "no such folder", "name the folder of the XML files")

    def __call__(self, path: Path) -> dict[str, Any]:
        """Metadata of one image; what is not known is absent.

        Raises:
            DatasetError: its XML file is faulty.
        """
        found: dict[str, Any] = {}
        xml = None if self._xml_folder is None else self._xml_folder / f"{path.stem}.xml"
        if xml is not None and xml.is_file():
            record = read_voc_xml(xml)
            found = {"platform": record.platform, "band": record.band}
        if path.stem in self._table.entries:
            row = self._table.entries[path.stem]._asdict().items()
            found |= self._table.further.get(path.stem, {}) | {key: value for key, value in row if value is not None}
        return {key: value for key, value in (found | self._given).items() if value is not None}


class Video:
    """The frames of a video file, one after the other.

    Args:
        path: of the file.

    Raises:
        DatasetError: OpenCV cannot read it.
    """

    def __init__(self, path: Path):
        self.path = path
        capture = cv2.VideoCapture(fspath(path))
        self.fps = capture.get(cv2.CAP_PROP_FPS) or 25.0
        self.length = max(0, int(capture.get(cv2.CAP_PROP_FRAME_COUNT)))  # what the file says; 0 unknown
        readable, _ = capture.read()
        capture.release()
        if not readable:
            raise DatasetError(path, "file", "not a video that OpenCV can read", "convert it, for example to .avi")

    def __iter__(self) -> Iterator[np.ndarray]:
        """Frames, BGR (H, W, 3) uint8."""
        capture = cv2.VideoCapture(fspath(self.path))
        try:
            while True:
                readable, frame = capture.read()
                if not readable:
                    return
                yield frame
        finally:
            capture.release()
