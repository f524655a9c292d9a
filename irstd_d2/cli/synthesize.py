"""Make synthetic infrared sets: scenes of several platforms and bands, and clustered targets before a horizon.

    irstd synthesize --train 300 --val 100
    irstd synthesize --layout densesirst --size real --bits 16

Writes ``OUTPUT/synthetic_omni`` (WideIRSTD's layout) and ``OUTPUT/synthetic_dense`` (DenseSIRST's layout), where the
data sets ``synthetic_omni_{train,val}`` and ``synthetic_dense_{train,val}`` look for them when OUTPUT is
$DETECTRON2_DATASETS. A run that was interrupted goes on where it stopped, and larger numbers add to a set.
"""

from __future__ import annotations

import argparse
import logging
import os
from pathlib import Path
from typing import TYPE_CHECKING

from .options import new_parser, real_number, whole_number

if TYPE_CHECKING:
    import numpy as np

    from ..synthetic import Scene
    from ..synthetic.domains import Size


def parse_size(text: str) -> Size:
    """Read ``small``, ``real`` or ``WxH``."""
    if text == "small":
        return "small"
    if text == "real":
        return "real"
    width, _, height = text.partition("x")
    if not (width.isdecimal() and height.isdecimal()):
        raise argparse.ArgumentTypeError(f"{text!r} is not small, real or WxH, for example 160x128")
    return int(width), int(height)


def get_parser() -> argparse.ArgumentParser:
    parser = new_parser(__doc__)
    datasets = os.environ.get("DETECTRON2_DATASETS", "datasets")
    parser.add_argument("--output", type=Path, default=Path(datasets), help="folder of the sets (%(default)s)")
    parser.add_argument("--layout", choices=("wideirstd", "densesirst", "both"), default="wideirstd")
    parser.add_argument("--train", type=whole_number(0), default=300, help="number of training images (%(default)s)")
    parser.add_argument("--val", type=whole_number(0), default=100, help="number of validation images (%(default)s)")
    parser.add_argument(
        "--size",
        type=parse_size,
        default="small",
        help="small: sides from 96 to 192; real: the formats of WideIRSTD-Full; WxH: one size (%(default)s)",
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--domain-conflict",
        type=real_number(0, 1),
        default=0.6,
        help="fraction of scenes in which only the metadata tells targets from clutter (%(default)s; wideirstd only)",
    )
    parser.add_argument(
        "--balance",
        choices=("real", "uniform"),
        default="real",
        help="frequencies of platform and band: those of WideIRSTD-Full or all alike (%(default)s; wideirstd only)",
    )
    parser.add_argument("--bits", type=int, choices=(8, 16), default=8, help="per pixel (%(default)s)")
    parser.add_argument("--workers", type=whole_number(1), default=1, help="processes (%(default)s)")
    parser.add_argument("--overwrite", action="store_true", help="replace a set that other parameters made")
    parser.add_argument("--preview", type=Path, metavar="FILE", help="write a PNG of the first scenes, no set")
    return parser


def draw_scene(scene: Scene) -> np.ndarray:
    """The scene enlarged twice, with its targets (green), the look-alikes (red) and the skyline."""
    import numpy as np

    from ..visualization import draw_detections, with_caption

    height, width = scene.image.shape
    picture = draw_detections(
        np.repeat(scene.image[..., None], 3, axis=2),
        targets=scene.boxes,
        boxes=scene.clutter_boxes,
        correct=np.zeros(len(scene.clutter_boxes), bool),
        sky=scene.sky_mask == 1,
        edge=2 * max(height, width),
        insets=0,
    )
    platform, band = scene.metadata["platform"], scene.metadata["band"]
    return with_caption(picture, f"{platform} {band} {width}x{height}: {scene.background}")


def run(args: argparse.Namespace) -> int:
    from ..synthetic import SceneConfig, SceneGenerator, dense_config, write_densesirst, write_wideirstd
    from ..visualization import contact_sheet, write_picture

    logging.basicConfig(level=logging.INFO, format="%(message)s")
    omni = SceneConfig(
        seed=args.seed, size=args.size, balance=args.balance, domain_conflict=args.domain_conflict, bits=args.bits
    )
    dense = dense_config(seed=args.seed, size=args.size, bits=args.bits)
    sets = {
        "wideirstd": ("synthetic_omni", omni, write_wideirstd),
        "densesirst": ("synthetic_dense", dense, write_densesirst),
    }
    chosen = list(sets.values()) if args.layout == "both" else [sets[args.layout]]
    if args.preview is not None:
        scenes = [SceneGenerator(config).scene(i) for _, config, _ in chosen for i in range(24 // len(chosen))]
        write_picture(args.preview, contact_sheet([draw_scene(scene) for scene in scenes], columns=6))
        logging.info("%s: green = targets, red = objects that are not", args.preview)
        return 0
    for name, config, write in chosen:
        folder = write(args.output / name, config, args.train, args.val, overwrite=args.overwrite, workers=args.workers)
        logging.info("%s: %d training and %d validation images", folder, args.train, args.val)
    return 0
