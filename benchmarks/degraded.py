#!/usr/bin/env python3
"""The same scenes at lower resolution, with their true width and height, or at fewer bits: does the metadata help then?

    python benchmarks/degraded.py wideirstd_matched_train wideirstd_matched_val --output output/mixed
    python tools/train_net.py --config-file configs/auxdet/tiny/auxdet_fine.yaml OUTPUT_DIR output/mixed_right_0 \
        DATASETS.OWN "(('mixed_train','output/mixed/wideirstd_matched_train.json','output/mixed/images'),)" \
        DATASETS.TRAIN "('mixed_train',)" DATASETS.TEST "()"
    python benchmarks/degraded.py wideirstd_matched_val --bits 8 5 4 3 --output output/bits

It writes every image at full, half and quarter resolution (means over pixels, boxes in those pixels), or rounded to
256, 32, 16 and 8 levels, and for each set a COCO file of all and one of each version (``SET_2.json``,
``SET_5bit.json``).
"""

import argparse
import json
from pathlib import Path

import cv2
import numpy as np
from detectron2.data import DatasetCatalog
from tqdm import tqdm

from irstd_d2.data import read_image


def lower(image: np.ndarray, factor: int) -> np.ndarray:
    """``(H, W, C)`` -> ``(ceil(H / factor), ceil(W / factor), C)``, 8 bits, means over squares; edges are repeated."""
    height, width = image.shape[:2]
    padded = np.pad(image, ((0, -height % factor), (0, -width % factor), (0, 0)), mode="edge")
    rows, columns = padded.shape[0] // factor, padded.shape[1] // factor
    means = padded.reshape(rows, factor, columns, factor, -1).mean((1, 3))
    return np.rint(means).clip(0, 255).astype(np.uint8)


def rounded(image: np.ndarray, bits: int) -> np.ndarray:
    """``(H, W, C)`` of 0 to 255 -> the same with ``2 ** bits`` levels, the lowest 0 and the highest 255."""
    step = 255 / (2**bits - 1)
    return np.rint(np.rint(image / step) * step).astype(np.uint8)


RESOLUTIONS = {"1": (1, 8), "2": (2, 8), "4": (4, 8)}  # factor and bits of each version


def write(dataset: str, output: Path, versions: dict[str, tuple[int, int]] = RESOLUTIONS) -> None:
    """Write the images and COCO files of a registered set below ``output``."""
    (output / "images").mkdir(parents=True, exist_ok=True)
    images: dict[str, list[dict]] = {version: [] for version in versions}
    annotations: dict[str, list[dict]] = {version: [] for version in versions}
    for number, record in enumerate(tqdm(DatasetCatalog.get(dataset), desc=dataset)):
        pixels = read_image(record["file_name"])
        tags = {key: record["metadata"][key] for key in ("platform", "band")}
        for position, (version, (factor, bits)) in enumerate(versions.items()):
            degraded, key = rounded(lower(pixels, factor), bits), len(versions) * number + position + 1
            name = f"{record['image_id']}_{version}.png"
            cv2.imwrite(str(output / "images" / name), degraded[:, :, ::-1])
            height, width = degraded.shape[:2]
            images[version].append({"id": key, "file_name": name, "width": width, "height": height, **tags})
            for annotation in record["annotations"]:
                left, top, right, bottom = (edge / factor for edge in annotation["bbox"])  # XYXY_ABS
                annotations[version].append({
                    "id": 1 + sum(map(len, annotations.values())), "image_id": key, "category_id": 1, "iscrowd": 0,
                    "bbox": [left, top, right - left, bottom - top], "area": (right - left) * (bottom - top),
                })  # fmt: skip
    for suffix, parts in (("", [*versions]), *((f"_{version}", [version]) for version in versions)):
        coco = {
            "images": [image for version in parts for image in images[version]],
            "annotations": [annotation for version in parts for annotation in annotations[version]],
            "categories": [{"id": 1, "name": "target"}],
        }
        (output / f"{dataset}{suffix}.json").write_text(json.dumps(coco))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("datasets", nargs="+", help="names of registered sets")
    parser.add_argument("--bits", type=int, nargs="+", choices=range(1, 9), help="in place of lower resolutions")
    parser.add_argument("--output", type=Path, required=True)
    args = parser.parse_args()
    versions = {f"{bits}bit": (1, bits) for bits in args.bits or ()} or RESOLUTIONS
    for name in args.datasets:
        if name not in DatasetCatalog.list():
            parser.error(f"{name} is not registered; datasets/README.md lists those that are")
        write(name, args.output, versions)


if __name__ == "__main__":
    main()
