"""Write a trained model as a file that runs without detectron2, and compare the two on images.

    irstd export --config-file configs/bafe/bafe_r18_fpn.yaml --weights model_best.pth \
        --format onnx --output bafe.onnx --check image.png other.png [--platform Air --band LWIR]

`irstd_d2/export/runtime.py`, one file that needs numpy, Pillow and onnxruntime, runs the result on image files. How
images are resized, the names of classes, platforms and bands are stored inside.
"""

from __future__ import annotations

import argparse
import logging
from pathlib import Path
from typing import TYPE_CHECKING

from .options import EXPORT_FORMATS, add_config_options, new_parser, whole_number

if TYPE_CHECKING:
    from ..inference import Predictor

logger = logging.getLogger(__name__)


def get_parser() -> argparse.ArgumentParser:
    parser = new_parser(__doc__)
    add_config_options(parser)
    parser.add_argument("--format", choices=EXPORT_FORMATS, default="onnx")
    parser.add_argument("--output", required=True, type=Path, help="file to write, *.onnx for ONNX")
    parser.add_argument("--nms", action=argparse.BooleanOptionalAction, default=True, help="suppress inside the file")
    parser.add_argument(
        "--dynamic",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="any number and size of images (default); --no-dynamic: one shape, for engines that need it",
    )
    parser.add_argument("--batch", type=whole_number(1), default=1, help="images of a fixed shape")
    parser.add_argument("--size", type=whole_number(1), nargs=2, metavar=("HEIGHT", "WIDTH"), help="of a fixed shape")
    parser.add_argument("--check", nargs="+", type=Path, default=[], metavar="IMAGE", help="compare with PyTorch")
    parser.add_argument("--platform", help="of the images of --check; unknown by default")
    parser.add_argument("--band", help="of the images of --check; unknown by default")
    parser.add_argument("--box-tolerance", type=float, default=0.02, help="pixels")
    parser.add_argument("--score-tolerance", type=float, default=1e-4)
    return parser


def check(predictor: Predictor, args: argparse.Namespace) -> bool:
    """Compare file and model on every image; say whether all are within the tolerances."""
    from ..export import Detections, ExportedDetector, compare_detections

    detector = ExportedDetector(args.output)
    metadata = {key: value for key in ("platform", "band") if (value := getattr(args, key))}
    good = True
    for path in args.check:
        found = predictor(path, metadata)
        expected = Detections(found.pred_boxes.tensor.numpy(), found.scores.numpy(), found.pred_classes.numpy())
        difference = compare_detections(expected, detector([path], metadata)[0])
        within = difference.within(args.box_tolerance, args.score_tolerance)
        good &= within
        logger.info(
            "%s: %d detections, boxes within %.2g pixel, scores within %.2g, %d without partner (best score %.3f)%s",
            path, difference.pairs, difference.boxes, difference.scores, difference.unpaired,
            difference.unpaired_score, "" if within else "  DIFFERENT",
        )  # fmt: skip
    return good


def run(args: argparse.Namespace) -> int:
    from ..export import FixedShape, export_model, largest_shape
    from ..inference import Predictor
    from .options import read_config

    logging.basicConfig(level=logging.WARNING, format="%(message)s")  # exporters tell every step at INFO
    logger.setLevel(logging.INFO)
    cfg = read_config(args)
    predictor = Predictor(cfg, tile=0, device="cpu")
    fixed = None
    if not args.dynamic and args.size:
        fixed = FixedShape(args.batch, tuple(args.size))
    elif not args.dynamic:
        fixed = largest_shape(cfg, predictor.model, args.batch)
    export_model(
        cfg, predictor.model, args.output, format=args.format, with_nms=args.nms, fixed=fixed, classes=predictor.classes
    )
    logger.info("%s: %.1f MB", args.output, args.output.stat().st_size / 1e6)
    return 0 if check(predictor, args) else 1
