#!/usr/bin/env python3
"""Check a data set: list every fault at once, print what it holds, and plot it.

Examples:
    tools/check_dataset.py densesirst_v2_test
    tools/check_dataset.py datasets/SIRSTdevkit --output-dir output/check
    tools/check_dataset.py my_set/instances.json --image-root my_set/images

Ends with code 1 when there are faults, unless --skip-bad is given.
"""

from __future__ import annotations

import argparse
import sys

from irstd_d2.data.check import check_collection, collect
from irstd_d2.data.image_io import HIGH_BIT_DEPTH_MODES
from irstd_d2.data.layout import LAYOUTS
from irstd_d2.data.plots import write_plots
from irstd_d2.errors import DatasetError


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", help="name of a registered set, folder in a VOC layout, or COCO file")
    parser.add_argument("--layout", choices=LAYOUTS, help="of a folder; found out by default")
    parser.add_argument("--split", nargs="+", metavar="NAME", help="split files of a folder; all by default")
    parser.add_argument("--sidecar", metavar="FILE", help="metadata table (TSV or CSV) of a folder")
    parser.add_argument("--image-root", metavar="DIR", help="images of a COCO file; by default the folder it is in")
    parser.add_argument("--high-bit-depth", choices=HIGH_BIT_DEPTH_MODES, default="full_range")
    parser.add_argument("--output-dir", metavar="DIR", help="write the plots there")
    parser.add_argument("--skip-bad", action="store_true", help="end with code 0 although there are faults")
    parser.add_argument("--workers", type=int, default=2, help="threads that read images (%(default)s)")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    args = parse_args(argv)
    try:
        collection = collect(
            args.source, layout=args.layout, splits=args.split, sidecar=args.sidecar, image_root=args.image_root
        )
    except DatasetError as error:
        print(f"Fault: {error}", file=sys.stderr)
        return 1
    report = check_collection(
        collection, high_bit_depth=args.high_bit_depth, workers=args.workers, progress=sys.stderr.isatty()
    )
    print(report)
    if args.output_dir:
        for path in write_plots(report.statistics, args.output_dir, report.title):
            print(f"Wrote {path}")
    return 1 if report.faults and not args.skip_bad else 0


if __name__ == "__main__":
    sys.exit(main())
