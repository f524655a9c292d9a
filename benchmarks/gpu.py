#!/usr/bin/env python3
"""What a GPU has to show, the most valuable rows first, in slots of a few minutes.

    python benchmarks/gpu.py --minutes 14                        # goes on where the last slot ended
    python benchmarks/gpu.py --minutes 14 --weights 'weights/resnet{depth}.pth'
    python benchmarks/gpu.py --device cpu --quick --output /tmp/gpu    # in miniature: no figures, only a check

1. a training step and a detection of every configuration, float32 and bfloat16: finite, peak memory;
2. images per second of AuxDet R50 at 1024x1024 and BAFE-Net R18 and R50 at 512x512 beside detectron2's Faster R-CNN at
   the same size, and their share of the rate of a matrix product in the same run;
3. trainings by benchmarks/ablate.py on real DenseSIRST and WideIRSTD, each with its own checkpoints.

Every row is appended to OUTPUT/rows.jsonl as soon as it is there, and the page OUTPUT/gpu.md written anew. A row that a
card has no memory for says so. Exit code 1: something failed or is still to be done.
"""

from __future__ import annotations

import argparse
import json
import math
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.modeling import build_model
from detectron2.utils.events import EventStorage
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parent))
from cases.scenes import sample
from complexity import analyze, build_on_cpu
from harness import matrix_rate
from model_zoo import configurations

import auxdet_d2  # noqa: F401  registers
import bafe_d2  # noqa: F401  registers
from irstd_d2 import get_config
from irstd_d2.files import write_atomically
from irstd_d2.solver import build_optimizer

ROOT = Path(__file__).resolve().parents[1]
THROUGHPUT = {
    **{"auxdet/auxdet_r50_fpn.yaml": 1024, "bafe/bafe_r50_fpn.yaml": 512, "bafe/bafe_r18_fpn.yaml": 512},
    **{"baselines/faster_rcnn_r50_fpn.yaml": 512, "baselines/fcos_r50_fpn.yaml": 512},
}
TINY = ("auxdet/tiny/auxdet_tiny.yaml", "bafe/tiny/bafe_tiny.yaml")
MODES = ("float32", "bfloat16", "bfloat16 channels-last", "bfloat16 channels-last compiled")
TRAININGS = (
    "bafe-2 --scale dense --seeds 3",
    "bafe-4 bafe-7 bafe-3 --scale dense",
    "beyond-bafe --scale dense --seeds 3",
    "auxdet-5 --scale omni --seeds 3",
    "auxdet-3 auxdet-6 --scale omni",
)


def make_batch(count: int, edge: int, device: torch.device) -> list[dict[str, Any]]:
    """Images of noise with two targets each, as a mapper gives them, on the device."""
    torch.manual_seed(0)
    samples = [sample(edge, num_targets=2) for _ in range(count)]
    return [{k: v.to(device) if hasattr(v, "to") else v for k, v in values.items()} for values in samples]


def configure(name: str, device: torch.device, mode: str) -> CfgNode:
    channels_last = "channels-last" in mode
    keys = ["MODEL.DEVICE", device.type, "MODEL.WEIGHTS", "", "MODEL.CHANNELS_LAST", channels_last]
    return get_config(ROOT / "configs" / name, keys)


class Step:
    """A training step or a detection of one configuration."""

    def __init__(self, name: str, mode: str, batch: int, edge: int, device: torch.device, training: bool):
        cfg = configure(name, device, mode)
        self.model = build_model(cfg)
        if "channels-last" in mode:
            self.model.to(memory_format=torch.channels_last)
        if "compiled" in mode:
            self.model.backbone.compile()
        self.model.train(training)
        self.optimizer = build_optimizer(cfg, self.model) if training else None
        self.batch = make_batch(batch, edge, device)
        self.autocast = torch.autocast(device.type, torch.bfloat16) if "bfloat16" in mode else nullcontext()

    def __call__(self) -> float:
        """Run once; returns the sum of the losses, 0 for a detection, NaN where a result is not finite."""
        if self.optimizer is None:
            with torch.inference_mode(), self.autocast:
                found = [output["instances"] for output in self.model(self.batch)]
            values = [torch.cat([f.pred_boxes.tensor.flatten(), f.scores]) for f in found]
            return 0.0 if bool(torch.isfinite(torch.cat(values)).all()) else math.nan
        with EventStorage(), self.autocast:
            loss = sum(self.model(self.batch).values())
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        return float(loss.detach())


def smoke(name: str, mode: str, device: torch.device, edge: int) -> dict[str, Any]:
    """A training step and a detection."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    loss = Step(name, mode, 2, edge, device, training=True)()
    found = Step(name, mode, 1, edge, device, training=False)()
    row = {"loss": round(loss, 4), "finite": math.isfinite(loss) and math.isfinite(found)}
    return row | ({"MiB": torch.cuda.max_memory_allocated() >> 20} if device.type == "cuda" else {})


def throughput(
    name: str, mode: str, batch: int, training: bool, device: torch.device, edge: int, seconds: float
) -> dict[str, Any]:
    """Images per second over ``seconds`` after a warm-up, and the share of a matrix product's rate."""
    step = Step(name, mode, batch, edge, device, training)
    for _ in range(2):
        step()
    count, start = 0, time.perf_counter()
    while count == 0 or time.perf_counter() - start < seconds:
        step()  # ends with a number on the host, and so waits for the device
        count += batch
    rate = count / (time.perf_counter() - start)
    known = analyze(build_on_cpu(configure(name, torch.device("cpu"), "float32")))
    work = 2 * known.multiply_adds((edge, edge)) * (3 if training else 1) / 1e9
    product = matrix_rate(device, torch.bfloat16 if "bfloat16" in mode else torch.float32, 512 if seconds < 1 else 4096)
    return {"images/s": round(rate, 3), "share of matrix rate": round(rate * work / product, 4)}


def jobs(args: argparse.Namespace, device: torch.device) -> dict[str, Callable[[], dict[str, Any]]]:
    """Name of a row -> what measures it, the most valuable first."""
    todo: dict[str, Callable[[], dict[str, Any]]] = {}
    names = TINY if args.quick else configurations()
    modes = MODES[:2] if args.quick else MODES
    for name in names:
        edge = 64 if args.quick else 1024 if name.startswith("auxdet/aux") or "cascade_rpn_r" in name else 512
        for mode in MODES[:2]:
            todo[f"smoke: {name}, {mode}"] = lambda n=name, m=mode, e=edge: smoke(n, m, device, e)
    sizes = dict.fromkeys(TINY, 64) if args.quick else THROUGHPUT
    seconds = 0.01 if args.quick else 4.0
    for batch in (1,) if args.quick else (4, 16, 64):
        for name, edge in sizes.items():
            for mode in modes:
                for training in (False, True):
                    kind = "training" if training else "inference"
                    todo[f"{kind}: {name}, {edge}x{edge}, batch {batch}, {mode}"] = (
                        lambda n=name, m=mode, b=batch, t=training, e=edge: throughput(n, m, b, t, device, e, seconds)
                    )
    return todo


def measure(work: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    try:
        return work()
    except torch.OutOfMemoryError:
        return {"state": "out of memory"}
    except (RuntimeError, ValueError, KeyError, TypeError, AttributeError) as error:
        return {"failed": f"{type(error).__name__}: {error}".splitlines()[0][:300]}


def page(rows: dict[str, dict[str, Any]], device: torch.device, command: Sequence[str]) -> str:
    """The rows as Markdown."""
    card = torch.cuda.get_device_name() if device.type == "cuda" else "CPU: a check in miniature, no figures"
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True).stdout
    lines = [f"| {name} | {', '.join(f'{key} {value}' for key, value in row.items())} |" for name, row in rows.items()]
    top = f"{card}, torch {torch.__version__}, commit {commit.strip() or 'unknown'}."
    head = f"# On a GPU\n\n    python benchmarks/gpu.py {' '.join(command)}\n\n{top}\n\n| row | result |\n|---|---|"
    return "\n".join([head, *lines, ""])


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=14.0, help="of this slot; nothing starts after it")
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"))
    parser.add_argument("--weights", default="", help="ImageNet backbones for the trainings, as for ablate.py")
    parser.add_argument("--quick", action="store_true", help="tiny models, everything once")
    parser.add_argument("--output", type=Path, default=ROOT / "output" / "gpu")
    args = parser.parse_args(argv)
    if args.device == "cuda" and not torch.cuda.is_available():
        print("error: there is no CUDA device; --device cpu --quick checks the script without one", file=sys.stderr)
        return 2
    device, end = torch.device(args.device), time.monotonic() + 60 * args.minutes
    args.output.mkdir(parents=True, exist_ok=True)
    record = args.output / "rows.jsonl"
    lines = record.read_text(encoding="utf-8").splitlines() if record.exists() else []
    rows: dict[str, dict[str, Any]] = {name: row for name, row in map(json.loads, lines) if "failed" not in row}
    todo = {name: work for name, work in jobs(args, device).items() if name not in rows}
    for name, work in tqdm(todo.items(), desc="rows", disable=None):
        if time.monotonic() >= end:
            break
        rows[name] = measure(work)
        with record.open("a", encoding="utf-8") as file:
            file.write(json.dumps([name, rows[name]]) + "\n")
        write_atomically(args.output / "gpu.md", page(rows, device, sys.argv[1:] if argv is None else argv))
        if device.type == "cuda":
            torch.cuda.empty_cache()
    bad = [name for name, row in rows.items() if "failed" in row or row.get("finite") is False]
    left = [name for name in todo if name not in rows]
    done = not left
    for tables in () if args.quick or left else TRAININGS:
        minutes = (end - time.monotonic()) / 60
        command = [sys.executable, str(ROOT / "benchmarks" / "ablate.py"), *tables.split()]
        command += ["--minutes", f"{minutes:.2f}", "--output", str(args.output / "ablation")]
        command += ["--weights", args.weights] if args.weights else []
        if minutes < 0.5 or subprocess.run(command, cwd=ROOT).returncode:
            done = False
            break
    print(f"{len(rows)} rows in {args.output / 'gpu.md'}, {len(left)} left, {len(bad)} failed", *bad, sep="\n  ")
    return int(bool(bad) or not done)


if __name__ == "__main__":
    sys.exit(main())
