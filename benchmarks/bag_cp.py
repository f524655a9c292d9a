#!/usr/bin/env python3
"""Time of BAG-CP per image, and its ratio to the same rule written pixel by pixel, in one run on one core.

python benchmarks/bag_cp.py
"""

from __future__ import annotations

import os

os.environ["OMP_NUM_THREADS"] = "1"

import argparse
import math
import platform
import statistics
import time
from datetime import date
from pathlib import Path

import cv2
import numpy as np

from bafe_d2.data import BAGCopyPaste, TargetLibrary
from irstd_d2.data import IRSTDAugInput

RESULTS = Path(__file__).resolve().parent / "results" / "bag_cp.md"


def plain_paste(image, boxes, sky, library, rng):
    """The rule of BAG-CP with loops over pixels: find an area, lay out targets, blend each."""
    height, width = sky.shape
    free = [[sky[y][x] == 1 for x in range(width)] for y in range(height)]
    for x1, y1, x2, y2 in boxes.astype(int).tolist():
        for y in range(max(0, y1 - 1), min(height, y2 + 1)):
            for x in range(max(0, x1 - 1), min(width, x2 + 1)):
                free[y][x] = False
    total = [[0] * (width + 1) for _ in range(height + 1)]
    for y in range(height):
        row = 0
        for x in range(width):
            row += free[y][x]
            total[y + 1][x + 1] = total[y][x + 1] + row
    places = [
        (x, y)
        for y in range(height - 19)
        for x in range(width - 19)
        if total[y + 20][x + 20] - total[y][x + 20] - total[y + 20][x] + total[y][x] == 400
    ]
    new_boxes = []
    for _ in range(rng.integers(1, 4)):
        if not places:
            break
        ax, ay = places[rng.integers(len(places))]
        places = [p for p in places if max(abs(p[0] - ax), abs(p[1] - ay)) >= 21]
        x = y = row_height = 0
        for _ in range(rng.integers(8, 13)):
            index = rng.integers(len(library))
            w, h = library.sizes[index].tolist()
            if x and x + w > 20:
                x, y, row_height = 0, y + row_height + int(rng.integers(1, 3)), 0
            if y + h > 20:
                continue
            offset, sigma = rng.uniform(0, 0.2, 2), rng.uniform(0.3, 0.6, 2)
            angle, brightness = rng.uniform(-math.pi / 2, math.pi / 2), rng.uniform(0.5, 1)
            weight = {}
            for j in range(h):
                for i in range(w):
                    u = (2 * i / (w - 1) - 1 if w > 1 else 0) - 2 * offset[0]
                    v = (2 * j / (h - 1) - 1 if h > 1 else 0) - 2 * offset[1]
                    a = math.cos(angle) * u - math.sin(angle) * v
                    b = math.sin(angle) * u + math.cos(angle) * v
                    weight[i, j] = math.exp(-(a**2) / (2 * sigma[0] ** 2) - b**2 / (2 * sigma[1] ** 2))
            low, high = min(weight.values()), max(weight.values())
            xs, ys = [], []
            for (i, j), value in weight.items():
                value = 1.0 if high - low < 1e-9 else (value - low) / (high - low)
                if value * brightness > 25 / 255:
                    px, py = ax + x + i, ay + y + j
                    for c in range(3):
                        added = float(image[py, px, c]) + library.patches[index, j, i] * brightness * value * 255
                        image[py, px, c] = min(255.0, added)
                    xs.append(px)
                    ys.append(py)
            new_boxes.append((min(xs), min(ys), max(xs) + 1, max(ys) + 1))
            x, row_height = x + w + int(rng.integers(1, 3)), max(row_height, h)
    return image, new_boxes


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=512)
    parser.add_argument("--repeats", type=int, default=200)
    args = parser.parse_args()
    cv2.setNumThreads(1)
    rng = np.random.default_rng(0)
    library = TargetLibrary.from_crops([rng.uniform(0.3, 1, s) for s in rng.integers(1, 9, (1000, 2)).tolist()])
    image = rng.uniform(0, 120, (args.size, args.size, 3)).astype(np.float32)
    sky = np.zeros((args.size, args.size), np.uint8)
    sky[: args.size // 2] = 1
    corner = rng.integers(0, args.size - 5, (13, 2))
    boxes = np.concatenate([corner, corner + 3], 1).astype(np.float32)
    augmentation = BAGCopyPaste(library)
    fast, slow = [], []
    for i in range(args.repeats):
        np.random.seed(i)
        aug_input = IRSTDAugInput(image, boxes=boxes, classes=np.zeros(len(boxes), np.int64), sem_seg=sky)
        start = time.perf_counter()
        augmentation(aug_input)
        fast.append(time.perf_counter() - start)
        if i % 20 == 0:  # interleaved, so that both see the same machine
            copy = image.copy()
            start = time.perf_counter()
            plain_paste(copy, boxes, sky, library, np.random.default_rng(i))
            slow.append(time.perf_counter() - start)
    text = "\n".join(
        [
            "# BAG-CP",
            "",
            f"`python benchmarks/bag_cp.py --size {args.size} --repeats {args.repeats}`",
            "",
            f"{date.today()}, {platform.machine()}, one core, numpy {np.__version__}, OpenCV {cv2.__version__}, "
            f"{args.size}x{args.size} pixels, three float32 channels, 13 targets, half sky.",
            "",
            "| | median | 10 % to 90 % |",
            "|---|---|---|",
            f"| BAG-CP | {1e3 * statistics.median(fast):.2f} ms | "
            f"{1e3 * np.quantile(fast, 0.1):.2f} to {1e3 * np.quantile(fast, 0.9):.2f} ms |",
            f"| the same rule, pixel by pixel | {1e3 * statistics.median(slow):.0f} ms | "
            f"{1e3 * np.quantile(slow, 0.1):.0f} to {1e3 * np.quantile(slow, 0.9):.0f} ms |",
            f"| ratio | {statistics.median(slow) / statistics.median(fast):.0f} | |",
            "",
        ]
    )
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
