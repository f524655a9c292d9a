"""Detect targets in images, folders, patterns, videos and cameras; write pictures and files with all detections.

    irstd detect image.png folder/ 'runs/*/*.tif' clip.mp4 --weights bafe_dense --output detections
    irstd detect folder/ --weights output/mine/model_best.pth --save picture csv json --platform Air --band LWIR
    torchrun --nproc-per-node 4 -m irstd_d2 detect folder/ --weights bafe_dense

--weights is a model of the zoo (`irstd zoo`) or a checkpoint; its configuration is found with it, or named by
--config-file. The pictures show detections in blue brackets with zoomed parts beside the image. `detections.json` is a
list of COCO results, `bbox` as x, y, width and height in pixels of the file, with `file_name` in place of numbers.
Frames of videos and pages of TIFFs are images of their own, with `frame` from 0.

What is known of an image comes from --platform and --band (all images), from a table (--metadata), from XML files
(--xml), or stays unknown. Large images are cut into tiles that carry the size of the whole (--tile). A run that was
interrupted goes on where it stopped; files that did not change are not read again.
"""

from __future__ import annotations

import argparse
import logging
import sys
from pathlib import Path

from ..errors import ConfigError
from .options import RESULT_FORMATS, add_config_options, add_score_thresh, new_parser, whole_number

DEFAULT_WEIGHTS = "fcos_general"
AFTER_INTERRUPT = "the same command goes on where it stopped"


def parse_tile(text: str) -> int | None:
    """Read ``auto`` (``None``), ``none`` (0) or a number of pixels."""
    if text == "auto":
        return None
    if text == "none":
        return 0
    if not (text.isdecimal() and int(text) > 0):
        raise argparse.ArgumentTypeError(f"{text!r} is not auto, none or a number of pixels")
    return int(text)


def parse_format(text: str) -> str:
    """Take the names that ``--save`` had before version 0.4 for those of today."""
    return {"pictures": "picture", "coco": "json"}.get(text, text)


def get_parser() -> argparse.ArgumentParser:
    parser = new_parser(__doc__)
    parser.add_argument("inputs", nargs="*", metavar="INPUT", help="images, videos, folders, patterns, camera numbers")
    parser.add_argument("--input", nargs="+", default=[], metavar="INPUT", help="the same, after other options")
    add_config_options(parser, weights=DEFAULT_WEIGHTS)
    parser.add_argument("--output", type=Path, default=Path("detections"), help="folder to write to (%(default)s)")
    add_score_thresh(parser, "detections below are left out; default: of the zoo's model, else 0.3")
    parser.add_argument(
        "--save", nargs="+", type=parse_format, choices=RESULT_FORMATS, default=("picture", "json"),
        help="what to write (picture json)",
    )  # fmt: skip
    for field, names in (("platform", "Air, Space, Land"), ("band", "LWIR, NIR, SWIR")):
        key = f"MODEL.METADATA.{field.upper()}S"
        text = f"{names} or what the model was trained with ({key}), of all images; unknown by default"
        parser.add_argument(f"--{field}", help=text)
    parser.add_argument("--metadata", metavar="FILE", help="table (CSV or TSV) with a line per image")
    parser.add_argument("--xml", metavar="DIR", help="XML files with <view> and <band_type>, one per image")
    parser.add_argument(
        "--tile", type=parse_tile, default=None,
        help="edge of the tiles that larger images are cut into; none: never; auto (default): images of more than "
        "twice the network's input, in tiles of that input",
    )  # fmt: skip
    parser.add_argument(
        "--overlap", type=whole_number(0), help="of neighbouring tiles, in pixels (64, of small tiles a quarter)"
    )
    parser.add_argument("--tile-batch", type=whole_number(1), default=4, help="tiles at a time (%(default)s)")
    parser.add_argument(
        "--max-frames",
        type=whole_number(1),
        metavar="N",
        help="of a video, camera or TIFF of several pages, the first N",
    )
    return parser


def run(args: argparse.Namespace) -> int:
    from detectron2.utils import comm

    from .. import model_zoo
    from ..engine import process_group
    from ..inference import Predictor
    from ..inference.detection import FileDetector, detect_files, settings_of
    from ..inference.inputs import MetadataLookup, find_sources
    from .options import read_config

    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    inputs = [*args.inputs, *args.input]
    if not inputs:
        raise ConfigError("give images, folders, patterns, videos or a camera's number: irstd detect image.png")
    sources = find_sources(inputs)
    lookup = MetadataLookup({"platform": args.platform, "band": args.band}, args.metadata, args.xml)
    with process_group("gloo"):
        cfg = read_config(args)
        threshold = args.score_thresh
        if threshold is None:
            threshold = model_zoo.entry(args.weights).score_thresh if args.weights in model_zoo.names() else 0.3
        predictor = Predictor(
            cfg, tile=args.tile, overlap=args.overlap, batch_size=args.tile_batch, score_thresh=threshold
        )
        pictures = "picture" in args.save
        detector = FileDetector(predictor, args.output, pictures=pictures, max_frames=args.max_frames)
        settings = settings_of(cfg, [threshold, args.tile, args.overlap, args.max_frames])
        done = detect_files(detector, sources, lookup, settings, args.save)
        if comm.get_rank():
            return 0
    print(f"{done.images} images, {done.detections} targets of score {threshold:g} or more in {args.output}", end="")
    print(f" ({done.reused} files were done before)" if done.reused else "")
    if done.replaced:
        print(f"replaced in {args.output}: results of {done.replaced} files of an earlier run, which was another")
    if done.detected:
        print(f"{done.seconds / done.detected:.3f} s per image on {cfg.MODEL.DEVICE}")
    if done.pictures:
        print(f"pictures: {done.pictures[0]}{' and others' if len(done.pictures) > 1 else ''}")
    if done.failed:
        print(f"error: {len(done.failed)} of {len(sources)} files could not be read:", file=sys.stderr)
        print("\n".join(f"error: {fault}" for fault in done.failed), file=sys.stderr)
    return 1 if done.failed else 0
