"""From any format to any other, complete or not at all, with an account of what got lost."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from os import PathLike
from pathlib import Path

from detectron2.data import DatasetCatalog, MetadataCatalog

from ...errors import DatasetError, check_known
from ...files import staged_folder
from ..check import Collection, convention_notes
from ..faults import Fault, FaultKind, refuse_or_skip
from ..image_io import check_size, count_pages, read_image_size
from .coco_format import find_coco_files, write_coco
from .detection_set import DetectionSet, name_records, record_from_dict, record_to_dict
from .mask_format import read_masks, write_masks
from .voc_format import write_voc
from .yolo_format import is_yolo, read_yolo, write_yolo

FORMATS = ("voc", "coco", "mask", "yolo")
_CONVENTIONS = {
    "half_open": "pixels from 0, xmax and ymax the last ones plus one",
    "one_based": "pixels from 1, xmax and ymax the last ones plus one",
    "inclusive": "pixels from 1, xmax and ymax the last ones",
    "paper": "one subtracted from all values",
}
_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class ConversionReport:
    """What a conversion wrote.

    Args:
        images, objects: numbers of them.
        splits: number of images by split.
        unread: what the source says but this project does not read, counted.
        lost: what the target format cannot hold, counted.
    """

    images: int
    objects: int
    splits: dict[str, int]
    unread: Counter[str]
    lost: Counter[str]

    def __str__(self) -> str:
        splits = ", ".join(f"{split} {count}" for split, count in self.splits.items())
        lines = [f"{self.images} images, {self.objects} targets; splits: {splits or 'none'}"]
        for title, counts in (("not read", self.unread), ("lost, as the format cannot hold it", self.lost)):
            found = ", ".join(f"{count} x {what}" for what, count in counts.most_common())
            lines.append(f"{title}: {found or 'nothing'}")
        return "\n".join(lines)


def detect_format(source: str | PathLike) -> str:
    """One of ``FORMATS``, from what lies in a set's folder; a folder that is none of the others counts as ``voc``."""
    path = Path(source)
    if path.is_file() or find_coco_files(path):
        return "coco"
    if is_yolo(path):
        return "yolo"
    return "mask" if (path / "images").is_dir() and (path / "masks").is_dir() else "voc"


def read_registered(name: str) -> DetectionSet:
    """Read a set registered in detectron2's catalog; its only split is called like the set."""
    dicts = DatasetCatalog.get(name)
    classes = tuple(MetadataCatalog.get(name).thing_classes)
    paths = [Path(sample["file_name"]) for sample in dicts]
    roots = {path.parent for path in paths}
    names = name_records(paths, roots.pop() if len(roots) == 1 else Path())
    records = tuple(record_from_dict(sample, names[path], classes) for path, sample in zip(paths, dicts))
    return DetectionSet(records, classes, {name: tuple(record.name for record in records)})


def collect_converted(source: str | PathLike, *, sidecar: str | PathLike | None = None) -> Collection | None:
    """What there is to check in a folder of YOLO files or masks, ``None`` if it is neither.

    Raises:
        DatasetError: the folder as a whole cannot be read.
    """
    path = Path(source)
    source_format = detect_format(path) if path.is_dir() else None
    if source_format not in ("yolo", "mask"):
        return None
    found = (read_yolo if source_format == "yolo" else read_masks)(path, sidecar=sidecar, skip_bad=True)
    notes = [f"{count} x {what}" for what, count in found.unread.items() if not what.startswith("left out as faulty")]
    return _collection_of(found, str(path), notes)


def _collection_of(found: DetectionSet, title: str = "", notes: Sequence[str] = ()) -> Collection:
    indices = {name: index for index, name in enumerate(found.class_names)}
    dicts = [record_to_dict(record, indices) for record in found.records]
    masks = {record.name: record.target_mask for record in found.records}
    splits = {split: list(names) for split, names in found.splits.items()}
    return Collection(title, dicts, splits, found.faults, notes, masks.__getitem__, found.box_convention)


def describe_boxes(detection_set: DetectionSet) -> list[str]:
    """The convention that boxes of a VOC folder were read in, and what masks, edges or light say against it."""
    convention = detection_set.box_convention
    if convention is None:
        return []
    manner = f"boxes: read as {convention}, {_CONVENTIONS[convention]}"
    return [manner, *(f"warning: {note}" for note in convention_notes(_collection_of(detection_set)))]


def with_metadata(detection_set: DetectionSet, platform: str | None, band: str | None) -> DetectionSet:
    """Give a platform and a band to all images that have none."""
    records = (
        replace(record, platform=record.platform or platform, band=record.band or band)
        for record in detection_set.records
    )
    return replace(detection_set, records=tuple(records))


def write_set(
    detection_set: DetectionSet,
    target: str | PathLike,
    target_format: str,
    *,
    layout: str = "voc_png",
    link: bool = False,
    overwrite: bool = False,
    skip_bad: bool = False,
) -> ConversionReport:
    """Write a set into a new folder, which appears when everything in it is complete.

    Args:
        detection_set: what one of the readers returned.
        target_format: one of ``FORMATS``.
        layout: of a VOC folder.
        link: make symbolic links to the images in place of copies.
        overwrite: replace a folder that exists.
        skip_bad: leave images out that cannot be read or have another size than the set says, in place of raising.

    Raises:
        DatasetError: the set is empty, a file cannot be read or has another size, or ``target`` exists.
    """
    writers: Mapping[str, Callable[..., Counter[str]]]
    writers = {"voc": partial(write_voc, layout=layout), "coco": write_coco, "mask": write_masks, "yolo": write_yolo}
    check_known("the format", target_format, writers)
    detection_set = _with_sound_images(detection_set, str(target), skip_bad=skip_bad)
    if not detection_set.records:
        raise DatasetError(target, "images", "the set holds no image", "check the source and its lists")
    for record in detection_set.records:
        if Path(target).resolve() in record.image.resolve().parents:
            raise DatasetError(target, "folder", "holds the set that is read", "write into another folder")
    try:
        with staged_folder(target, overwrite=overwrite) as folder:
            lost = writers[target_format](detection_set, folder, link=link)
    except FileExistsError:
        raise DatasetError(target, "folder", "exists", "choose another folder, or pass --overwrite") from None
    further_pages = sum(count_pages(record.image) - 1 for record in detection_set.records)
    report = ConversionReport(
        images=len(detection_set.records),
        objects=detection_set.num_objects,
        splits={split: len(names) for split, names in detection_set.splits.items()},
        unread=detection_set.unread + Counter({"further page of a TIFF": further_pages}),
        lost=lost,
    )
    _logger.info("Wrote %s (%s): %s", target, target_format, report)
    return report


def _with_sound_images(detection_set: DetectionSet, target: str, *, skip_bad: bool) -> DetectionSet:
    """Leave out images whose files are not of the annotated size: fractions and masks of them would be wrong."""
    records, faults = [], []
    for record in detection_set.records:
        try:
            check_size(record.image, read_image_size(record.image), record.size[::-1])
        except DatasetError as error:
            faults.append(Fault.of_file(FaultKind.BAD_IMAGE, error))
        else:
            records.append(record)
    refuse_or_skip(faults, skip_bad, target)
    return DetectionSet.of_kept(records, detection_set.class_names, detection_set.splits, detection_set.unread, faults)
