"""COCO detection files: one per split, beside the images."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import Any

from ...errors import DatasetError
from ..classes import name_lookup
from ..coco import scan_coco
from ..faults import Fault
from ..segmentation import decode
from .detection_set import DetectionSet, ImageRecord, name_records, record_from_dict
from .mask_format import with_outlines
from .side_files import IMAGES, SKY_MASKS, place_files

PREFIX = "instances_"
# What a set keeps of an image's entry; it may also stand in the entry's object "metadata".
_METADATA = {"width", "height", "original_width", "original_height", "platform", "view", "band", "band_type"}
_READ = {
    "images": {"id", "file_name", "sem_seg_file_name", *_METADATA},
    "annotations": {"id", "image_id", "category_id", "bbox", "area", "iscrowd", "segmentation"},
}


def find_coco_files(folder: Path) -> list[Path]:
    """The files ``instances_*.json`` of a folder, sorted."""
    return sorted(folder.glob(f"{PREFIX}*.json"))


def read_coco(
    source: str | PathLike | Sequence[str | PathLike],
    *,
    image_root: str | PathLike | None = None,
    skip_bad: bool = False,
    class_names: Sequence[str] | None = None,
) -> DetectionSet:
    """Read COCO files as one set; each file is a split, called by its stem without ``instances_``.

    Args:
        source: files, one file, or a folder with files ``instances_*.json``.
        image_root: folder that file names are relative to; ``None`` takes the folder of each file.
        skip_bad: leave faulty images out in place of raising.
        class_names: classes to take; objects of others are left out and counted. ``None`` takes all.

    Raises:
        DatasetError: a file is faulty, or two describe the same image differently.
    """
    if isinstance(source, (str, PathLike)):
        files = find_coco_files(Path(source)) if Path(source).is_dir() else [Path(source)]
    else:
        files = [Path(file) for file in source]
    if not files:
        raise DatasetError(str(source), "folder", f"no file {PREFIX}*.json", "name the COCO file itself")
    by_image: dict[Path, tuple[Path, ImageRecord]] = {}
    members: dict[str, list[Path]] = {}
    unread: Counter[str] = Counter()
    names: list[str] = []
    faults: list[Fault] = []
    for file in files:
        root = file.parent if image_root is None else Path(image_root)
        scan = scan_coco(file, root, class_names=class_names, outlines=True)
        dicts = scan.accept(str(file), skip_bad=skip_bad)
        faults += scan.faults
        unread.update({f"objects of class {name}": count for name, count in scan.left_out.items()})
        names = list(name_lookup([*names, *scan.classes.names])[1])
        paths = [Path(sample["file_name"]) for sample in dicts]
        labels = name_records(paths, root / IMAGES if (root / IMAGES).is_dir() else root)
        members[file.stem.removeprefix(PREFIX)] = paths
        for path, sample in zip(paths, dicts):
            record = record_from_dict(sample, labels[path], scan.classes.names)
            known = by_image.setdefault(path, (file, record))
            if known[1] != record:
                problem = f"{path.name} is described otherwise in {known[0]}"
                raise DatasetError(file, "images", problem, "correct one of the two")
        unread += _count_unread(file)
    if len({record.name for _, record in by_image.values()}) < len(by_image):
        raise DatasetError(files[0], "images", "two images have the same name", "rename one, or give --image-root")
    splits = {split: [by_image[path][1].name for path in paths] for split, paths in members.items()}
    if list(splits) == ["all"] or (len(files) == 1 and not files[0].stem.startswith(PREFIX)):
        splits = {}
    return DetectionSet.of_kept([record for _, record in by_image.values()], tuple(names), splits, unread, faults)


def write_coco(detection_set: DetectionSet, folder: Path, *, link: bool = False) -> Counter[str]:
    """Write a set as COCO files ``instances_SPLIT.json``; return what was lost, counted.

    File names are relative to ``folder``.
    """
    categories = [{"id": i, "name": name} for i, name in enumerate(detection_set.class_names, start=1)]
    ids = {name: i for i, name in enumerate(detection_set.class_names, start=1)}
    entries: dict[str, tuple[dict[str, Any], list[dict[str, Any]]]] = {}
    lost: Counter[str] = Counter()
    next_id = iter(range(1, detection_set.num_objects + 1))
    for image_id, record in enumerate(detection_set.records, start=1):
        file_name = f"{IMAGES}/{place_files(record, folder, link=link)}"
        record = with_outlines(record)
        unclear = sum(obj.outline is None for obj in record.objects) if record.target_mask else 0
        lost["outlines of targets that are not one target of their mask (their boxes are kept)"] += unclear
        annotations = list(_annotations(record, image_id, ids, next_id))
        entries[record.name] = (_image_entry(record, image_id, file_name), annotations)
    for split, names in (detection_set.splits or {"all": tuple(entries)}).items():
        content = {
            "info": {"description": split},
            "images": [entries[name][0] for name in names],
            "annotations": [annotation for name in names for annotation in entries[name][1]],
            "categories": categories,
        }
        (folder / f"{PREFIX}{split}.json").write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    return +lost


def to_xywh(box: Sequence[float]) -> list[float]:
    """XYXY box -> x, y, width, height.

    x + width gives x2 to the last bit where there is such a width, which is so for whole pixels and common fractions.
    """
    x1, y1, x2, y2 = box
    return [x1, y1, _length(x1, x2), _length(y1, y2)]


def _length(low: float, high: float) -> float:
    """The number that gives ``high`` when it is added to ``low``; the plain difference may miss it by a bit."""
    length = high - low
    candidates = (length, math.nextafter(length, math.inf), math.nextafter(length, -math.inf))
    return next((value for value in candidates if low + value == high), length)


def _image_entry(record: ImageRecord, image_id: int, file_name: str) -> dict[str, Any]:
    width, height = record.size
    entry: dict[str, Any] = {"id": image_id, "file_name": file_name, "width": width, "height": height}
    if record.original_size:
        entry["original_width"], entry["original_height"] = record.original_size
    mask = f"{SKY_MASKS}/{record.name}.png" if record.sky_mask else None
    known = {"platform": record.platform, "band": record.band, "sem_seg_file_name": mask}
    return entry | {key: value for key, value in known.items() if value is not None}


def _annotations(
    record: ImageRecord, image_id: int, ids: Mapping[str, int], next_id: Iterator[int]
) -> Iterable[dict[str, Any]]:
    for obj in record.objects:
        box = [int(value) if float(value).is_integer() else value for value in to_xywh(obj.box)]
        entry = {
            "id": next(next_id),
            "image_id": image_id,
            "category_id": ids[obj.class_name],
            "bbox": box,
            "area": box[2] * box[3],
            "iscrowd": int(obj.difficult),
        }
        if obj.outline is not None:
            entry["area"] = int(decode(obj.outline, record.size).sum())
            entry["segmentation"] = {"size": list(record.size[::-1]), "counts": obj.outline.decode("ascii")}
        yield entry


def _count_unread(file: Path) -> Counter[str]:
    """Entries with information that no reader of this project takes, such as attributes."""
    content = json.loads(file.read_bytes())
    return Counter(
        f"{key!r} of {table}"
        for table, read in _READ.items()
        for entry in content[table]
        if isinstance(entry, dict)
        for key, value in entry.items()
        if key.lower() not in read and value not in (None, "", 0, [], {})
        if not (key == "metadata" and isinstance(value, dict) and {name.lower() for name in value} <= _METADATA)
    )
