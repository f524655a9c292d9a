#!/usr/bin/env python3
"""Parameters and multiply-adds of configurations as Markdown, beside what the papers print.

    python benchmarks/model_zoo.py configs/auxdet/auxdet_r50_fpn.yaml [MORE ...] [--depth 2] [--size 1024 1024]
    python benchmarks/model_zoo.py --all --output docs/model_zoo.md    # the page of all configurations, some minutes

For single configurations every module is listed down to a depth. `configs/` may be left out of the names.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

from detectron2.config import CfgNode
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parent))
from ablation.tables import load_tables
from complexity import Complexity, analyze, build_on_cpu

import auxdet_d2  # noqa: F401  registers
import bafe_d2  # noqa: F401  registers
from irstd_d2 import get_config
from irstd_d2.errors import ConfigError
from irstd_d2.files import write_atomically

ROOT = Path(__file__).resolve().parents[1]
CONFIGS = ROOT / "configs"
# Multiply-adds that the papers print, in G: AuxDet's Table 1 at 1024x1024, BAFE-Net's Table II at 512x512.
PUBLISHED_GIGA = {
    **{"auxdet/auxdet_r50_fpn.yaml": 215, "auxdet/cascade_rpn_r50_fpn.yaml": 190},
    **{"bafe/bafe_r18_fpn.yaml": 57.654, "bafe/bafe_r50_fpn.yaml": 71.639, "bafe/fcos_r50_fpn.yaml": 50.291},
}
# The rows of the papers' comparisons that are configurations of their own.
COMPARED = {
    "auxdet/auxdet_r50_fpn.yaml": ("auxdet-1", "auxdet"),
    "auxdet/cascade_rpn_r50_fpn.yaml": ("auxdet-1", "cascade_rpn"),
    "bafe/bafe_r18_fpn.yaml": ("bafe-2", "bafe_r18"),
    "bafe/bafe_r50_fpn.yaml": ("bafe-2", "bafe_r50"),
    "bafe/fcos_r50_fpn.yaml": ("bafe-2", "fcos_r50"),
}
SECTIONS = (("AuxDet", "auxdet/"), ("BAFE-Net", "bafe/"), ("Both together", ""), ("Baselines", "baselines/"))
COLUMNS = ("configuration", "parameters, M (paper)", "multiply-adds, G (paper)", "at", "the paper's figures")
HEADER = f"| {' | '.join(COLUMNS)} |\n|{'---|' * len(COLUMNS)}"
INTRODUCTION = """\
# Size and cost of every configuration

    python benchmarks/model_zoo.py --all --output docs/model_zoo.md

writes this page: every configuration with the size and cost of its model and the figures of the papers. Trained weights
are listed by `irstd zoo`.

Parameters are those of the model that is built, in millions. Multiply-adds are those of one square image at the size
of the column "at" (one of 512x512 pixels where the image's own size decides), in 10^9, as fvcore counts them:
convolutions (deformable ones as plain ones of their size), matrix products, norms and interpolations; element-wise
operations, pooling of regions and non-maximum suppression count nothing. In brackets stands what the paper prints;
neither paper says how it counted. For AuxDet and Cascade RPN the deformable convolution is 48.3 G at 1024x1024, which
many counters leave out. BAFE-Net's paper counts 850,339 parameters of modules that never run; with them R50 has
35,582,521, 0.04 M below the 35.626 M that it prints, and R18 22.56 M, above its 22.31 M: these two are not explained.
"""


def square_size(cfg: CfgNode) -> tuple[int, int]:
    """(height, width) that a square image has at test time; one of 512x512 pixels where its own size decides."""
    if cfg.INPUT.RESIZE_MODE == "fixed":
        height, width = cfg.INPUT.FIXED_SIZE
        return height, width
    side = round(512 * cfg.INPUT.SCALE) if cfg.INPUT.RESIZE_MODE == "scale" else cfg.INPUT.MIN_SIZE_TEST
    return side, side


def configurations() -> list[str]:
    """Names of all configurations below ``configs/``, without those that others build on."""
    paths = [path for path in sorted(CONFIGS.glob("**/*.yaml")) if path.name != "renamed.yaml"]
    return [path.relative_to(CONFIGS).as_posix() for path in paths if not path.name.startswith("Base-")]


def line(config: str, complexity: Complexity, size: tuple[int, int]) -> str:
    """The row of a configuration, with links as seen from ``docs/``."""
    figures, parameters = "", math.nan
    if config in COMPARED:
        table, row = COMPARED[config]
        published = load_tables()[table].rows[row]
        figures = ", ".join(f"{name} {value:g}" for name, value in published.figures.items())
        parameters = published.parameters
    count, giga = complexity.parameters[""] / 1e6, complexity.multiply_adds(size) / 1e9
    cells = [f"[{config}](../configs/{config})", _beside(count, parameters)]
    cells += [_beside(giga, PUBLISHED_GIGA.get(config, math.nan)), f"{size[1]}x{size[0]}", figures]
    return "| " + " | ".join(cells) + " |"


def _beside(ours: float, paper: float) -> str:
    return f"{ours:.3f}" + ("" if math.isnan(paper) else f" ({paper:g})")


def lines(names: Iterable[str]) -> dict[str, str]:
    """Rows of many configurations; equal models are counted once."""
    known: dict[str, Complexity] = {}
    rows = {}
    for name in names:
        cfg = get_config(CONFIGS / name)
        model = cfg.MODEL.dump()
        if model not in known:
            known[model] = analyze(build_on_cpu(cfg))
        rows[name] = line(name, known[model], square_size(cfg))
    return rows


def render(rows: dict[str, str]) -> str:
    """The page with all rows, in sections."""
    parts = [INTRODUCTION.rstrip()]
    for title, prefix in SECTIONS:
        inside = [row for name, row in rows.items() if (name.startswith(prefix) if prefix else "/" not in name)]
        if inside:
            parts.append(f"## {title}\n\n{HEADER}\n" + "\n".join(inside))
    return "\n\n".join(parts) + "\n"


def module_table(complexity: Complexity, size: tuple[int, int], depth: int = 2) -> str:
    """Parameters and multiply-adds of every module down to a depth, as Markdown."""
    rows = ["| module | parameters | multiply-adds, G | share |", "|---|---|---|---|"]
    total = complexity.multiply_adds(size)
    for name in ["", *complexity.modules(depth)]:
        count, giga = complexity.parameters[name], complexity.multiply_adds(size, name) / 1e9
        if count or giga:
            rows.append(f"| {name or 'all'} | {count:,} | {giga:.3f} | {1e11 * giga / total:.1f} % |")
    return "\n".join(rows)


def resolve(name: str) -> str:
    """Path relative to configs/ of a configuration given with or without that folder."""
    for path in (Path(name), CONFIGS / name):
        if path.is_file() and path.resolve().is_relative_to(CONFIGS):
            return path.resolve().relative_to(CONFIGS).as_posix()
    raise ConfigError(f"{name} is not a configuration below {CONFIGS}; try one of: ls configs/*/")


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("configs", nargs="*", metavar="CONFIG")
    parser.add_argument("--all", action="store_true", help="the page of all configurations")
    parser.add_argument("--output", type=Path, help="file for the page; by default it is printed")
    parser.add_argument("--depth", type=int, default=2, help="of the modules listed")
    parser.add_argument("--size", type=int, nargs=2, metavar=("HEIGHT", "WIDTH"), help="instead of the test size")
    args = parser.parse_args(argv)
    if bool(args.configs) == args.all:
        parser.error("give configurations or --all")
    try:
        if args.all:
            page = render(lines(tqdm(configurations(), desc="configurations")))
            if args.output:
                write_atomically(args.output, page)
            else:
                print(page, end="")
            return 0
        for name in map(resolve, args.configs):
            cfg = get_config(CONFIGS / name)
            complexity = analyze(build_on_cpu(cfg))
            size = tuple(args.size) if args.size else square_size(cfg)
            print(f"{HEADER}\n{line(name, complexity, size)}\n")
            print(f"At {size[1]}x{size[0]}:\n\n{module_table(complexity, size, args.depth)}\n")
    except ConfigError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
