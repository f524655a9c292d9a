#!/usr/bin/env python3
"""Write one self-contained HTML report about one or several runs.

python tools/report.py output/fcos output/bafe --output report.html
"""

from __future__ import annotations

import argparse
import logging

import auxdet_d2  # noqa: F401  registers
import bafe_d2  # noqa: F401  registers
from irstd_d2.reporting import write_report


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", help="run folders (OUTPUT_DIR of a training); the first is the baseline")
    parser.add_argument("--output", default="report.html", help="file to write (default: %(default)s)")
    parser.add_argument("--title", default="Infrared small-target detection")
    parser.add_argument("--gallery", type=int, default=12, help="pictures of each kind, 0 for none")
    parser.add_argument("--draws", type=int, default=1000, help="bootstrap draws, 0 for none")
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    path = write_report(args.runs, args.output, title=args.title, gallery=args.gallery, draws=args.draws)
    logging.info("%s", path)


if __name__ == "__main__":
    main()
