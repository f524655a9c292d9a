"""Folders of images and target masks with lists of names, as IRSTD-1K and NUDT-SIRST are published."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from os import PathLike
from pathlib import Path

import numpy as np

from ..data.layout import FolderIndex
from ..data.splits import read_split
from ..data.target_masks import component_boxes, read_target_mask
from ..errors import DatasetError
from .detection_set import DetectionSet, ImageRecord, TargetObject, count_targets
from .side_files import (
    SKY_MASKS,
    TARGET_MASKS,
    SideFiles,
    image_size,
    place_image,
    place_sky_mask,
    write_mask,
    write_metadata_table,
    write_splits,
)

IMAGES = "images"
_MASK_NAMES = ("{}", "{}_pixels0")


def read_masks(
    root: str | PathLike,
    *,
    images: str = IMAGES,
    masks: str = TARGET_MASKS,
    splits: Mapping[str, str] | None = None,
    class_name: str = "Target",
    sidecar: str | PathLike | None = None,
    threshold: float = 0.5,
) -> DetectionSet:
    """Read a set whose targets are the 8-connected components of masks.

    Args:
        root: of the set.
        images: folder of the images below ``root``.
        masks: folder of the masks; a mask is called like its image, or with ``_pixels0`` behind the name.
        splits: file of names below ``root`` by split; ``None`` takes every ``*.txt`` in ``root``. Without any, all
            images count.
        class_name: of every target.
        sidecar: metadata table; ``None`` takes ``metadata.csv`` of ``root`` if there is one.
        threshold: see :func:`read_target_mask`.

    Raises:
        DatasetError: an image or a mask is missing, unreadable, or their sizes differ.
    """
    root = Path(root)
    files = splits if splits is not None else {path.stem: path.name for path in sorted(root.glob("*.txt"))}
    lists = {split: read_split(root / file)[0] for split, file in files.items()}
    image_index, mask_index = FolderIndex(root / images), FolderIndex(root / masks)
    names = list(dict.fromkeys(name for split in lists.values() for name in split)) or image_index.stems()
    side_files = SideFiles(root, sidecar)
    records = []
    for name in names:
        image = _only(image_index, [name], "image")
        mask = _only(mask_index, [pattern.format(name) for pattern in _MASK_NAMES], "mask")
        size = image_size(image)
        boxes = component_boxes(read_target_mask(mask, size, threshold)).tolist()
        objects = [TargetObject(class_name, (x1, y1, x2, y2)) for x1, y1, x2, y2 in boxes]
        records.append(side_files.record(name, image, size, objects, target_mask=mask))
    return DetectionSet(tuple(records), (class_name,), {split: tuple(lines) for split, lines in lists.items()})


def write_masks(detection_set: DetectionSet, folder: Path, *, link: bool = False) -> Counter[str]:
    """Write a set as images and target masks; return what was lost, counted.

    The mask of a record is copied where it has one; else its boxes are filled.
    """
    records = detection_set.records
    lost: Counter[str] = Counter()
    for record in records:
        place_image(record, folder / IMAGES, link=link)
        place_sky_mask(record, folder / SKY_MASKS / f"{record.name}.png")
        mask = fill_boxes(record) if record.target_mask is None else read_target_mask(record.target_mask, record.size)
        write_mask(folder / TARGET_MASKS / f"{record.name}.png", mask)
        kept = set(map(tuple, component_boxes(mask).tolist()))
        gone = sum(obj.box not in kept for obj in record.objects)
        lost["boxes that are not the bounds of one component of the mask"] += gone
    lost["difficult marks"] = count_targets(records, lambda obj: obj.difficult)
    if len(detection_set.class_names) > 1:
        lost["class names"] = detection_set.num_objects
    write_metadata_table(folder, records)
    write_splits(detection_set, lambda split: folder / f"{split}.txt", lambda name: name)
    return +lost


def fill_boxes(record: ImageRecord) -> np.ndarray:
    """``(H, W)`` bool: every pixel that a box touches."""
    width, height = record.size
    mask = np.zeros((height, width), bool)
    for obj in record.objects:
        x1, y1 = (int(np.floor(value)) for value in obj.box[:2])
        x2, y2 = (int(np.ceil(value)) for value in obj.box[2:])
        mask[y1:y2, x1:x2] = True
    return mask


def _only(index: FolderIndex, stems: list[str], kind: str) -> Path:
    """The one file with any of the stems."""
    found = [name for stem in stems for name in index[stem]]
    if len(found) == 1:
        return index.folder / found[0]
    problem = f"{', '.join(found)} all stand for {stems[0]!r}" if found else f"no such {kind}"
    fix = "keep one of them" if found else f"add the {kind}, or take its name out of the lists"
    raise DatasetError(index.folder / (found or stems)[0], "file", problem, fix)
