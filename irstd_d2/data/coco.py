"""COCO files, checked as strictly as the XML ones."""

from __future__ import annotations

import json
import logging
import reprlib
import sys
from collections.abc import Sequence
from os import PathLike
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

from detectron2.structures import BoxMode

from ..errors import DatasetError
from .faults import Fault, FaultKind, refuse_or_skip
from .image_io import MAX_SIDE

MAX_JSON_BYTES = 2 << 30

_logger = logging.getLogger(__name__)
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
    ``original_width`` and ``original_height`` (of the image that this one was cut from), further fields in an object
    ``metadata`` (name -> text or number), and ``sem_seg_file_name`` (a sky mask, relative to ``image_root``).

    Args:
        json_file: with ``images``, ``annotations`` and ``categories``.
        image_root: folder that ``file_name`` is relative to.
        class_names: categories in the order of the class ids; ``None`` takes all, by ascending id.
        skip_bad: leave faulty images out, with one logged summary, in place of raising.

    Returns:
        Dataset dicts by ascending image id (boxes XYXY_ABS) and the class names.

    Raises:
        DatasetError: the file is not COCO, or an image is faulty and ``skip_bad`` is off.
    """
    dicts, names, faults = scan_coco(json_file, image_root, class_names=class_names)
    refuse_or_skip(faults, skip_bad, str(json_file))
    _logger.info("Loaded %d images from %s", len(dicts), json_file)
    return dicts, names


def scan_coco(
    json_file: str | PathLike, image_root: str | PathLike, *, class_names: Sequence[str] | None = None
) -> tuple[list[dict[str, Any]], list[str], list[Fault]]:
    """As :func:`load_coco`, but return the sound images together with all faults of the others."""
    path = Path(json_file)
    content = _read_json(path)
    class_ids, names = _classes(content["categories"], class_names, path)
    reader = _CocoReader(path, Path(image_root), class_ids)
    for i, entry in enumerate(content["images"]):
        reader.add_image(entry, f"images[{i}]")
    for i, entry in enumerate(content["annotations"]):
        reader.add_annotation(entry, f"annotations[{i}]")
    return reader.sound_images(), names, reader.faults


class _CocoReader:
    def __init__(self, path: Path, image_root: Path, class_ids: dict[int, int]):
        self.path, self.image_root, self.class_ids = path, image_root, class_ids
        self.known_classes = _show(sorted(class_ids, key=_id_order))
        self.images: dict[int | str, dict[str, Any]] = {}
        self.faulty: set[int | str] = set()
        self.faults: list[Fault] = []

    def sound_images(self) -> list[dict[str, Any]]:
        return [self.images[key] for key in sorted(self.images, key=_id_order) if key not in self.faulty]

    def add_image(self, entry: Any, field: str) -> None:
        if not isinstance(entry, dict) or not _is_id(entry.get("id")):
            return self._fail(FaultKind.BAD_RECORD, f"{field}.id", "missing or not a number or a string", "write an id")
        key, name = entry["id"], entry.get("file_name")
        if key in self.images:
            return self._fail(
                FaultKind.BAD_RECORD, f"{field}.id", f"{_show(key)} again", "give every image its own id", key
            )
        width, height = entry.get("width"), entry.get("height")
        metadata = _further(entry) | {
            "platform": _text(entry, "platform", "view"),
            "band": _text(entry, "band", "band_type"),
            "width": _original(entry, "width"),
            "height": _original(entry, "height"),
        }
        sample = self.images[key] = {"image_id": key, "height": height, "width": width, "metadata": metadata}
        sample["annotations"] = []
        if not (_is_size(width) and _is_size(height)):
            problem = f"width {_show(width)}, height {_show(height)}"
            self._fail(FaultKind.MISSING_FIELD, field, problem, "write the image's size in pixels", key)
        if not isinstance(name, str) or not is_contained(name):
            problem, fix = f"{_show(name)} leads out of the image folder", "write a path below the image folder"
            return self._fail(FaultKind.UNSAFE_NAME, f"{field}.file_name", problem, fix, key)
        sample["file_name"] = str(self.image_root / name)
        mask = entry.get("sem_seg_file_name")
        if mask is not None:
            if not isinstance(mask, str) or not is_contained(mask):
                problem, fix = f"{_show(mask)} leads out of the image folder", "write a path below the image folder"
                return self._fail(FaultKind.UNSAFE_NAME, f"{field}.sem_seg_file_name", problem, fix, key)
            sample["sem_seg_file_name"] = str(self.image_root / mask)
        return None

    def add_annotation(self, entry: Any, field: str) -> None:
        key = entry.get("image_id") if isinstance(entry, dict) else None
        if not _is_id(key) or key not in self.images:
            problem, fix = f"{_show(key)} is no image of the file", "correct the id or delete the annotation"
            return self._fail(FaultKind.BAD_RECORD, f"{field}.image_id", problem, fix)
        category = entry.get("category_id")
        if not _is_id(category) or category not in self.class_ids:
            problem, fix = f"category {_show(category)}", f"use one of {self.known_classes}"
            return self._fail(FaultKind.UNKNOWN_CLASS, f"{field}.category_id", problem, fix, key)
        box = entry.get("bbox")
        if not (isinstance(box, list) and len(box) == 4 and all(_is_number(value) for value in box)):
            fix = "write [x, y, width, height]"
            return self._fail(FaultKind.MISSING_FIELD, f"{field}.bbox", f"{_show(box)} is no box", fix, key)
        x, y, width, height = box
        sample = self.images[key]
        if not (width > 0 and height > 0):
            return self._fail(FaultKind.BAD_BOX, f"{field}.bbox", f"{box} has no area", "correct or delete it", key)
        if key not in self.faulty and not (
            x >= 0 and y >= 0 and x + width <= sample["width"] and y + height <= sample["height"]
        ):
            problem = f"{box} leaves the image of {sample['width']}x{sample['height']}"
            return self._fail(FaultKind.BOX_OUTSIDE, f"{field}.bbox", problem, "clip the box", key)
        sample["annotations"].append(
            {
                "bbox": [float(x), float(y), float(x + width), float(y + height)],
                "bbox_mode": BoxMode.XYXY_ABS,
                "category_id": self.class_ids[category],
                "iscrowd": int(entry.get("iscrowd") == 1),
            }
        )
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


def _classes(categories: list[Any], class_names: Sequence[str] | None, path: Path) -> tuple[dict[int, int], list[str]]:
    """Map category ids to class ids, and name the classes."""
    for i, category in enumerate(categories):
        sound = isinstance(category, dict) and _is_id(category.get("id")) and _is_text(category.get("name"))
        if not sound:
            raise DatasetError(path, f"categories[{i}]", "without id or name", "write both")
    by_id = {category["id"]: category["name"] for category in sorted(categories, key=lambda c: _id_order(c["id"]))}
    names = list(by_id.values()) if class_names is None else list(class_names)
    order = {name.lower(): i for i, name in enumerate(names)}
    return {key: order[name.lower()] for key, name in by_id.items() if name.lower() in order}, names


def _text(entry: dict[str, Any], *keys: str) -> str | None:
    values = (entry.get(key) for key in keys)
    return next((value for value in values if _is_text(value) and value), None)


def _further(entry: dict[str, Any]) -> dict[str, Any]:
    """Texts and numbers of the object ``metadata``, whatever else other programs keep in it."""
    fields = entry.get("metadata")
    items = fields.items() if isinstance(fields, dict) else ()
    return {name: value for name, value in items if _is_text(name) and (_is_text(value) or _is_number(value))}


def _original(entry: dict[str, Any], side: str) -> Any:
    """Width or height of the image that this one was cut from; its own if it is whole."""
    value = entry.get(f"original_{side}")
    return value if _is_size(value) else entry.get(side)


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
