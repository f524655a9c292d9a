"""COCO files, checked as strictly as the XML ones."""

from __future__ import annotations

import json
import reprlib
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from os import PathLike
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

from detectron2.structures import BoxMode

from ..errors import DatasetError
from .classes import CategoryId, ClassTable, fold, name_lookup
from .faults import Fault, FaultKind, Scan, refuse_fractions
from .image_io import MAX_SIDE
from .segmentation import read_segmentation

MAX_JSON_BYTES = 2 << 30

# Values in messages: cut short, and not to the depth of a hostile file.
_shown = reprlib.Repr()
_shown.maxstring = _shown.maxother = 80


def load_coco(
    json_file: str | PathLike,
    image_root: str | PathLike,
    *,
    class_names: Sequence[str] | None = None,
    skip_bad: bool = False,
) -> tuple[list[dict[str, Any]], list[str]]:
    """Load a COCO detection file.

    Image entries may carry the imaging metadata as ``platform`` (or ``view``), ``band`` (or ``band_type``),
    ``original_width`` and ``original_height`` (of the image that this one was cut from), all of these or further fields
    in an object ``metadata`` (name -> text or number; ``width`` and ``height`` there are those of the original), and
    ``sem_seg_file_name`` (a sky mask, relative to ``image_root``). What stands in both is taken from the entry.

    Args:
        json_file: with ``images``, ``annotations`` and ``categories``.
        image_root: folder that ``file_name`` is relative to.
        class_names: classes to take, in the order of their indices; objects of other categories are left out, and
            counted in the log. ``None`` takes all by ascending id, but a category without objects that is only the
            group of the others (Roboflow's category 0).
        skip_bad: leave faulty images out, with one logged summary, in place of raising.

    Returns:
        Dataset dicts by ascending image id (boxes XYXY_ABS) and the class names.

    Raises:
        DatasetError: the file is not COCO, or an image is faulty and ``skip_bad`` is off.
    """
    scan = scan_coco(json_file, image_root, class_names=class_names)
    return scan.accept(str(json_file), skip_bad=skip_bad), list(scan.classes.names)


def scan_coco(
    json_file: str | PathLike,
    image_root: str | PathLike,
    *,
    class_names: Sequence[str] | None = None,
    class_aliases: Mapping[str, str] | None = None,
    outlines: bool = False,
) -> Scan:
    """As :func:`load_coco`, but return the sound images together with all faults of the others.

    ``class_aliases`` leads from names in the file to the names that count. With ``outlines``, annotations carry the
    ``segmentation`` where there is one, as the run lengths of :mod:`irstd_d2.data.segmentation`.
    """
    path = Path(json_file)
    content = _read_json(path)
    categories = _categories(content, path)
    classes, notes = _classes(categories, content, class_names, class_aliases, path)
    reader = _CocoReader(path, Path(image_root), categories, classes, outlines=outlines)
    for i, entry in enumerate(content["images"]):
        reader.add_image(entry, f"images[{i}]")
    for i, entry in enumerate(content["annotations"]):
        reader.add_annotation(entry, f"annotations[{i}]")
    dicts = reader.sound_images()
    refuse_fractions(path, (obj["bbox"] for sample in dicts for obj in sample["annotations"]))
    return Scan(dicts, classes, reader.faults, reader.left_out, notes)


def read_coco_classes(
    json_file: str | PathLike,
    *,
    class_names: Sequence[str] | None = None,
    class_aliases: Mapping[str, str] | None = None,
) -> ClassTable:
    """The classes of a file, as :func:`scan_coco` takes them."""
    path = Path(json_file)
    content = _read_json(path)
    return _classes(_categories(content, path), content, class_names, class_aliases, path)[0]


class _CocoReader:
    def __init__(
        self, path: Path, image_root: Path, categories: dict[CategoryId, str], classes: ClassTable, *, outlines: bool
    ):
        self.path, self.image_root, self.categories, self.outlines = path, image_root, categories, outlines
        self.class_ids = {key: index for key, index in classes.indices.items() if key in categories}
        self.left_out: Counter[str] = Counter()
        self.known_ids = _show(list(categories))
        self.images: dict[int | str, dict[str, Any]] = {}
        self.files: dict[str, int | str] = {}
        self.faulty: set[int | str] = set()
        self.faults: list[Fault] = []

    def sound_images(self) -> list[dict[str, Any]]:
        return [self.images[key] for key in sorted(self.images, key=_id_order) if key not in self.faulty]

    def add_image(self, entry: Any, field: str) -> None:
        if not isinstance(entry, dict) or not _is_id(entry.get("id")):
            return self._fail(FaultKind.BAD_RECORD, f"{field}.id", "missing or not a number or a string", "write an id")
        key = entry["id"]
        if key in self.images:
            problem, fix = f"{_show(key)} again", "give every image its own id"
            return self._fail(FaultKind.BAD_RECORD, f"{field}.id", problem, fix, key)
        width, height = entry.get("width"), entry.get("height")
        further = _further(entry)
        metadata = further | {
            "platform": _text(entry, "platform", "view") or _text(further, "platform", "view"),
            "band": _text(entry, "band", "band_type") or _text(further, "band", "band_type"),
            "width": _original(entry, further, "width"),
            "height": _original(entry, further, "height"),
        }
        sample = self.images[key] = {"image_id": key, "height": height, "width": width, "metadata": metadata}
        sample["annotations"] = []
        if not (_is_size(width) and _is_size(height)):
            problem = f"width {_show(width)}, height {_show(height)}"
            self._fail(FaultKind.MISSING_FIELD, field, problem, "write the image's size in pixels", key)
        fix = "write a path below the image folder"
        for place in ("file_name", "sem_seg_file_name"):
            name = entry.get(place)
            if name is None and place == "sem_seg_file_name":
                continue
            if not isinstance(name, str) or not name:
                problem = f"{_show(name)} is no file name" if name else "missing"
                return self._fail(FaultKind.MISSING_FIELD, f"{field}.{place}", problem, fix, key)
            path = name.replace("\\", "/")  # as programs on Windows write it
            if not is_contained(path):
                problem = f"{_show(name)} leads out of the image folder"
                return self._fail(FaultKind.UNSAFE_NAME, f"{field}.{place}", problem, fix, key)
            sample[place] = str(self.image_root / path)
        other = self.files.setdefault(sample["file_name"], key)
        if other != key:  # each would lack the targets of the other
            self.faulty.add(other)
            problem, fix = f"that of image {_show(other)} too", "give every file one entry, with all its annotations"
            self._fail(FaultKind.BAD_RECORD, f"{field}.file_name", problem, fix, key)
        return None

    def add_annotation(self, entry: Any, field: str) -> None:
        key = entry.get("image_id") if isinstance(entry, dict) else None
        if not _is_id(key) or key not in self.images:
            problem, fix = f"{_show(key)} is no image of the file", "correct the id or delete the annotation"
            return self._fail(FaultKind.BAD_RECORD, f"{field}.image_id", problem, fix)
        category = entry.get("category_id")
        if not _is_id(category) or category not in self.categories:
            problem, fix = f"category {_show(category)}", f"use one of {self.known_ids}"
            return self._fail(FaultKind.UNKNOWN_CLASS, f"{field}.category_id", problem, fix, key)
        if category not in self.class_ids:
            self.left_out[self.categories[category]] += 1
            return None
        box = entry.get("bbox")
        if not (isinstance(box, list) and len(box) == 4 and all(_is_number(value) for value in box)):
            fix = "write [x, y, width, height]"
            return self._fail(FaultKind.MISSING_FIELD, f"{field}.bbox", f"{_show(box)} is no box", fix, key)
        x, y, width, height = box
        if entry.get("bbox_mode") not in (None, BoxMode.XYWH_ABS):  # as of detectron2's dataset dicts
            problem = f"{_show(entry['bbox_mode'])} is not {BoxMode.XYWH_ABS.value} (x, y, width, height)"
            return self._fail(FaultKind.BAD_RECORD, f"{field}.bbox_mode", problem, "convert the boxes", key)
        if entry.get("iscrowd") not in (None, 0, 1):
            problem = f"{_show(entry['iscrowd'])} is neither 0 nor 1"
            return self._fail(FaultKind.BAD_RECORD, f"{field}.iscrowd", problem, "write 0 or 1", key)
        sample = self.images[key]
        if not (width > 0 and height > 0):
            return self._fail(FaultKind.BAD_BOX, f"{field}.bbox", f"{box} has no area", "correct or delete it", key)
        if key not in self.faulty and not (
            x >= 0 and y >= 0 and x + width <= sample["width"] and y + height <= sample["height"]
        ):
            problem = f"{box} leaves the image of {sample['width']}x{sample['height']}"
            return self._fail(FaultKind.BOX_OUTSIDE, f"{field}.bbox", problem, "clip the box", key)
        obj = {
            "bbox": [float(x), float(y), float(x + width), float(y + height)],
            "bbox_mode": BoxMode.XYXY_ABS,
            "category_id": self.class_ids[category],
            "iscrowd": int(entry.get("iscrowd") == 1),
        }
        if self.outlines and entry.get("segmentation") and key not in self.faulty:
            try:
                obj["segmentation"] = read_segmentation(entry["segmentation"], (sample["width"], sample["height"]))
            except ValueError as error:
                fix = "write polygons or run lengths of this image, or delete them"
                return self._fail(FaultKind.BAD_MASK, f"{field}.segmentation", str(error), fix, key)
        sample["annotations"].append(obj)
        return None

    def _fail(self, kind: FaultKind, field: str, problem: str, fix: str, image: int | str | None = None) -> None:
        self.faults.append(Fault.of(kind, self.path, field, problem, fix))
        if image is not None:
            self.faulty.add(image)


def is_contained(name: str) -> bool:
    """Whether a relative path stays below the folder that it starts from."""
    if not _is_text(name) or not name or "\0" in name or "\\" in name:
        return False
    path = PurePosixPath(name)
    return not path.is_absolute() and not PureWindowsPath(name).drive and ".." not in path.parts


def _read_json(path: Path) -> dict[str, list[Any]]:
    try:
        if path.stat().st_size > MAX_JSON_BYTES:
            raise DatasetError(path, "file", f"larger than {MAX_JSON_BYTES >> 30} GiB", "split the set")
        content = json.loads(path.read_bytes())
    except OSError as error:
        raise DatasetError(path, "file", f"cannot be opened ({error.strerror})", "check its path and rights") from None
    except (ValueError, RecursionError) as error:
        raise DatasetError(path, "file", f"not JSON ({error})", "repair the file or copy it again") from None
    for key in ("images", "annotations", "categories"):
        if not isinstance(content, dict) or not isinstance(content.get(key), list):
            raise DatasetError(path, key, "not a list", "give a COCO detection file")
    return content


def _categories(content: dict[str, list[Any]], path: Path) -> dict[CategoryId, str]:
    """Names by category id, in ascending order of the ids."""
    names: dict[CategoryId, str] = {}
    for i, category in enumerate(content["categories"]):
        sound = isinstance(category, dict) and _is_id(category.get("id")) and _is_text(category.get("name"))
        if not sound or not category["name"].strip():
            raise DatasetError(path, f"categories[{i}]", "without id or name", "write both")
        if names.setdefault(category["id"], category["name"]) != category["name"]:
            problem = f"{_show(category['id'])} again, for {_show(category['name'])}"
            raise DatasetError(path, f"categories[{i}].id", problem, "give every category its own id")
    return {key: names[key] for key in sorted(names, key=_id_order)}


def _classes(
    categories: dict[CategoryId, str],
    content: dict[str, list[Any]],
    class_names: Sequence[str] | None,
    aliases: Mapping[str, str] | None,
    path: Path,
) -> tuple[ClassTable, tuple[str, ...]]:
    """The classes of a file, and a remark on categories that are none."""
    if class_names is None:
        groups = _empty_groups(categories, content)
        kept = {key: name for key, name in categories.items() if key not in groups}
        notes = [f"category {_show(key)} {_show(name)} has no object and is only the group of others: it is no class"
                 for key, name in groups.items()]  # fmt: skip
        return ClassTable.from_categories(kept, None, aliases), tuple(notes)
    lookup, _ = name_lookup(class_names, aliases)
    if categories and not any(fold(name) in lookup for name in categories.values()):
        problem = f"{', '.join(categories.values())}: none of them is {', '.join(class_names)}"
        raise DatasetError(path, "categories", problem, "name classes of this file, or say which mean the same")
    return ClassTable.from_categories(categories, class_names, aliases), ()


def _empty_groups(categories: dict[CategoryId, str], content: dict[str, list[Any]]) -> dict[CategoryId, str]:
    """Categories that other categories name as ``supercategory`` and that no object has."""
    parents = {
        fold(category["supercategory"])
        for category in content["categories"]
        if _is_text(category.get("supercategory")) and fold(category["supercategory"]) != fold(category["name"])
    }
    used = {entry.get("category_id") for entry in content["annotations"]
            if isinstance(entry, dict) and _is_id(entry.get("category_id"))}  # fmt: skip
    return {key: name for key, name in categories.items() if key not in used and fold(name) in parents}


def _text(entry: dict[str, Any], *keys: str) -> str | None:
    fields = {name.lower(): value for name, value in entry.items()}
    values = (fields.get(key) for key in keys)
    texts = (str(value).strip() for value in values if _is_text(value) or _is_number(value))
    return next(filter(None, texts), None)


def _further(entry: dict[str, Any]) -> dict[str, Any]:
    """Texts and numbers of the object ``metadata``, whatever else other programs keep in it."""
    fields = entry.get("metadata")
    items = fields.items() if isinstance(fields, dict) else ()
    return {name: value for name, value in items if _is_text(name) and (_is_text(value) or _is_number(value))}


def _original(entry: dict[str, Any], further: dict[str, Any], side: str) -> Any:
    """Width or height of the image that this one was cut from; its own if it is whole."""
    for value in (entry.get(f"original_{side}"), further.get(f"original_{side}"), further.get(side)):
        number: Any = int(value) if isinstance(value, str) and value.isdecimal() and len(value) < 9 else value
        if _is_number(number) and _is_size(int(number)):
            return int(number)
    return entry.get(side)


def _show(value: Any) -> str:
    return _shown.repr(value)


def _is_text(value: Any) -> bool:
    """Whether a value is a string that can be printed; JSON can spell halves of characters."""
    return isinstance(value, str) and (value.isascii() or not any("\ud800" <= char <= "\udfff" for char in value))


def _is_id(value: Any) -> bool:
    return isinstance(value, (int, str)) and not isinstance(value, bool)


def _id_order(key: int | str) -> tuple[bool, int | str]:
    return isinstance(key, str), key


def _is_size(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 < value <= MAX_SIDE


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) <= sys.float_info.max
