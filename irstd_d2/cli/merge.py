"""Merge tables of imaging metadata and the tags of XML files into one table.

    irstd merge metadata.csv table.tsv mine/Annotations
    irstd merge metadata.csv first.csv second.csv --images mine/PNGImages

Sources are side-car tables and folders of XML files, the most trusted first: its word counts where two disagree. Ends
with code 1 and writes nothing when sources disagree, unless --accept-conflicts is given; conflicts and what is missing
are listed in either case.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from .options import new_parser

LISTED = 20


def get_parser() -> argparse.ArgumentParser:
    parser = new_parser(__doc__)
    parser.add_argument("output", metavar="OUTPUT", type=Path, help="table to write: .csv, or .tsv with tabs")
    parser.add_argument("sources", metavar="SOURCE", nargs="+", help="table or folder of XML files")
    parser.add_argument("--images", type=Path, metavar="PATH", help="folder or list of the images that it is for")
    parser.add_argument("--accept-conflicts", action="store_true", help="the first source decides")
    parser.add_argument("--skip-bad", action="store_true", help="leave faulty lines and files out")
    return parser


def print_list(title: str, lines: list[str]) -> None:
    """Print the first lines of a list below its title."""
    if lines:
        more = [f"... and {len(lines) - LISTED} more"] if len(lines) > LISTED else []
        print("\n  ".join([f"{title}: {len(lines)}", *lines[:LISTED], *more]))


def run(args: argparse.Namespace) -> int:
    from ..data.convert.metadata_tables import merge_metadata, read_metadata
    from ..data.layout import FolderIndex
    from ..data.sidecar import check_ids, format_sidecar
    from ..data.splits import read_split
    from ..files import write_atomically

    read = {source: read_metadata(source) for source in args.sources}
    wanted = None
    if args.images is not None:
        wanted = FolderIndex(args.images).stems() if args.images.is_dir() else read_split(args.images)[0]
        check_ids(", ".join(args.sources), {key for entries, _ in read.values() for key in entries}, wanted)
    faults = [str(fault) for _, found in read.values() for fault in found]
    merged = merge_metadata({source: entries for source, (entries, _) in read.items()}, wanted)
    print_list("Faults", faults)
    print_list("Conflicts", [str(conflict) for conflict in merged.conflicts])
    print_list("Images in no source", list(merged.missing))
    for field, count in merged.unknown.items():
        print(f"Unknown {field}: {count} of {len(merged.entries)} images")
    if faults and not args.skip_bad:
        print("error: correct the faults, or pass --skip-bad; nothing was written", file=sys.stderr)
        return 2
    if merged.conflicts and not args.accept_conflicts:
        print("error: correct the conflicts, or pass --accept-conflicts; nothing was written", file=sys.stderr)
        return 1
    table = format_sidecar(merged.entries, "\t" if args.output.suffix == ".tsv" else ",")
    write_atomically(args.output, table)
    print(f"Wrote {args.output}: {len(merged.entries)} images")
    return 0
