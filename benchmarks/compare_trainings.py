#!/usr/bin/env python3
"""Train several configurations from several seeds, judge them on one set, and compare each with the first.

    python benchmarks/compare_trainings.py --dataset densesirst_v2_test --seeds 3 --output output/context \
        --row FCOS configs/bafe/tiny/fcos_fine.yaml \
        --row BAFE-Net configs/bafe/tiny/bafe_fine.yaml [KEY VALUE ...] [-- KEY VALUE ... for all rows]

Finished runs are kept, an interrupted one goes on. ``--published NAME METRIC VALUE ...`` puts a row of a paper beside
them, ``--figure`` draws the bars. With three seeds or more a difference has an interval: seeds and
images are drawn again together (the same images for both systems), so it covers both sources of chance.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shlex
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
import torch
from detectron2.data import DatasetCatalog

import auxdet_d2  # noqa: F401  registers
import bafe_d2  # noqa: F401  registers
from irstd_d2.evaluation.bootstrap import ResampledMetric, image_draws, resampled_metrics
from irstd_d2.evaluation.collection import DetectionCollector, add_predictions_file
from irstd_d2.evaluation.ground_truth import GroundTruth
from irstd_d2.evaluation.rescoring import find_predictions
from irstd_d2.evaluation.results import format_table

ROOT = Path(__file__).resolve().parents[1]
METRICS = {
    "mAP07": "voc_paper/AP50_11point",
    "mAP12": "voc_paper/AP50_area",
    "recall": "voc_paper/recall50",
    "AP": "bbox/AP",
    "AP50": "bbox/AP50",
    "recall50": "bbox/recall50",
    "best F1": "pd_fa/F1",
    "FA/image at 80 % recall": "pd_fa/FAPI@80",
    "sky IoU": "sky/IoU",
    "other IoU": "sky/IoU_other",
}
COMPARED = {"mAP12": "voc_paper/AP50_area", "AP50": "bbox/AP50", "best F1": "pd_fa/F1"}
FIGURE = ("mAP07", "mAP12", "recall", "best F1", "FA/image at 80 % recall")
MIN_SEEDS = 3


@dataclass(frozen=True)
class Row:
    """One configuration: name in the table, file, and keys that differ from the file."""

    name: str
    config: str
    options: tuple[str, ...]


@dataclass(frozen=True)
class Difference:
    """Mean over seeds of second minus first, with its 95 % interval and two-sided p; NaN with too few seeds."""

    value: float
    low: float
    high: float
    p_value: float


def train(row: Row, seed: int, output: Path, options: Sequence[str]) -> tuple[Path, float]:
    """Train and test one run, or go on with it; return its folder and the processor seconds of this call."""
    folder = output / f"{row.name.lower().replace(' ', '_')}_{seed}"
    folder.mkdir(parents=True, exist_ok=True)
    done, spent = folder / "finished", folder / "processor_seconds"
    if done.exists():
        return folder, float(spent.read_text())
    command = [
        sys.executable,
        str(ROOT / "tools" / "train_net.py"),
        "--config-file",
        str(ROOT / row.config),
    ]
    command += ["--resume"] if any(folder.glob("model_*.pth")) else []
    command += [*options, *row.options, "SEED", str(seed), "OUTPUT_DIR", str(folder)]
    before = os.times()
    with (folder / "console.txt").open("a") as console:
        subprocess.run(command, check=True, cwd=ROOT, env=os.environ | {"OMP_NUM_THREADS": "1"}, stdout=console)
    after = os.times()
    seconds = after.children_user + after.children_system - before.children_user - before.children_system
    seconds += float(spent.read_text()) if spent.exists() else 0.0
    spent.write_text(f"{seconds:.0f}\n")
    done.touch()
    return folder, seconds


def metrics_of(folder: Path) -> dict[str, float]:
    """The last results that a run wrote."""
    rows = [json.loads(line) for line in (folder / "metrics.json").read_text().splitlines()]
    results = [row for row in rows if any(key.endswith(METRICS["mAP12"]) for key in row)]
    return results[-1]


def compare(metric: ResampledMetric, first: Sequence, second: Sequence, draws: int = 2000) -> Difference:
    """Paired bootstrap over seeds and images.

    Args:
        metric: from ``resampled_metrics``.
        first, second: per seed, what ``metric.outcomes`` made of the run.
        draws: number of resamplings.
    """
    images = len(first[0][0].targets)
    weights = np.concatenate([np.ones((1, images), int), image_draws(images, draws)])
    per_seed = np.stack([metric.values(b, weights) - metric.values(a, weights) for a, b in zip(first, second)])
    value = float(per_seed[:, 0].mean())
    if len(per_seed) < MIN_SEEDS:
        return Difference(value, np.nan, np.nan, np.nan)
    seeds = np.random.default_rng(1).integers(len(per_seed), size=(draws, len(per_seed)))
    drawn = per_seed[:, 1:][seeds, np.arange(draws)[:, None]].mean(1)
    low, high = np.quantile(drawn, [0.025, 0.975])
    tail = min((drawn <= 0).mean(), (drawn >= 0).mean())
    return Difference(value, float(low), float(high), float(min(1.0, 2 * max(tail, 1 / draws))))


def outcomes_of(folders: Sequence[Path], dataset: str, metric: ResampledMetric) -> list:
    """Per run, the verdicts on its saved predictions that a metric needs."""
    truth = GroundTruth.from_dataset(dataset)
    found = []
    for folder in folders:
        collector = DetectionCollector(truth)
        add_predictions_file(collector, find_predictions(folder, dataset))
        found.append(metric.outcomes(collector.detections(), truth.targets, truth.pixels, len(truth.class_names)))
    return found


def draw(rows: dict[str, dict[str, list[float]]], file: Path) -> None:
    """Bars with the single seeds as dots.

    Args:
        rows: name of a row -> metric -> one value per seed; metrics that a row lacks are left out.
        file: the picture to write.
    """
    metrics = [key for key in FIGURE if any(key in values for values in rows.values())]
    figure, axes = plt.subplots(1, len(metrics), figsize=(2.6 * len(metrics), 3.2), squeeze=False)
    colors = plt.get_cmap("tab10").colors
    for axis, key in zip(axes[0], metrics):
        for place, (name, values) in enumerate(rows.items()):
            if key in values:
                axis.bar(place, np.mean(values[key]), color=colors[place], label=name, width=0.8)
                axis.plot([place] * len(values[key]), values[key], "k.", markersize=4)
                axis.annotate(f"{np.mean(values[key]):.1f}", (place, np.max(values[key])), ha="center", va="bottom")
        axis.set_title(key, fontsize=9)
        axis.set_xlim(-0.6, len(rows) - 0.4)
        axis.margins(y=0.12)
        axis.set_xticks([])
        axis.spines[["top", "right"]].set_visible(False)
    handles = [plt.Rectangle((0, 0), 1, 1, color=colors[place]) for place in range(len(rows))]
    figure.legend(handles, rows, loc="lower center", ncols=2, frameon=False, fontsize=8)
    figure.tight_layout(rect=(0, 0.08 + 0.05 * ((len(rows) + 1) // 2), 1, 1))
    figure.savefig(file, dpi=110)
    plt.close(figure)


def mean_and_std(values: Sequence[float]) -> str:
    if not len(values):
        return ""
    return f"{np.mean(values):.1f}" + (f" +- {np.std(values, ddof=1):.1f}" if len(values) > 1 else "")


def values_of(results: dict[str, list[dict[str, float]]], dataset: str) -> dict[str, dict[str, list[float]]]:
    """Row -> metric -> one value per seed, of the metrics that were evaluated."""
    first = next(iter(results.values()))[0]
    prefix = "" if METRICS["mAP12"] in first else f"{dataset}/"
    return {
        name: {k: [r[prefix + v] for r in runs] for k, v in METRICS.items() if all(prefix + v in r for r in runs)}
        for name, runs in results.items()
    }


def differences(rows: Sequence[Row], folders: dict[str, list[Path]], dataset: str) -> str:
    """How the rows differ from the first, with intervals, as Markdown."""
    metrics = resampled_metrics()
    table = []
    for row in rows[1:]:
        cells = []
        for key in COMPARED.values():
            judged = [outcomes_of(folders[name], dataset, metrics[key]) for name in (rows[0].name, row.name)]
            d = compare(metrics[key], *judged)
            few = np.isnan(d.low)
            interval = "too few seeds" if few else f"{100 * d.low:+.1f} to {100 * d.high:+.1f}, p {d.p_value:.3f}"
            cells.append(f"{100 * d.value:+.1f} ({interval})")
        table.append([f"{row.name} - {rows[0].name}", *cells])
    return format_table(table, ["difference", *COMPARED]) if table else ""


def parse_rows(argv: Sequence[str]) -> tuple[argparse.Namespace, list[Row], list[str]]:
    """Command line -> arguments, rows, options of all rows."""
    argv, common = (list(argv[: argv.index("--")]), list(argv[argv.index("--") + 1 :])) if "--" in argv else (argv, [])
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--row", action="append", nargs="+", required=True, metavar="NAME CONFIG [KEY VALUE]")
    parser.add_argument("--dataset", action="append", required=True, help="evaluated set; may be given again")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--published", action="append", default=[], nargs="+", metavar="NAME METRIC VALUE")
    parser.add_argument("--result", type=Path, help="Markdown file to write")
    parser.add_argument("--figure", type=Path, help="picture to write, of the first set")
    args = parser.parse_args(argv)
    for row in args.published:
        if len(row) < 3 or not len(row) % 2 or not set(row[1::2]) <= set(METRICS):
            parser.error(f"--published {' '.join(row)}: give a name, then pairs of metric and value; {list(METRICS)}")
    for row in args.row:
        if len(row) < 2 or len(row) % 2:
            parser.error(f"--row {' '.join(row)}: give a name, a configuration, then pairs of key and value")
    return args, [Row(r[0], r[1], tuple(r[2:])) for r in args.row], common


def main() -> None:
    args, rows, common = parse_rows(sys.argv[1:])
    unknown = [name for name in args.dataset if name not in DatasetCatalog.list()]
    if unknown:
        raise SystemExit(f"--dataset {unknown[0]} is not registered; datasets/README.md lists those that are")
    output = args.output.resolve()
    common = ["DATASETS.TEST", str(tuple(args.dataset)), *common]
    folders: dict[str, list[Path]] = {row.name: [] for row in rows}
    seconds: dict[str, list[float]] = {row.name: [] for row in rows}
    jobs, start = [(seed, row) for seed in range(args.seeds) for row in rows], time.monotonic()
    for done, (seed, row) in enumerate(jobs):
        folder, spent = train(row, seed, output, common)
        folders[row.name].append(folder)
        seconds[row.name].append(spent)
        left = (time.monotonic() - start) / (done + 1) * (len(jobs) - done - 1)
        print(f"{row.name}, seed {seed}: done; {done + 1} of {len(jobs)}, about {left / 60:.0f} min left", flush=True)
    lines = [
        f"    python benchmarks/compare_trainings.py {shlex.join(sys.argv[1:])}",
        f"{date.today()}, {platform.machine()} CPU, one thread a training, torch {torch.__version__}; percent, mean "
        "and standard deviation over seeds.",
    ]
    for dataset in args.dataset:
        values = values_of({name: [metrics_of(f) for f in found] for name, found in folders.items()}, dataset)
        for name, *pairs in args.published:
            values[name] = {key: [float(value)] for key, value in zip(pairs[::2], pairs[1::2])}
        shown = [key for key in METRICS if any(key in row for row in values.values())]
        table = [
            [
                name,
                *(mean_and_std(row.get(key, [])) for key in shown),
                f"{np.mean(seconds[name]) / 60:.0f}" if name in seconds else "",
            ]
            for name, row in values.items()
        ]
        lines.append(format_table(table, [dataset, *shown, "processor minutes"]))
        lines.append(differences(rows, folders, dataset))
        if args.figure and dataset == args.dataset[0]:
            draw(values, args.figure)
    text = "\n\n".join(line for line in lines if line) + "\n"
    print(text)
    if args.result:
        args.result.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
