#!/usr/bin/env python3
"""Time another implementation beside ours, in one run on one machine.

    python benchmarks/published.py --published ~/venvs/published --script time_bafe.py \
        --config configs/bafe/bafe_r50_fpn.yaml --size 512 --threads 2

The published code runs in an environment of its own, of which this project holds nothing: ``--published`` is its folder
(with ``bin/python``) and ``--script`` a file of yours that it can run, with a function

    def build(size: int):  # edge of the image in pixels
        ...                # build the model, with the weights that ours gets by --weights, and an image
        return detect      # a function without arguments that detects in it once

Both sides run in turn, with the same number of threads, and wait while the other works. The medians of the ratios of
neighbouring runs are printed, of the time that passes and of the time that the processors worked. Ours is the model as
``irstd_d2.inference.Predictor`` runs it (``optimize``), and once more as it is built. Give both the same weights, since
detections cost time.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

READY = "ready to detect"


class Times(NamedTuple):
    """Of one detection, in seconds."""

    wall: float
    processor: float


def measure(detect: Callable[[], object]) -> Times:
    wall, processor = time.perf_counter(), time.process_time()
    detect()
    return Times(time.perf_counter() - wall, time.process_time() - processor)


def serve(script: Path, size: int, threads: int) -> None:
    """In the other environment: detect once per line of input, and answer with the times."""
    import torch

    torch.set_num_threads(threads)
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w", buffering=1)
    with contextlib.redirect_stdout(sys.stderr):  # what the script prints is no answer
        spec = importlib.util.spec_from_file_location("timed_script", script)
        module = importlib.util.module_from_spec(spec)
        sys.path.insert(0, str(script.parent))
        spec.loader.exec_module(module)
        detect = module.build(size)
        answers.write(READY + "\n")
        for _ in sys.stdin:
            answers.write("{} {}\n".format(*measure(detect)))


class Other:
    """The other implementation, in a process of its own that sleeps between its turns."""

    def __init__(self, python: Path, script: Path, size: int, threads: int):
        command = [python, Path(__file__).resolve(), "--serve", script.resolve(), "--size", size, "--threads", threads]
        environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
        environment.pop("PYTHONPATH", None)  # ours would be found there
        self.process = subprocess.Popen(
            list(map(str, command)), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )
        if self._answer() != READY:
            raise SystemExit(f"error: {script} did not start in {python}; its messages are above")

    def _answer(self) -> str:
        return self.process.stdout.readline().strip()

    def detect(self) -> Times:
        self.process.stdin.write("again\n")
        self.process.stdin.flush()
        answer = self._answer()
        if not answer:
            raise SystemExit("error: the other implementation ended; its messages are above")
        return Times(*map(float, answer.split()))

    def close(self) -> None:
        self.process.stdin.close()
        self.process.wait()


def build_ours(config: str, weights: str, size: int) -> dict[str, Callable[[], object]]:
    import torch
    from cases.scenes import sample
    from detectron2.modeling import build_model

    import auxdet_d2  # noqa: F401  registers
    import bafe_d2  # noqa: F401  registers
    from irstd_d2 import get_config
    from irstd_d2.engine import IRSTDCheckpointer
    from irstd_d2.inference import optimize
    from irstd_d2.memory import keep_freed_memory

    keep_freed_memory()
    torch.manual_seed(0)
    model = build_model(get_config(config, ["MODEL.DEVICE", "cpu"])).eval()
    if weights:
        IRSTDCheckpointer(model).load(weights)
    fast, samples = optimize(model), [sample(size)]

    def detect(chosen: torch.nn.Module) -> None:
        with torch.inference_mode():
            chosen(samples)

    return {"optimised": lambda: detect(fast), "as built": lambda: detect(model)}


def compare(ours: dict[str, Callable[[], object]], other: Other, rounds: int) -> str:
    """Run all in turn, and describe the ratios."""
    for work in (*ours.values(), other.detect):  # warm-up
        work()
    times: dict[str, list[Times]] = {name: [] for name in (*ours, "other")}
    for _ in range(rounds):
        for name, work in ours.items():
            times[name].append(measure(work))
        times["other"].append(other.detect())
    lines = ["| | wall, s | processor, s | wall / other | processor / other |", "|---|---|---|---|---|"]
    for name, values in times.items():
        medians = [statistics.median(value[kind] for value in values) for kind in (0, 1)]
        pairs = list(zip(values, times["other"]))
        ratios = [statistics.median(mine[kind] / theirs[kind] for mine, theirs in pairs) for kind in (0, 1)]
        lines.append(f"| {name} | {medians[0]:.3g} | {medians[1]:.3g} | {ratios[0]:.2f} | {ratios[1]:.2f} |")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--published", type=Path, help="folder of the other environment")
    parser.add_argument("--script", type=Path, help="builds the other model")
    parser.add_argument("--config", help="of our model")
    parser.add_argument("--weights", default="", help="of our model; random by default")
    parser.add_argument("--size", type=int, default=512)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--serve", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args(arguments)
    if args.serve:
        serve(args.serve, args.size, args.threads)
        return 0
    if not (args.published and args.script and args.config):
        parser.error("name --published, --script and --config")
    python = args.published / "bin" / "python"
    if not python.exists():
        parser.error(f"{python} does not exist; --published is the folder of a virtual environment")
    import torch

    torch.set_num_threads(args.threads)
    other = Other(python, args.script, args.size, args.threads)
    try:
        table = compare(build_ours(args.config, args.weights, args.size), other, args.rounds)
    finally:
        other.close()
    load = ", ".join(f"{value:.1f}" for value in os.getloadavg())
    print(f"{args.size}x{args.size}, one image, {args.threads} threads, float32, median of {args.rounds}, load {load},")
    print(f"torch {torch.__version__} on our side\n\n{table}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
