"""Average precision against numbers of the implementation that the papers used."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from ..evaluation.average_precision import VOCProtocol, average_precision, precision_recall, voc_verdicts
from ..evaluation.matching import detection_table, target_table
from .comparison import Comparison

FILE = "voc_metric.json"


def compare(folder: Path | None = None) -> Comparison:
    """Compare AP of 50 images with boxes, difficult ones among them, and detections with and without equal scores."""
    data = json.loads(((folder or Path(__file__).parent) / FILE).read_text(encoding="utf-8"))
    images, comparison = data["images"], Comparison()
    targets = target_table([i["gt"] for i in images], None, [i["difficult"] for i in images])
    for key, expected in data["results"].items():
        kind, mode, *rest = key.split("/")
        if kind != "eval_map" or rest[-1].startswith("legacy"):  # sorts equal scores at random
            continue
        overlap, legacy, scores = rest
        column = "scores" if scores == "stable" else "scores_unique"
        detections = detection_table([i["det"] for i in images], [i[column] for i in images])
        protocol = VOCProtocol(legacy_widths=legacy == "legacy=True", dtype=np.float32)
        verdicts = voc_verdicts(detections, targets, float(overlap.removeprefix("iou")), protocol)
        curve = precision_recall(verdicts, detections.scores, int((~targets.ignored).sum()), np.float32)
        found = {
            "mAP": average_precision(curve, "area" if mode == "area" else "11points"),
            "max_recall": curve.max_recall,
            "last_precision": curve.last_precision,
        }
        for name, value in found.items():
            difference = abs(value - expected[name])
            comparison.add("average precision", key, difference, 1e-6, numbers=1, unit="absolute")
    return comparison
