"""Detection in many files: pictures, results and a journal (``irstd detect``)."""

from __future__ import annotations

import argparse
import hashlib
import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.structures import Instances
from tqdm import tqdm

from ..config import get_config
from ..data.image_io import open_raw
from ..data.layout_writer import png_bytes
from ..errors import DatasetError
from ..files import write_atomically
from ..memory import keep_freed_memory
from .inputs import MetadataLookup, Source, Video, find_sources
from .pictures import draw_result
from .predictor import Predictor
from .results import ImageResult, Journal, write_results

logger = logging.getLogger(__name__)


class Demo:
    """Detects in one source after the other and writes its pictures.

    Args:
        predictor: of the model.
        cfg: its configuration.
        args: of the command line.
    """

    def __init__(self, predictor: Predictor, cfg: CfgNode, args: argparse.Namespace):
        self.predictor, self.high_bit_depth = predictor, cfg.INPUT.HIGH_BIT_DEPTH
        self.output, self.threshold, self.pictures = args.output, args.threshold, "pictures" in args.save

    def picture_of(self, source: Source) -> Path:
        return self.output / f"{source.name}{'.avi' if source.is_video else '.png'}"

    def __call__(self, source: Source, metadata: dict[str, Any]) -> list[ImageResult]:
        """Detect in an image or in every frame of a video."""
        return self._video(source, metadata) if source.is_video else [self._image(source, metadata)]

    def _detect(self, image: Path | np.ndarray, metadata: dict[str, Any], progress: Callable | None) -> Instances:
        instances = self.predictor(image, metadata, progress)
        return instances[instances.scores >= self.threshold]

    def _image(self, source: Source, metadata: dict[str, Any]) -> ImageResult:
        def progress(batches: Sequence[Any]) -> tqdm:
            return tqdm(batches, desc=source.name, unit="batch of tiles", leave=False)

        instances = self._detect(source.path, metadata, progress)
        if self.pictures:
            drawn = draw_result(open_raw(source.path), source.path, instances, high_bit_depth=self.high_bit_depth)
            picture = png_bytes(drawn[..., ::-1])
            write_atomically(self.picture_of(source), lambda file: file.write(picture))
        return ImageResult.of(source.name, source.path, None, metadata, instances)

    def _video(self, source: Source, metadata: dict[str, Any]) -> list[ImageResult]:
        video = Video(source.path)
        results = []
        target = self.picture_of(source)
        partial = target.with_name(f".{target.name}.partial.avi")
        writer: cv2.VideoWriter | None = None
        for number, frame in enumerate(tqdm(video, desc=source.name, total=video.length or None, unit="frame")):
            instances = self._detect(frame, metadata, None)
            results.append(ImageResult.of(f"{source.name}_{number:06d}", source.path, number, metadata, instances))
            if not self.pictures:
                continue
            picture = draw_result(frame, source.path, instances, insets=0)[..., ::-1]
            if writer is None:
                size = (picture.shape[1], picture.shape[0])
                writer = cv2.VideoWriter(str(partial), cv2.VideoWriter.fourcc(*"MJPG"), video.fps, size)
            writer.write(np.ascontiguousarray(picture))
        if writer is not None:
            writer.release()
            partial.replace(target)
        return results


def settings_of(cfg: CfgNode, args: argparse.Namespace) -> dict[str, Any]:
    """What decides the results beside the files."""
    weights = Path(args.weights).stat()
    return {
        "config": hashlib.sha256(cfg.dump().encode()).hexdigest(),
        "weights": [str(args.weights), weights.st_mtime_ns, weights.st_size],
        "options": [args.threshold, args.tile, args.overlap],
    }


def class_names_of(cfg: CfgNode) -> list[str]:
    """Names of the classes of the sets that the model was trained on; numbers where no set is known."""
    for name in (*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST):
        if name in DatasetCatalog.list() and MetadataCatalog.get(name).get("thing_classes"):
            return list(MetadataCatalog.get(name).thing_classes)
    return [f"class{i}" for i in range(1000)]


def detect(args: argparse.Namespace) -> int:
    """Run ``irstd detect``; return its exit code."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    sources = find_sources(args.input)
    lookup = MetadataLookup({"platform": args.platform, "band": args.band}, args.metadata, args.xml)
    cfg = get_config(args.config_file, ["MODEL.WEIGHTS", args.weights, *args.opts])
    if not torch.cuda.is_available():
        cfg.MODEL.DEVICE = "cpu"
    if cfg.MODEL.DEVICE == "cpu":
        keep_freed_memory()
    predictor = Predictor(cfg, tile=args.tile, overlap=args.overlap, batch_size=args.tile_batch)
    journal = Journal(args.output, settings_of(cfg, args))
    demo = Demo(predictor, cfg, args)
    results: list[ImageResult] = []
    unreadable = reused = 0
    for source in tqdm(sources, desc="files"):
        try:
            metadata = lookup(source.path)
            found = journal.find(source.name, source.path, metadata)
            if found is None or (demo.pictures and not demo.picture_of(source).is_file()):
                found = demo(source, metadata)
                journal.add(source.name, source.path, metadata, found)
            else:
                reused += 1
        except DatasetError as error:
            logger.error("error: %s", error)
            unreadable += 1
            continue
        results += found
    write_results(args.output, results, class_names_of(cfg), args.save)
    detections = sum(len(result.boxes) for result in results)
    remark = f" ({reused} files were done before)" if reused else ""
    logger.info("%d detections in %d images%s: %s", detections, len(results), remark, args.output)
    return 1 if unreadable else 0
