#!/usr/bin/env python3
"""How fast a detector and its parts compute, beside a large matrix product in the same run.

    python benchmarks/rates.py --config configs/bafe/bafe_r50_fpn.yaml [--size 512 512] [--threads 2]

Operations are twice the multiply-adds that ``complexity.py`` counts, those of the model as it is built: a layer that
needs fewer for the same result can be faster than the matrix product. Without weights; medians of --rounds runs.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from collections import defaultdict
from typing import Any

import torch
from cases.scenes import sample
from complexity import analyze, build_on_cpu
from detectron2.modeling import build_model
from harness import matrix_rate

import auxdet_d2  # noqa: F401  registers
import bafe_d2  # noqa: F401  registers
from irstd_d2 import get_config
from irstd_d2.inference import optimize
from irstd_d2.memory import keep_freed_memory


def part_seconds(model: torch.nn.Module, parts: list[str], samples: list[Any], rounds: int) -> dict[str, float]:
    """Median seconds of a run in each part, all calls together; the empty name is the whole model."""
    times: dict[str, list[float]] = defaultdict(list)
    spent: dict[str, float] = defaultdict(float)
    starts: dict[str, float] = {}
    handles = []
    for name, module in model.named_modules():
        if name in parts:
            handles.append(
                module.register_forward_pre_hook(lambda *_, name=name: starts.update({name: time.perf_counter()}))
            )
            handles.append(
                module.register_forward_hook(
                    lambda *_, name=name: spent.update({name: spent[name] + time.perf_counter() - starts[name]})
                )
            )
    with torch.inference_mode():
        model(samples)
        for _ in range(rounds):
            spent.clear()
            start = time.perf_counter()
            model(samples)
            times[""].append(time.perf_counter() - start)
            for name, seconds in spent.items():
                times[name].append(seconds)
    for handle in handles:
        handle.remove()
    return {name: statistics.median(values) for name, values in times.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", required=True)
    parser.add_argument("--size", type=int, nargs=2, default=(512, 512), metavar=("H", "W"), help="network pixels")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    keep_freed_memory()
    height, width = args.size
    cfg = get_config(args.config, ["MODEL.DEVICE", "cpu", "MODEL.WEIGHTS", ""])
    complexity = analyze(build_on_cpu(cfg))
    torch.manual_seed(0)
    model = build_model(cfg).eval()
    samples = [{**sample(max(height, width)), "image": torch.rand(3, height, width) * 255}]
    samples[0].update(height=height, width=width)
    names = complexity.modules(2)
    built = part_seconds(model, names, samples, args.rounds)
    fast = part_seconds(optimize(model), names, samples, args.rounds)
    peak = matrix_rate(torch.device("cpu"))
    load = os.getloadavg()[0]
    print(
        f"{args.config}, {width}x{height}, {args.threads} thread(s), load {load:.1f}; matrix product {peak:.0f} GFLOP/s"
    )
    print("\n| part | GFLOP | as built, ms | of the matrix rate | optimised, ms | of the matrix rate | ratio |")
    print("|---|---|---|---|---|---|---|")
    for name in ["", *(name for name in names if name in built)]:
        giga = 2 * complexity.multiply_adds((height, width), name) / 1e9
        if (
            name
            and giga < 0.01 * 2 * complexity.multiply_adds((height, width)) / 1e9
            and built[name] < 0.02 * built[""]
        ):
            continue
        cells = [
            f"{1e3 * times[name]:.0f} | {giga / times[name] / peak:.0%}" if name in times else " | "
            for times in (built, fast)
        ]
        ratio = f"{fast[name] / built[name]:.2f}" if name in fast else ""
        print(f"| {name or 'whole'} | {giga:.1f} | {cells[0]} | {cells[1]} | {ratio} |")


if __name__ == "__main__":
    main()
