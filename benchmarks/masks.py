#!/usr/bin/env python3
"""Time of all metrics of masks on 500 images of 512x512, and its ratio to pyirstdmetrics; differences of both.

Both compute the same metrics from the same arrays, image by image in turn, one thread; processor time, so that other
programs on the machine hardly count. Needs ``pip install --no-deps pyirstdmetrics`` and scikit-image.

    python benchmarks/masks.py
"""

from __future__ import annotations

import os

os.environ["OMP_NUM_THREADS"] = "1"

import argparse
import platform
import time
from datetime import date
from importlib.metadata import version
from pathlib import Path

import cv2
import numpy as np
import py_irstd_metrics as published

from irstd_d2.evaluation.mask_metrics import COLUMNS, count_masks, level_counts, mask_metrics, pixel_curves
from irstd_d2.evaluation.results import format_table

RESULTS = Path(__file__).resolve().parent / "results" / "masks.md"
LEVELS = 256
PAIRS = {
    "hIoU": ("matching", "hiou"),
    "Pd": ("centre", "probability_detection"),
    "Fa": ("centre", "false_alarm"),
    "Pd_shooting": ("shooting", "probability_detection"),
    "Fa_shooting": ("shooting", "false_alarm"),
    "loc_IoU": ("errors", "loc_iou"),
    "loc_interference": ("errors", "loc_itf_err"),
    "loc_merged": ("errors", "loc_m2s_err"),
    "loc_perception": ("errors", "loc_pcp_err"),
    "loc_split": ("errors", "loc_s2m_err"),
    "seg_IoU": ("errors", "seg_iou"),
    "seg_merging": ("errors", "seg_mrg_err"),
    "seg_interference": ("errors", "seg_itf_err"),
    "seg_perception": ("errors", "seg_pcp_err"),
}


def make_case(rng: np.random.Generator, size: int = 512) -> tuple[np.ndarray, np.ndarray]:
    """A mask of 0 to 7 targets and a probability map: blurred, moved, some missed, some false, faint noise."""
    target = np.zeros((size, size), np.uint8)
    found = np.zeros((size, size), np.uint8)
    for _ in range(rng.integers(0, 8)):
        x, y = (int(value) for value in rng.integers(8, size - 8, 2))
        radius = int(rng.integers(1, 5))
        cv2.circle(target, (x, y), radius, 255, -1)
        if rng.random() < 0.85:
            dx, dy = (int(value) for value in rng.integers(-2, 3, 2))
            cv2.circle(found, (x + dx, y + dy), max(1, radius + int(rng.integers(-1, 2))), 255, -1)
    for _ in range(rng.poisson(1)):
        x, y = (int(value) for value in rng.integers(8, size - 8, 2))
        cv2.circle(found, (x, y), int(rng.integers(1, 4)), 255, -1)
    probability = cv2.GaussianBlur(found, (3, 3), 0) / 255
    return np.clip(probability + 0.05 * rng.random((size, size)), 0, 1), target > 0


class Published:
    """All metrics of the package at one threshold, and its curves."""

    def __init__(self) -> None:
        whole = {"with_dynamic": False, "with_binary": True, "sample_based": False}
        curve = {"with_dynamic": True, "with_binary": False}
        self.pixels = published.CMMetrics(
            num_bins=LEVELS,
            metric_handlers={
                "IoU": published.IoUHandler(**whole),
                "nIoU": published.IoUHandler(with_dynamic=False, with_binary=True, sample_based=True),
                "F1": published.FmeasureHandler(**whole, beta=1),
                "precision": published.PrecisionHandler(**whole),
                "recall": published.RecallHandler(**whole),
                "true_rate": published.TPRHandler(**curve),
                "false_rate": published.FPRHandler(**curve),
            },
        )
        self.parts = {
            "centre": published.ProbabilityDetectionAndFalseAlarmRate(),
            "shooting": published.ShootingRuleBasedProbabilityDetectionAndFalseAlarmRate(),
            "matching": published.MatchingBasedMetrics(),
            "errors": published.HierarchicalIoUBasedErrorAnalysis(),
        }

    def update(self, probability: np.ndarray, target: np.ndarray) -> None:
        self.pixels.update(probability, target)
        for part in self.parts.values():
            part.update(probability, target)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=500)
    args = parser.parse_args()
    cv2.setNumThreads(1)
    rng = np.random.default_rng(0)
    theirs, rows, curves = Published(), [], []
    seconds = {"ours": 0.0, "counts": 0.0, "theirs": 0.0}
    for _ in range(args.images):
        probability, target = make_case(rng)
        start = time.process_time()
        rows.append(vars(count_masks(probability > 0.5, target)))
        seconds["counts"] += time.process_time() - start
        curves.append((*level_counts(probability, target, LEVELS), target.sum(), (~target).sum()))
        middle = time.process_time()
        theirs.update(probability, target)
        seconds["ours"] += middle - start
        seconds["theirs"] += time.process_time() - middle
    sums = {name: np.array([sum(row[name] for row in rows)]) for name in COLUMNS}
    ours = {name: float(value[0]) for name, value in mask_metrics(sums, np.array([args.images])).items()}
    found = theirs.pixels.get()
    expected = {name: float(found[name]["binary"]) for name in ("IoU", "nIoU", "F1", "precision", "recall")}
    expected |= {name: float(np.squeeze(theirs.parts[part].get()[key])) for name, (part, key) in PAIRS.items()}
    table = []
    for name, value in expected.items():
        own = ours[name] / (1e6 if name.startswith("Fa") else 100)
        table.append([name, f"{own:.9f}", f"{value:.9f}", f"{abs(own - value):.1e}"])
    own_curves = pixel_curves(*map(np.array, zip(*curves)), per_image=True)
    for name in ("true_rate", "false_rate"):
        difference = np.abs(getattr(own_curves, name) - found[name]["dynamic"]).max()
        table.append([f"{name} at {LEVELS - 1} thresholds", "-", "-", f"{difference:.1e}"])
    ratio = seconds["theirs"] / seconds["ours"]
    times = [
        ["this project, all metrics and curves", f"{seconds['ours']:.2f}", f"{ratio:.1f}"],
        ["of these, metrics at one threshold", f"{seconds['counts']:.2f}", "-"],
        ["pyirstdmetrics, the same", f"{seconds['theirs']:.2f}", "1.0"],
    ]
    text = "\n".join(
        [
            "# Metrics of masks",
            "",
            f"`python benchmarks/masks.py --images {args.images}`",
            "",
            f"{date.today()}, {platform.machine()}, one thread of {os.cpu_count()} cores, load "
            f"{os.getloadavg()[0]:.1f} at the end, numpy {np.__version__}, OpenCV {cv2.__version__}, pyirstdmetrics "
            f"{version('pyirstdmetrics')}. {args.images} images of 512x512, seed 0, {int(sums['targets'][0])} targets; "
            "both in turn on every image; processor time.",
            "",
            format_table(times, ["", "processor seconds", "pyirstdmetrics / this"]),
            "",
            format_table(table, ["metric (fraction)", "this project", "pyirstdmetrics", "difference"]),
            "",
            "300 random cases and all masks of wideirstd_matched_val: tests/irstd_d2/test_mask_metrics.py, to 1e-9.",
            "",
        ]
    )
    RESULTS.write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
