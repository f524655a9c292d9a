"""Print parameters and multiply-adds of configurations as Markdown, beside what the papers print.

    irstd analyze configs/auxdet/auxdet_r50_fpn.yaml [MORE ...] [--depth 2] [--size 1024 1024]
    irstd analyze --all --output docs/model_zoo.md    # the page of all configurations, some minutes

For single configurations every module is listed down to a depth. `configs/` may be left out of the names.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from ..errors import ConfigError
from .options import new_parser

ROOT = Path(__file__).resolve().parents[2]
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


def get_parser() -> argparse.ArgumentParser:
    parser = new_parser(__doc__)
    parser.add_argument("configs", nargs="*", metavar="CONFIG")
    parser.add_argument("--all", action="store_true", help="the page of all configurations")
    parser.add_argument("--output", type=Path, help="file for the page; by default it is printed")
    parser.add_argument("--depth", type=int, default=2, help="of the modules listed")
    parser.add_argument("--size", type=int, nargs=2, metavar=("HEIGHT", "WIDTH"), help="instead of the test size")
    return parser


def run(args: argparse.Namespace) -> int:
    from tqdm import tqdm

    from ..analysis import analyze, build_on_cpu, describe_model, entries, module_table, render_zoo
    from ..analysis.zoo import HEADER, configurations, square_size
    from ..config import get_config
    from ..files import write_atomically

    if bool(args.configs) == args.all:
        raise ConfigError("give configurations or --all")
    if args.all:
        page = render_zoo(entries(tqdm(configurations(CONFIGS), desc="configurations"), CONFIGS, RESULTS), INTRODUCTION)
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
    return 0
