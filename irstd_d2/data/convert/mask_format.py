"""Folders of images and target masks with lists of names, as IRSTD-1K and NUDT-SIRST are published."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from os import PathLike
from pathlib import Path

import cv2
import numpy as np
from tqdm import tqdm

from ...errors import DatasetError
from ...files import list_files
from ..faults import Fault, FaultKind, refuse_or_skip
from ..image_io import read_image_size
from ..layout import FolderIndex
from ..layout_writer import png_bytes
from ..segmentation import decode, encode
from ..splits import read_split
from ..target_masks import MaskValues, compact_labels, label_boxes, number_targets, read_target_labels
from .detection_set import DetectionSet, ImageRecord, TargetObject
from .side_files import IMAGES, TARGET_MASKS, SideFiles, in_folder, place_files, write_metadata_table, write_splits

_MASK_NAMES = ("{}", "{}_pixels0")
_MAX_SHARE = 0.5  # of the pixels that targets have
_FEW_IMAGES = 500  # are read before a progress bar is seen
_UNCLEAR = (
    "pixels of masks between clear and dark (edges, borders; numbers of targets are read with --mask-values labels)"
)


def read_masks(
    root: str | PathLike,
    *,
    images: str = IMAGES,
    masks: str = TARGET_MASKS,
    splits: Mapping[str, str] | None = None,
    class_name: str = "Target",
    sidecar: str | PathLike | None = None,
    threshold: float = 0.5,
    values: MaskValues = "auto",
    skip_bad: bool = False,
) -> DetectionSet:
    """Read a set whose targets are the 8-connected components of masks, or of each label in them.

    Args:
        images: folder of the images below ``root``.
        masks: folder of the masks; a mask is called like its image, or with ``_pixels0`` behind the name.
        splits: file of names below ``root`` by split; ``None`` takes every ``*.txt`` in ``root``. Without any, all
            images count.
        sidecar: metadata table; ``None`` takes ``metadata.csv`` of ``root`` if there is one.
        threshold, values: see :func:`read_target_labels`.
        skip_bad: leave faulty images and lines out, with one logged summary, in place of raising.

    Raises:
        DatasetError: a line of a list is faulty, an image or a mask is missing, unreadable, or their sizes differ, and
            ``skip_bad`` is off; or nothing is left.
    """
    root = Path(root)
    files = splits if splits is not None else {path.stem: path.name for path in list_files(root, (".txt",))}
    faults: list[Fault] = []
    lists = {}
    for split, file in files.items():
        lists[split], line_faults = read_split(root / file)
        faults += line_faults
    image_index, mask_index = FolderIndex(root / images), FolderIndex(root / masks)
    listed = dict.fromkeys(name for split in lists.values() for name in split)
    names = list(listed) if files else image_index.stems()
    side_files = SideFiles(root, image_index.stems(), sidecar)
    records = []
    unread: Counter[str] = Counter()
    for name in tqdm(names, unit="image", disable=len(names) < _FEW_IMAGES):
        try:
            image = _only(image_index, [name], "image")
            mask = _only(mask_index, [pattern.format(name) for pattern in _MASK_NAMES], "mask")
            size = read_image_size(image)[::-1]
            labels, left_out = read_target_labels(mask, size, threshold=threshold, values=values)
            _check_share(mask, labels)
        except DatasetError as error:
            faults.append(Fault.from_error(FaultKind.BAD_PAIR, error))
            continue
        unread[_UNCLEAR] += left_out
        objects = [TargetObject(class_name, (x1, y1, x2, y2)) for x1, y1, x2, y2 in label_boxes(labels).tolist()]
        records.append(side_files.record(name, image, size, objects, target_mask=mask))
    refuse_or_skip(faults, skip_bad, str(root))
    unread["images in no list"] = len(set(image_index.stems()) - set(names))
    named = {pattern.format(name) for name in image_index.stems() for pattern in _MASK_NAMES}
    unread["masks without an image"] = len(set(mask_index.stems()) - named)
    return DetectionSet.of_kept(records, (class_name,), lists, unread, faults)


def _check_share(path: Path, labels: np.ndarray) -> None:
    """Refuse a mask that marks more than half of its pixels: so do masks whose 0 are the targets."""
    share = (labels > 0).mean()
    if share > _MAX_SHARE:
        problem = f"{share:.0%} of the pixels belong to targets; is it inverted?"
        raise DatasetError(path, "pixels", problem, "write 0 where there is no target")


def write_masks(detection_set: DetectionSet, folder: Path, *, link: bool = False) -> Counter[str]:
    """Write a set as images and target masks; return what was lost, counted.

    Targets without mask and outline are filled boxes. Targets that touch get numbers in place of 255.
    """
    records = detection_set.records
    lost: Counter[str] = Counter()
    for record in records:
        place_files(record, folder, link=link)
        mask = target_mask(record)
        in_folder(folder / TARGET_MASKS / f"{record.name}.png").write_bytes(png_bytes(mask))
        kept = set(map(tuple, label_boxes(mask).tolist()))
        if record.target_mask is None and all(obj.outline for obj in record.objects):
            pixels = sum(int(decode(obj.outline, record.size).sum()) for obj in record.objects if obj.outline)
            lost["pixels that several targets share (the last one has them)"] += pixels - int((mask > 0).sum())
        gone = sum(obj.box not in kept for obj in record.objects)
        lost["boxes that are not the bounds of one target in the mask"] += gone
    lost["difficult marks"] = detection_set.num_difficult
    if len(detection_set.class_names) > 1:
        lost["class names"] = detection_set.num_objects
    write_metadata_table(folder, records)
    write_splits(detection_set, lambda split: folder / f"{split}.txt", lambda name: name)
    return +lost


def target_mask(record: ImageRecord) -> np.ndarray:
    """``(H, W)`` as of :func:`~irstd_d2.data.target_masks.number_targets`: the mask, else outlines, else boxes."""
    if record.target_mask is not None:
        return compact_labels(read_target_labels(record.target_mask, record.size).labels)
    masks = [
        _fill_box(obj.box, record.size) if obj.outline is None else decode(obj.outline, record.size)
        for obj in record.objects
    ]
    return number_targets(masks, record.size)


def with_outlines(record: ImageRecord) -> ImageRecord:
    """A record with the outlines that its mask file gives: of objects whose box is that of one target in it."""
    if record.target_mask is None:
        return record
    labels = read_target_labels(record.target_mask, record.size).labels
    found: dict[tuple[float, ...], list[bytes]] = {}
    for number in np.unique(labels[labels > 0]):
        _, parts, rows, _ = cv2.connectedComponentsWithStats((labels == number).astype(np.uint8), connectivity=8)
        for part, (x, y, width, height) in enumerate(rows[1:, :4].tolist(), start=1):
            found.setdefault((x, y, x + width, y + height), []).append(encode(parts == part))
    objects = []
    for obj in record.objects:
        outlines = found.get(obj.box, [])
        objects.append(obj._replace(outline=outlines[0] if len(outlines) == 1 else obj.outline))
    return replace(record, objects=tuple(objects))


def has_mask(record: ImageRecord) -> bool:
    """Whether more than boxes is known of the targets: a mask file, or the outline of each."""
    outlined = bool(record.objects) and all(obj.outline is not None for obj in record.objects)
    return record.target_mask is not None or outlined


def _fill_box(box: tuple[float, float, float, float], size: tuple[int, int]) -> np.ndarray:
    """``(H, W)`` bool: every pixel that a box touches."""
    mask = np.zeros(size[::-1], bool)
    (x1, y1), (x2, y2) = np.floor(box[:2]).astype(int), np.ceil(box[2:]).astype(int)
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
