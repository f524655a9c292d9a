#!/usr/bin/env python3
"""Time another implementation beside ours, in one run on one machine.

    python benchmarks/published.py --published ~/venvs/published --script time_bafe.py \
        --config configs/bafe/bafe_r50_fpn.yaml --weights released.pth --size 512 --threads 2 \
        [--training | --exported onnxruntime openvino]

The published code runs in an environment of its own, of which this project holds nothing: ``--published`` is its folder
(with ``bin/python``) and ``--script`` a file of yours that it can run, with functions

    def build(size: int, sample: dict[str, numpy.ndarray]):
        ...                # build the model, with the weights that ours gets by --weights
        return detect      # detects in sample["image"] (3, size, size), 0..255, once: boxes (D, 4), scores (D,)

    def build_training(size, sample):
        return step        # losses and gradients of two such images, with sample["boxes"] (K, 4) and, uint8,
                           # sample["sky"] (size, size)

Both sides run in turn, with the same number of threads, and wait while the other works. The medians of the ratios of
neighbouring runs are printed, of the time that passes and of the time that the processors worked, and how far their
detections are apart. Ours is the model as ``irstd_d2.inference.Predictor`` runs it (``optimize``), and once more as it
is built; in training with its weights as they are and channels-last. ``--exported onnxruntime openvino`` adds our model
as an ONNX file, in float32 and in 8 bits (ranges measured on the one image), run by these.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import importlib.util
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

if TYPE_CHECKING:  # the other environment may hold neither
    from detectron2.config import CfgNode
    from torch import nn

READY = "ready to detect"
Work = Callable[[], Any]
DETECTIONS = "detections.npz"


class Times(NamedTuple):
    """Of one detection, in seconds."""

    wall: float
    processor: float


def measure(work: Work) -> Times:
    wall, processor = time.perf_counter(), time.process_time()
    work()
    return Times(time.perf_counter() - wall, time.process_time() - processor)


def serve(script: Path, folder: Path, size: int, threads: int, training: bool) -> None:
    """In the other environment: work once per line of input, and answer with the times."""
    import torch

    torch.set_num_threads(threads)
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w", buffering=1)
    with contextlib.redirect_stdout(sys.stderr):  # what the script prints is no answer
        spec = importlib.util.spec_from_file_location("timed_script", script)
        module = importlib.util.module_from_spec(spec)
        sys.path.insert(0, str(script.parent))
        spec.loader.exec_module(module)
        work = (module.build_training if training else module.build)(size, dict(np.load(folder / "sample.npz")))
        if not training:
            boxes, scores = work()
            np.savez(folder / DETECTIONS, boxes=boxes, scores=scores)
        answers.write(READY + "\n")
        for _ in sys.stdin:
            answers.write("{} {}\n".format(*measure(work)))


class Other:
    """The other implementation, in a process of its own that sleeps between its turns."""

    def __init__(self, python: Path, script: Path, folder: Path, size: int, threads: int, training: bool):
        command = [python, Path(__file__).resolve(), "--serve", script.resolve(), "--folder", folder]
        command += ["--size", size, "--threads", threads, *(["--training"] if training else [])]
        environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
        environment.pop("PYTHONPATH", None)  # ours would be found there
        self.process = subprocess.Popen(
            list(map(str, command)), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )
        if self._answer() != READY:
            raise SystemExit(f"error: {script} did not start in {python}; its messages are above")

    def _answer(self) -> str:
        return self.process.stdout.readline().strip()

    def work(self) -> Times:
        self.process.stdin.write("again\n")
        self.process.stdin.flush()
        answer = self._answer()
        if not answer:
            raise SystemExit("error: the other implementation ended; its messages are above")
        return Times(*map(float, answer.split()))

    def close(self) -> None:
        self.process.stdin.close()
        self.process.wait()


def make_sample(size: int) -> dict[str, Any]:
    """Gray noise with targets: no order of channels matters."""
    import torch
    from cases.scenes import sample

    torch.manual_seed(0)
    chosen = sample(size)
    chosen["image"] = chosen["image"][:1].expand(3, -1, -1).contiguous()
    return chosen


def save_sample(sample: dict[str, Any], folder: Path) -> None:
    boxes, sky = sample["instances"].gt_boxes.tensor.numpy(), sample["sem_seg"].numpy().astype(np.uint8)
    np.savez(folder / "sample.npz", image=sample["image"].numpy(), boxes=boxes, sky=sky)


def load(config: str, weights: str, *opts: Any) -> tuple[CfgNode, nn.Module]:
    """Our model and its configuration; random weights are the same at every call."""
    import torch
    from detectron2.modeling import build_model

    from irstd_d2 import get_config
    from irstd_d2.engine import IRSTDCheckpointer

    torch.manual_seed(0)
    cfg = get_config(config, ["MODEL.DEVICE", "cpu", *opts])
    model = build_model(cfg).eval()
    if weights:
        IRSTDCheckpointer(model).load(weights)
    return cfg, model


def build_ours(config: str, weights: str, sample: dict[str, Any], training: bool) -> dict[str, Work]:
    import torch
    from cases.detectors import inference, training_step

    from irstd_d2.inference import optimize
    from irstd_d2.memory import keep_freed_memory

    keep_freed_memory()
    _, model = load(config, weights)
    if training:
        other = copy.deepcopy(model).to(memory_format=torch.channels_last)
        return {
            "as built": training_step(model, [sample] * 2),
            "channels-last": training_step(other, [sample] * 2),
        }
    return {"optimised": inference(optimize(model), [sample]), "as built": inference(model, [sample])}


def build_exported(
    config: str, weights: str, sample: dict[str, Any], threads: int, folder: Path, engines: Sequence[str]
) -> dict[str, Work]:
    import torch
    from detectron2.structures import Boxes, Instances
    from export import OpenVinoEngine

    from irstd_d2.export import ExportedDetector, FixedShape, export_model
    from irstd_d2.export.precision import to_int8_static

    size = sample["image"].shape[1]
    cfg, model = load(config, weights, "INPUT.RESIZE_MODE", "fixed", "INPUT.FIXED_SIZE", (size, size))
    files = {"float32": folder / "float32.onnx", "8 bits": folder / "int8.onnx"}
    image = sample["image"].permute(1, 2, 0).numpy()
    export_model(cfg, model, files["float32"], fixed=FixedShape(1, (size, size)))
    to_int8_static(files["float32"], files["8 bits"], [image], [sample["metadata"]])

    def detection(file: Path, openvino: bool) -> Work:
        detector = ExportedDetector(file, ["CPUExecutionProvider"], threads)
        if openvino:
            detector._engine = OpenVinoEngine(file, threads)

        def detect() -> list[dict[str, Instances]]:
            found = detector([image], sample["metadata"])[0]
            boxes, scores = Boxes(torch.from_numpy(found.boxes)), torch.from_numpy(found.scores)
            return [{"instances": Instances((size, size), pred_boxes=boxes, scores=scores)}]

        return detect

    return {
        f"{engine}, {precision}": detection(file, engine == "openvino")
        for engine in engines
        for precision, file in files.items()
    }


def describe_detections(ours: dict[str, Work], folder: Path) -> str:
    """How far the detections of both are apart, each from its nearest partner within a pixel."""
    from irstd_d2.export import Detections, compare_detections

    def table(boxes: np.ndarray, scores: np.ndarray) -> Detections:
        return Detections(np.asarray(boxes), np.asarray(scores), np.zeros(len(scores), np.int64))

    theirs = np.load(folder / DETECTIONS)
    expected, lines = table(theirs["boxes"], theirs["scores"]), []
    for name, work in ours.items():
        found = work()[0]["instances"]
        apart = compare_detections(expected, table(found.pred_boxes.tensor, found.scores))
        lines.append(
            f"{name}: {len(found)} detections, the other {len(expected.scores)}, {apart.pairs} pairs: boxes within "
            f"{apart.boxes:.2g} pixels and scores within {apart.scores:.2g}"
        )
    return "\n".join(lines)


def compare(ours: dict[str, Work], other: Other, rounds: int) -> str:
    """Run all in turn, and describe the ratios."""
    for work in (*ours.values(), other.work):  # warm-up
        work()
    times: dict[str, list[Times]] = {name: [] for name in (*ours, "other")}
    for _ in range(rounds):
        for name, work in ours.items():
            times[name].append(measure(work))
        times["other"].append(other.work())
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
    parser.add_argument("--training", action="store_true", help="time training steps of two images, not detection")
    parser.add_argument("--exported", nargs="+", choices=["onnxruntime", "openvino"], metavar="ENGINE", default=[])
    parser.add_argument("--serve", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args(arguments)
    if args.serve:
        serve(args.serve, args.folder, args.size, args.threads, args.training)
        return 0
    if not (args.published and args.script and args.config):
        parser.error("name --published, --script and --config")
    if args.training and args.exported:
        parser.error("--exported files do not train; leave --training out")
    python = args.published / "bin" / "python"
    if not python.exists():
        parser.error(f"{python} does not exist; --published is the folder of a virtual environment")
    import torch

    torch.set_num_threads(args.threads)
    load = ", ".join(f"{value:.1f}" for value in os.getloadavg())
    sample, equal = make_sample(args.size), ""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        save_sample(sample, folder)
        ours = build_ours(args.config, args.weights, sample, args.training)
        if args.exported:
            ours |= build_exported(args.config, args.weights, sample, args.threads, folder, args.exported)
        other = Other(python, args.script, folder, args.size, args.threads, args.training)
        try:
            if not args.training:
                equal = "\n\n" + describe_detections(ours, folder)
            table = compare(ours, other, args.rounds)
        finally:
            other.close()
    work = "a training step of two images" if args.training else "one image"
    print(f"{args.size}x{args.size}, {work}, {args.threads} threads, float32, median of {args.rounds}, load {load}")
    print(f"before it, torch {torch.__version__} on our side\n\n{table}{equal}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
