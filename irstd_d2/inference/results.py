"""Detections on disk: a journal that an interrupted run goes on from, and COCO, VOC and CSV files at its end."""

from __future__ import annotations

import csv
import io
import json
import logging
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from detectron2.structures import Instances

from ..data.classes import ClassTable
from ..data.voc_xml import VocObject, VocRecord, format_voc_xml
from ..errors import ConfigError
from ..files import list_files, write_atomically

logger = logging.getLogger(__name__)

JOURNAL = ".detections.jsonl"


@dataclass(frozen=True)
class ImageResult:
    """Detections of one image or one frame.

    Args:
        name: unique in a run; of a frame or page, that of the file and the number.
        file: that was read.
        frame: number in a video or of a page, from 0; ``None`` for an image.
        size: (width, height) in pixels.
        metadata: that the model was given.
        boxes: XYXY in pixels, best first.
        scores, classes: one per box.
    """

    name: str
    file: str
    frame: int | None
    size: tuple[int, int]
    metadata: dict[str, Any]
    boxes: list[list[float]]
    scores: list[float]
    classes: list[int]

    @classmethod
    def of(
        cls, name: str, file: Path, frame: int | None, metadata: Mapping[str, Any], instances: Instances
    ) -> ImageResult:
        """Take the detections out of a model's output."""
        height, width = instances.image_size
        boxes, scores = instances.pred_boxes.tensor.tolist(), instances.scores.tolist()
        return cls(
            name, str(file), frame, (width, height), dict(metadata), boxes, scores, instances.pred_classes.tolist()
        )


class Journal:
    """Results of a run, one line per file, flushed as they come.

    ``settings`` are all that decides the results beside the files; results of others are forgotten. Each process
    (``rank``) writes a journal of its own in ``folder`` and reads all.
    """

    def __init__(self, folder: Path, settings: Mapping[str, Any], rank: int = 0):
        self.path = folder / (f"{JOURNAL}.{rank}" if rank else JOURNAL)
        head = json.dumps(settings, sort_keys=True)
        self._done: dict[str, tuple[list[Any], list[ImageResult]]] = {}
        self.earlier = 0  # files of earlier runs, also with other settings
        for path in sorted(folder.glob(f"{JOURNAL}*")):
            lines = path.read_text(encoding="utf-8").split("\n")
            self.earlier += len({line.partition(",")[0] for line in lines[1:-1]})
            if lines[0] != head:
                continue
            done = {}
            for line in lines[1:-1]:  # what follows the last line end was interrupted
                key, stamp, rows = json.loads(line)
                done[key] = stamp, [ImageResult(**{**row, "size": tuple(row["size"])}) for row in rows]
            self._done |= done
        kept = [self._line(key, *entry) for key, entry in self._done.items()] if not rank else []
        write_atomically(self.path, "".join(f"{line}\n" for line in [head, *kept]))

    def __len__(self) -> int:
        return len(self._done)

    def find(self, key: str, path: Path, metadata: Mapping[str, Any]) -> list[ImageResult] | None:
        """Results of a file that is as it was, and has the same metadata."""
        stamp, results = self._done.get(key, (None, []))
        return results if stamp == _stamp(path, metadata) else None

    def add(self, key: str, path: Path, metadata: Mapping[str, Any], results: Sequence[ImageResult]) -> None:
        """Keep the results of one file."""
        line = self._line(key, _stamp(path, metadata), results)
        with self.path.open("ab") as file:
            file.write(f"{line}\n".encode())
            file.flush()
            os.fsync(file.fileno())

    @staticmethod
    def _line(key: str, stamp: list[Any], results: Sequence[ImageResult]) -> str:
        return json.dumps([key, stamp, [asdict(result) for result in results]])


def _stamp(path: Path, metadata: Mapping[str, Any]) -> list[Any]:
    stat = path.stat()
    return [str(path), stat.st_mtime_ns, stat.st_size, dict(metadata)]


def coco_rows(results: Iterable[ImageResult], table: ClassTable) -> list[dict[str, Any]]:
    """COCO results (``bbox`` as x, y, width, height) with ``file_name``, of videos with ``frame``.

    ``category_id`` is the class's id in the files of the training set.
    """
    rows = []
    for result in results:
        where = {"file_name": result.file} | ({} if result.frame is None else {"frame": result.frame})
        for (x1, y1, x2, y2), score, index in zip(result.boxes, result.scores, result.classes):
            what = {"category_id": table.ids[index], "category_name": table.names[index]}
            box = [x1, y1, x2 - x1, y2 - y1]
            rows.append({**where, "image_id": result.name, **what, "bbox": box, "score": score})
    return rows


def csv_text(results: Iterable[ImageResult], table: ClassTable) -> str:
    """One line per detection, with corners in pixels and what the model was told of the image."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(
        ["name", "file", "frame", "class", "class_id", "score", "xmin", "ymin", "xmax", "ymax", "platform", "band"]
    )
    for result in results:
        known = [result.metadata.get("platform") or "", result.metadata.get("band") or ""]
        frame = "" if result.frame is None else result.frame
        for box, score, index in zip(result.boxes, result.scores, result.classes):
            numbers = [f"{number:.7g}" for number in (score, *box)]
            writer.writerow([result.name, result.file, frame, table.names[index], table.ids[index], *numbers, *known])
    return text.getvalue()


def voc_bytes(result: ImageResult, table: ClassTable) -> bytes:
    """An annotation file with ``<score>`` in every object."""
    objects = tuple(
        VocObject(table.names[index], False, (x1, y1, x2, y2))
        for (x1, y1, x2, y2), index in zip(result.boxes, result.classes)
    )
    known = result.metadata.get("platform"), result.metadata.get("band")
    return format_voc_xml(VocRecord(*result.size, *known, objects), Path(result.file).name, scores=result.scores)


def yolo_text(result: ImageResult) -> str:
    """One line per detection: class index, centre, width and height as shares of the image, score."""
    width, height = result.size
    return "".join(
        f"{index} {(x1 + x2) / 2 / width:.8f} {(y1 + y2) / 2 / height:.8f} {(x2 - x1) / width:.8f} "
        f"{(y2 - y1) / height:.8f} {score:.7g}\n"
        for (x1, y1, x2, y2), score, index in zip(result.boxes, result.scores, result.classes)
    )


def render(path: Path, results: Sequence[ImageResult], table: ClassTable) -> None:
    """Write detections in the form that the suffix names: ``.json``, ``.csv``, and of one image ``.xml`` or ``.txt``.

    Raises:
        ConfigError: another suffix.
    """
    suffix = path.suffix.lower()
    if suffix == ".json":
        data: str | bytes = json.dumps(coco_rows(results, table), indent=1)
    elif suffix == ".csv":
        data = csv_text(results, table)
    elif suffix == ".xml":
        data = voc_bytes(results[0], table)
    elif suffix == ".txt":
        data = yolo_text(results[0])
    else:
        raise ConfigError(f"{path}: the suffix is none of .png, .json (COCO), .csv, .xml (VOC), .txt (YOLO)")
    write_atomically(path, data)


def write_results(folder: Path, results: Sequence[ImageResult], table: ClassTable, formats: Iterable[str]) -> None:
    """Write those of ``detections.json``, ``detections.csv``, ``voc/NAME.xml``, ``yolo/NAME.txt`` that are wanted.

    ``formats`` are some of ``json``, ``csv``, ``voc``, ``yolo``.
    """
    formats = set(formats)
    for name in sorted(formats & {"json", "csv"}):
        render(folder / f"detections.{name}", results, table)
    for name, suffix in (("voc", ".xml"), ("yolo", ".txt")):
        if name in formats:
            for result in results:
                render(folder / name / f"{result.name}{suffix}", [result], table)
            names = {f"{result.name}{suffix}" for result in results}
            if others := [path.name for path in list_files(folder / name, (suffix,)) if path.name not in names]:
                text = "%s holds %d files of earlier runs, such as %s; irstd evaluate reads them too: delete them"
                logger.warning(text, folder / name, len(others), others[0])
    if "yolo" in formats:
        write_atomically(folder / "yolo.names", "".join(f"{name}\n" for name in table.names))
