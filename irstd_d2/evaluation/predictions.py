"""Predictions of any tool: boxes or masks, matched with the images of a data set by name, classes by name."""

from __future__ import annotations

import csv
import json
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
from defusedxml import ElementTree

from ..data.convert.yolo_format import class_names_of, read_description
from ..data.faults import refuse_fractions
from ..data.image_io import IMAGE_SUFFIXES, strip_image_suffix
from ..errors import DatasetError
from ..files import list_files
from .ground_truth import GroundTruth
from .mask_files import mask_reader
from .names import ClassNames, ImageNames

logger = logging.getLogger(__name__)

# In ``inference/DATASET`` of a run's folder, as detectron2 calls it.
PREDICTIONS_FILE = "coco_instances_results.json"
MASK_SUFFIXES = (*IMAGE_SUFFIXES, ".npy")
_MAX_OUTSIDE = 0.25  # of the boxes; of corners read as width and height it is about half
_MASK_NAME_ENDS = ("_pixels0", "_mask", "_pred")

# Boxes (d, 4) x1 y1 x2 y2 in original pixels, scores (d,) and class indices (d,) of one image.
Prediction = tuple[np.ndarray, np.ndarray, np.ndarray]


@dataclass(frozen=True)
class Predictions:
    """What a tool said of a data set.

    Attributes:
        source: the file or folder.
        format: ``COCO results``, ``YOLO text``, ``VOC XML``, ``CSV``, ``supervision`` or ``masks``.
        boxes: image id -> detections; empty for masks.
        masks: image id -> file of its mask or probability map; empty for boxes.
        missing: images of the set without an entry; they count as empty.
        surplus: entries that belong to no image of the set; they do not count.
    """

    source: Path
    format: str
    boxes: Mapping[Any, Prediction] = field(default_factory=dict)
    masks: Mapping[Any, Path] = field(default_factory=dict)
    missing: int = 0
    surplus: tuple[str, ...] = ()

    @cached_property
    def read_mask(self) -> Callable[[Path, tuple[int, int]], np.ndarray]:
        """Reads one of ``masks``; see ``mask_reader``."""
        return mask_reader(self.masks.values())

    @property
    def coverage(self) -> str:
        """Images without predictions and predictions without an image, for people; empty where there are none."""
        parts = [f"{self.missing} images have no predictions and count as empty"] if self.missing else []
        if self.surplus:
            parts.append(f"{len(self.surplus)} predicted images are not in the set, such as {self.surplus[0]}")
        return "; ".join(parts)


@dataclass(frozen=True)
class _Row:
    """One detection as a tool wrote it."""

    image: Any
    box: Sequence[float]
    score: float
    category: int


def read_any_predictions(
    path: str | PathLike, truth: GroundTruth, *, aliases: Mapping[str, str] | None = None
) -> Predictions:
    """Read predictions in any format that is known; the content tells which.

    Args:
        path: a JSON file (COCO results, or supervision's ``JSONSink``), a CSV file (with a header; supervision's
            ``CSVSink`` or ``irstd demo``), or a folder: of YOLO text files (class, centre, size, score; also below
            ``labels``), of VOC XML files with ``<score>``, or of masks or probability maps (PNG, TIFF, NPY).
        aliases: a tool's class name -> the set's.

    Returns:
        The predictions, with the images that they lack and that the set lacks counted.

    Raises:
        DatasetError: the file cannot be read, a class is unknown, or no prediction belongs to an image of the set.
    """
    path = Path(path)
    if not path.is_dir():
        return _read_table(path, truth, aliases)
    form, files = folder_content(path)
    if form == "VOC XML":
        return _from_rows(path, form, truth, _voc_rows(files, ClassNames(truth, aliases)), _stems(files))
    if form == "YOLO text":
        rows = _yolo_rows(files, truth, ClassNames(truth, aliases), _yolo_classes(files[0].parent))
        return _from_rows(path, form, truth, rows, _stems(files))
    if form == "masks":
        return match_mask_files(path, files, truth)
    raise DatasetError(
        path, "folder", "holds no predictions", "give YOLO text files, VOC XML files, or masks (PNG, TIFF, NPY)"
    )


def read_predictions(path: str | PathLike, truth: GroundTruth) -> Mapping[Any, Prediction]:
    """``read_any_predictions`` of boxes, image by image.

    Raises:
        DatasetError: as there, and for masks.
    """
    found = read_any_predictions(path, truth)
    if found.masks:
        raise DatasetError(path, "predictions", "are masks, where boxes are needed", "turn them into boxes first")
    if found.coverage:
        logger.warning("%s: %s", path, found.coverage)
    return found.boxes


def from_supervision(
    detections: Mapping[Any, Any], truth: GroundTruth, *, aliases: Mapping[str, str] | None = None
) -> Predictions:
    """Take over ``supervision.Detections`` (``xyxy``, ``confidence``, ``class_id``, ``data["class_name"]``) by image.

    Keys are image ids or file names; ``aliases`` lead from a tool's class name to the set's.

    Raises:
        DatasetError: detections without scores, of an unknown class, or of no image of the set.
    """
    classes = ClassNames(truth, aliases)

    def rows() -> Iterator[_Row]:
        for image, found in detections.items():
            if len(found.xyxy) and found.confidence is None:
                raise ValueError(f"{image}: detections without confidence")
            names = (found.data or {}).get("class_name")
            for i, box in enumerate(found.xyxy):
                if names is None:
                    label = "" if found.class_id is None else str(found.class_id[i])
                    category = classes.by_label(label, is_index=True)
                else:
                    category = classes.by_name(str(names[i]))
                yield _Row(image, [float(value) for value in box], float(found.confidence[i]), category)

    return _from_rows(Path("detections"), "supervision", truth, rows(), list(detections))


def folder_content(path: Path) -> tuple[str, list[Path]]:
    """Format and files of a folder of predictions, or of ``labels`` in it; nothing where there are none."""
    folder = path / "labels" if not list_files(path, (".txt",)) and list_files(path / "labels", (".txt",)) else path
    if xml := list_files(folder, (".xml",)):
        return "VOC XML", xml
    texts = [file for file in list_files(folder, (".txt",)) if file.name not in ("classes.txt", "names.txt")]
    masks = list_files(folder, MASK_SUFFIXES)
    # A log beside masks, a chart beside text files, or a picture beside each text file.
    if texts and (len(texts) >= len(masks) or {file.stem for file in texts} & {file.stem for file in masks}):
        return "YOLO text", texts
    return ("masks", masks) if masks else ("", [])


def holds_masks(path: str | PathLike) -> bool:
    """Whether predictions are a folder of masks."""
    return folder_content(Path(path))[0] == "masks"


def _stems(files: Iterable[Path]) -> list[str]:
    return [path.stem for path in files]


def _from_rows(
    source: Path,
    form: str,
    truth: GroundTruth,
    rows: Iterable[_Row],
    entries: Iterable[Any] = (),
    *,
    ids_first: bool = False,
) -> Predictions:
    """Sort rows by image; ``entries`` are images that the tool looked at, with and without a detection."""
    names = ImageNames(truth, ids_first=ids_first)
    image_of: dict[Any, Any] = {}
    columns: dict[Any, list[_Row]] = {}
    try:
        for name in entries:
            image_of[name] = names.find(name)
        for row in rows:
            if row.image not in image_of:
                image_of[row.image] = names.find(row.image)
            if image_of[row.image] is not None:
                columns.setdefault(image_of[row.image], []).append(row)
    except DatasetError:
        raise
    except (OSError, ValueError, KeyError, TypeError, ElementTree.ParseError) as error:
        problem = error.args[0] if type(error) is ValueError and error.args else f"cannot be read: {error!r}"
        fix = error.args[1] if type(error) is ValueError and len(error.args) == 2 else _FIX[form]
        raise DatasetError(source, "predictions", str(problem), fix) from error
    boxes = {
        image_id: (
            np.array([row.box for row in image_rows], float).reshape(-1, 4),
            np.array([row.score for row in image_rows], float),
            np.array([row.category for row in image_rows], int),
        )
        for image_id, image_rows in columns.items()
    }
    _check_boxes(source, form, boxes, truth)
    found = _counted(Predictions(source, form, boxes=boxes), image_of, truth)
    if found.surplus and (names.by_number or _counts_from_elsewhere(image_of, truth)):
        raise DatasetError(
            source,
            "predictions",
            f"image {found.surplus[0]} is not in the evaluated data set, whose images the numbers seem to count, "
            "perhaps from 0 where the set does from 1",
            "give the set's own ids, or the name of each image (file_name)",
        )
    return found


def _counts_from_elsewhere(names: Iterable[Any], truth: GroundTruth) -> bool:
    """Whether all names are numbers that become ids of the set when 1 is added, or subtracted."""
    ids = {str(image_id) for image_id in truth.image_ids if isinstance(image_id, int)}
    numbers = [int(name) if str(name).isdecimal() else -9 for name in names]
    return any(ids.issuperset(str(number + step) for number in numbers) for step in (1, -1))


def _check_boxes(source: Path, form: str, boxes: Mapping[Any, Prediction], truth: GroundTruth) -> None:
    """Refuse boxes whose numbers mean something else, such as corners in place of width and height."""
    size_of = {image_id: (f.width, f.height) for image_id, f in zip(truth.image_ids, truth.files)}
    corners = np.concatenate([np.zeros((0, 4)), *(found[0] for found in boxes.values())])
    sizes = np.repeat([size_of[image_id] for image_id in boxes], [len(found[0]) for found in boxes.values()], axis=0)
    refuse_fractions(source, corners.tolist())
    if not len(corners):
        return
    turned = (corners[:, 2:] < corners[:, :2]).any(axis=1)
    centres = (corners[:, :2] + corners[:, 2:]) / 2
    outside = ((centres < 0) | (centres > sizes)).any(axis=1)
    for wrong, share, what in (
        (turned, 0, "end before they begin"), (outside, _MAX_OUTSIDE, "have their centre outside of their image")
    ):  # fmt: skip
        if np.mean(wrong) > share:
            example = ", ".join(f"{value:g}" for value in corners[wrong.argmax()])
            problem = f"{wrong.sum()} of {len(corners)} boxes {what}, such as that from x1, y1 to x2, y2 = {example}"
            raise DatasetError(source, "predictions", problem, _FIX[form])
    scores = np.concatenate([found[1] for found in boxes.values()])
    if scores.min() < 0 or scores.max() > 1:
        text = "%s: scores from %g to %g, not 0 to 1: give a score threshold (TEST.SCORE_THRESHOLD) of their range"
        logger.warning(text, source, scores.min(), scores.max())


def _counted(found: Predictions, image_of: Mapping[Any, Any], truth: GroundTruth) -> Predictions:
    known = {image_id for image_id in image_of.values() if image_id is not None}
    surplus = tuple(str(name) for name, image_id in image_of.items() if image_id is None)
    if surplus and not known:
        example = strip_image_suffix(Path(str(truth.files[0].image or truth.image_ids[0])).name) if truth.files else "-"
        problem = f"image {surplus[0]!r} is not in the evaluated data set, nor is any other of {len(surplus)}"
        fix = f"give the predictions of this set, whose images are called like {example!r}"
        raise DatasetError(found.source, "predictions", problem, fix)
    return replace(found, missing=len(truth.image_ids) - len(known), surplus=surplus)


_FIX = {
    "COCO results": "give a list of COCO results with image_id, category_id, bbox [x, y, w, h] and score",
    "supervision": "give image, x_min, y_min, x_max, y_max, class and confidence of every detection",
    "CSV": "give the columns image, xmin, ymin, xmax, ymax, class and score",
    "YOLO text": "write lines 'class x_centre y_centre width height score' in fractions of the image",
    "VOC XML": "write <object> with <name>, <bndbox> and <score>",
}


def _csv_records(text: str) -> list[dict[str, str]]:
    """The rows of a table whose header tells the delimiter."""
    header = text.split("\n", 1)[0]
    reader = csv.DictReader(text.splitlines(), delimiter=max(",;\t", key=header.count))
    records = list(reader)
    if not records:
        _find_columns(reader.fieldnames or ())  # or the only detection would pass for the header
    return records


def _read_table(path: Path, truth: GroundTruth, aliases: Mapping[str, str] | None) -> Predictions:
    is_csv = path.suffix.lower() == ".csv"
    form = "CSV" if is_csv else "COCO results"
    try:
        text = path.read_text(encoding="utf-8-sig")
        records = _csv_records(text) if is_csv else json.loads(text)
    except (OSError, ValueError, csv.Error) as error:
        raise DatasetError(path, "predictions", f"cannot be read: {error!r}", _FIX[form]) from error
    classes = ClassNames(truth, aliases)
    if isinstance(records, dict) and isinstance(records.get("annotations"), list):
        return _from_rows(path, form, truth, _coco_document_rows(records, classes), ids_first=True)
    if not isinstance(records, list) or not all(isinstance(record, dict) for record in records):
        raise DatasetError(path, "predictions", "cannot be read: not a list of objects", _FIX[form])
    if not is_csv and not (records and "x_min" in records[0]):
        return _from_rows(path, form, truth, _coco_rows(records, classes), ids_first=True)
    form = "supervision" if not is_csv or "x_min" in (records[0] if records else ()) else form
    return _from_rows(path, form, truth, _column_rows(records, classes))


def _corners(box: Sequence[float]) -> list[float]:
    x, y, width, height = (float(value) for value in box)
    return [x, y, x + width, y + height]


def _coco_rows(records: Sequence[Mapping[str, Any]], classes: ClassNames) -> Iterator[_Row]:
    for record in records:
        name = str(record.get("category_name"))  # of ``irstd detect``, whose model may have other ids
        category = classes.by_name(name) if name in classes else classes.by_own_id(record["category_id"])
        is_frame = record.get("frame") is not None  # frames share their file
        image = record["image_id"] if is_frame or "file_name" not in record else record["file_name"]
        yield _Row(image, _corners(record["bbox"]), float(record["score"]), category)


def _coco_document_rows(document: Mapping[str, Any], classes: ClassNames) -> Iterator[_Row]:
    """A COCO file whose annotations have scores and that names its own images and categories."""
    files = {image["id"]: image.get("file_name", image["id"]) for image in document["images"]}
    names = {category["id"]: category["name"] for category in document["categories"]}
    for record in document["annotations"]:
        category = classes.by_name(names[record["category_id"]])
        yield _Row(files[record["image_id"]], _corners(record["bbox"]), float(record["score"]), category)


_COLUMNS: dict[str, tuple[str, ...]] = {
    "image": ("image", "image_name", "file_name", "filename", "file", "name", "image_id"),
    "x1": ("xmin", "x_min", "x1", "left"),
    "y1": ("ymin", "y_min", "y1", "top"),
    "x2": ("xmax", "x_max", "x2", "right"),
    "y2": ("ymax", "y_max", "y2", "bottom"),
    "score": ("score", "confidence", "conf", "probability"),
    "class": ("class_name", "class", "label", "category", "class_id", "category_id"),
}


def _find_columns(header: Iterable[str]) -> dict[str, str]:
    """The column of each part of a detection, "" where there is none for the class."""
    known = {str(name).strip().lower(): name for name in header if name is not None}
    column = {part: next((known[name] for name in names if name in known), "") for part, names in _COLUMNS.items()}
    for part, name in column.items():
        if not name and part != "class":
            raise ValueError(f"has no column for {part}, such as {_COLUMNS[part][0]}")
    return column


def _column_rows(records: Sequence[Mapping[str, Any]], classes: ClassNames) -> Iterator[_Row]:
    if not records:
        return
    column = _find_columns(records[0])
    for record in records:
        label = str(record[column["class"]]).strip() if column["class"] else ""
        kind = column["class"].strip().lower()
        is_own = label.isdecimal() and kind == "category_id"
        category = classes.by_own_id(int(label)) if is_own else classes.by_label(label, is_index=kind == "class_id")
        box = [float(record[column[part]]) for part in ("x1", "y1", "x2", "y2")]
        key = "name" if record.get("frame") and record.get("name") else column["image"]  # frames share their file
        yield _Row(record[key], box, float(record[column["score"]]), category)


def _yolo_classes(folder: Path) -> Sequence[str] | None:
    """Class names beside YOLO text files: ``classes.txt``, or ``names`` of ``data.yaml``, here or one folder up."""
    for place in (folder, folder.parent):
        for file in (place / "classes.txt", place / "names.txt", place.parent / f"{place.name}.names"):
            if file.is_file():
                return file.read_text(encoding="utf-8-sig").split("\n")
        if (place / "data.yaml").is_file():
            return class_names_of(read_description(place / "data.yaml"), place / "data.yaml")
    return None


def _yolo_rows(
    files: Iterable[Path], truth: GroundTruth, classes: ClassNames, class_names: Sequence[str] | None
) -> Iterator[_Row]:
    names = ImageNames(truth, ids_first=False)
    size = {image_id: (f.width, f.height) for image_id, f in zip(truth.image_ids, truth.files)}
    for path in files:
        image = names.find(path.stem)
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
            values = line.split()
            if not values:
                continue
            if image is None:
                break
            if len(values) != 6:
                problem = f"{len(values)} values" + (", a score is missing" if len(values) == 5 else "")
                fix = f"{_FIX['YOLO text']} (ultralytics: save_conf=True)"
                raise DatasetError(path, f"line {number}", problem, fix)
            index, x, y, width, height, score = (float(value) for value in values)
            if index % 1:
                raise DatasetError(path, f"line {number}", f"class {index:g}", _FIX["YOLO text"])
            if class_names is None:
                category = classes.by_index(int(index))
            elif 0 <= index < len(class_names):
                category = classes.by_name(class_names[int(index)])
            else:
                raise DatasetError(path, f"line {number}", f"class {index:g} has no name", "correct the list of names")
            w, h = size[image]
            box = [(x - width / 2) * w, (y - height / 2) * h, (x + width / 2) * w, (y + height / 2) * h]
            yield _Row(path.stem, box, score, category)


def _voc_rows(files: Iterable[Path], classes: ClassNames) -> Iterator[_Row]:
    for path in files:
        for number, element in enumerate(ElementTree.parse(path).getroot().iter("object")):
            where = f"object[{number}]"
            score = element.findtext("score") or element.findtext("confidence")
            box = [element.findtext(f"bndbox/{name}") for name in ("xmin", "ymin", "xmax", "ymax")]
            if score is None or any(value is None for value in box):
                problem = "without score" if score is None else "without bndbox"
                raise DatasetError(path, where, problem, _FIX["VOC XML"])
            category = classes.by_name(element.findtext("name") or "")
            yield _Row(path.stem, [float(value) for value in box if value is not None], float(score), category)


def match_mask_files(source: Path, files: Sequence[Path], truth: GroundTruth) -> Predictions:
    """Match mask files with images by name, with or without an ending such as ``_pixels0``.

    Raises:
        DatasetError: two files stand for one image, or none for any.
    """
    names = ImageNames(truth, ids_first=False)
    image_of: dict[Any, Any] = {}
    masks: dict[Any, Path] = {}
    for path in files:
        candidates = [path.stem, *(path.stem.removesuffix(end) for end in _MASK_NAME_ENDS)]
        image = next((found for found in map(names.find, dict.fromkeys(candidates)) if found is not None), None)
        image_of[path.name] = image
        if image is not None:
            if image in masks:
                raise DatasetError(path, "file", f"stands for the same image as {masks[image].name}", "keep one")
            masks[image] = path
    return _counted(Predictions(source, "masks", masks=masks), image_of, truth)
