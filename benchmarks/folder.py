#!/usr/bin/env python3
"""A folder of images from end to end: images per second, what each stage takes, and several processes beside one.

    python benchmarks/folder.py [--images 100] [--large 6000] [--weights fcos_dense]

Images of 640x512 and one large square one, 16 bits of noise with bright dots, are written to a temporary folder and
detected in by ``irstd detect``. Stages are timed in this process: decode, tile (from pixels to the network's input),
detect, merge (of tiles), write (pictures and results). Beside it: one process of one thread, one of two, and two of one
that share the folder, each with its start; the results of all are compared.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any

import cv2
import numpy as np

import irstd_d2.inference.detection as detection
import irstd_d2.inference.predictor as predictor
from irstd_d2.cli import detect
from irstd_d2.inference import Predictor
from irstd_d2.inference.detections import Detections
from irstd_d2.inference.results import Journal
from irstd_d2.inference.tiling import TiledPredictor
from irstd_d2.memory import keep_freed_memory

WAYS = {"one process, one thread": (1, 1), "one process, two threads": (1, 2), "two processes, one thread each": (2, 1)}


class Stages:
    """Seconds by stage; a stage inside another one counts as the outer one."""

    def __init__(self) -> None:
        self.seconds: Counter[str] = Counter()
        self.started = 0.0
        self._inside = False

    def watch(self, owner: Any, name: str, stage: str) -> None:
        function: Callable[..., Any] = getattr(owner, name)

        @wraps(function)
        def timed(*args: Any, **kwargs: Any) -> Any:
            if self._inside:
                return function(*args, **kwargs)
            self._inside, start = True, time.perf_counter()
            try:
                return function(*args, **kwargs)
            finally:
                self.seconds[stage] += time.perf_counter() - start
                self._inside = False

        setattr(owner, name, timed)


def write_image(path: Path, height: int, width: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    image = rng.normal(3000, 40, (height, width)).astype(np.uint16)
    for y, x in rng.integers(4, (height - 4, width - 4), (max(3, height * width // 200_000), 2)):
        image[y - 1 : y + 2, x - 1 : x + 2] += 900
    cv2.imwrite(str(path), image, [cv2.IMWRITE_PNG_COMPRESSION, 1])


def in_this_process(inputs: Path, output: Path, weights: str) -> str:
    stages = Stages()
    stages.watch(predictor, "open_raw", "decode")
    for name in ("to_float_image", "value_limits"):
        stages.watch(predictor, name, "tile")
    stages.watch(TiledPredictor, "_sample", "tile")
    stages.watch(TiledPredictor, "_merge", "merge")
    stages.watch(Detections, "picture", "write")
    stages.watch(detection, "write_picture", "write")
    stages.watch(detection, "write_results", "write")
    stages.watch(Journal, "add", "write")
    built = Predictor.__init__

    @wraps(built)
    def build(self: Predictor, *args: Any, **kwargs: Any) -> None:
        built(self, *args, **kwargs)
        stages.watch(self.model, "forward", "detect")
        for name in ("__call__", "of_whole_image"):
            stages.watch(type(self._mapper), name, "tile")
        stages.started = time.perf_counter()

    Predictor.__init__ = build
    try:
        detect.run(detect.get_parser().parse_args([str(inputs), "--output", str(output), "--weights", weights]))
    finally:
        Predictor.__init__ = built
    total = time.perf_counter() - stages.started
    count = len(list(inputs.iterdir()))
    stages.seconds["other"] = total - stages.seconds.total()
    shares = ", ".join(f"{stage} {seconds / total:.1%}" for stage, seconds in stages.seconds.items())
    return f"{count} image(s) in {total:.1f} s, {count / total:.2f} per second: {shares}"


def in_processes(inputs: Path, output: Path, weights: str, processes: int, threads: int) -> float:
    """Seconds with the start."""
    starter = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    command = [sys.executable, *(starter if processes > 1 else []), "-m", "irstd_d2", "detect", inputs]
    command += ["--output", output, "--weights", weights]
    start = time.perf_counter()
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    subprocess.run(list(map(str, command)), env=environment, check=True, capture_output=True)
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=100)
    parser.add_argument("--large", type=int, default=6000, help="edge of the large image; 0 for none")
    parser.add_argument("--weights", default="fcos_dense")
    args = parser.parse_args()
    keep_freed_memory()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        many, large = folder / "many", folder / "large"
        for number in range(args.images):
            many.mkdir(exist_ok=True)
            write_image(many / f"{number:05d}.png", 512, 640, number)
        print(f"640x512, this process: {in_this_process(many, folder / 'here', args.weights)}", flush=True)
        if args.large:
            large.mkdir()
            write_image(large / "large.png", args.large, args.large, 0)
            print(
                f"{args.large} square, this process: {in_this_process(large, folder / 'one', args.weights)}", flush=True
            )
        expected = (folder / "here" / "detections.json").read_bytes()
        for way, (processes, threads) in WAYS.items():
            output = folder / way.replace(" ", "_").replace(",", "")
            seconds = in_processes(many, output, args.weights, processes, threads)
            equal = "equal" if (output / "detections.json").read_bytes() == expected else "DIFFERENT"
            rate = args.images / seconds
            print(f"{way}: {seconds:.1f} s with the start, {rate:.2f} per second, results {equal}", flush=True)


if __name__ == "__main__":
    main()
