"""What to detect in: images, folders, patterns and videos, and what is known of them."""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from fractions import Fraction
from functools import partial
from importlib.util import find_spec
from os import PathLike, fspath
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
import torch
from PIL.Image import Image

from ..data.image_io import IMAGE_SUFFIXES, count_pages
from ..data.sidecar import SidecarTable, check_ids, read_table
from ..data.voc_xml import read_voc_xml
from ..errors import DatasetError
from ..files import free_name, is_leftover, list_files

VIDEO_SUFFIXES = (".avi", ".mp4", ".mkv", ".mov", ".mpg", ".mpeg", ".m4v", ".webm")
_HALVES = (torch.float16, torch.bfloat16)
_FRAME = re.compile(r"_\d{6,}$")  # of a frame's name


class Source(NamedTuple):
    """An image, a video or a camera, and the name that its results are written under."""

    name: str
    path: Path
    camera: int | None = None

    @property
    def is_video(self) -> bool:
        return self.camera is not None or self.path.suffix.lower() in VIDEO_SUFFIXES

    @property
    def has_frames(self) -> bool:
        """Whether its frames or pages have results of their own, called ``NAME_000000`` and so on."""
        return self.is_video or self.is_stack

    @property
    def is_stack(self) -> bool:
        """Whether the file holds several images, as the pages of a TIFF do."""
        return not self.is_video and count_pages(self.path) > 1


def find_sources(inputs: Sequence[str | PathLike]) -> list[Source]:
    """List images and videos, each file once, under names that differ.

    ``inputs`` are files, folders (with all below them), patterns such as ``run_*/*.tif`` or ``**/*.png``, and numbers
    of cameras.

    Raises:
        DatasetError: an input does not exist, holds no image and no video, or has a name that is not UTF-8.
    """
    found: dict[str, Source] = {}
    listed: set[Path] = set()
    frames: set[str] = set()  # whose frames would be called like a source
    for given in map(Path, inputs):
        if str(given).isdecimal() and not given.exists():
            found[f"camera{given}"] = Source(f"camera{given}", given, int(str(given)))
            continue
        paths = [given] if given.is_file() else _search(given)
        if not paths:
            problem = "is not an image, a folder of images or a pattern of some"
            raise DatasetError(given, "input", problem, "check the path")
        for path in paths:
            if (file := path.parent.resolve() / path.name) in listed:
                continue
            listed.add(file)
            if (name := fspath(path)) != os.fsencode(name).decode(errors="replace"):
                raise DatasetError(ascii(name), "name", "is not UTF-8", "rename it, for example with convmv")
            inside = path.relative_to(given) if given.is_dir() else Path(path.name)
            name = free_name("__".join(inside.with_suffix("").parts), partial(_is_taken, found, frames, path))
            found[name] = Source(name, path)
            frames.add(_FRAME.sub("", name))
    return list(found.values())


def _is_taken(found: Mapping[str, Source], frames: Collection[str], path: Path, name: str) -> bool:
    """Whether a name is that of a source or of one of its frames, or a frame of ``path`` would have one that is."""
    if name in found:
        return True
    whole = found.get(_FRAME.sub("", name))
    return (whole is not None and whole.has_frames) or (name in frames and Source(name, path).has_frames)


def _search(given: Path) -> list[Path]:
    known = (*IMAGE_SUFFIXES, *VIDEO_SUFFIXES)
    if given.is_dir():
        return list_files(given, known, recursive=True)
    fits = map(Path, glob.glob(fspath(given), recursive=True))  # noqa: PTH207
    below = (path for path in fits if not (is_leftover(path.name) or "__MACOSX" in path.parts))
    return sorted(path for path in below if path.suffix.lower() in known and path.is_file())


def to_array(image: np.ndarray | torch.Tensor | Image) -> np.ndarray:
    """Bring an image in memory into the form in which files are read.

    Args:
        image: an array, gray (H, W) or BGR (H, W, 1, 3 or 4); a PIL image of any mode; a tensor, gray (H, W) or RGB
            (1 or 3, H, W).

    Returns:
        Gray (H, W), or BGR (H, W, 3 or 4), unsigned integers of 8 to 32 bits, signed integers or floats.

    Raises:
        DatasetError: any other shape or type.
    """
    fault = partial(DatasetError, "image in memory")
    if isinstance(image, Image):
        plain = image.mode in ("L", "F", "I", "RGB", "RGBA") or image.mode.startswith("I;16")
        pixels = np.asarray(image if plain else image.convert("L" if image.mode == "1" else "RGB"))
        pixels = pixels[..., [2, 1, 0, *range(3, pixels.shape[2])]] if pixels.ndim == 3 else pixels
    elif isinstance(image, torch.Tensor):
        pixels = image.detach().cpu().float().numpy() if image.dtype in _HALVES else image.detach().cpu().numpy()
        if pixels.ndim == 3 and pixels.shape[0] not in (1, 3):
            raise fault("shape", f"{pixels.shape}", "a tensor is (H, W), (1, H, W) or (3, H, W)")
        pixels = pixels[::-1].transpose(1, 2, 0) if pixels.ndim == 3 else pixels
    elif isinstance(image, np.ndarray):
        pixels = image
    else:
        raise fault("type", type(image).__name__, "give a path, an array, a PIL image or a tensor")
    if pixels.ndim == 3 and pixels.shape[2] == 1:
        pixels = pixels[..., 0]
    if pixels.ndim not in (2, 3) or (pixels.ndim == 3 and pixels.shape[2] not in (3, 4)) or 0 in pixels.shape:
        raise fault("shape", f"{pixels.shape}", "an image is (H, W) or (H, W, 3)")
    if pixels.dtype.kind not in "uif":
        raise fault("type", f"{pixels.dtype}", "convert it to 8 or 16 bits or to floats")
    pixels = pixels.astype(np.float32) if pixels.dtype.kind == "f" and pixels.dtype.itemsize == 2 else pixels
    return np.ascontiguousarray(pixels)


class MetadataLookup:
    """What is known of an image: what is given for all, else its row of a table, else the tags of its XML file.

    Rows and XML files are found by the stem of the image.

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
        self._source = table
        self._table = read_table(table) if table is not None else SidecarTable({}, {}, [])
        for fault in self._table.faults:
            raise DatasetError(fault.file, fault.field, fault.problem, fault.fix)
        self._xml_folder = None if xml_folder is None else Path(xml_folder)
        if self._xml_folder is not None and not self._xml_folder.is_dir():
            raise DatasetError(self._xml_folder, "folder", "no such folder", "name the folder of the XML files")

    def check_images(self, paths: Sequence[Path]) -> None:
        """Refuse a table or XML files that belong to none of the images.

        Raises:
            DatasetError: nothing in one of them is called like an image.
        """
        stems = {path.stem for path in paths}
        if self._source is not None:
            check_ids(self._source, self._table.entries, stems)
        if self._xml_folder is not None:
            check_ids(self._xml_folder, [path.stem for path in list_files(self._xml_folder, (".xml",))], stems)

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
    """The frames of a video file, or of a camera by its number, one after the other.

    Files are read by PyAV where it is installed, which keeps gray frames of 16 bits, else by OpenCV; cameras by OpenCV.

    Raises:
        DatasetError: it cannot be read.
    """

    def __init__(self, source: Path | int):
        self.source = source
        self.fps, self.length = 25.0, 0  # frames; 0 unknown
        try:
            next(self._frames())
            if self._by_pyav:
                import av

                with av.open(fspath(source)) as container:  # type: ignore[arg-type]
                    stream = container.streams.video[0]
                    self.fps, self.length = float(stream.average_rate or 25), stream.frames
            else:
                capture = self._capture()
                self.fps = capture.get(cv2.CAP_PROP_FPS) or 25.0
                self.length = max(0, int(capture.get(cv2.CAP_PROP_FRAME_COUNT)))
                capture.release()
        except (OSError, IndexError, StopIteration) as error:
            fix = "check its number" if isinstance(source, int) else "convert it, for example to .mp4"
            what = "camera" if isinstance(source, int) else "file"
            reason = str(error) or "it gives no picture"
            raise DatasetError(str(source), what, f"not a video that can be read ({reason})", fix) from None

    def __iter__(self) -> Iterator[np.ndarray]:
        """Frames: BGR (H, W, 3) uint8, or gray (H, W) uint8 or uint16.

        Raises:
            DatasetError: the file ends before its last frame.
        """
        number = 0
        try:
            for frame in self._frames():
                yield frame
                number += 1
        except OSError as error:
            raise DatasetError(
                str(self.source), f"frame {number}", f"cannot be read ({error})", "copy it again"
            ) from None

    @property
    def _by_pyav(self) -> bool:
        return not isinstance(self.source, int) and find_spec("av") is not None

    def _frames(self) -> Iterator[np.ndarray]:
        if self._by_pyav:
            import av

            try:
                with av.open(fspath(self.source)) as container:  # type: ignore[arg-type]
                    for frame in container.decode(video=0):
                        deep = frame.format.components[0].bits > 8
                        gray = frame.format.name.startswith("gray")
                        yield frame.to_ndarray(format=("gray16le" if deep else "gray") if gray else "bgr24")
            except av.error.FFmpegError as error:  # some of them are ValueErrors
                raise OSError(error.strerror) from error
            return
        capture = self._capture()
        try:
            while True:
                readable, picture = capture.read()
                if not readable:
                    return
                yield picture
        finally:
            capture.release()

    def _capture(self) -> cv2.VideoCapture:
        return cv2.VideoCapture(self.source if isinstance(self.source, int) else fspath(self.source))


class VideoWriter:
    """Writes pictures as a video: H.264 in ``.mp4`` where PyAV is installed, else Motion JPEG in ``.avi``."""

    def __init__(self, stem: Path, fps: float):
        self.path = video_path(stem)
        self._partial = self.path.with_name(f".{self.path.stem}.partial{self.path.suffix}")
        self._fps = Fraction(fps).limit_denominator(1001)
        self._stream: Any = None
        self._out: Any = None

    def write(self, picture: np.ndarray) -> None:
        """Append an RGB (H, W, 3) uint8 picture; all are of one size."""
        picture = np.ascontiguousarray(picture[: picture.shape[0] // 2 * 2, : picture.shape[1] // 2 * 2])
        height, width = picture.shape[:2]
        if self.path.suffix == ".avi":
            if self._out is None:
                code = cv2.VideoWriter.fourcc(*"MJPG")
                self._out = cv2.VideoWriter(str(self._partial), code, float(self._fps), (width, height))
            self._out.write(np.ascontiguousarray(picture[..., ::-1]))
            return
        import av

        if self._out is None:
            self._out = av.open(str(self._partial), "w")
            self._stream = self._out.add_stream("libx264", rate=self._fps)
            self._stream.width, self._stream.height, self._stream.pix_fmt = width, height, "yuv420p"
        self._out.mux(self._stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))

    def close(self) -> None:
        """Finish the file, which appears when it is complete."""
        if self._out is None:
            return
        if self._stream is not None:
            self._out.mux(self._stream.encode())
            self._out.close()
        else:
            self._out.release()
        self._partial.replace(self.path)


def video_path(stem: Path) -> Path:
    """Where a :class:`VideoWriter` writes."""
    return stem.with_name(f"{stem.name}{'.mp4' if find_spec('av') else '.avi'}")
