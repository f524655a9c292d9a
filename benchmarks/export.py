#!/usr/bin/env python3
"""Time, size and detections of a model in PyTorch, TorchScript and ONNX, in single and half precision and 8 bits.

    python benchmarks/export.py --config-file configs/... --weights model_final.pth [--images 64] [--calibration 32]

On images of the test set. Time is that of one processor core (``time.process_time``), so that other
work on the machine matters little; the variants take turns. Calibration images are those of the training set.
"""

from __future__ import annotations

import argparse
import logging
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.structures import Boxes, Instances

import auxdet_d2  # noqa: F401  registers
import bafe_d2  # noqa: F401  registers
from irstd_d2 import get_config
from irstd_d2.evaluation import build_evaluator
from irstd_d2.export import Detections, ExportedDetector, compare_detections, export_model
from irstd_d2.export.precision import to_half, to_int8_dynamic, to_int8_static
from irstd_d2.inference import Predictor

SUBSET = "export_benchmark"
ROUND = 8  # images that a variant has before the next one's turn


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config-file", required=True)
    parser.add_argument("--weights", required=True)
    parser.add_argument("--images", type=int, default=64)
    parser.add_argument("--calibration", type=int, default=32)
    parser.add_argument("--score", type=float, default=0.05, help="detections above it are compared")
    parser.add_argument("--opts", nargs=argparse.REMAINDER, default=[])
    return parser.parse_args()


def spread(records: list[dict], count: int) -> list[dict]:
    """Take so many records, evenly over the list."""
    return [records[i] for i in np.linspace(0, len(records) - 1, min(count, len(records))).round().astype(int)]


def above(found: Detections, score: float) -> Detections:
    keep = found.scores > score
    return Detections(found.boxes[keep], found.scores[keep], found.classes[keep])


def to_instances(found: Detections, record: dict) -> Instances:
    instances = Instances((record["height"], record["width"]))
    instances.pred_boxes, instances.scores = Boxes(torch.from_numpy(found.boxes)), torch.from_numpy(found.scores)
    instances.pred_classes = torch.from_numpy(found.classes)
    return instances


def main() -> None:
    args = parse()
    logging.disable(logging.WARNING)
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    cfg = get_config(args.config_file, ["MODEL.WEIGHTS", args.weights, "MODEL.DEVICE", "cpu", *args.opts])
    cfg.TEST.EVALUATORS, cfg.TEST.GROUP_BY = ("coco",), ()
    name = cfg.DATASETS.TEST[0]
    records = spread(DatasetCatalog.get(name), args.images)
    DatasetCatalog.register(SUBSET, lambda: records)
    MetadataCatalog.get(SUBSET).set(thing_classes=MetadataCatalog.get(name).thing_classes)
    calibration = spread(DatasetCatalog.get(cfg.DATASETS.TRAIN[0]), args.calibration)

    predictor = Predictor(cfg)

    def torch_model(record: dict) -> Detections:
        found = predictor(record["file_name"], record.get("metadata"))
        return Detections(found.pred_boxes.tensor.numpy(), found.scores.numpy(), found.pred_classes.numpy())

    def exported(path: Path) -> Callable[[dict], Detections]:
        detector = ExportedDetector(path, ["CPUExecutionProvider"] if path.suffix == ".onnx" else ["cpu"], threads=1)
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

        variants = {"PyTorch": torch_model, **{key: exported(path) for key, path in files.items()}}
        sizes = {key: f"{path.stat().st_size / 1e6:.1f}" for key, path in files.items()}
        found: dict[str, list[Detections]] = {key: [] for key in variants}
        seconds: dict[str, list[float]] = {key: [] for key in variants}
        for run in variants.values():
            run(records[0])  # warm
        for start in range(0, len(records), ROUND):
            for key, run in variants.items():
                for record in records[start : start + ROUND]:
                    begin = time.process_time()
                    found[key].append(run(record))
                    seconds[key].append(time.process_time() - begin)

    evaluator = build_evaluator(cfg, SUBSET)
    print(f"{len(records)} images of {name}, {len(calibration)} for calibration, one core.\n")
    print(
        f"| | file, MB | ms per image | AP25 | AP50 | detections over {args.score:g} with a partner within a pixel "
        "| median distance, pixel | largest difference of scores |"
    )
    print("|---|---|---|---|---|---|---|---|")
    for key in variants:
        evaluator.reset()
        for record, result in zip(records, found[key]):
            evaluator.process([record], [{"instances": to_instances(result, record)}])
        metrics = evaluator.evaluate()["bbox"]
        pairs = [
            compare_detections(above(a, args.score), above(b, args.score)) for a, b in zip(found["PyTorch"], found[key])
        ]
        matched, lonely = sum(p.pairs for p in pairs), sum(p.unpaired for p in pairs)
        print(
            f"| {key} | {sizes.get(key, '')} | {1e3 * statistics.median(seconds[key]):.0f} | {metrics['AP25']:.1f} "
            f"| {metrics['AP50']:.1f} | {matched} of {matched + lonely} "
            f"| {statistics.median([p.boxes for p in pairs if p.pairs] or [0.0]):.1g} "
            f"| {max(p.scores for p in pairs):.1g} |"
        )


if __name__ == "__main__":
    main()
