#!/usr/bin/env python3
"""Detect targets in images, folders, patterns and videos; write pictures and files with all detections.

    python tools/demo.py --config-file configs/bafe/bafe_r18_fpn.yaml --weights model_best.pth \\
        --input image.png folder/ 'runs/*/*.tif' clip.avi --output detections [--platform Air --band LWIR]

The pictures show detections in blue brackets with zoomed parts beside the image; of a video one annotated video is
written. `detections.json` is a list of COCO results, `bbox` as x, y, width and height in pixels of the file, with
`file_name` in place of numbers; --save adds `detections.csv` and `voc/NAME.xml`.

What is known of an image comes from --platform and --band (all images), from a table (--metadata), from XML files
(--xml), or stays unknown. Large images are cut into tiles that carry the size of the whole (--tile). A run that was
interrupted goes on where it stopped; files that did not change are not read again.
"""

from __future__ import annotations

import argparse
import hashlib
import logging
import sys
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

import auxdet_d2  # noqa: F401  registers
import bafe_d2  # noqa: F401  registers
from irstd_d2 import get_config
from irstd_d2.data.layout_writer import png_bytes
from irstd_d2.data.mapped_image import open_raw
from irstd_d2.errors import ConfigError, DatasetError
from irstd_d2.files import write_atomically
from irstd_d2.inference import Predictor
from irstd_d2.inference.inputs import MetadataLookup, Source, Video, find_sources
from irstd_d2.inference.pictures import draw_result
from irstd_d2.inference.results import ImageResult, Journal, write_results
from irstd_d2.memory import keep_freed_memory

logger = logging.getLogger("demo")


def parse_tile(text: str) -> int | None:
    """Read ``auto`` (``None``), ``none`` (0) or a number of pixels."""
    if text == "auto":
        return None
    if text == "none":
        return 0
    if not (text.isdecimal() and int(text) > 0):
        raise argparse.ArgumentTypeError(f"{text!r} is not auto, none or a number of pixels")
    return int(text)


def get_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config-file", required=True)
    parser.add_argument("--weights", required=True, help="checkpoint of that configuration")
    parser.add_argument("--input", nargs="+", required=True, help="images, videos, folders of them, or patterns")
    parser.add_argument("--output", type=Path, required=True, help="folder for pictures and files")
    parser.add_argument("--threshold", type=float, default=0.3, help="detections below this score are left out")
    parser.add_argument(
        "--save", nargs="+", choices=("pictures", "coco", "csv", "voc"), default=("pictures", "coco"),
        help="what to write (pictures coco)",
    )  # fmt: skip
    parser.add_argument("--platform", help="Air, Space or Land, of all images; unknown by default")
    parser.add_argument("--band", help="LWIR, NIR or SWIR, of all images; unknown by default")
    parser.add_argument("--metadata", metavar="FILE", help="table (CSV or TSV) with a line per image")
    parser.add_argument("--xml", metavar="DIR", help="XML files with <view> and <band_type>, one per image")
    parser.add_argument(
        "--tile", type=parse_tile, default=None,
        help="edge of the tiles that larger images are cut into; none: never; auto (default): images of more than "
        "twice the network's input, in tiles of that input",
    )  # fmt: skip
    parser.add_argument("--overlap", type=int, help="of neighbouring tiles, in pixels (64, of small tiles a quarter)")
    parser.add_argument("--tile-batch", type=int, default=4, help="tiles at a time (%(default)s)")
    parser.add_argument("--opts", nargs=argparse.REMAINDER, default=[], help="configuration: KEY VALUE ...")
    return parser


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


def main(argv: list[str] | None = None) -> int:
    args = get_parser().parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        sources = find_sources(args.input)
        lookup = MetadataLookup({"platform": args.platform, "band": args.band}, args.metadata, args.xml)
        cfg = get_config(args.config_file, ["MODEL.WEIGHTS", args.weights, *args.opts])
        if not torch.cuda.is_available():
            cfg.MODEL.DEVICE = "cpu"
        if cfg.MODEL.DEVICE == "cpu":
            keep_freed_memory()
        predictor = Predictor(cfg, tile=args.tile, overlap=args.overlap, batch_size=args.tile_batch)
        journal = Journal(args.output, settings_of(cfg, args))
    except (ConfigError, DatasetError, OSError) as error:
        logger.error("error: %s", error)
        return 2
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


if __name__ == "__main__":
    sys.exit(main())
