#!/usr/bin/env python3
"""Time, start, memory and detections of a model in PyTorch, TorchScript, ONNX and OpenVINO, in several precisions.

    python benchmarks/export.py --config-file configs/... --weights model_final.pth [--images 64] [--calibration 32]

On images of the test set. Time is that of one processor core (``time.process_time``), so that other
work on the machine matters little; the variants take turns. With --threads 2 it is the time that passes, on a quiet
machine. Calibration images are those of the training set. --openvino needs that package, and runs the ONNX files;
--compile compiles the exported form with inductor, its weights frozen.
"""

from __future__ import annotations

import argparse
import logging
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

import numpy as np
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from harness import resident_bytes

import auxdet_d2  # noqa: F401  registers
import bafe_d2  # noqa: F401  registers
from irstd_d2 import get_config
from irstd_d2.evaluation import GroundTruth
from irstd_d2.evaluation.coco_evaluation import coco_metrics
from irstd_d2.evaluation.matching import detection_table
from irstd_d2.export import Detections, ExportedDetector, build_graph, compare_detections, export_model
from irstd_d2.export.candidates import nms_mask_op
from irstd_d2.export.precision import to_half, to_int8_dynamic, to_int8_static
from irstd_d2.inference import Predictor

ROUND = 8  # images that a variant has before the next one's turn


class OpenVinoEngine:
    """Runs an ONNX file in place of onnxruntime."""

    def __init__(self, path: Path, threads: int):
        import openvino

        core = openvino.Core()
        options = {"INFERENCE_NUM_THREADS": threads, "PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": "f32"}
        self._model = core.compile_model(core.read_model(path), "CPU", options)

    def run(self, inputs: Mapping[str, np.ndarray]) -> list[np.ndarray]:
        found = self._model(dict(inputs))
        return [found[output] for output in self._model.outputs]


class CompiledEngine:
    """Runs the exported form of a model, compiled."""

    def __init__(self, model: torch.nn.Module):
        import torch._inductor.config

        torch._inductor.config.freezing = True
        self._graph = torch.compile(build_graph(model, suppress=nms_mask_op), fullgraph=True)

    def run(self, inputs: Mapping[str, np.ndarray]) -> list[np.ndarray]:
        with torch.no_grad():
            return [found.numpy() for found in self._graph(*map(torch.from_numpy, inputs.values()))]


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config-file", required=True)
    parser.add_argument("--weights", required=True)
    parser.add_argument("--images", type=int, default=64)
    parser.add_argument("--calibration", type=int, default=32)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--openvino", action="store_true")
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--score", type=float, default=0.05, help="detections above it are compared")
    parser.add_argument("--opts", nargs=argparse.REMAINDER, default=[])
    return parser.parse_args()


def spread(records: list[dict], count: int) -> list[dict]:
    """Take so many records, evenly over the list."""
    return [records[i] for i in np.linspace(0, len(records) - 1, min(count, len(records))).round().astype(int)]


def above(found: Detections, score: float) -> Detections:
    keep = found.scores > score
    return Detections(found.boxes[keep], found.scores[keep], found.classes[keep])


def main() -> None:
    args = parse()
    logging.disable(logging.WARNING)
    warnings.simplefilter("ignore")
    torch.set_num_threads(args.threads)
    clock = time.process_time if args.threads == 1 else time.perf_counter
    cfg = get_config(args.config_file, ["MODEL.WEIGHTS", args.weights, "MODEL.DEVICE", "cpu", *args.opts])
    name = cfg.DATASETS.TEST[0]
    records = spread(DatasetCatalog.get(name), args.images)
    truth = GroundTruth.from_dicts(records, MetadataCatalog.get(name).thing_classes)
    calibration = spread(DatasetCatalog.get(cfg.DATASETS.TRAIN[0]), args.calibration)

    predictor = Predictor(cfg, tile=0)  # whole images, as the files take them

    def torch_model(record: dict) -> Detections:
        found = predictor(record["file_name"], record.get("metadata"))
        return Detections(found.pred_boxes.tensor.numpy(), found.scores.numpy(), found.pred_classes.numpy())

    def exported(path: Path, engine: Callable[[], object] | None = None) -> Callable[[dict], Detections]:
        providers = ["CPUExecutionProvider"] if path.suffix == ".onnx" else ["cpu"]
        detector = ExportedDetector(path, providers, threads=args.threads)
        if engine is not None:
            detector._engine = engine()
        return lambda record: detector([record["file_name"]], record.get("metadata"))[0]

    with tempfile.TemporaryDirectory() as folder:
        files = {
            "TorchScript": Path(folder, "model.ts"),
            "ONNX, float32": Path(folder, "model.onnx"),
            "ONNX, float16": Path(folder, "half.onnx"),
            "ONNX, int8, dynamic": Path(folder, "dynamic.onnx"),
            "ONNX, int8, static": Path(folder, "static.onnx"),
        }
        source = files["ONNX, float32"]
        export_model(cfg, predictor.model, files["TorchScript"], format="torchscript")
        export_model(cfg, predictor.model, source, format="onnx")
        to_half(source, files["ONNX, float16"])
        to_int8_dynamic(source, files["ONNX, int8, dynamic"])
        images = [record["file_name"] for record in calibration]
        to_int8_static(source, files["ONNX, int8, static"], images, [r.get("metadata") for r in calibration])

        ways: dict[str, Callable[[], Callable[[dict], Detections]]] = {"PyTorch": lambda: torch_model}
        ways |= {key: partial(exported, path) for key, path in files.items()}
        if args.openvino:
            for key in ("ONNX, float32", "ONNX, int8, static"):
                engine = partial(OpenVinoEngine, files[key], args.threads)
                ways[key.replace("ONNX", "OpenVINO")] = partial(exported, files[key], engine)
        if args.compile:
            ways["torch.compile"] = partial(exported, source, partial(CompiledEngine, predictor.model))
        sizes = {key: f"{path.stat().st_size / 1e6:.1f}" for key, path in files.items()}
        variants, starts, memory = {}, {}, {}
        for key, way in ways.items():
            begin, before = time.perf_counter(), resident_bytes()
            variants[key] = way()
            variants[key](records[0])
            starts[key], memory[key] = time.perf_counter() - begin, (resident_bytes() - before) / 1e6
            print(f"{key}: ready after {starts[key]:.1f} s", file=sys.stderr, flush=True)
        found: dict[str, list[Detections]] = {key: [] for key in variants}
        seconds: dict[str, list[float]] = {key: [] for key in variants}
        for start in range(0, len(records), ROUND):
            for key, run in variants.items():
                for record in records[start : start + ROUND]:
                    begin = clock()
                    found[key].append(run(record))
                    seconds[key].append(clock() - begin)

    print(f"{len(records)} images of {name}, {len(calibration)} for calibration, {args.threads} thread(s).\n")
    print(
        f"| | file, MB | ms per image | of PyTorch's | start with first image, s | memory, MB | AP25 | AP50 "
        f"| detections over {args.score:g} with a partner within a pixel "
        "| median distance, pixel | largest difference of scores |"
    )
    print("|---|---|---|---|---|---|---|---|---|---|---|")
    reference = statistics.median(seconds["PyTorch"])
    for key in variants:
        columns = ([getattr(result, column) for result in found[key]] for column in ("boxes", "scores", "classes"))
        metrics = coco_metrics(
            detection_table(*columns),
            truth.targets,
            len(records),
            num_classes=len(truth.class_names),
            max_detections=cfg.TEST.DETECTIONS_PER_IMAGE,
        )
        pairs = [
            compare_detections(above(a, args.score), above(b, args.score)) for a, b in zip(found["PyTorch"], found[key])
        ]
        matched, lonely = sum(p.pairs for p in pairs), sum(p.unpaired for p in pairs)
        median = statistics.median(seconds[key])
        print(
            f"| {key} | {sizes.get(key, '')} | {1e3 * median:.0f} | {median / reference:.2f} | {starts[key]:.1f} "
            f"| {memory[key]:.0f} | {metrics['AP25']:.1f} "
            f"| {metrics['AP50']:.1f} | {matched} of {matched + lonely} "
            f"| {statistics.median([p.boxes for p in pairs if p.pairs] or [0.0]):.1g} "
            f"| {max(p.scores for p in pairs):.1g} |"
        )


if __name__ == "__main__":
    main()
