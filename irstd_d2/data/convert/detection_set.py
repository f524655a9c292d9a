"""A data set between two formats: what every format can say, and nothing of how it says it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from detectron2.structures import BoxMode

from ...errors import DatasetError
from ..faults import Fault
from ..image_io import IMAGE_SUFFIXES

Size = tuple[int, int]  # width, height


class TargetObject(NamedTuple):
    """One target: class name, XYXY box in pixels (0-based, half-open), and whether it is marked difficult.

    ``outline`` is its mask as run lengths (:mod:`irstd_d2.data.segmentation`), ``None`` unknown.
    """

    class_name: str
    box: tuple[float, float, float, float]
    difficult: bool = False
    outline: bytes | None = None


@dataclass(frozen=True)
class ImageRecord:
    """One image with all that is known of it.

    Args:
        name: unique in the set, no path and no suffix; files of the target format are named by it.
        size: its (width, height) in pixels.
        platform, band: imaging metadata, ``None`` unknown.
        original_size: (width, height) of the image that it was cut from, ``None`` if it is whole.
        sky_mask, target_mask: mask files, ``None`` where there are none.
    """

    name: str
    image: Path
    size: Size
    objects: tuple[TargetObject, ...] = ()
    platform: str | None = None
    band: str | None = None
    original_size: Size | None = None
    sky_mask: Path | None = None
    target_mask: Path | None = None


@dataclass(frozen=True)
class DetectionSet:
    """A set in no particular format.

    Args:
        class_names: in the order of their ids.
        splits: names of images by split; empty when the set has none.
        unread: what the source says but no reader of this project takes, counted.
        faults: of the images that were left out.
        box_convention: that the boxes were read in, ``None`` where the format has only one.
    """

    records: tuple[ImageRecord, ...]
    class_names: tuple[str, ...]
    splits: dict[str, tuple[str, ...]] = field(default_factory=dict)
    unread: Counter[str] = field(default_factory=Counter)
    faults: tuple[Fault, ...] = ()
    box_convention: str | None = None

    @classmethod
    def of_kept(
        cls,
        records: Sequence[ImageRecord],
        class_names: tuple[str, ...],
        splits: Mapping[str, Iterable[str]],
        unread: Counter[str],
        faults: Sequence[Fault],
        box_convention: str | None = None,
    ) -> DetectionSet:
        """The set of the images that are left: splits name no others, and ``faults`` are counted among the unread."""
        kept = {record.name for record in records}
        members = {split: tuple(name for name in names if name in kept) for split, names in splits.items()}
        left_out = Counter(f"left out as faulty: {fault.kind}" for fault in faults)
        return cls(tuple(records), class_names, members, unread + left_out, tuple(faults), box_convention)

    @property
    def num_objects(self) -> int:
        return sum(len(record.objects) for record in self.records)

    @property
    def num_difficult(self) -> int:
        return sum(obj.difficult for record in self.records for obj in record.objects)


def record_from_dict(
    sample: Mapping[str, Any], name: str, class_names: Sequence[str], target_mask: Path | None = None
) -> ImageRecord:
    """Turn detectron2's dataset dict of one image into a record; ``class_names`` are by category id."""
    size = sample["width"], sample["height"]
    metadata = sample.get("metadata") or {}
    original = metadata.get("width") or size[0], metadata.get("height") or size[1]
    mask = sample.get("sem_seg_file_name")
    return ImageRecord(
        name=name,
        image=Path(sample["file_name"]),
        size=size,
        objects=tuple(_object_from_dict(obj, class_names) for obj in sample.get("annotations", ())),
        platform=metadata.get("platform"),
        band=metadata.get("band"),
        original_size=None if original == size else original,
        sky_mask=None if mask is None else Path(mask),
        target_mask=target_mask,
    )


def record_to_dict(record: ImageRecord, indices: Mapping[str, int]) -> dict[str, Any]:
    """Turn a record into detectron2's dataset dict, with class indices by name."""
    width, height = record.size
    original = record.original_size or record.size
    sample: dict[str, Any] = {
        "file_name": str(record.image),
        "image_id": record.name,
        "width": width,
        "height": height,
        "metadata": {"platform": record.platform, "band": record.band, "width": original[0], "height": original[1]},
        "annotations": [
            {
                "bbox": list(obj.box),
                "bbox_mode": BoxMode.XYXY_ABS,
                "category_id": indices[obj.class_name],
                "iscrowd": int(obj.difficult),
            }
            for obj in record.objects
        ],
    }
    return sample if record.sky_mask is None else sample | {"sem_seg_file_name": str(record.sky_mask)}


def _object_from_dict(obj: Mapping[str, Any], class_names: Sequence[str]) -> TargetObject:
    x1, y1, x2, y2 = BoxMode.convert(list(obj["bbox"]), obj["bbox_mode"], BoxMode.XYXY_ABS)
    outline = obj.get("segmentation")
    return TargetObject(
        class_names[obj["category_id"]],
        (x1, y1, x2, y2),
        bool(obj.get("iscrowd", 0)),
        outline if isinstance(outline, bytes) else None,
    )


def name_records(paths: Iterable[Path], root: Path) -> dict[Path, str]:
    """Name images by their path below ``root``, without suffix, with ``__`` in place of ``/``.

    Raises:
        DatasetError: two images would have the same name.
    """
    names: dict[Path, str] = {}
    taken: dict[str, Path] = {}
    for path in paths:
        inside = path.relative_to(root) if path.is_relative_to(root) else Path(path.name)
        if inside.suffix.lower() in IMAGE_SUFFIXES:
            inside = inside.with_suffix("")
        name = "__".join(inside.parts)
        if name in taken:
            raise DatasetError(path, "file name", f"the same name as {taken[name]}: {name!r}", "rename one of the two")
        taken[name] = path
        names[path] = name
    return names
