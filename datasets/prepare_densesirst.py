#!/usr/bin/env python3
"""Check a downloaded DenseSIRST set and put it where the data sets look for it.

    datasets/prepare_densesirst.py ~/Downloads/DenseSIRST
    datasets/prepare_densesirst.py ~/Downloads/DenseSIRST --copy
    datasets/prepare_densesirst.py ~/Downloads/DenseSIRST --check-only

Counts files, images and targets beside those of the released set, then links (or copies) it to
$DETECTRON2_DATASETS/SIRSTdevkit, datasets/SIRSTdevkit by default. After that ``densesirst_v2_trainval`` and the others
load. Nothing in the download is changed. Ends with code 1 when the set is not complete.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from tabulate import tabulate

from bafe_d2.data.densesirst import count_densesirst, find_densesirst, place_densesirst, require_complete
from irstd_d2.data import datasets_root
from irstd_d2.errors import DatasetError


def get_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path, help="SIRSTdevkit, or a folder at most two levels above it")
    parser.add_argument("--copy", action="store_true", help="copy the files in place of a symbolic link")
    parser.add_argument("--check-only", action="store_true", help="put nothing anywhere")
    parser.add_argument("--force", action="store_true", help="go on although the counts differ")
    return parser


def main(argv: list[str] | None = None) -> int:
    args = get_parser().parse_args(argv)
    try:
        root = find_densesirst(args.source)
        counts, faults = count_densesirst(root)
        rows = [(c.what, c.found, c.expected, "" if c.ok else "needed" if c.needed else "not used") for c in counts]
        print(f"{root}\n\n{tabulate(rows, headers=['', 'found', 'released', 'differs'])}\n")
        if not args.force:
            require_complete(root, counts, faults)
        if not args.check_only:
            target = place_densesirst(root, datasets_root(), copy=args.copy)
            print(f"{target}: ready as densesirst_v2_train, _val, _trainval, _test, and densesirst_v1_*")
    except DatasetError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
