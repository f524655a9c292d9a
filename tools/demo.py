#!/usr/bin/env python3
"""Detect targets in images or folders of images; write a picture of each and one file with all detections.

    python tools/demo.py --config-file configs/bafe/bafe_r18_fpn.yaml --weights model_best.pth \
        --input image.png folder/ --output detections [--platform Air --band LWIR] [KEY VALUE ...]

The pictures show detections in blue brackets with zoomed parts beside the image. `detections.json` is a list of COCO
results, `bbox` as x, y, width and height in pixels of the file, with `file_name` in place of numbers.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
from pathlib import Path

import torch
from detectron2.evaluation.coco_evaluation import instances_to_coco_json
from tqdm import tqdm

import auxdet_d2  # noqa: F401  registers
import bafe_d2  # noqa: F401  registers
from irstd_d2 import get_config
from irstd_d2.data import read_image
from irstd_d2.data.image_io import IMAGE_SUFFIXES
from irstd_d2.errors import ConfigError, DatasetError
from irstd_d2.files import write_atomically
from irstd_d2.inference import Predictor
from irstd_d2.visualization import draw_detections, write_picture

logger = logging.getLogger("demo")


def find_images(inputs: list[Path]) -> dict[str, Path]:
    """List the images of files and folders, under names that differ.

    Returns:
        name of the picture without suffix -> image file.

    Raises:
        DatasetError: an input does not exist or holds no image.
    """
    found: dict[str, Path] = {}
    for given in inputs:
        inside = (
            sorted(p for p in given.rglob("*") if p.suffix.lower() in IMAGE_SUFFIXES) if given.is_dir() else [given]
        )
        if not inside or not given.exists():
            raise DatasetError(given, "--input", "is not an image or a folder of images", "check the path")
        for path in inside:
            base = "__".join(path.relative_to(given).with_suffix("").parts) if given.is_dir() else path.stem
            name, number = base, 2
            while name in found:
                name, number = f"{base}_{number}", number + 1
            found[name] = path
    return found


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config-file", required=True)
    parser.add_argument("--weights", required=True, help="checkpoint of that configuration")
    parser.add_argument("--input", nargs="+", type=Path, required=True, help="image files or folders")
    parser.add_argument("--output", type=Path, required=True, help="folder for pictures and detections.json")
    parser.add_argument("--threshold", type=float, default=0.3, help="detections below this score are left out")
    parser.add_argument("--platform", help="Air, Space or Land; unknown by default")
    parser.add_argument("--band", help="LWIR, NIR or SWIR; unknown by default")
    parser.add_argument("--opts", nargs=argparse.REMAINDER, default=[], help="configuration: KEY VALUE ...")
    return parser.parse_args()


def main() -> int:
    args = parse()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        images = find_images(args.input)
        cfg = get_config(args.config_file, ["MODEL.WEIGHTS", args.weights, *args.opts])
        if not torch.cuda.is_available():
            cfg.MODEL.DEVICE = "cpu"
        predictor = Predictor(cfg)
    except (ConfigError, DatasetError) as error:
        logger.error("error: %s", error)
        return 2
    metadata = {key: value for key in ("platform", "band") if (value := getattr(args, key))}
    rows: list[dict[str, object]] = []
    unreadable = 0
    args.output.mkdir(parents=True, exist_ok=True)
    for name, path in tqdm(images.items(), desc="images"):
        try:
            instances = predictor(path, metadata)
        except DatasetError as error:
            logger.error("error: %s", error)
            unreadable += 1
            continue
        instances = instances[instances.scores >= args.threshold]
        rows += [{"file_name": str(path), **row} for row in instances_to_coco_json(instances, name)]
        picture = draw_detections(
            read_image(path, high_bit_depth=cfg.INPUT.HIGH_BIT_DEPTH),
            boxes=instances.pred_boxes.tensor.numpy(),
            scores=instances.scores.numpy(),
        )
        write_picture(args.output / f"{name}.png", picture)
    write_atomically(args.output / "detections.json", lambda file: file.write(json.dumps(rows, indent=1).encode()))
    logger.info("%d detections in %d images: %s", len(rows), len(images) - unreadable, args.output)
    return 1 if unreadable else 0


if __name__ == "__main__":
    sys.exit(main())
