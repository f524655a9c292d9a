#!/usr/bin/env python3
"""What pretraining gives on the real DenseSIRST at equal iterations: ImageNet weights, and synthetic scenes.

    python tools/make_synthetic.py --layout densesirst --size 256x256 --train 300 --val 20
    python tools/convert_checkpoint.py efficientnet_lite0 IN weights/efficientnet_lite0.pth    (docs/components.md)
    DETECTRON2_DATASETS=... python benchmarks/pretraining.py --imagenet weights/efficientnet_lite0.pth --seeds 2

Every arm trains on train_v2 and is judged on val_v2, by the recipe at native resolution (configs/bafe/Base-Fine.yaml).
Arms of one network differ in MODEL.WEIGHTS alone. Finished runs are kept, interrupted ones go on; with --arms, parts
can run side by side, and a last call without it writes the table.
"""

from __future__ import annotations

import argparse
import os
import platform
import shlex
import subprocess
import sys
from datetime import date
from pathlib import Path
from typing import NamedTuple

import torch
from densesirst_fine import METRICS, ROOT, _cell, read_metrics

RESULTS = ROOT / "benchmarks" / "results" / "pretraining.md"
SHOWN = {name: METRICS[name] for name in ("mAP07", "mAP12", "recall", "AP (COCO)", "AP50", "recall50", "best F1")}


class Arm(NamedTuple):
    """One row of the table.

    Attributes:
        network, start: what the table calls them.
        config: below ``configs/bafe/tiny``.
    """

    network: str
    start: str
    config: str


ARMS = {
    "lite0_random": Arm("EfficientNet-Lite0", "random", "fcos_fine_efficientnet_lite0.yaml"),
    "lite0_imagenet": Arm("EfficientNet-Lite0", "ImageNet", "fcos_fine_efficientnet_lite0.yaml"),
    "r10_random": Arm("ResNet-10", "random", "fcos_fine.yaml"),
    "r10_synthetic": Arm("ResNet-10", "synthetic scenes", "fcos_fine.yaml"),
}


def train(config: str, folder: Path, options: list[str]) -> dict[str, float]:
    """Train and test one run, or go on with it; return its metrics."""
    if not (metrics := read_metrics(folder)):
        command = [
            sys.executable,
            str(ROOT / "tools/train_net.py"),
            *(["--resume"] if list(folder.glob("model_*.pth")) else []),
        ]
        command += ["--config-file", str(ROOT / "configs" / "bafe" / "tiny" / config), "OUTPUT_DIR", str(folder)]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
        subprocess.run([*command, *options], check=True, cwd=ROOT, env=environment)
        metrics = read_metrics(folder)
    return metrics


def run_arm(name: str, seed: int, args: argparse.Namespace) -> dict[str, float]:
    """Train one arm from one seed, pretraining included; return its metrics on val_v2."""
    output, common = args.output.resolve(), ["SEED", str(seed), "SOLVER.IMS_PER_BATCH", str(args.batch), *args.opts]
    options = [*common, "SOLVER.MAX_ITER", str(args.iterations)]
    options += ["DATASETS.TRAIN", "('densesirst_v2_train',)", "DATASETS.TEST", "('densesirst_v2_val',)"]
    if name == "lite0_imagenet":
        options += ["MODEL.WEIGHTS", str(args.imagenet.resolve())]
    if name == "r10_synthetic":
        first = output / f"synthetic_{seed}"
        data = ["DATASETS.TRAIN", "('synthetic_dense_train',)", "DATASETS.TEST", "('synthetic_dense_val',)"]
        train(ARMS[name].config, first, [*common, *data, "SOLVER.MAX_ITER", str(args.synthetic_iterations)])
        options += ["MODEL.WEIGHTS", str(first / "model_final.pth")]
    return train(ARMS[name].config, output / f"{name}_{seed}", options)


def report(results: dict[str, list[dict[str, float]]], args: argparse.Namespace) -> str:
    """The table as Markdown."""
    lines = [
        "# Pretraining, on the real DenseSIRST",
        "",
        f"`python benchmarks/pretraining.py --imagenet weights/efficientnet_lite0.pth --seeds {args.seeds} "
        f"--iterations {args.iterations} --batch {args.batch} --synthetic-iterations {args.synthetic_iterations}"
        f"{shlex.join(['', '--opts', *args.opts])[2:] if args.opts else ''}`",
        "",
        f"{date.today()}, {platform.machine()} CPU, one thread, torch {torch.__version__}. FCOS at native resolution "
        f"(configs/bafe/Base-Fine.yaml): {args.iterations} iterations of {args.batch} crops of train_v2, 512 images; "
        "judged on the 256 of val_v2, not on the test set. The two starts of a network see the same crops at the same "
        f"rates. Synthetic scenes: {args.synthetic_iterations} iterations on synthetic_dense_train with the same "
        "recipe, then all weights are taken over, optimiser and schedule are not. Percent.",
        "",
        "| network | start | seeds | " + " | ".join(SHOWN) + " |",
        "|" + "---|" * (len(SHOWN) + 3),
    ]
    for name, runs in results.items():
        cells = " | ".join(_cell([run.get(key) for run in runs]) for key in SHOWN.values())
        lines.append(f"| {ARMS[name].network} | {ARMS[name].start} | {len(runs)} | {cells} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=ROOT / "output" / "pretraining")
    parser.add_argument("--imagenet", type=Path, default=ROOT / "weights" / "efficientnet_lite0.pth")
    parser.add_argument("--arms", nargs="+", choices=list(ARMS), help="train these alone and write no table")
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--iterations", type=int, default=250)
    parser.add_argument("--synthetic-iterations", type=int, default=250)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--opts", nargs=argparse.REMAINDER, default=[], help="of every run: KEY VALUE ...")
    args = parser.parse_args()
    results: dict[str, list[dict[str, float]]] = {name: [] for name in args.arms or ARMS}
    for seed in range(args.seeds):
        for name, runs in results.items():
            runs.append(run_arm(name, seed, args))
    text = report(results, args)
    if not args.arms:
        RESULTS.write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
