#!/usr/bin/env python3
"""What tiles change: a trained detector on whole images and on tiles of them, on its own test set.

    python benchmarks/tiled_inference.py RUN [--tile 256 --overlap 64] [--count 40]

RUN is the OUTPUT_DIR of a training. The configuration should resize by a factor (INPUT.RESIZE_MODE scale), so that
targets have the same size in both. Prints average precision of both ways, and how many detections of the whole image
are found again in tiles.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.structures import Instances, pairwise_iou
from tqdm import tqdm

import auxdet_d2  # noqa: F401  registers
import bafe_d2  # noqa: F401  registers
from irstd_d2 import get_config
from irstd_d2.evaluation.ground_truth import GroundTruth
from irstd_d2.evaluation.results import format_table
from irstd_d2.evaluation.table_evaluation import VOCDetectionEvaluator
from irstd_d2.inference import Predictor


def agreement(first: Instances, second: Instances, threshold: float) -> tuple[int, list[float]]:
    """Detections of ``first`` above a score, and the changes of score of those that ``second`` has at IoU 0.5."""
    strong = first[first.scores >= threshold]
    if not len(strong) or not len(second):
        return len(strong), []
    best, partner = pairwise_iou(strong.pred_boxes, second.pred_boxes).max(dim=1)
    found = best >= 0.5
    return len(strong), (second.scores[partner] - strong.scores)[found].tolist()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--tile", type=int, default=256)
    parser.add_argument("--overlap", type=int, default=64)
    parser.add_argument("--count", type=int, default=40, help="images, evenly spread over the set")
    parser.add_argument("--threshold", type=float, default=0.3, help="score of the detections that are compared")
    args = parser.parse_args()
    weights = str(args.run / "model_final.pth")
    cfg = get_config(args.run / "config.yaml", ["MODEL.WEIGHTS", weights])
    if not torch.cuda.is_available():
        cfg.MODEL.DEVICE = "cpu"
    name = cfg.DATASETS.TEST[0]
    dicts = DatasetCatalog.get(name)
    dicts = [dicts[i] for i in np.linspace(0, len(dicts) - 1, min(args.count, len(dicts))).round().astype(int)]
    truth = GroundTruth.from_dicts(dicts, MetadataCatalog.get(name).thing_classes)
    ways = {
        "whole": Predictor(cfg),
        f"tiles of {args.tile}, overlap {args.overlap}": Predictor(cfg, tile=args.tile, overlap=args.overlap),
    }
    evaluators = {way: VOCDetectionEvaluator(truth) for way in ways}
    total, changes = 0, []
    for sample in tqdm(dicts):
        found = {way: predictor(sample["file_name"], sample["metadata"]) for way, predictor in ways.items()}
        for way, instances in found.items():
            evaluators[way].process([sample], [{"instances": instances}])
        count, changed = agreement(*found.values(), args.threshold)
        total, changes = total + count, changes + changed
    rows = []
    for way, evaluator in evaluators.items():
        result = evaluator.evaluate()["voc_exact"]
        rows.append([way, *(f"{result[key]:.1f}" for key in ("AP50_area", "recall50", "precision50"))])
    print(format_table(rows, [f"{len(dicts)} images of {name}", "AP50", "recall", "precision"]))
    shift = np.abs(changes)
    print(
        f"\nOf {total} detections with a score of {args.threshold} or more on whole images, {len(changes)} are found "
        f"in tiles at\nIoU 0.5; their scores change by {shift.mean():.3f} on average, {shift.max():.3f} at most."
    )


if __name__ == "__main__":
    main()
