#!/usr/bin/env python3
"""FCOS and BAFE-Net at native resolution on the real DenseSIRST, from random initialisation, CPU-sized.

    DETECTRON2_DATASETS=... python benchmarks/densesirst_fine.py --output output/densesirst_fine

Each system trains on trainval_v2 from each seed (configs/bafe/tiny/*_fine.yaml) and is tested on test_v2. Finished runs
are kept; an interrupted one goes on.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
from datetime import date
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parents[1]
SYSTEMS = {"fcos": "FCOS", "bafe": "BAFE-Net, BAG-CP"}
METRICS = {
    "mAP07": "voc_paper/AP50_11point",
    "mAP12": "voc_paper/AP50_area",
    "recall": "voc_paper/recall50",
    "AP (COCO)": "bbox/AP",
    "AP50": "bbox/AP50",
    "recall50": "bbox/recall50",
    "Pd": "pd_fa/Pd",
    "best F1": "pd_fa/F1",
    "sky accuracy": "sky/pixel_accuracy",
}
PUBLISHED = (
    "Published, mAP07 / mAP12 (ImageNet weights, 512x512, 20 epochs): BAFE-Net R18 28.3 / 23.3, FCOS R50 23.2 / 20.4."
)


def train(system: str, seed: int, output: Path) -> dict[str, float]:
    """Train and test one run, or go on with it; return its metrics."""
    folder = output / f"fine_{system}_{seed}"
    folder.mkdir(parents=True, exist_ok=True)
    config = ROOT / "configs" / "bafe" / "tiny" / f"{system}_fine.yaml"
    command = [sys.executable, str(ROOT / "tools/train_net.py"), "--config-file", str(config)]
    command += ["--resume"] if list(folder.glob("model_*.pth")) else []
    command += ["SEED", str(seed), "OUTPUT_DIR", str(folder)]
    if not (metrics := read_metrics(folder)):
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
        subprocess.run(command, check=True, cwd=ROOT, env=environment)
        metrics = read_metrics(folder)
    return metrics


def read_metrics(folder: Path) -> dict[str, float]:
    """The results of a finished run, else nothing."""
    path = folder / "metrics.json"
    rows = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    found = [row for row in rows if METRICS["mAP07"] in row]
    return found[-1] if found and (folder / "model_final.pth").exists() else {}


def report(results: dict[str, list[dict[str, float]]]) -> str:
    """The table as Markdown."""
    seeds = max(map(len, results.values()))
    lines = [
        "# Native resolution on the real DenseSIRST, CPU-sized",
        "",
        f"`python benchmarks/densesirst_fine.py --seeds {seeds}`",
        "",
        f"{date.today()}, {platform.machine()} CPU, one thread, torch {torch.__version__}. 768 training images, the "
        "256 of test_v2. ResNet-10 of half the usual width, random initialisation, 500 iterations of eight 128x128 "
        "crops enlarged twice; whole images enlarged twice at test time. Percent. mAP07, mAP12 and recall are the "
        "papers' protocol, the others use exact boxes.",
        "",
        "| system | seed | " + " | ".join(METRICS) + " |",
        "|" + "---|" * (len(METRICS) + 2),
    ]
    for system, runs in results.items():
        name = SYSTEMS[system]
        lines += [
            f"| {name} | {seed} | " + " | ".join(_cell([run.get(key)]) for key in METRICS.values()) + " |"
            for seed, run in enumerate(runs)
        ]
        if len(runs) > 1:
            cells = " | ".join(_cell([run.get(key) for run in runs]) for key in METRICS.values())
            lines.append(f"| {name} | mean +- std | {cells} |")
    return "\n".join([*lines, "", PUBLISHED]) + "\n"


def _cell(values: list[float | None]) -> str:
    known = [value for value in values if value is not None]
    if not known:
        return ""
    mean = f"{statistics.mean(known):.1f}"
    return mean if len(known) == 1 else f"{mean} +- {statistics.stdev(known):.1f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=ROOT / "output" / "densesirst_fine")
    parser.add_argument("--seeds", type=int, default=3)
    args = parser.parse_args()
    results: dict[str, list[dict[str, float]]] = {system: [] for system in SYSTEMS}
    for seed in range(args.seeds):
        for system in SYSTEMS:
            results[system].append(train(system, seed, args.output.resolve()))
    text = report(results)
    (ROOT / "benchmarks" / "results" / "densesirst_fine.md").write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
