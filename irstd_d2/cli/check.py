"""Check a data set: list every fault at once, print what it holds, and plot it.

Examples:
    irstd check densesirst_v2_test
    irstd check datasets/SIRSTdevkit --output-dir output/check
    irstd check my_set/instances.json --image-root my_set/images

Ends with code 1 when there are faults, unless --skip-bad is given.
"""

from __future__ import annotations

import argparse
import sys

from .options import HIGH_BIT_DEPTH_MODES, add_set_options, new_parser, whole_number


def get_parser() -> argparse.ArgumentParser:
    parser = new_parser(__doc__)
    parser.add_argument("source", help="registered set, folder (VOC, YOLO, masks) or COCO file")
    add_set_options(parser)
    parser.add_argument("--split", nargs="+", metavar="NAME", help="split files of a folder; all by default")
    parser.add_argument("--high-bit-depth", choices=HIGH_BIT_DEPTH_MODES, default="auto")
    parser.add_argument("--output-dir", metavar="DIR", help="write the plots there")
    parser.add_argument("--skip-bad", action="store_true", help="end with code 0 although there are faults")
    parser.add_argument("--workers", type=whole_number(1), default=2, help="threads that read images (%(default)s)")
    return parser


def run(args: argparse.Namespace) -> int:
    from ..data.check import check_collection, collect
    from ..data.convert import collect_converted
    from ..data.plots import write_plots

    collection = collect_converted(args.source, sidecar=args.sidecar) or collect(
        args.source,
        layout=args.layout,
        splits=args.split,
        sidecar=args.sidecar,
        image_root=args.image_root,
        class_names=args.classes,
        box_convention=args.box_convention,
    )
    report = check_collection(
        collection, high_bit_depth=args.high_bit_depth, workers=args.workers, progress=sys.stderr.isatty()
    )
    print(report)
    if args.output_dir:
        for path in write_plots(report.statistics, args.output_dir, report.title):
            print(f"Wrote {path}")
    return 1 if report.faults and not args.skip_bad else 0
