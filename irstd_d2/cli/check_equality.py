"""Compare the models with numbers that the published implementations computed.

    irstd check-equality                    all systems that are installed, about a minute each
    irstd check-equality SYSTEM             one of them, or the metrics
    irstd check-equality --reference DIR    with the whole reference numbers in place of the compact ones

Weights and inputs are random and made again from names and seeds, so neither data nor checkpoints are needed: equality
says that the same function is computed. Runs on the CPU. The exit code is 1 if a difference is above its tolerance.
"""

from __future__ import annotations

import argparse
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import check_known
from .options import new_parser

if TYPE_CHECKING:
    from ..equality import Row

UNITS = {"relative": "", "px": " px", "absolute": "", "share": " differ"}


def get_parser() -> argparse.ArgumentParser:
    parser = new_parser(__doc__)
    parser.add_argument("names", nargs="*", metavar="SYSTEM", help="or metrics; default: all")
    parser.add_argument("--reference", type=Path, metavar="DIR", help="with the files of all systems that are compared")
    return parser


def run(args: argparse.Namespace) -> int:
    """Print the table of every system."""
    import tabulate

    wanted = args.names
    modules = equality_modules()
    check_known("SYSTEM", wanted, modules)
    failed = total = 0
    for name in wanted or modules:
        rows = import_module(modules[name]).compare(args.reference).rows
        table = [
            [r.what, r.numbers, _show(r, r.difference), _show(r, r.tolerance), "ok" if r.ok else f"ABOVE, at {r.worst}"]
            for r in rows
        ]
        headers = [name, "numbers", "largest difference", "tolerance", ""]
        print(tabulate.tabulate(table, headers, disable_numparse=True, colalign=("left", *["right"] * 3)), end="\n\n")
        failed, total = failed + sum(not row.ok for row in rows), total + sum(row.numbers for row in rows)
    verdict = f"{failed} rows are above their tolerance" if failed else "all within tolerance"
    print(f"{total:,} numbers compared, by themselves or in sums over them: {verdict}")
    return 1 if failed else 0


def equality_modules() -> dict[str, str]:
    """Name of a system -> the module that compares it; the metrics are one too."""
    from ..systems import registered_systems

    known = {system.name: system.equality_module for system in registered_systems() if system.equality_module}
    return {**known, "metrics": "irstd_d2.equality.evaluation"}


def _show(row: Row, value: float) -> str:
    return f"{value:.1e}{UNITS[row.unit]}" if value else "none"
