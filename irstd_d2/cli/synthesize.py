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

from .options import new_parser

if TYPE_CHECKING:
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
    parser.add_argument("--train", type=int, default=300, help="number of training images (%(default)s)")
    parser.add_argument("--val", type=int, default=100, help="number of validation images (%(default)s)")
    parser.add_argument(
        "--size",
        type=parse_size,
        default="small",
        help="small: sides from 96 to 192; real: the formats of WideIRSTD-Full; WxH: one size (%(default)s)",
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--domain-conflict",
        type=float,
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
    parser.add_argument("--workers", type=int, default=1, help="processes (%(default)s)")
    parser.add_argument("--overwrite", action="store_true", help="replace a set that other parameters made")
    parser.add_argument("--preview", type=Path, metavar="FILE", help="write a picture of the first scenes, no set")
    return parser


def run(args: argparse.Namespace) -> int:
    from ..errors import ConfigError
    from ..synthetic import (
        SceneConfig,
        SceneGenerator,
        contact_sheet,
        dense_config,
        write_densesirst,
        write_wideirstd,
    )

    logging.basicConfig(level=logging.INFO, format="%(message)s")
    layouts = ("wideirstd", "densesirst") if args.layout == "both" else (args.layout,)
    try:
        omni = SceneConfig(
            seed=args.seed,
            size=args.size,
            balance=args.balance,
            domain_conflict=args.domain_conflict,
            bits=args.bits,
        )
        dense = dense_config(seed=args.seed, size=args.size, bits=args.bits)
    except ValueError as error:
        raise ConfigError(str(error)) from error
    configs = {"wideirstd": omni, "densesirst": dense}
    if args.preview is not None:
        scenes = [SceneGenerator(configs[layout]).scene(i) for layout in layouts for i in range(24 // len(layouts))]
        contact_sheet(scenes).save(args.preview)
        logging.info("%s: red = targets, blue = objects that are not, green = skyline", args.preview)
        return 0
    for layout in layouts:
        write, name = {
            "wideirstd": (write_wideirstd, "synthetic_omni"),
            "densesirst": (write_densesirst, "synthetic_dense"),
        }[layout]
        folder = write(
            args.output / name,
            configs[layout],
            train=args.train,
            val=args.val,
            overwrite=args.overwrite,
            workers=args.workers,
        )
        logging.info("%s: %d training and %d validation images", folder, args.train, args.val)
    return 0
