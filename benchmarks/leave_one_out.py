#!/usr/bin/env python3
"""A platform that training never saw: what do a few of its images give, with metadata and without?

    python benchmarks/leave_one_out.py --platform Land --seeds 3 --output output/leave_land
    python benchmarks/leave_one_out.py --platform Land --seeds 3 --output output/leave_land --only-seed 1   # this part

AuxDet, and the same network whose metadata are always unknown, train on the other platforms of WideIRSTD-matched and
SpaceIR-sen2ships, then on ``--images`` of the platform, the same for both, and are tested on its validation images.
Finished parts are kept, an interrupted one goes on. From three seeds on, differences have an interval (95 %), which
covers images and seeds.
"""

from __future__ import annotations

import argparse
import platform
import shlex
import sys
from collections import defaultdict
from collections.abc import Mapping, Sequence
from datetime import date
from pathlib import Path

import numpy as np
import torch
from compare_trainings import Row, train
from detectron2.data import DatasetCatalog, MetadataCatalog
from metadata import compared, detect, table

from irstd_d2.data import LAYOUTS
from irstd_d2.data.datasets import register_own_sets
from irstd_d2.data.layout_writer import split_lines
from irstd_d2.errors import ConfigError

SETS = ("wideirstd_matched", "spaceir")
CONFIG = "configs/auxdet/tiny/auxdet_fine.yaml"
# What is changed in the metadata of the test (metadata.changes) -> keys of the training.
NETWORKS = {"right": (), "none": ("INPUT.METADATA_DROPOUT_ALL", "1.0")}
# A short training: a short warm-up, and fewer batches for the statistics of batch norm.
SHORT = ("SOLVER.WARMUP_ITERS", "10", "TEST.PRECISE_BN.NUM_ITER", "25")
OwnSet = tuple[str, str, str]


def linked_set(source: Path, root: Path, splits: Mapping[str, Sequence[str]]) -> None:
    """Make ``root`` a data set of the files of ``source`` with split lists of its own: name -> ids of images."""
    split = LAYOUTS["wideirstd"].split  # of all SETS
    for name, ids in splits.items():
        file = root / split.format(split=name)
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(split_lines(ids))
    top, lists, *_ = Path(split).parts
    for folder in (source / top).iterdir():
        if folder.name != lists and not (root / top / folder.name).exists():
            (root / top / folder.name).symlink_to(folder.resolve())


def splits_of(name: str, held_out: str, counts: Sequence[int], seeds: int) -> dict[str, list[str]]:
    """Lists of images of one of the ``SETS``; those without images are left out.

    Args:
        name: of the set, without "_train" and "_val".
        held_out: a platform.
        counts: numbers of its images to go on with.
        seeds: each draws its own images; those of a smaller number are among those of a larger one.

    Returns:
        "others", the training images of the other platforms; "test", the validation images of the platform; and
        "COUNT_SEED", training images of it.

    Raises:
        ConfigError: the set has fewer of these than the largest number.
    """
    by_platform: dict[tuple[str, bool], list[str]] = defaultdict(list)
    for part in ("train", "val"):
        for record in DatasetCatalog.get(f"{name}_{part}"):
            by_platform[part, record["metadata"]["platform"] == held_out].append(str(record["image_id"]))
    lists, own = {"others": by_platform["train", False], "test": by_platform["val", True]}, by_platform["train", True]
    if own and len(own) < max(counts):
        raise ConfigError(f"--images {max(counts)}: {name}_train has {len(own)} of {held_out}")
    for seed in range(seeds):
        drawn = np.random.default_rng(seed).permutation(own)
        lists |= {f"{count}_{seed}": drawn[:count].tolist() for count in counts}
    return {key: ids for key, ids in lists.items() if ids}


def own_sets(held_out: str, counts: Sequence[int], seeds: int, output: Path) -> dict[str, list[OwnSet]]:
    """Write the lists of all ``SETS`` below ``output`` and return what ``DATASETS.OWN`` takes, per list."""
    found: dict[str, list[OwnSet]] = defaultdict(list)
    for name in SETS:
        root = output.resolve() / "data" / name
        splits = splits_of(name, held_out, counts, seeds)
        linked_set(MetadataCatalog.get(f"{name}_train").source.present_root(), root, splits)
        for key in splits:
            found[key].append((f"{name}_{key}_{held_out.lower()}", str(root), key))
    return found


def trainings(
    network: str, seed: int, sets: dict[str, list[OwnSet]], counts: Sequence[int], lengths: Sequence[int], output: Path
) -> dict[int, Path]:
    """Train on the other platforms, then on every number of images.

    Returns:
        folders by the number of images, 0 for the training on the others.
    """

    def run(name: str, key: str, iterations: int, *options: str) -> Path:
        of_key = ("DATASETS.OWN", str(tuple(sets[key])), "DATASETS.TRAIN", str(tuple(own[0] for own in sets[key])))
        row = Row(name, CONFIG, (*of_key, "SOLVER.MAX_ITER", str(iterations), *NETWORKS[network], *options))
        return train(row, seed, output.resolve(), ("DATASETS.TEST", "()", "DATALOADER.NUM_WORKERS", "0"))[0]

    base = run(f"{network}_0", "others", lengths[0])
    weights = ("MODEL.WEIGHTS", str(base / "model_final.pth"), *SHORT)
    return {0: base} | {n: run(f"{network}_{n}", f"{n}_{seed}", lengths[1], *weights) for n in counts}


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--platform", required=True, choices=("Air", "Land", "Space"))
    parser.add_argument("--images", nargs="+", type=int, default=[5, 20, 50], help="of the platform, to go on with")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--only-seed", type=int, help="run this seed and print no table")
    parser.add_argument("--iterations", nargs=2, type=int, default=[600, 100], metavar=("BEFORE", "AFTER"))
    parser.add_argument("--output", type=Path, required=True)
    args = parser.parse_args(arguments)
    sets = own_sets(args.platform, args.images, args.seeds, args.output)
    ((test, _, _),) = sets["test"]  # every platform is in one of the sets
    register_own_sets(sets["test"])
    folders: dict[tuple[str, int], list[Path]] = defaultdict(list)
    for seed in range(args.seeds) if args.only_seed is None else [args.only_seed]:
        for network in NETWORKS:
            for count, run in trainings(network, seed, sets, args.images, args.iterations, args.output).items():
                folders[network, count].append(detect(run, test, args.output / "detections", [network])[network])
    if args.only_seed is None:
        rows = []
        for count in (0, *args.images):
            pairs = zip(folders["none", count], folders["right", count], strict=True)
            named = [{f"{count}, none": none, f"{count}, right": right} for none, right in pairs]
            rows += compared(named, test)
        print(f"    python benchmarks/leave_one_out.py {shlex.join(arguments or sys.argv[1:])}\n")
        machine = f"{platform.machine()} CPU, torch {torch.__version__}"
        print(f"{date.today()}, {machine}; percent, {args.seeds} seed(s).\n")
        print(table(rows, f"images of {args.platform}, metadata"))
    return 0


if __name__ == "__main__":
    sys.exit(main())
