"""YOLO folders: one text file per image, with boxes as fractions of the image."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from decimal import Decimal, InvalidOperation
from os import PathLike
from pathlib import Path
from typing import Any

import yaml

from ..data.coco import is_contained
from ..data.image_io import IMAGE_SUFFIXES
from ..data.splits import read_lines
from ..errors import DatasetError
from .detection_set import DetectionSet, ImageRecord, Size, TargetObject, count_targets, name_records
from .side_files import (
    SKY_MASKS,
    SideFiles,
    image_size,
    place_image,
    place_sky_mask,
    write_metadata_table,
    write_splits,
)

IMAGES, LABELS, DESCRIPTION = "images", "labels", "data.yaml"
_SPLITS = ("train", "val", "test")
# Fifteen decimals hold a coordinate of an image of 10,000 pixels to 1e-11; nine are read back.
_DECIMALS_WRITTEN, _DECIMALS_READ = 15, 9
# A set without names of classes gets as many as the highest number says.
_CLASS_DIGITS = 4
_MIN_DECIMALS_TO_SNAP, _MAX_SNAP = 4, 0.25


def read_yolo(root: str | PathLike, *, sidecar: str | PathLike | None = None, use_splits: bool = True) -> DetectionSet:
    """Read a YOLO folder: ``images/**/NAME.*`` with ``labels/**/NAME.txt`` and, where there is one, ``data.yaml``.

    Splits are the entries ``train``, ``val``, ``test`` of ``data.yaml`` (a folder below ``images`` or a list of
    files); without ``data.yaml`` classes are called ``class0``, ``class1``... An image without text file has no
    target. Files with rounded numbers are read to the whole pixel where the rounding allows for it.
    With ``use_splits`` off all images count.

    Raises:
        DatasetError: a file is missing or faulty.
    """
    root = Path(root)
    images = [path for path in sorted((root / IMAGES).rglob("*")) if path.suffix.lower() in IMAGE_SUFFIXES]
    if not images:
        raise DatasetError(root / IMAGES, "folder", "no image", f"a YOLO set has the folders {IMAGES} and {LABELS}")
    description = _read_description(root / DESCRIPTION)
    entries = _split_entries(description) if use_splits else {}
    splits = {key: _split_members(root, entry, images) for key, entry in entries.items()}
    named = list(dict.fromkeys(path for members in splits.values() for path in members)) or images
    class_names = _class_names(description.get("names"), root / DESCRIPTION)
    names = name_records(named, root / IMAGES)
    side_files = SideFiles(root, sidecar)
    records, highest = [], -1
    for path in named:
        size = image_size(path)
        label = root / LABELS / path.relative_to(root / IMAGES).with_suffix(".txt")
        objects = []
        for index, box in read_labels(label, size, None if class_names is None else len(class_names)):
            highest = max(highest, index)
            objects.append(TargetObject(f"class{index}" if class_names is None else class_names[index], box))
        records.append(side_files.record(names[path], path, size, objects))
    if class_names is None:
        class_names = tuple(f"class{i}" for i in range(highest + 1))
    members = {split: tuple(names[path] for path in paths) for split, paths in splits.items()}
    return DetectionSet(tuple(records), class_names, members)


def write_yolo(detection_set: DetectionSet, folder: Path, *, link: bool = False) -> Counter[str]:
    """Write a set as a YOLO folder; return what was lost, counted."""
    ids = {name: i for i, name in enumerate(detection_set.class_names)}
    records, files = detection_set.records, {}
    for record in records:
        files[record.name] = place_image(record, folder / IMAGES, link=link)
        place_sky_mask(record, folder / SKY_MASKS / f"{record.name}.png")
        label = folder / LABELS / f"{record.name}.txt"
        label.parent.mkdir(exist_ok=True)
        label.write_text(format_labels(record, ids), encoding="utf-8")
    write_metadata_table(folder, records)
    write_splits(detection_set, lambda split: folder / f"{split}.txt", lambda name: f"./{IMAGES}/{files[name]}")
    description: dict[str, Any] = {"path": "."}
    description |= {split: f"{split}.txt" for split in detection_set.splits} or {"train": IMAGES, "val": IMAGES}
    description["names"] = dict(enumerate(detection_set.class_names))
    text = yaml.safe_dump(description, sort_keys=False, allow_unicode=True)
    (folder / DESCRIPTION).write_text(text, encoding="utf-8")
    return +Counter(
        {
            "difficult marks": count_targets(records, lambda obj: obj.difficult),
            "target masks (their boxes are kept)": sum(record.target_mask is not None for record in records),
        }
    )


def format_labels(record: ImageRecord, ids: dict[str, int]) -> str:
    """The text file of one image: class, centre, width and height as fractions of the image, one target a line."""
    width, height = record.size
    lines = []
    for obj in record.objects:
        x1, y1, x2, y2 = obj.box
        fractions = ((x1 + x2) / 2 / width, (y1 + y2) / 2 / height, (x2 - x1) / width, (y2 - y1) / height)
        lines.append(" ".join([str(ids[obj.class_name]), *(f"{value:.{_DECIMALS_WRITTEN}f}" for value in fractions)]))
    return "".join(f"{line}\n" for line in lines)


def read_labels(path: Path, size: Size, num_classes: int | None) -> list[tuple[int, tuple[float, float, float, float]]]:
    """Read the text file of one image; none means no target.

    Args:
        path: the file.
        size: (width, height) of the image.
        num_classes: that ``data.yaml`` names, ``None`` unknown.

    Returns:
        Class ids and XYXY boxes in pixels.

    Raises:
        DatasetError: the file is not UTF-8, a line is not a class and four fractions, or its box leaves the image.
    """
    if not path.is_file():
        return []
    rows = []
    for number, line in enumerate(read_lines(path), start=1):
        if line.strip():
            rows.append((f"line {number}", line, _parse_line(path, f"line {number}", line.split(), num_classes)))
    decimals = max((-int(value.as_tuple().exponent) for _, _, (_, values) in rows for value in values), default=0)
    objects = []
    for field, line, (index, values) in rows:
        box = _to_pixels([float(value) for value in values], size, decimals)
        x1, y1, x2, y2 = box
        if not (0 <= x1 < x2 <= size[0] and 0 <= y1 < y2 <= size[1]):
            problem = f"{line.strip()!r} has no area or leaves the image of {size[0]}x{size[1]}"
            raise DatasetError(path, field, problem, "clip or delete the box")
        objects.append((index, box))
    return objects


def _parse_line(path: Path, field: str, cells: list[str], num_classes: int | None) -> tuple[int, list[Decimal]]:
    fix = "write a class number and centre x, centre y, width, height as fractions of the image"
    if len(cells) != 5:
        raise DatasetError(path, field, f"{len(cells)} values, not 5 (outlines and scores are not read)", fix)
    if not (cells[0].isascii() and cells[0].isdigit() and len(cells[0]) <= _CLASS_DIGITS):
        raise DatasetError(path, field, f"class {cells[0][:40]!r}", fix)
    index = int(cells[0])
    if num_classes is not None and index >= num_classes:
        raise DatasetError(path, field, f"class {index} of {num_classes}", f"name it in {DESCRIPTION}")
    try:
        values = [Decimal(cell) for cell in cells[1:]]
    except InvalidOperation:
        values = [Decimal("nan")]
    if not all(value.is_finite() and abs(value) < 1e6 for value in values):
        raise DatasetError(path, field, f"{' '.join(cells[1:])[:80]!r} are not numbers", fix)
    return index, values


def _to_pixels(values: Sequence[float], size: Size, decimals: int) -> tuple[float, float, float, float]:
    """Centre, width, height as fractions -> XYXY in pixels, whole pixels where the rounding of the file hides them."""
    corners = []
    for sign in (-0.5, 0.5):
        for centre, length, pixels in zip(values[:2], values[2:], size):
            place = (centre + sign * length) * pixels
            slack = 0.75 * 10.0**-decimals * pixels if decimals >= _MIN_DECIMALS_TO_SNAP else 0.0
            slack = min(slack, _MAX_SNAP) + 1e-9
            whole = round(place)
            corners.append(float(whole) if abs(place - whole) <= slack else round(place, _DECIMALS_READ))
    x1, y1, x2, y2 = corners
    return x1, y1, x2, y2


def _read_description(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise DatasetError(path, "file", f"not YAML ({str(error).splitlines()[0]})", "repair the file") from None
    if not isinstance(content, dict):
        raise DatasetError(path, "file", "not a list of keys", "write names, train and val")
    return content


def _class_names(names: Any, path: Path) -> tuple[str, ...] | None:
    if names is None:
        return None
    if isinstance(names, dict) and sorted(names) == list(range(len(names))):
        names = [names[i] for i in range(len(names))]
    if not isinstance(names, list) or not all(isinstance(name, str) and name for name in names):
        raise DatasetError(path, "names", f"{str(names)[:80]} does not name the classes 0, 1, ...", "write a list")
    return tuple(names)


def _split_entries(description: dict[str, Any]) -> dict[str, Any]:
    """The splits of ``data.yaml``; none when all are the whole folder, as in a set without splits."""
    entries = {key: value for key, value in description.items() if key in _SPLITS or value == f"{key}.txt"}
    entries = {key: value for key, value in entries.items() if value}
    return {} if all(value == IMAGES for value in entries.values()) else entries


def _split_members(root: Path, entries: Any, images: Sequence[Path]) -> list[Path]:
    """The images of one split: those of folders and of lists of files."""
    known = {path.resolve(): path for path in images}
    members = []
    for entry in entries if isinstance(entries, list) else [entries]:
        place = root / str(entry).removeprefix("./")
        if not is_contained(str(entry)):
            raise DatasetError(root / DESCRIPTION, "splits", f"{entry!r} leads out of {root}", "write a path below it")
        if place.is_dir():
            members += [path for path in images if path.is_relative_to(place)]
            continue
        if not place.is_file():
            raise DatasetError(
                root / DESCRIPTION, "splits", f"no {entry}", "name a folder of images or a list of files"
            )
        for number, line in enumerate(read_lines(place), start=1):
            if not line.strip():
                continue
            path = known.get((root / line.strip()).resolve())
            if path is None:
                raise DatasetError(
                    place, f"line {number}", f"no image {line.strip()[:80]!r}", "add it or delete the line"
                )
            members.append(path)
    return members
