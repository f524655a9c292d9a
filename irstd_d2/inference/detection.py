"""Detection in many files: pictures, results and a journal (``irstd detect``)."""

from __future__ import annotations

import hashlib
import itertools
import logging
import time
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from detectron2.config import CfgNode
from detectron2.utils import comm
from tqdm import tqdm

from ..data.image_io import read_pages
from ..errors import DatasetError
from ..visualization import write_picture
from .inputs import MetadataLookup, Source, Video, VideoWriter, video_path
from .predictor import Predictor
from .results import ImageResult, Journal, write_results

logger = logging.getLogger(__name__)


@dataclass
class Summary:
    """What a run did.

    Attributes:
        images, detections: images and frames with results, and what was found in them.
        reused: files that were done before.
        replaced: files of an earlier run in the same folder whose results are no longer in the files.
        seconds, detected: that detection took, without reading the model and writing pictures, and of how many images.
        pictures: of the sources that could be read; of a TIFF of several pages that of the first.
        failed: files that could not be read, with what is wrong with them.
    """

    images: int = 0
    detections: int = 0
    reused: int = 0
    replaced: int = 0
    seconds: float = 0.0
    detected: int = 0
    pictures: list[Path] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)


class FileDetector:
    """Detects in one source after the other and writes its picture, if wanted, to the folder ``output``.

    ``max_frames`` are taken of a video, camera or TIFF of several pages; ``None`` takes all.
    """

    def __init__(self, predictor: Predictor, output: Path, *, pictures: bool = True, max_frames: int | None = None):
        self.predictor, self.output, self.pictures, self.max_frames = predictor, output, pictures, max_frames
        self.seconds, self.detected = 0.0, 0

    def picture_of(self, source: Source) -> Path:
        """The picture of an image, the video of a video, and of several pages the picture of the first."""
        if source.is_video:
            return video_path(self.output / source.name)
        return self.output / f"{_frame_name(source, 0) if source.is_stack else source.name}.png"

    def __call__(self, source: Source, metadata: Mapping[str, Any]) -> list[ImageResult]:
        """Detect in an image, in every page of a TIFF or in every frame of a video."""
        if source.is_video:
            return self._video(source, metadata)
        if not source.is_stack:
            return [self._image(source.name, source.path, source, metadata)]
        pages = enumerate(itertools.islice(read_pages(source.path), self.max_frames))
        return [self._image(_frame_name(source, number), page, source, metadata, number) for number, page in pages]

    def _image(
        self, name: str, image: Any, source: Source, metadata: Mapping[str, Any], frame: int | None = None
    ) -> ImageResult:
        def progress(batches: Sequence[Any]) -> tqdm:
            return tqdm(batches, desc=name, unit="batch of tiles", leave=False)

        with self._timed():
            found = self.predictor(image, metadata, progress)
        if self.pictures:
            write_picture(self.output / f"{name}.png", found.picture())
        return ImageResult.of(name, source.path, frame, metadata, found)

    def _video(self, source: Source, metadata: Mapping[str, Any]) -> list[ImageResult]:
        video = Video(source.path if source.camera is None else source.camera)
        results: list[ImageResult] = []
        writer = VideoWriter(self.output / source.name, video.fps)
        total = min(filter(None, (video.length, self.max_frames)), default=None)
        frames: Iterable[Any] = itertools.islice(video, self.max_frames)
        try:
            for number, frame in enumerate(tqdm(frames, desc=source.name, total=total, unit="frame")):
                with self._timed():
                    found = self.predictor(frame, metadata)
                results.append(ImageResult.of(_frame_name(source, number), source.path, number, metadata, found))
                if self.pictures:
                    writer.write(found.picture(insets=0))
        except KeyboardInterrupt:
            if source.camera is None:  # a camera runs until it is stopped
                raise
        writer.close()
        return results

    @contextmanager
    def _timed(self) -> Iterator[None]:
        started = time.perf_counter()
        yield
        self.seconds += time.perf_counter() - started
        self.detected += 1


def _frame_name(source: Source, number: int) -> str:
    return f"{source.name}_{number:06d}"


def detect_files(
    detector: FileDetector,
    sources: Sequence[Source],
    lookup: MetadataLookup,
    settings: Mapping[str, Any],
    formats: Collection[str],
) -> Summary:
    """Detect in all sources and write the results; under torchrun each process takes its share.

    Args:
        lookup: what is known of each.
        settings: all that decides the results beside the files.
        formats: see :func:`write_results`.
    """
    lookup.check_images([source.path for source in sources if source.camera is None])
    rank, size = comm.get_rank(), comm.get_world_size()
    journal = Journal(detector.output, settings, rank)
    comm.synchronize()  # all have read before any writes
    results: list[tuple[int, list[ImageResult]]] = []
    summary = Summary()
    mine = list(enumerate(sources))[rank::size]
    for index, source in tqdm(mine, desc="files", unit="file", disable=rank > 0 or len(sources) < 2):
        try:
            metadata = {} if source.camera is not None else lookup(source.path)
            found = None if source.camera is not None else journal.find(source.name, source.path, metadata)
            if found is None or (detector.pictures and not detector.picture_of(source).is_file()):
                found = detector(source, metadata)
                if source.camera is None:
                    journal.add(source.name, source.path, metadata, found)
            else:
                summary.reused += 1
        except DatasetError as error:
            summary.failed.append(str(error))
            continue
        results.append((index, found))
        if detector.pictures:
            summary.pictures.append(detector.picture_of(source))
    summary.seconds, summary.detected = detector.seconds, detector.detected
    gathered = comm.gather((results, summary))
    if rank:
        return summary
    total = Summary()
    for _, part in gathered:
        total.reused += part.reused
        total.seconds += part.seconds
        total.detected += part.detected
        total.failed += part.failed
        total.pictures += part.pictures
    ordered = sorted((row for rows, _ in gathered for row in rows), key=lambda row: row[0])
    images = [result for _, found in ordered for result in found]
    total.replaced = journal.earlier - total.reused
    total.images, total.detections = len(images), sum(len(result.boxes) for result in images)
    write_results(detector.output, images, detector.predictor.classes, formats)
    return total


def settings_of(cfg: CfgNode, options: Sequence[Any]) -> dict[str, Any]:
    """What decides the results beside the files."""
    weights = Path(cfg.MODEL.WEIGHTS).stat()
    return {
        "config": hashlib.sha256(cfg.dump().encode()).hexdigest(),
        "weights": [str(cfg.MODEL.WEIGHTS), weights.st_mtime_ns, weights.st_size],
        "options": list(options),
    }
