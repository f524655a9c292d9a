"""Split a data set at random: the same shares of every platform and band, and no sequence in two splits.

    irstd split mine --ratio train=0.7 val=0.2 test=0.1
    irstd split mine --ratio train=8 val=2 --group-pattern '^(.+)_\\d+$'
    irstd split mine.json --ratio train=8 val=2 --group-column scene --table scenes.csv

SOURCE is a folder in a VOC, mask or YOLO layout, or a COCO file. The split files are written where the layout has
them; of a COCO file, one file per split is written beside it, with everything that its images and annotations hold.
"""

from __future__ import annotations

import argparse
import json
from collections import Counter
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import ConfigError, DatasetError, first_of
from .options import LAYOUTS, STRATA, new_parser

if TYPE_CHECKING:
    from ..data.convert import DetectionSet


def parse_ratio(text: str) -> tuple[str, float]:
    """Read ``NAME=NUMBER``."""
    name, _, number = text.partition("=")
    try:
        value = float(number)
    except ValueError:
        value = -1.0
    if not (name and Path(name).name == name and 0 < value < float("inf")):
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME=SHARE, for example train=0.7")
    return name, value


def get_parser() -> argparse.ArgumentParser:
    parser = new_parser(__doc__)
    parser.add_argument("source", metavar="SOURCE", type=Path)
    parser.add_argument("--ratio", nargs="+", type=parse_ratio, required=True, metavar="NAME=SHARE")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--stratify", nargs="*", choices=STRATA, default=["platform", "band"], help="%(default)s")
    parser.add_argument(
        "--group-pattern", metavar="REGEX", help="images whose names have the same first group stay together"
    )
    parser.add_argument(
        "--group-column", metavar="NAME", help="images with the same value in this column stay together"
    )
    parser.add_argument("--table", metavar="FILE", help="with that column and image ids")
    parser.add_argument("--layout", choices=LAYOUTS, help="of a VOC folder; found out by default")
    parser.add_argument("--image-root", metavar="DIR", help="of a COCO file; by default the folder it is in")
    parser.add_argument("--overwrite", action="store_true", help="replace split files")
    return parser


def read(args: argparse.Namespace) -> tuple[DetectionSet, str]:
    """Read the source; return it and its format. All images count, whatever splits there are."""
    from ..data.convert import detect_format, read_coco, read_masks, read_voc, read_yolo

    readers = {
        "coco": partial(read_coco, image_root=args.image_root),
        "mask": partial(read_masks, splits={}),
        "yolo": partial(read_yolo, use_splits=False),
        "voc": partial(read_voc, layout=args.layout, use_splits=False),
    }
    source_format = detect_format(args.source)
    return readers[source_format](args.source), source_format


def find_groups(args: argparse.Namespace, names: list[str]) -> dict[str, str]:
    """Groups of images that stay together, by image."""
    from ..data.convert.splitting import groups_by_pattern
    from ..data.sidecar import read_column

    if args.group_pattern is not None:
        return groups_by_pattern(names, args.group_pattern)
    if args.group_column is None:
        return {}
    if args.table is None:
        raise ConfigError("--group-column needs the table that has it: --table FILE")
    column = read_column(args.table, args.group_column)
    if not column.keys() & set(names):
        raise DatasetError(args.table, "ids", f"none of the {len(names)} images", "write image names without suffix")
    return {name: column[name] for name in names if name in column}


def split_files(args: argparse.Namespace, source_format: str, split: str) -> Path:
    """Where the list of one split is written."""
    from ..data.layout import get_layout

    if source_format == "coco":
        return args.source.with_name(f"{args.source.stem}_{split}.json")
    if source_format == "voc":
        return args.source / get_layout(args.layout, args.source).split.format(split=split)
    return args.source / f"{split}.txt"


def content_of(args: argparse.Namespace, source_format: str, names: list[str], found: DetectionSet) -> str:
    """What is written for one split."""
    if source_format != "coco":
        by_name = {record.name: record.image for record in found.records}
        yolo = source_format == "yolo"
        lines = [f"./{by_name[name].relative_to(args.source)}" if yolo else name for name in names]
        return "".join(f"{line}\n" for line in lines)
    content = json.loads(args.source.read_bytes())
    root = args.source.parent if args.image_root is None else Path(args.image_root)
    chosen = {record.image for record in found.records if record.name in set(names)}
    images = [entry for entry in content["images"] if root / entry["file_name"].replace("\\", "/") in chosen]
    ids = {entry["id"] for entry in images}
    annotations = [entry for entry in content["annotations"] if entry["image_id"] in ids]
    return json.dumps(content | {"images": images, "annotations": annotations}, indent=1) + "\n"


def describe_splits(source: Path, splits: list[str]) -> None:
    """Name the split files in the ``data.yaml`` of a YOLO folder, in place of those that it names."""
    import yaml

    from ..data.convert.yolo_format import find_description, read_description, split_entries
    from ..files import write_atomically

    path = find_description(source)
    description = read_description(path) or {"path": "."}
    kept = {key: value for key, value in description.items() if key not in split_entries(description)}
    text = yaml.safe_dump(kept | {split: f"{split}.txt" for split in splits}, sort_keys=False)
    write_atomically(path, text)


def print_table(keys: list[str], strata: dict[str, tuple[str, ...]], splits: dict[str, list[str]]) -> None:
    """Print the number of images of each stratum in each split."""
    from tabulate import tabulate

    counts = {split: Counter(strata[name] for name in names) for split, names in splits.items()}
    rows = [[*stratum, *(counts[split][stratum] for split in splits)] for stratum in sorted(set(strata.values()))]
    if keys:
        rows.append(["all", *[""] * (len(keys) - 1), *map(len, splits.values())])
    print(tabulate(rows, headers=[*keys, *splits], disable_numparse=True))


def run(args: argparse.Namespace) -> int:
    from ..data.convert.coco_format import find_coco_files
    from ..data.convert.splitting import make_splits, stratum_of
    from ..files import list_files, write_atomically

    found, source_format = read(args)
    if source_format == "coco" and args.source.is_dir():
        sources = find_coco_files(args.source)
        if len(sources) > 1:
            problem = f"{', '.join(file.name for file in sources)} are splits already"
            raise DatasetError(args.source, "folder", problem, "name the one COCO file to split")
        args.source = sources[0]
    strata = {record.name: stratum_of(record, args.stratify) for record in found.records}
    groups = find_groups(args, list(strata))
    splits = make_splits(strata, dict(args.ratio), groups=groups, seed=args.seed)
    empty = [split for split, names in splits.items() if not names]
    if empty:
        raise ConfigError(f"no image is left for {', '.join(empty)}: give fewer splits, or smaller groups")
    files = {split: split_files(args, source_format, split) for split in splits}
    present = [str(path) for path in files.values() if path.exists()]
    if present and not args.overwrite:
        raise DatasetError(present[0], "file", "exists", "choose other names, or pass --overwrite")
    for split, names in splits.items():
        write_atomically(files[split], content_of(args, source_format, names, found))
    if source_format == "yolo":
        describe_splits(args.source, list(splits))
    print_table(args.stratify, strata, splits)
    if groups:
        alone = len(strata) - len(groups)
        print(f"{len(set(groups.values()))} groups of {len(groups)} images stay together; {alone} images stand alone")
    for path in files.values():
        print(f"Wrote {path}")
    if source_format in ("voc", "mask"):  # which read every list
        others = [path.name for path in list_files(path.parent, (".txt",)) if path not in files.values()]
        if others:
            print(f"Not replaced: {first_of(others)}, which may name images of the new splits")
    return 0
