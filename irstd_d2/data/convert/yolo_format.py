"""YOLO folders: one text file per image, with boxes as fractions of the image."""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence
from decimal import Decimal, InvalidOperation
from os import PathLike
from pathlib import Path, PurePosixPath
from typing import Any

import yaml

from ...errors import DatasetError
from ...files import list_files
from ..faults import Fault, FaultKind, refuse_or_skip
from ..image_io import IMAGE_SUFFIXES, read_image_size
from ..splits import read_lines
from .detection_set import DetectionSet, ImageRecord, Size, TargetObject, name_records
from .mask_format import has_mask
from .side_files import (
    IMAGES,
    SKY_MASKS,
    TARGET_MASKS,
    SideFiles,
    in_folder,
    place_files,
    write_metadata_table,
    write_splits,
)

LABELS, DESCRIPTION = "labels", "data.yaml"
_DESCRIPTIONS = (DESCRIPTION, "data.yml", "dataset.yaml")
_CLASS_FILES = ("classes.txt", "labels/classes.txt", "images/classes.txt", "obj.names")
_SPLITS = ("train", "val", "test")
# Folders that stand for a split where no file says so.
_SPLIT_FOLDERS = {"train": "train", "valid": "val", "val": "val", "test": "test"}
# Fifteen decimals hold a coordinate of an image of 10,000 pixels to 1e-11; nine are read back.
_DECIMALS_WRITTEN, _DECIMALS_READ = 15, 9
# A set without names of classes gets as many as the highest number says.
_CLASS_DIGITS = 4
_MIN_DECIMALS_TO_SNAP, _MAX_SNAP = 4, 0.25

Box = tuple[float, float, float, float]


def is_yolo(root: Path) -> bool:
    """Whether a folder is in one of the layouts that :func:`read_yolo` reads."""
    places = (root, *(root / folder for folder in _SPLIT_FOLDERS))
    return (
        any((place / IMAGES).is_dir() and (place / LABELS).is_dir() for place in places)
        or any((root / name).is_file() for name in _DESCRIPTIONS)
        or ((root / _CLASS_FILES[0]).is_file() and not (root / "Annotations").is_dir())
    )


def read_yolo(
    root: str | PathLike, *, sidecar: str | PathLike | None = None, use_splits: bool = True, skip_bad: bool = False
) -> DetectionSet:
    """Read a YOLO folder: images and, for each that has a target, a text file.

    The text file of ``.../images/.../NAME.png`` is ``.../labels/.../NAME.txt``, or lies beside the image: ``images/``
    with ``labels/``, ``train/images/`` with ``train/labels/`` (Roboflow), ``images/train/`` with ``labels/train/``
    (ultralytics), or all in one folder (LabelImg, Darknet). An image without text file has no target. Classes are named
    by ``data.yaml`` or ``classes.txt``, else ``class0``, ``class1``... Splits are the entries ``train``, ``val``,
    ``test`` of ``data.yaml`` (folders or lists of files), else folders of these names. Files with rounded numbers are
    read to the whole pixel where the rounding allows for it. With ``use_splits`` off all images count.

    Raises:
        DatasetError: a file is missing or faulty; with ``skip_bad`` only faults of the whole set, and images are left
            out.
    """
    root = Path(root)
    images = _find_images(root)
    if not images:
        raise DatasetError(root, "folder", "no image", f"a YOLO set has the folders {IMAGES} and {LABELS}")
    description_file = find_description(root)
    description = read_description(description_file)
    class_names = class_names_of(description, description_file) or _read_class_file(root)
    unread: Counter[str] = Counter()
    splits = _find_splits(root, description, description_file, images, unread) if use_splits else {}
    named = list(dict.fromkeys(path for members in splits.values() for path in members)) or images
    unread["images in no list"] += len(set(images) - set(named))
    names = _name_images(named, root)
    side_files = SideFiles(root, names.values(), sidecar)
    records, faults, highest = [], [], -1
    labels, without_image = _find_labels(root, images)
    if not labels:
        problem = f"none of {len(images)} images has a text file"
        fix = f"that of {IMAGES}/a.png is {LABELS}/a.txt, or a.txt beside it; in a set without targets one may be empty"
        raise DatasetError(root, "folder", problem, fix)
    for path in named:
        try:
            size = read_image_size(path)[::-1]
        except DatasetError as error:
            faults.append(Fault.from_error(FaultKind.BAD_IMAGE, error))
            continue
        label, num_classes = labels.get(path), None if class_names is None else len(class_names)
        targets, found = read_labels(label, size, num_classes) if label else ([], [])
        if found:
            faults += found
            continue
        highest = max([highest, *(index for index, _ in targets)])
        objects = [TargetObject(f"class{i}" if class_names is None else class_names[i], box) for i, box in targets]
        records.append(side_files.record(names[path], path, size, objects))
    refuse_or_skip(faults, skip_bad, str(root))
    unread["text files without image"] += without_image
    if class_names is None:
        class_names = tuple(f"class{i}" for i in range(highest + 1))
    members = {split: [names[path] for path in paths] for split, paths in splits.items()}
    return DetectionSet.of_kept(records, class_names, members, unread, faults)


def write_yolo(detection_set: DetectionSet, folder: Path, *, link: bool = False) -> Counter[str]:
    """Write a set as a YOLO folder; return what was lost, counted."""
    ids = {name: i for i, name in enumerate(detection_set.class_names)}
    records, files = detection_set.records, {}
    for record in records:
        files[record.name] = place_files(record, folder, link=link)
        labels = format_labels(record, ids)
        in_folder(folder / LABELS / f"{record.name}.txt").write_text(labels, encoding="utf-8")
    write_metadata_table(folder, records)
    write_splits(detection_set, lambda split: folder / f"{split}.txt", lambda name: f"./{IMAGES}/{files[name]}")
    description: dict[str, Any] = {"path": "."}
    description |= {split: f"{split}.txt" for split in detection_set.splits} or {"train": IMAGES, "val": IMAGES}
    description["names"] = dict(enumerate(detection_set.class_names))
    text = yaml.safe_dump(description, sort_keys=False, allow_unicode=True)
    (folder / DESCRIPTION).write_text(text, encoding="utf-8")
    return +Counter(
        {
            "difficult marks": detection_set.num_difficult,
            "target masks (their boxes are kept)": sum(map(has_mask, records)),
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


def read_labels(path: Path, size: Size, num_classes: int | None) -> tuple[list[tuple[int, Box]], list[Fault]]:
    """Read the text file of one image of ``size`` (width, height); class ids are below ``num_classes``, if known.

    Returns:
        Class ids with XYXY boxes in pixels, and the faults of the lines that have some: not a class and four fractions,
        or a box that leaves the image.
    """
    rows, faults, objects = [], [], []
    try:
        for number, line in enumerate(read_lines(path), start=1):
            try:
                if line.strip():
                    field = f"line {number}"
                    rows.append((field, line, _parse_line(path, field, line.split(), num_classes)))
            except DatasetError as error:
                faults.append(Fault.from_error(FaultKind.BAD_RECORD, error))
    except DatasetError as error:
        return [], [Fault.from_error(FaultKind.BAD_RECORD, error)]
    decimals = max((-int(value.as_tuple().exponent) for _, _, (_, values) in rows for value in values), default=0)
    for field, line, (index, values) in rows:
        box = _to_pixels([float(value) for value in values], size, decimals)
        x1, y1, x2, y2 = box
        if 0 <= x1 < x2 <= size[0] and 0 <= y1 < y2 <= size[1]:
            objects.append((index, box))
            continue
        kind = FaultKind.BOX_OUTSIDE if x1 < x2 and y1 < y2 else FaultKind.BAD_BOX
        problem = f"{line.strip()[:80]!r} has no area or leaves the image of {size[0]}x{size[1]}"
        faults.append(Fault.of(kind, path, field, problem, "clip or delete the box"))
    return objects, faults


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


def find_description(root: Path) -> Path:
    """The file that describes a set, ``data.yaml`` where there is none yet."""
    return next((root / name for name in _DESCRIPTIONS if (root / name).is_file()), root / DESCRIPTION)


def split_entries(description: dict[str, Any]) -> dict[str, Any]:
    """The entries of ``data.yaml`` that name splits."""
    return {key: value for key, value in description.items() if key in _SPLITS or value == f"{key}.txt"}


def read_description(path: Path) -> dict[str, Any]:
    """The keys of ``data.yaml``, none where there is no such file."""
    if not path.is_file():
        return {}
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise DatasetError(path, "file", f"not YAML ({str(error).splitlines()[0]})", "repair the file") from None
    if not isinstance(content, dict):
        raise DatasetError(path, "file", "not a list of keys", "write names, train and val")
    return content


def class_names_of(description: dict[str, Any], path: Path) -> tuple[str, ...] | None:
    """The names of the classes 0, 1, ... that ``data.yaml`` has, ``None`` without any."""
    names = description.get("names")
    if names is None:
        return None
    if isinstance(names, dict) and sorted(names) == list(range(len(names))):
        names = [names[i] for i in range(len(names))]
    if not isinstance(names, list) or not all(isinstance(name, str) and name for name in names):
        raise DatasetError(path, "names", f"{str(names)[:80]} does not name the classes 0, 1, ...", "write a list")
    number = description.get("nc")
    if isinstance(number, int) and number != len(names):
        raise DatasetError(path, "nc", f"{number}, but {len(names)} names", "correct one of the two")
    return tuple(names)


def _read_class_file(root: Path) -> tuple[str, ...] | None:
    """Names of ``classes.txt`` as LabelImg writes it: one a line, in the order of the class numbers."""
    path = next((root / name for name in _CLASS_FILES if (root / name).is_file()), None)
    if path is None:
        return None
    names = [line.strip() for line in read_lines(path)]
    while names and not names[-1]:
        names.pop()
    if not all(names):
        raise DatasetError(path, f"line {names.index('') + 1}", "empty", "name every class number")
    return tuple(names) or None


def _find_images(root: Path) -> list[Path]:
    """All images below folders called ``images``; where there is no such folder, all images but masks."""
    found = list_files(root, IMAGE_SUFFIXES, recursive=True)
    inside = [path for path in found if IMAGES in path.relative_to(root).parts[:-1]]
    return inside or [path for path in found if path.relative_to(root).parts[0] not in (SKY_MASKS, TARGET_MASKS)]


def _find_labels(root: Path, images: Iterable[Path]) -> tuple[dict[Path, Path], int]:
    """The text file of every image that has one, and the number of those below folders ``labels`` that none has.

    Names are compared without case and in one Unicode form: file systems and programs differ in both.
    """
    texts: dict[str, list[Path]] = {}
    for path in list_files(root, (".txt",), recursive=True):
        if path.name != _CLASS_FILES[0]:
            texts.setdefault(_folded(path.relative_to(root)), []).append(path)
    found: dict[Path, Path] = {}
    for image in images:
        parts = list(image.relative_to(root).parts)
        places = [i for i, part in enumerate(parts[:-1]) if part.lower() == IMAGES]
        if places:  # the last folder images is called labels
            parts[places[-1]] = LABELS
        expected = [Path(*parts).with_suffix(".txt"), image.relative_to(root).with_suffix(".txt")]
        candidates = next((texts[key] for key in map(_folded, expected) if key in texts), [])
        exact = [path for path in candidates if path.relative_to(root) in expected]
        if len(exact or candidates) > 1:
            problem = f"{candidates[0].name} and {candidates[1].name} both stand for {image.name}"
            raise DatasetError(candidates[0], "file name", problem, "keep one of them")
        if candidates:
            found[image] = (exact or candidates)[0]
    used = set(found.values())
    below = [path for key, paths in texts.items() for path in paths if LABELS in key.split("/")[:-1]]
    return found, sum(path not in used for path in below)


def _folded(path: Path) -> str:
    return unicodedata.normalize("NFC", path.with_suffix("").as_posix()).casefold()


def _name_images(paths: Iterable[Path], root: Path) -> dict[Path, str]:
    """Names by the path below ``root`` without the folder ``images``."""
    short = {}
    for path in paths:
        parts = list(path.relative_to(root).parts)
        if IMAGES in parts[:-1]:
            parts.pop(max(i for i, part in enumerate(parts[:-1]) if part == IMAGES))
        short[path] = Path(*parts)
    names = name_records(short.values(), Path())
    return {path: names[inside] for path, inside in short.items()}


def _find_splits(
    root: Path, description: dict[str, Any], file: Path, images: Sequence[Path], unread: Counter[str]
) -> dict[str, list[Path]]:
    entries = {key: value for key, value in split_entries(description).items() if value}
    if not entries:
        return _splits_by_folder(root, images)
    if all(value == IMAGES for value in entries.values()):
        return {}  # as a set without splits is written
    splits = {}
    for key, value in entries.items():
        written = [str(entry) for entry in (value if isinstance(value, list) else [value])]
        places = {entry: _place(root, entry, file) for entry in written}
        missing = [entry for entry, place in places.items() if place is None]
        if missing and (len(entries) == 1 or key == "train"):
            raise DatasetError(file, key, f"no {missing[0]}", "name a folder of images or a list of files")
        if missing:  # programs name a test split whether it was exported or not
            unread[f"entries of {file.name} for which nothing is there ({key}: {', '.join(missing)})"] += len(missing)
        splits[key] = [path for place in places.values() if place for path in _members(root, place, images)]
    return {key: members for key, members in splits.items() if members}


def _splits_by_folder(root: Path, images: Sequence[Path]) -> dict[str, list[Path]]:
    """Splits by folders called train, valid, val or test, where every image lies in one."""
    splits: dict[str, list[Path]] = {}
    for path in images:
        split = next((_SPLIT_FOLDERS[part] for part in path.relative_to(root).parts if part in _SPLIT_FOLDERS), None)
        if split is None:
            return {}
        splits.setdefault(split, []).append(path)
    return splits


def _place(root: Path, entry: str, file: Path) -> Path | None:
    """What an entry of ``data.yaml`` means below ``root``, ``None`` if nothing is there.

    Programs write paths from elsewhere: ``../train/images`` (Roboflow), ``/content/set/images``, ``set/images``. Of
    these the longest end counts that exists below ``root``, and nothing outside of it.
    """
    parts = [part for part in PurePosixPath(entry.replace("\\", "/")).parts if part not in (".", "/")]
    elsewhere = entry.startswith(("/", "..")) or ":" in entry
    while parts and parts[0] == "..":
        parts.pop(0)
    if ".." in parts or "\0" in entry:
        raise DatasetError(file, "splits", f"{entry[:80]!r} leads out of {root}", "write a path below it")
    if not parts:
        return root
    shortest = 1 if elsewhere or len(parts) == 1 else 2  # the end of "images/test" is not "test"
    places = (root.joinpath(*parts[i:]) for i in range(len(parts) - shortest + 1))
    return next((place for place in places if place.exists()), None)


def _members(root: Path, place: Path, images: Sequence[Path]) -> list[Path]:
    """The images of a folder or of a list of files."""
    if place.is_dir():
        return [path for path in images if path.is_relative_to(place)]
    known = {path.resolve(): path for path in images}
    members = []
    for number, line in enumerate(read_lines(place), start=1):
        if not line.strip():
            continue
        found = _place(root, line.strip(), place)
        path = known.get(found.resolve()) if found is not None else None
        if path is None:
            problem = f"no image {line.strip()[:80]!r}"
            raise DatasetError(place, f"line {number}", problem, "add it or delete the line")
        members.append(path)
    return members
