#!/usr/bin/env python3
"""Print parameters and multiply-adds of configurations as Markdown, beside what the papers print.

    python tools/analyze_model.py configs/auxdet/auxdet_r50_fpn.yaml [MORE ...] [--depth 2] [--size 1024 1024]
    python tools/analyze_model.py --all --output docs/model_zoo.md    # the page of all configurations, some minutes

For single configurations every module is listed down to a depth. `configs/` may be left out of the names.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from tqdm import tqdm

import auxdet_d2  # noqa: F401  registers
import bafe_d2  # noqa: F401  registers
from irstd_d2 import get_config
from irstd_d2.analysis import analyze, build_on_cpu, describe_model, entries, module_table, render_zoo
from irstd_d2.analysis.zoo import HEADER, configurations, square_size
from irstd_d2.errors import ConfigError
from irstd_d2.files import write_atomically

ROOT = Path(__file__).resolve().parents[1]
CONFIGS, RESULTS = ROOT / "configs", ROOT / "benchmarks" / "results"
INTRODUCTION = """\
# Model zoo

    python tools/analyze_model.py --all --output docs/model_zoo.md

writes this page: every configuration with the size and cost of its model, the figures of the papers, and links to what
was measured in this project. No trained weights are published.

Parameters are those of the model that is built, in millions. Multiply-adds are those of one square image at the size
of the column "at" (one of 512x512 pixels where the image's own size decides), in 10^9, as fvcore counts them:
convolutions (deformable ones as plain ones of their size), matrix products, norms and interpolations; element-wise
operations, pooling of regions and non-maximum suppression count nothing. In brackets stands what the paper prints;
neither paper says how it counted. For AuxDet and Cascade RPN the deformable convolution is 48.3 G at 1024x1024, which
many counters leave out.
"""


def resolve(name: str) -> str:
    """Path relative to configs/ of a configuration given with or without that folder."""
    for path in (Path(name), CONFIGS / name):
        if path.is_file() and path.resolve().is_relative_to(CONFIGS):
            return path.resolve().relative_to(CONFIGS).as_posix()
    raise ConfigError(f"{name} is not a configuration below {CONFIGS}; try one of: ls configs/*/")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("configs", nargs="*", metavar="CONFIG")
    parser.add_argument("--all", action="store_true", help="the page of all configurations")
    parser.add_argument("--output", type=Path, help="file for the page; by default it is printed")
    parser.add_argument("--depth", type=int, default=2, help="of the modules listed")
    parser.add_argument("--size", type=int, nargs=2, metavar=("HEIGHT", "WIDTH"), help="instead of the test size")
    args = parser.parse_args()
    if bool(args.configs) == args.all:
        parser.error("give configurations or --all")
    return args


def main() -> int:
    args = parse()
    try:
        if args.all:
            names = tqdm(configurations(CONFIGS), desc="configurations")
            page = render_zoo(entries(names, CONFIGS, RESULTS), INTRODUCTION)
            if args.output:
                write_atomically(args.output, lambda file: file.write(page.encode()))
            else:
                print(page, end="")
            return 0
        for name in map(resolve, args.configs):
            cfg = get_config(CONFIGS / name)
            complexity = analyze(build_on_cpu(cfg))
            size = tuple(args.size) if args.size else square_size(cfg)
            row = describe_model(name, CONFIGS, RESULTS, lambda _, known=complexity: known)
            print(f"{HEADER}\n{row.markdown()}\n")
            print(f"At {size[1]}x{size[0]}:\n\n{module_table(complexity, size, args.depth)}\n")
    except ConfigError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
