#!/usr/bin/env python3
"""The same scenes at lower resolution, with their true width and height: does the size in the metadata help then?

    python benchmarks/lower_resolution.py wideirstd_matched_train wideirstd_matched_val --output output/mixed
    python tools/train_net.py --config-file configs/auxdet/tiny/auxdet_fine.yaml OUTPUT_DIR output/mixed_right_0 \
        DATASETS.OWN "(('mixed_train','output/mixed/wideirstd_matched_train.json','output/mixed/images'),)" \
        DATASETS.TRAIN "('mixed_train',)" DATASETS.TEST "()"

It writes every image at full, half and quarter resolution (means over pixels), with boxes in those pixels, and for each
set a COCO file of all and one of each factor (``SET_2.json``).
"""

import argparse
import json
from pathlib import Path

import cv2
import numpy as np
from detectron2.data import DatasetCatalog
from tqdm import tqdm

from irstd_d2.data import read_image

FACTORS = (1, 2, 4)


def lower(image: np.ndarray, factor: int) -> np.ndarray:
    """``(H, W, C)`` -> ``(ceil(H / factor), ceil(W / factor), C)``, 8 bits, means over squares; edges are repeated."""
    height, width = image.shape[:2]
    padded = np.pad(image, ((0, -height % factor), (0, -width % factor), (0, 0)), mode="edge")
    rows, columns = padded.shape[0] // factor, padded.shape[1] // factor
    means = padded.reshape(rows, factor, columns, factor, -1).mean((1, 3))
    return np.rint(means).clip(0, 255).astype(np.uint8)


def write(dataset: str, output: Path) -> None:
    """Write the images and COCO files of a registered set below ``output``."""
    (output / "images").mkdir(parents=True, exist_ok=True)
    images: dict[int, list[dict]] = {factor: [] for factor in FACTORS}
    annotations: dict[int, list[dict]] = {factor: [] for factor in FACTORS}
    for number, record in enumerate(tqdm(DatasetCatalog.get(dataset), desc=dataset)):
        pixels = read_image(record["file_name"])
        tags = {key: record["metadata"][key] for key in ("platform", "band")}
        for position, factor in enumerate(FACTORS):
            small, key = lower(pixels, factor), len(FACTORS) * number + position + 1
            name = f"{record['image_id']}_{factor}.png"
            cv2.imwrite(str(output / "images" / name), small[:, :, ::-1])
            height, width = small.shape[:2]
            images[factor].append({"id": key, "file_name": name, "width": width, "height": height, **tags})
            for annotation in record["annotations"]:
                left, top, right, bottom = (edge / factor for edge in annotation["bbox"])  # XYXY_ABS
                annotations[factor].append({
                    "id": 1 + sum(map(len, annotations.values())), "image_id": key, "category_id": 1, "iscrowd": 0,
                    "bbox": [left, top, right - left, bottom - top], "area": (right - left) * (bottom - top),
                })  # fmt: skip
    for suffix, factors in (("", FACTORS), *((f"_{factor}", (factor,)) for factor in FACTORS)):
        coco = {
            "images": [image for factor in factors for image in images[factor]],
            "annotations": [annotation for factor in factors for annotation in annotations[factor]],
            "categories": [{"id": 1, "name": "target"}],
        }
        (output / f"{dataset}{suffix}.json").write_text(json.dumps(coco))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("datasets", nargs="+", help="names of registered sets")
    parser.add_argument("--output", type=Path, required=True)
    args = parser.parse_args()
    for name in args.datasets:
        if name not in DatasetCatalog.list():
            parser.error(f"{name} is not registered; datasets/README.md lists those that are")
        write(name, args.output)


if __name__ == "__main__":
    main()
