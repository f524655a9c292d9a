#!/usr/bin/env python3
"""Time of every detection evaluator on 2,000 images with 100 detections each, and its ratio to pycocotools.

One thread; CPU time, so that other programs on the machine hardly count.

python benchmarks/evaluators.py
"""

from __future__ import annotations

import os

os.environ["OMP_NUM_THREADS"] = "1"

import argparse
import platform
import statistics
import time
from collections.abc import Callable
from datetime import date
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.structures import BoxMode

import auxdet_d2  # noqa: F401  registers
import bafe_d2  # noqa: F401  registers
from irstd_d2 import get_config
from irstd_d2.evaluation import IRSTDCOCOEvaluator
from irstd_d2.evaluation.build import EVALUATOR_REGISTRY
from irstd_d2.evaluation.detection_probability import operating_curve
from irstd_d2.evaluation.table_evaluation import TableEvaluator

RESULTS = Path(__file__).resolve().parent / "results" / "evaluators.md"
NAME = "evaluators_benchmark"
SIZE = 512


def make_case(num_images: int, num_detections: int) -> tuple[list[dict], list[tuple]]:
    """Images with 0 to 11 targets of 2 to 8 pixels; 60 % of the detections lie around targets, the others anywhere."""
    rng = np.random.default_rng(0)
    dicts, detections = [], []
    for i in range(num_images):
        count = rng.integers(0, 12)
        corner = rng.integers(0, SIZE - 20, (count, 2))
        targets = np.concatenate([corner, corner + rng.integers(2, 9, (count, 2))], 1).astype(float)
        corner = rng.uniform(0, SIZE - 20, (num_detections, 2))
        boxes = np.concatenate([corner, corner + rng.uniform(2, 9, (num_detections, 2))], 1)
        if count:
            near = int(0.6 * num_detections)
            boxes[:near] = targets[rng.integers(0, count, near)] + rng.normal(0, 0.8, (near, 4))
            boxes[:, 2:] = np.maximum(boxes[:, 2:], boxes[:, :2] + 1)
        scores = rng.random(num_detections)
        detections.append((i, boxes, scores, np.zeros(num_detections, int)))
        annotations = [
            {"bbox": box, "bbox_mode": BoxMode.XYXY_ABS, "category_id": 0, "iscrowd": 0} for box in targets.tolist()
        ]
        metadata = {"platform": ("Air", "Land", "Space")[i % 3]}
        record = {"file_name": f"{i}.png", "image_id": i, "height": SIZE, "width": SIZE, "metadata": metadata}
        dicts.append({**record, "annotations": annotations})
    return dicts, detections


def judge(evaluator: TableEvaluator, detections: list[tuple]) -> dict[str, float]:
    evaluator.reset()
    for image in detections:
        evaluator.add(*image)
    return next(iter(evaluator.evaluate().values()))


def seconds(call: Callable[[], object]) -> float:
    start = time.process_time()
    call()
    return time.process_time() - start


def whole_table(evaluator: TableEvaluator, detections: list[tuple]):
    judge(evaluator, detections)
    return evaluator.detections(), evaluator.ground_truth


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=2000)
    parser.add_argument("--detections", type=int, default=100)
    parser.add_argument("--repeats", type=int, default=3)
    args = parser.parse_args()
    torch.set_num_threads(1)
    dicts, detections = make_case(args.images, args.detections)
    DatasetCatalog.register(NAME, lambda: dicts)
    MetadataCatalog.get(NAME).set(thing_classes=["target"])

    cfg = get_config(opts=["TEST.DETECTIONS_PER_IMAGE", args.detections])
    grouped = get_config(opts=["TEST.DETECTIONS_PER_IMAGE", args.detections, "TEST.GROUP_BY", ("platform", "size")])
    names = ("coco", "voc", "voc_paper", "pd_fa", "centre")
    evaluators = {name: EVALUATOR_REGISTRY.get(name)(cfg, NAME, None) for name in names}
    broken_down = {name: EVALUATOR_REGISTRY.get(name)(grouped, NAME, None) for name in names}
    plain = IRSTDCOCOEvaluator(NAME, max_detections=args.detections, use_faster=False)
    table, truth = whole_table(evaluators["pd_fa"], detections)
    times: dict[str, list[float]] = {name: [] for name in [*names, "curves", "groups"]}
    for _ in range(args.repeats):
        for name, evaluator in evaluators.items():
            times[name].append(seconds(lambda e=evaluator: judge(e, detections)))
        times["curves"].append(seconds(lambda: operating_curve(table, truth.targets, truth.pixels)))
        times["groups"].append(seconds(lambda: [judge(e, detections) for e in broken_down.values()]))
    outcomes: dict[str, dict[str, float]] = {}
    reference = seconds(lambda: outcomes.update(plain=judge(plain, detections)))
    expected, found = outcomes["plain"], judge(evaluators["coco"], detections)
    difference = max(abs(found[key] - expected[key]) for key in expected if not np.isnan(expected[key]))

    middle = {name: statistics.median(values) for name, values in times.items()}
    labels = {
        "coco": "`coco`, all areas, faster-coco-eval",
        "voc": "`voc`",
        "voc_paper": "`voc_paper`",
        "pd_fa": "`pd_fa`",
        "curves": "Pd-Fa curve alone",
        "centre": "`centre`, four distances",
    }
    total = sum(middle[name] for name in labels)
    rows = [(label, middle[name]) for name, label in labels.items()]
    rows += [
        ("**all of these**", total),
        ("all evaluators, broken down by platform and size (7 groups)", middle["groups"]),
        ("pycocotools for `coco` alone, one run", reference),
    ]
    text = "\n".join(
        [
            "# Detection evaluators",
            "",
            f"`python benchmarks/evaluators.py --images {args.images} --detections {args.detections}"
            f" --repeats {args.repeats}`",
            "",
            f"{date.today()}, {platform.machine()}, one thread of {os.cpu_count()} CPU cores, numpy {np.__version__}, "
            f"faster-coco-eval {version('faster-coco-eval')}, pycocotools {version('pycocotools')}. "
            f"{args.images} images, {len(truth.targets)} targets, {len(table)} detections; from arrays per image to "
            "metrics; CPU time of one thread, median of "
            f"{args.repeats} rounds.",
            "",
            "| | CPU seconds | pycocotools / this |",
            "|---|---|---|",
            *(f"| {label} | {value:.2f} | {reference / value:.1f} |" for label, value in rows),
            "",
            f"Largest difference between faster-coco-eval and pycocotools: {difference:.1e} percent.",
            "",
        ]
    )
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
