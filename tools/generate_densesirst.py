#!/usr/bin/env python3
"""Make a set in the layout of DenseSIRST from any sparse set with sky masks (BAFE-Net, section III-B).

    tools/generate_densesirst.py datasets/open-sirst-v2 output/dense --sky-masks datasets/SIRSTdevkit/SkySeg/BinaryMask
    tools/generate_densesirst.py my_set output/dense --recipe fitted --seed 1 --jobs 8
    tools/generate_densesirst.py my_set output/dense --areas 2 4 --targets 10 15 --area-edge 30

Writes OUTPUT/SIRSTdevkit. With DETECTRON2_DATASETS=OUTPUT its splits are the data sets
``densesirst_v2_{train,val,trainval,test}``. Of the files of the source none is changed. A run that was interrupted
goes on where it stopped; the same source and seed give the same bytes, whatever the number of processes.
"""

from __future__ import annotations

import argparse
import logging
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

from bafe_d2.data.densesirst_generator import RECIPES, generate_densesirst, read_sparse_set
from bafe_d2.data.target_library import TargetLibrary
from irstd_d2.data import load_voc
from irstd_d2.data.layout import LAYOUTS


def get_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path, help="folder of a sparse set in a VOC layout")
    parser.add_argument("output", type=Path, help="the set becomes OUTPUT/SIRSTdevkit")
    parser.add_argument("--layout", choices=LAYOUTS, help="of the source; found out by default")
    parser.add_argument("--split", nargs="+", metavar="NAME", help="split files of the source; all by default")
    parser.add_argument("--sky-masks", type=Path, metavar="DIR", help="folder of sky masks; by default the layout's")
    parser.add_argument(
        "--library-split",
        metavar="NAME",
        help="split of the source whose targets are pasted; by default all targets, as in the paper. A training split "
        "keeps targets of test images out of training images",
    )
    parser.add_argument(
        "--recipe",
        choices=RECIPES,
        default="paper",
        help="paper: the text of section III-B; fitted: as the released files are (%(default)s)",
    )
    parser.add_argument("--seed", type=int, default=0)
    low_high = ("FROM", "TO")
    parser.add_argument("--areas", type=int, nargs=2, metavar=low_high, help="dense areas per image")
    parser.add_argument("--targets", type=int, nargs=2, metavar=low_high, help="targets per area")
    parser.add_argument("--area-edge", type=int, metavar="PIXELS", help="edge of an area")
    parser.add_argument("--gaps", type=int, nargs=2, metavar=low_high, help="pixels between neighbours")
    parser.add_argument("--brightness", type=float, nargs=2, metavar=low_high, help="range of lambda in Eq. 1")
    parser.add_argument("--gain", type=float, metavar="FACTOR", help="on the brightness of the library's targets")
    parser.add_argument("--jobs", type=int, default=1, help="processes (%(default)s)")
    parser.add_argument("--overwrite", action="store_true", help="replace a set that was made with other parameters")
    parser.add_argument("--skip-bad", action="store_true", help="leave faulty images and those without sky mask out")
    return parser


def main(argv: list[str] | None = None) -> int:
    args = get_parser().parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    recipe = RECIPES[args.recipe]
    ranges = {name: getattr(args, name) for name in ("areas", "targets", "area_edge", "gaps", "brightness")}
    given: Any = {name: tuple(v) if isinstance(v, list) else v for name, v in ranges.items() if v is not None}
    progress = sys.stderr.isatty()
    try:
        gain = recipe.gain if args.gain is None else args.gain
        config = replace(recipe, seed=args.seed, gain=gain, rule=replace(recipe.rule, **given))
        source = read_sparse_set(
            args.source, layout=args.layout, splits=args.split, sky_masks=args.sky_masks, skip_bad=args.skip_bad
        )
        library = None
        if args.library_split:
            dicts = load_voc(args.source, args.library_split, layout=args.layout, skip_bad=args.skip_bad)
            library = TargetLibrary.from_dicts(dicts, fill=config.fill, progress=progress)
        folder = generate_densesirst(
            source, args.output, config, library=library, overwrite=args.overwrite, jobs=args.jobs, progress=progress
        )
    except ValueError as error:  # ConfigError and DatasetError say what to do
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"{folder}: {len(source.dicts)} images. Check it: tools/check_dataset.py {folder}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
