#!/usr/bin/env python3
"""Does AuxDet use metadata? AuxDet against its Cascade RPN baseline, same training, on a fixed synthetic benchmark.

    python benchmarks/auxdet_metadata.py --output output/auxdet_metadata

600 training and 200 test scenes of 128x128 pixels in which only platform and band tell targets from clutter
(tools/make_synthetic.py --size 128x128 --balance uniform --domain-conflict 1.0, seed 0). Each system trains from each
seed; AuxDet is then also tested with the metadata of the test images shuffled, and with none. Finished runs are kept.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from datetime import date
from pathlib import Path

import numpy as np
import torch

ROOT = Path(__file__).resolve().parents[1]
SYSTEMS = {
    "baseline": "configs/auxdet/tiny/cascade_rpn_tiny.yaml",
    "AuxDet": "configs/auxdet/tiny/auxdet_tiny.yaml",
}


def environment(data: Path) -> dict[str, str]:
    return {**os.environ, "DETECTRON2_DATASETS": str(data), "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}


def make_data(data: Path) -> None:
    options = [
        "--train",
        "600",
        "--val",
        "200",
        "--size",
        "128x128",
        "--balance",
        "uniform",
        "--domain-conflict",
        "1.0",
    ]
    command = [sys.executable, str(ROOT / "tools/make_synthetic.py"), "--output", str(data), *options]
    subprocess.run(command, check=True, cwd=ROOT, env=environment(data))


def make_parser(description: str) -> argparse.ArgumentParser:
    """The options of the benchmarks that train the systems of a table from several seeds."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    folder = ROOT / "output" / "auxdet_metadata"
    parser.add_argument("--output", type=lambda path: Path(path).resolve(), default=folder)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--iterations", type=int, default=400)
    parser.add_argument("--jobs", type=int, default=2, help="trainings at a time")
    return parser


def train_all(systems: Mapping[str, str], args: argparse.Namespace, output: Path) -> list[tuple[str, int]]:
    """Train every system (name -> configuration) from every seed; return names and seeds."""
    runs = [(name, seed) for seed in range(args.seeds) for name in systems]
    with ThreadPoolExecutor(args.jobs) as pool:
        list(pool.map(lambda run: train(*run, systems[run[0]], args.iterations, output), runs))
    return runs


def train(name: str, seed: int, config: str, iterations: int, output: Path) -> None:
    """Train one run, or go on with it."""
    folder = output / f"{name}_{seed}"
    command = [
        sys.executable, str(ROOT / "tools/train_net.py"), "--config-file", config,
        *(["--resume"] if list(folder.glob("model_*.pth")) else []),
        "SEED", str(seed), "SOLVER.MAX_ITER", str(iterations), "DATASETS.TEST", "()", "DATALOADER.NUM_WORKERS", "0",
        "OUTPUT_DIR", str(folder),
    ]  # fmt: skip
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "stdout.txt").open("ab") as log:
        subprocess.run(command, check=True, cwd=ROOT, env=environment(output / "data"), stdout=log, stderr=log)
    print(f"trained {folder.name}", flush=True)


def evaluate(name: str, seed: int, output: Path) -> dict[str, float]:
    """AP50 (COCO, percent) of a run with the true metadata, shuffled metadata, and none."""
    from detectron2.data import DatasetCatalog, MetadataCatalog

    import auxdet_d2  # noqa: F401  registers
    from irstd_d2 import get_config
    from irstd_d2.engine import IRSTDCheckpointer, IRSTDTrainer

    variants = {"true": lambda dicts: dicts}
    if name == "AuxDet":
        variants["shuffled"] = shuffle_metadata
        variants["none"] = lambda dicts: [
            {**d, "metadata": {"platform": None, "band": None, "width": None, "height": None}} for d in dicts
        ]
    results = {}
    for variant, change in variants.items():
        data_set = f"synthetic_omni_val_{variant}"
        if data_set not in DatasetCatalog.list():
            DatasetCatalog.register(data_set, lambda change=change: change(DatasetCatalog.get("synthetic_omni_val")))
            MetadataCatalog.get(data_set).set(thing_classes=MetadataCatalog.get("synthetic_omni_val").thing_classes)
        folder = output / f"{name}_{seed}"
        options = ["MODEL.DEVICE", "cpu", "DATASETS.TEST", (data_set,), "OUTPUT_DIR", str(folder)]
        cfg = get_config(ROOT / SYSTEMS[name], [*options, "TEST.EVALUATORS", ("coco",), "DATALOADER.NUM_WORKERS", 0])
        model = IRSTDTrainer.build_model(cfg)
        IRSTDCheckpointer(model).load(str(folder / "model_final.pth"))
        results[variant] = IRSTDTrainer.test(cfg, model)["bbox"]["AP50"]
    return results


def shuffle_metadata(dicts: list[dict]) -> list[dict]:
    """Give every image the metadata of another one."""
    order = np.random.default_rng(0).permutation(len(dicts))
    return [{**d, "metadata": dicts[i]["metadata"]} for d, i in zip(dicts, order)]


def report(results: dict[str, dict[str, float]], seeds: int, iterations: int) -> str:
    """The table as Markdown."""
    lines = [
        "# AuxDet and metadata, synthetic benchmark",
        "",
        f"`python benchmarks/auxdet_metadata.py --seeds {seeds} --iterations {iterations}`",
        "",
        f"{date.today()}, {platform.machine()} CPU, one thread per run, torch {torch.__version__}. AP50 (COCO, exact "
        "boxes), percent, by seed. All three platforms are synthetic.",
        "",
        "| system | metadata of the test images | " + " | ".join(f"seed {s}" for s in range(seeds)) + " | mean | std |",
        "|" + "---|" * (seeds + 4),
    ]
    for name, variant in (("baseline", "true"), ("AuxDet", "true"), ("AuxDet", "shuffled"), ("AuxDet", "none")):
        values = [results[f"{name}_{seed}"][variant] for seed in range(seeds)]
        spread = statistics.stdev(values) if seeds > 1 else float("nan")
        label = "not used" if name == "baseline" else variant
        numbers = " | ".join(f"{v:.1f}" for v in (*values, statistics.mean(values), spread))
        lines.append(f"| {name} | {label} | {numbers} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    args = make_parser(__doc__).parse_args()
    output = args.output
    make_data(output / "data")
    runs = train_all(SYSTEMS, args, output)
    os.environ.update(environment(output / "data"))
    results = {f"{name}_{seed}": evaluate(name, seed, output) for name, seed in runs}
    (output / "results.json").write_text(json.dumps(results, indent=1))
    text = report(results, args.seeds, args.iterations)
    target = ROOT / "benchmarks" / "results" / "auxdet_metadata.md"
    target.parent.mkdir(exist_ok=True)
    target.write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
