#!/usr/bin/env python3
"""Classical filters beside the models of the zoo: top-hat, local contrast (LCM) and multiscale patch contrast (MPCM).

    benchmarks/classical.py --dataset spaceir_val --output output/classical
    irstd evaluate output/classical/* --weights fcos_dense --dataset spaceir_val

Each filter writes COCO results, which `irstd evaluate` judges as it judges a model: Pd and Fa by centre, AP by
box. A detection is a component of what stands out of the filtered image by more than --k standard deviations; its score
is its peak, by how many deviations it stands out. Filters: top-hat with a ring (Zeng et al. 2006, in its plain form),
LCM (Chen et al., TGRS 2014), MPCM (Wei et al., Pattern Recognition 2016).
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import cv2
import numpy as np
from detectron2.data import DatasetCatalog
from tqdm import tqdm

from irstd_d2 import load_systems
from irstd_d2.data import read_image
from irstd_d2.data.datasets import check_registered, register_own_sets
from irstd_d2.evaluation.ground_truth import GroundTruth
from irstd_d2.evaluation.predictions import PREDICTIONS_FILE
from irstd_d2.files import write_atomically

MPCM_SIZES = (3, 5, 7, 9)


def top_hat(image: np.ndarray) -> np.ndarray:
    """What is bright and smaller than the structuring element; (H, W) float32."""
    return cv2.morphologyEx(image, cv2.MORPH_TOPHAT, cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (9, 9)))


def _neighbours(means: np.ndarray, size: int) -> list[np.ndarray]:
    """The means of the eight cells around a cell, opposite ones four apart."""
    padded = cv2.copyMakeBorder(means, size, size, size, size, cv2.BORDER_REFLECT)
    height, width = means.shape
    around = [(0, 0), (0, 1), (0, 2), (1, 2), (2, 2), (2, 1), (2, 0), (1, 0)]
    return [padded[size * y : size * y + height, size * x : size * x + width] for y, x in around]


def local_contrast(image: np.ndarray, sizes: tuple[int, ...] = (3, 5, 7)) -> np.ndarray:
    """LCM: brightest pixel of a cell squared over the largest mean of its neighbours; the largest over the sizes."""
    scales = []
    for size in sizes:
        brightest = cv2.dilate(image, np.ones((size, size), np.uint8))
        around = np.maximum.reduce(_neighbours(cv2.blur(image, (size, size)), size))
        scales.append(brightest**2 / (around + 1))
    return np.maximum.reduce(scales) - image.mean()


def patch_contrast(image: np.ndarray, sizes: tuple[int, ...] = MPCM_SIZES) -> np.ndarray:
    """MPCM: the weakest product of a cell's differences from two opposite neighbours; the largest over the sizes."""
    scales = []
    for size in sizes:
        means = cv2.blur(image, (size, size))
        steps = [means - around for around in _neighbours(means, size)]
        products = [first * second for first, second in zip(steps[:4], steps[4:])]
        bright = np.minimum.reduce(steps) > 0  # targets darker than all around are none
        scales.append(np.where(bright, np.minimum.reduce(products), 0))
    return np.sqrt(np.maximum.reduce(scales)).astype(np.float32)


FILTERS = {"top_hat": top_hat, "lcm": local_contrast, "mpcm": patch_contrast}


def components(filtered: np.ndarray, k: float, most: int) -> tuple[np.ndarray, np.ndarray]:
    """Boxes (d, 4) x y width height and scores (d,) below 1, best first, of what stands out."""
    strength = (filtered - filtered.mean()) / (filtered.std() + 1e-6)
    count, labels, stats, _ = cv2.connectedComponentsWithStats((strength > k).astype(np.uint8), connectivity=8)
    peaks = np.zeros(count, np.float32)
    np.maximum.at(peaks, labels.ravel(), strength.ravel())
    order = 1 + np.argsort(-peaks[1:], kind="stable")[:most]
    return stats[order, :4].astype(float), 1 - 1 / (1 + peaks[order])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset", nargs="+", required=True, metavar="NAME", help="registered sets")
    parser.add_argument("--own", nargs=3, action="append", default=[], metavar=("NAME", "FOLDER", "SPLIT"))
    parser.add_argument("--output", type=Path, required=True, metavar="FOLDER", help="a folder per filter goes there")
    parser.add_argument("--k", type=float, default=4.0, help="standard deviations above the mean (%(default)s)")
    parser.add_argument("--most", type=int, default=100, help="detections per image (%(default)s)")
    args = parser.parse_args()
    load_systems()
    register_own_sets([tuple(entry) for entry in args.own])
    check_registered("--dataset", args.dataset)
    for name in args.dataset:
        dicts, (category, *_) = DatasetCatalog.get(name), GroundTruth.from_dataset(name).category_ids
        rows: dict[str, list[dict]] = {key: [] for key in FILTERS}
        seconds = dict.fromkeys(FILTERS, 0.0)
        for record in tqdm(dicts, desc=name, unit="image"):
            image = np.ascontiguousarray(read_image(record["file_name"], format="BGR").mean(axis=2))
            for key, apply in FILTERS.items():
                started = time.process_time()
                found = components(apply(image), args.k, args.most)
                seconds[key] += time.process_time() - started
                rows[key] += [
                    {"image_id": record["image_id"], "category_id": category, "bbox": box, "score": score}
                    for box, score in zip(found[0].tolist(), found[1].tolist())
                ]
        for key, found in rows.items():
            write_atomically(args.output / key / "inference" / name / PREDICTIONS_FILE, json.dumps(found))
            print(f"{name} {key}: {len(found)} detections, {seconds[key] / len(dicts):.4f} s of processor per image")


if __name__ == "__main__":
    main()
