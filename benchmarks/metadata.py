#!/usr/bin/env python3
"""What are right metadata worth to a trained AuxDet, and what do wrong and missing ones cost?

    python benchmarks/metadata.py output/auxdet_{0,1,2} --dataset wideirstd_matched_val --output output/metadata

The runs are folders of ``irstd train``, of one configuration from several seeds. Each detects every image of the set
again with its metadata changed in one way at a time. Finished parts are kept. From three seeds on, the difference from
the right metadata has an interval (95 %), which covers images and seeds.
"""

from __future__ import annotations

import argparse
import platform
import shlex
import sys
from collections.abc import Sequence
from datetime import date
from pathlib import Path

import numpy as np
import torch
from compare_trainings import compare, mean_and_std, outcomes_of
from detectron2.data import DatasetCatalog
from detectron2.modeling import build_model
from tqdm import tqdm

import auxdet_d2  # noqa: F401  registers
from irstd_d2 import get_config
from irstd_d2.data import build_mapper
from irstd_d2.engine import IRSTDCheckpointer
from irstd_d2.errors import check_known
from irstd_d2.evaluation.bootstrap import resampled_metrics
from irstd_d2.evaluation.collection import PredictionsWriter
from irstd_d2.evaluation.ground_truth import GroundTruth
from irstd_d2.evaluation.results import format_table

SIZE = ("width", "height")
METRICS = {"AP50": "bbox/AP50", "best F1": "pd_fa/F1"}
Metadata = dict[str, object]


def shuffled(all_metadata: Sequence[Metadata]) -> list[Metadata]:
    """That of another image."""
    order = np.random.default_rng(0).permutation(len(all_metadata))
    return [all_metadata[i] for i in order]


def missing(all_metadata: Sequence[Metadata], fields: Sequence[str]) -> list[Metadata]:
    """The fields are unknown."""
    return [{**metadata, **dict.fromkeys(fields)} for metadata in all_metadata]


def wrong(all_metadata: Sequence[Metadata], fields: Sequence[str], values: Sequence[tuple]) -> list[Metadata]:
    """The fields have values that are not the image's own, at random among ``values``."""
    rng, changed = np.random.default_rng(0), []
    for metadata in all_metadata:
        others = [value for value in values if value != tuple(metadata[field] for field in fields)]
        changed.append({**metadata, **dict(zip(fields, others[rng.integers(len(others))]))})
    return changed


def changes(
    all_metadata: Sequence[Metadata], platforms: Sequence[str], bands: Sequence[str]
) -> dict[str, Sequence[Metadata]]:
    """Name -> the metadata of all images, changed; the first are their own. In a set of one size no size is wrong."""
    sizes = sorted({tuple(metadata[key] for key in SIZE) for metadata in all_metadata})
    return {
        "right": all_metadata,
        "of another image": shuffled(all_metadata),
        "wrong platform": wrong(all_metadata, ["platform"], [(name,) for name in platforms]),
        "wrong band": wrong(all_metadata, ["band"], [(name,) for name in bands]),
        **({"wrong size": wrong(all_metadata, SIZE, sizes)} if len(sizes) > 1 else {}),
        "no platform": missing(all_metadata, ["platform"]),
        "no band": missing(all_metadata, ["band"]),
        "no size": missing(all_metadata, SIZE),
        "none": missing(all_metadata, ["platform", "band", *SIZE]),
    }


def detect(
    run: Path, dataset: str, output: Path, only: Sequence[str] = (), options: Sequence[str] = ()
) -> dict[str, Path]:
    """Detect with every change of the metadata, or ``only`` these; ``options`` change the run's configuration.

    Returns:
        the folders of the predictions by the names of the changes.

    Raises:
        ConfigError: ``only`` names a change that there is not.
    """
    device = "cuda" if torch.cuda.is_available() else "cpu"
    cfg = get_config(run / "config.yaml", ["MODEL.DEVICE", device, *options])
    model, mapper = build_model(cfg).eval(), build_mapper(cfg, is_train=False)
    IRSTDCheckpointer(model).load(str(run / "model_final.pth"))
    dicts, truth, folders = DatasetCatalog.get(dataset), GroundTruth.from_dataset(dataset), {}
    vocabulary = cfg.MODEL.METADATA
    all_metadata = [record["metadata"] for record in dicts]
    made = changes(all_metadata, vocabulary.PLATFORMS, vocabulary.BANDS)
    check_known("--only", only, made)
    for name, changed in made.items():
        if only and name not in only:
            continue
        folders[name] = output / run.name / name.replace(" ", "_")
        done = folders[name] / "finished"
        if done.exists():
            continue
        writer = PredictionsWriter(truth, folders[name] / dataset)
        for record, metadata in zip(tqdm(dicts, desc=f"{run.name}, {name}"), changed):
            sample = mapper({**record, "metadata": metadata})
            with torch.no_grad():
                writer.process([sample], model([sample]))
        writer.evaluate()
        done.touch()
    return folders


def compared(folders: Sequence[dict[str, Path]], dataset: str) -> list[list[str]]:
    """Rows of a table: name, then each metric and its difference from the first name's.

    Args:
        folders: per seed, names -> folders of predictions; see ``detect``.
        dataset: name of the set.
    """
    metrics, rows, first = resampled_metrics(), [], {}
    whole = np.ones((1, len(DatasetCatalog.get(dataset))), int)
    for name in folders[0]:
        cells = []
        for key in METRICS.values():
            judged = outcomes_of([seed[name] for seed in folders], dataset, metrics[key])
            cells.append(mean_and_std([100 * float(metrics[key].values(outcomes, whole)[0]) for outcomes in judged]))
            if key not in first:
                first[key] = judged
                cells.append("")
                continue
            d = compare(metrics[key], first[key], judged)
            interval = "too few seeds" if np.isnan(d.low) else f"{100 * d.low:+.1f} to {100 * d.high:+.1f}"
            cells.append(f"{100 * d.value:+.1f} ({interval})")
        rows.append([name, *cells])
    return rows


def table(rows: Sequence[Sequence[str]], first: str) -> str:
    """``compared`` as Markdown, with the header of the first column."""
    return format_table(rows, [first, *(column for name in METRICS for column in (name, "difference"))])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path)
    parser.add_argument("--dataset", required=True)
    parser.add_argument("--output", type=Path, required=True, help="folder for detections")
    parser.add_argument(
        "--only", nargs="+", metavar="CHANGE", default=[], help='these changes beside "right", as "none"'
    )
    parser.add_argument("--opts", nargs="+", metavar="KEY VALUE", default=[], help="change the runs' configuration")
    args = parser.parse_args()
    if args.dataset not in DatasetCatalog.list():
        parser.error(f"--dataset {args.dataset} is not registered; datasets/README.md lists those that are")
    only = ["right", *args.only] if args.only else []
    folders = [detect(run, args.dataset, args.output, only, args.opts) for run in args.runs]
    text = table(compared(folders, args.dataset), f"metadata, {args.dataset}")
    print(f"    python benchmarks/metadata.py {shlex.join(sys.argv[1:])}\n")
    print(f"{date.today()}, {platform.machine()} CPU, torch {torch.__version__}; percent, {len(args.runs)} seeds.\n")
    print(text)


if __name__ == "__main__":
    main()
