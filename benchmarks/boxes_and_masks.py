#!/usr/bin/env python3
"""How close masks made from true boxes come to the true masks, by the share of the peak that a pixel needs.

The share is chosen on training splits; others only report it. Boxes are the bounds of the masks.

    python benchmarks/boxes_and_masks.py wideirstd_matched_train densesirst_v2_train wideirstd_matched_val
"""

from __future__ import annotations

import argparse
import time
from datetime import date
from pathlib import Path

import numpy as np
from tqdm import tqdm

from irstd_d2 import get_config
from irstd_d2.data.image_io import read_raw
from irstd_d2.evaluation.ground_truth import GroundTruth
from irstd_d2.evaluation.mask_evaluation import TargetMasks
from irstd_d2.evaluation.mask_metrics import count_masks
from irstd_d2.evaluation.masks_and_boxes import boxes_to_map, mask_to_boxes
from irstd_d2.evaluation.results import format_number, format_table

RESULTS = Path(__file__).resolve().parent / "results" / "boxes_and_masks.md"
SHARES = (0.1, 0.2, 0.25, 0.3, 0.35, 0.4, 0.5)


def filled(shape: tuple[int, ...], boxes: np.ndarray) -> np.ndarray:
    mask = np.zeros(shape, bool)
    for x1, y1, x2, y2 in boxes.astype(int):
        mask[y1:y2, x1:x2] = True
    return mask


def measure(name: str, step: int) -> dict[str, list[tuple[float, ...]]]:
    """Pixels shared, added, missed, IoU, targets found and targets of every image, by the way of making masks."""
    truth = GroundTruth.from_dataset(name)
    targets = TargetMasks.of(name, truth)
    rows: dict[str, list[tuple[float, ...]]] = {}
    for index in tqdm(range(0, len(truth.image_ids), step), desc=name):
        target = targets[index]
        if not target.any():
            continue
        boxes, ones = mask_to_boxes(target.astype(float))
        raw = read_raw(truth.files[index].image or "")
        gray = raw if raw.ndim == 2 else raw[:, :, :3].mean(axis=2)
        made = {"filled box": filled(target.shape, boxes)}
        made |= {f"{share:g} of the peak": boxes_to_map(gray, boxes, ones, share) > 0 for share in SHARES}
        for way, mask in made.items():
            row = count_masks(mask, target)
            counts = row.true_pixels, row.false_pixels, row.missed_pixels
            rows.setdefault(way, []).append((*counts, row.image_iou, row.found, row.targets))
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sets", nargs="+", help="registered data sets with masks")
    parser.add_argument("--step", type=int, default=1, help="every so many images")
    args = parser.parse_args()
    get_config()
    start = time.process_time()
    table = []
    for name in args.sets:
        for way, rows in measure(name, args.step).items():
            columns = np.array(rows).T
            iou = 100 * columns[0].sum() / columns[:3].sum()
            pd = 100 * columns[4].sum() / columns[5].sum()
            numbers = (format_number(value) for value in (iou, 100 * columns[3].mean(), pd))
            table.append([name, str(len(rows)), way, *numbers])
    command = f"python benchmarks/boxes_and_masks.py {' '.join(args.sets)} --step {args.step}"
    text = "\n".join(
        [
            "# Masks made from true boxes",
            "",
            f"`{command}`",
            "",
            f"{date.today()}, {time.process_time() - start:.0f} s of one processor. Images with targets; boxes are the "
            "bounds of the true masks. No seed: nothing is drawn. Chosen is a tenth: the only share that is well above "
            "the filled box on both training sets.",
            "",
            format_table(table, ["set", "images", "mask of a box", "IoU", "nIoU", "Pd"]),
            "",
        ]
    )
    RESULTS.write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
