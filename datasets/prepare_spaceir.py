#!/usr/bin/env python3
"""Make ``spaceir_train`` and ``spaceir_val``: ships in ports, seen by Sentinel-2 in NIR (B08) and SWIR (B11).

    git clone --depth 1 https://github.com/ShipDetectionExperts/sen2ships
    datasets/prepare_spaceir.py sen2ships/sen2ships

Twelve ports, each cut into tiles without overlap, at lines that cut no ship; split by port. 16-bit pixels are
divided by 257 and rounded, as the project reads them. Boxes are the bounds of each ship's own mask. Writes
$DETECTRON2_DATASETS/SpaceIR-sen2ships: 136 images with 464 targets to train on, 60 with 132 to validate.
(MIT licence; contains modified Copernicus Sentinel data 2022 and 2023.)
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import numpy as np
from pycocotools import mask as rle
from tqdm import tqdm

from irstd_d2.data import datasets_root, read_image
from irstd_d2.data.layout_writer import wideirstd_files, write_files, write_split_files
from irstd_d2.data.voc_xml import VocObject, VocRecord
from irstd_d2.errors import DatasetError
from irstd_d2.files import staged_folder

BANDS = {"B08": "NIR", "B11": "SWIR"}


class Site(NamedTuple):
    """A port: its split and bands, and the columns and rows at which its image is cut."""

    split: str
    columns: tuple[int, ...]
    rows: tuple[int, ...]
    bands: tuple[str, ...] = ("B08", "B11")


# In the order of the image ids. Left out are ports with a missing file or with an annotation of another size.
SITES = {
    "algiers": Site("train", (0, 450, 901, 1351), (0, 375, 751, 1126)),
    "athens": Site("train", (0, 460, 920, 1380), (0, 382, 755, 1145)),
    "cartagena": Site("train", (0, 371, 747), (0, 409, 817, 1226)),
    "durban": Site("train", (0, 444, 889, 1334), (0, 346, 692, 1038)),
    "hedland": Site("train", (0, 423, 846, 1269), (0, 394, 791, 1181)),
    "honolulu": Site("train", (0, 424), (0, 316)),
    "los_angeles": Site("train", (0, 541, 1010, 1523, 2020), (0, 485, 919, 1378)),
    "san_francisco": Site("train", (0, 448), (0, 469, 938), ("B11",)),
    "valencia": Site("train", (0, 412, 828, 1237, 1649), (0, 438, 877, 1315)),
    "genoa": Site("val", (0, 440, 880, 1321, 1761, 2201), (0, 435, 871)),
    "gdynia": Site("val", (0, 515, 990, 1485, 1980), (0, 346, 692, 1038)),
    "klang": Site("val", (0, 323, 646), (0, 385, 770, 1155, 1540)),
}


def get_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path, help="folder of the ports in the clone of sen2ships")
    parser.add_argument("--output", type=Path, metavar="DIR", help="default: $DETECTRON2_DATASETS/SpaceIR-sen2ships")
    parser.add_argument("--overwrite", action="store_true", help="replace the folder if it exists")
    return parser


def find_one(folder: Path, pattern: str) -> Path:
    """The one file that fits.

    Raises:
        DatasetError: there is none, or more than one.
    """
    found = sorted(folder.glob(pattern))
    if len(found) != 1:
        raise DatasetError(folder, pattern, f"{len(found)} files, not 1", "clone sen2ships again")
    return found[0]


def read_ships(annotations: Path, size: tuple[int, int]) -> list[np.ndarray]:
    """The mask ``(H, W)`` bool of every ship of a port; ``size`` is (height, width) of its image."""
    ships = []
    for entry in json.loads(annotations.read_bytes())["annotations"]:
        outline = entry["segmentation"]
        if tuple(outline["size"]) != size:
            problem = f"a mask of {outline['size']}, an image of {list(size)}"
            raise DatasetError(annotations, f"annotation {entry['id']}", problem, "clone sen2ships again")
        ships.append(rle.decode(rle.frPyObjects(outline, *size)).astype(bool))
    return ships


def cut_tile(
    image: np.ndarray, ships: Sequence[np.ndarray], columns: tuple[int, int], rows: tuple[int, int], band: str
) -> tuple[np.ndarray, np.ndarray, VocRecord]:
    """One tile of a port: image and mask of all ships, both (H, W), and the annotation."""
    place = slice(*rows), slice(*columns)
    tile = np.ascontiguousarray(image[place])
    mask = np.zeros(tile.shape, bool)
    objects = []
    for ship in ships:
        part = ship[place]
        if not part.any():
            continue
        if part.sum() != ship.sum():
            raise DatasetError("sen2ships", "tiles", f"a line at {columns}, {rows} cuts a ship", "clone it again")
        mask |= part
        y, x = np.nonzero(part)
        box = (int(x.min()), int(y.min()), int(x.max()) + 1, int(y.max()) + 1)
        objects.append(VocObject("Target", False, box))
    return tile, mask, VocRecord(tile.shape[1], tile.shape[0], "Space", BANDS[band], tuple(objects))


def write_set(source: Path, folder: Path) -> dict[str, tuple[int, int]]:
    """Write the set below ``folder``; return numbers of images and targets by split."""
    names: dict[str, list[str]] = {"train": [], "val": []}
    targets = dict.fromkeys(names, 0)
    for port, site in tqdm(SITES.items(), unit="port"):
        ships = None
        for band in site.bands:
            file = find_one(source / port, f"*_{band}_(Raw).tiff")
            image = np.rint(read_image(file, high_bit_depth="full_range")[:, :, 0]).astype(np.uint8)
            if image.shape != (site.rows[-1], site.columns[-1]):
                raise DatasetError(file, "size", f"{image.shape[1]}x{image.shape[0]} pixels", "clone sen2ships again")
            if ships is None:
                ships = read_ships(find_one(source / port, f"**/{port}_coco.json"), image.shape)
            for rows in pairwise(site.rows):
                for columns in pairwise(site.columns):
                    tile, mask, record = cut_tile(image, ships, columns, rows, band)
                    name = f"S{sum(map(len, names.values())) + 1:04d}"
                    write_files(folder / "VOC2007", wideirstd_files(name, tile, record, mask))
                    names[site.split].append(name)
                    targets[site.split] += len(record.objects)
    write_split_files(folder / "VOC2007", names)
    return {split: (len(members), targets[split]) for split, members in names.items()}


def main(argv: Sequence[str] | None = None) -> int:
    args = get_parser().parse_args(argv)
    output = args.output or datasets_root() / "SpaceIR-sen2ships"
    try:
        with staged_folder(output, overwrite=args.overwrite) as folder:
            counts = write_set(args.source, folder)
    except (DatasetError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    shown = ", ".join(f"{split} {images} images with {number} targets" for split, (images, number) in counts.items())
    print(f"{output}: {shown}; ready as spaceir_train, spaceir_val")
    return 0


if __name__ == "__main__":
    sys.exit(main())
