#!/usr/bin/env python3
"""Make ``wideirstd_matched_train`` and ``_val``: 1,840 images of WideIRSTD-Full from the sets that they came from.

    git clone --depth 1 https://github.com/15730845297/Infrared-Small-Target-Detection nudt
    git clone --depth 1 https://github.com/YimianDai/open-sirst-v2 sirstv2
    git clone --depth 1 https://github.com/YeRen123455/ICPR-Track2-LightWeight icpr
    datasets/prepare_wideirstd_matched.py --nudt nudt/dataset/NUDT-SIRST --sirstv2 sirstv2 \\
        --icpr icpr/dataset/ICPR_Track2/70_20

NUDT-SIRST's 1,327 images (any copy with ``images`` and ``masks``) are WideIRSTD's 00001 to 01327, SIRST-V2's ``Misc_*``
02329 to 02755, its other images with targets, in natural order, 02756 to 02841. They are matched by order, and every
size and mask area is compared with WideIRSTD's table, which also gives platform and band. The split is the official one
(7000 / 2000). Boxes are the bounds of the masks' 8-connected components; colour pictures become gray as OpenCV reads
them. Writes $DETECTRON2_DATASETS/WideIRSTD-matched.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import cv2
import numpy as np
from tqdm import tqdm

from irstd_d2.data import datasets_root
from irstd_d2.data.faults import refuse_or_skip
from irstd_d2.data.layout_writer import wideirstd_files, write_files, write_split_files
from irstd_d2.data.sidecar import SidecarEntry, read_sidecar
from irstd_d2.data.splits import read_split
from irstd_d2.data.target_masks import component_boxes, read_target_labels
from irstd_d2.data.voc_xml import VocObject, VocRecord
from irstd_d2.errors import DatasetError
from irstd_d2.files import staged_folder

NUM_NUDT, FIRST_MISC, NUM_MISC, NUM_OTHER = 1327, 2329, 427, 86
_OTHER = re.compile(r"S\d+_S\d+_\d+")


def get_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nudt", type=Path, required=True, metavar="DIR", help="NUDT-SIRST: images/, masks/")
    parser.add_argument("--sirstv2", type=Path, required=True, metavar="DIR", help="open-sirst-v2")
    parser.add_argument("--icpr", type=Path, required=True, metavar="DIR", help="train.txt, test.txt, statistics.txt")
    parser.add_argument("--output", type=Path, metavar="DIR", help="default: $DETECTRON2_DATASETS/WideIRSTD-matched")
    parser.add_argument("--overwrite", action="store_true", help="replace the folder if it exists")
    return parser


def match_ids(nudt: Path, sirstv2: Path) -> Iterator[tuple[str, Path, Path]]:
    """Yield (WideIRSTD's id, image, mask) of every image whose origin is known."""
    for number in range(1, NUM_NUDT + 1):
        yield f"{number:05d}", nudt / "images" / f"{number:06d}.png", nudt / "masks" / f"{number:06d}.png"
    others = sorted(
        (path.stem for path in (sirstv2 / "mixed").glob("S*_S*_*.png") if _OTHER.fullmatch(path.stem)),
        key=lambda name: [int(digits) for digits in re.findall(r"\d+", name)],
    )
    if len(others) != NUM_OTHER:
        problem = f"{len(others)} images S*_S*_*.png, not {NUM_OTHER}"
        raise DatasetError(sirstv2 / "mixed", "folder", problem, "clone open-sirst-v2 again")
    names = [f"Misc_{number}" for number in range(1, NUM_MISC + 1)] + others
    for number, name in enumerate(names, start=FIRST_MISC):
        yield f"{number:05d}", sirstv2 / "mixed" / f"{name}.png", sirstv2 / f"annotations/masks/{name}_pixels0.png"


def read_areas(table: Path) -> dict[str, int]:
    """Number of target pixels by id, the sixth column of WideIRSTD's table."""
    rows = (line.split("\t") for line in table.read_text(encoding="utf-8").splitlines())
    return {row[0]: int(row[5]) for row in rows if len(row) > 5}


def read_pair(
    image_file: Path, mask_file: Path, entry: SidecarEntry, area: int
) -> tuple[np.ndarray, np.ndarray, VocRecord]:
    """Read one image with its mask.

    Returns:
        Gray image and mask, both (H, W), and the annotation.

    Raises:
        DatasetError: a file is missing, or the size or the mask's area is not that of WideIRSTD's table.
    """
    image = cv2.imread(str(image_file), cv2.IMREAD_GRAYSCALE) if image_file.is_file() else None
    if image is None:
        raise DatasetError(image_file, "file", "missing or no image", "clone its repository again")
    height, width = image.shape
    if (width, height) != (entry.width, entry.height):
        problem = f"{width}x{height} pixels, {entry.width}x{entry.height} in WideIRSTD's table"
        raise DatasetError(image_file, "size", problem, "take the set in its original sizes")
    mask = read_target_labels(mask_file, (width, height), values="levels").labels > 0
    if int(mask.sum()) != area:
        problem = f"{int(mask.sum())} target pixels, {area} in WideIRSTD's table"
        raise DatasetError(mask_file, "pixels", problem, "take the masks as they were published")
    boxes = component_boxes(mask).tolist()
    objects = tuple(VocObject("Target", False, (x1, y1, x2, y2)) for x1, y1, x2, y2 in boxes)
    return image, mask, VocRecord(width, height, entry.platform, entry.band, objects)


def write_set(nudt: Path, sirstv2: Path, icpr: Path, folder: Path) -> dict[str, tuple[int, int]]:
    """Write the set below ``folder``; return numbers of images and targets by split."""
    table, faults = read_sidecar(icpr / "statistics.txt")
    areas = read_areas(icpr / "statistics.txt")
    members: dict[str, set[str]] = {}
    for split, file in (("train", "train.txt"), ("val", "test.txt")):
        names, line_faults = read_split(icpr / file)
        refuse_or_skip(line_faults, False, str(icpr / file))
        members[split] = set(names)
    found: dict[str, list[str]] = {split: [] for split in members}
    targets = dict.fromkeys(members, 0)
    for name, image_file, mask_file in tqdm(list(match_ids(nudt, sirstv2)), unit="image"):
        split = next((split for split, names in members.items() if name in names), None)
        if split is None or name not in table or name not in areas:
            raise DatasetError(icpr, name, f"no row or no split ({len(faults)} faulty lines)", "clone it again")
        image, mask, record = read_pair(image_file, mask_file, table[name], areas[name])
        write_files(folder / "VOC2007", wideirstd_files(name, image, record, mask))
        found[split].append(name)
        targets[split] += len(record.objects)
    write_split_files(folder / "VOC2007", found)
    return {split: (len(names), targets[split]) for split, names in found.items()}


def main(argv: Sequence[str] | None = None) -> int:
    args = get_parser().parse_args(argv)
    output = args.output or datasets_root() / "WideIRSTD-matched"
    try:
        with staged_folder(output, overwrite=args.overwrite) as folder:
            counts = write_set(args.nudt, args.sirstv2, args.icpr, folder)
    except (DatasetError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    shown = ", ".join(f"{split} {images} images with {targets} targets" for split, (images, targets) in counts.items())
    print(f"{output}: {shown}; ready as wideirstd_matched_train, wideirstd_matched_val")
    return 0


if __name__ == "__main__":
    sys.exit(main())
