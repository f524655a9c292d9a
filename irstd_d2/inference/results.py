"""Detections on disk: a journal that an interrupted run goes on from, and COCO, VOC and CSV files at its end."""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any

from detectron2.structures import Instances

from ..data.voc_xml import VocObject, VocRecord, format_voc_xml
from ..files import write_atomically

JOURNAL = ".detections.jsonl"


@dataclass(frozen=True)
class ImageResult:
    """Detections of one image or one frame.

    Args:
        name: unique in a run; of a frame, that of the video and the frame's number.
        file: that was read.
        frame: number in a video, from 0; ``None`` for an image.
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

    Args:
        folder: of the outputs.
        settings: all that decides the results beside the files themselves; results of other settings are forgotten.
    """

    def __init__(self, folder: Path, settings: Mapping[str, Any]):
        self.path = folder / JOURNAL
        head = json.dumps(settings, sort_keys=True)
        self._done: dict[str, tuple[list[Any], list[ImageResult]]] = {}
        lines = self.path.read_text(encoding="utf-8").split("\n") if self.path.is_file() else []
        if lines and lines[0] == head:
            for line in lines[1:-1]:  # what follows the last line end was interrupted
                key, stamp, rows = json.loads(line)
                self._done[key] = stamp, [ImageResult(**{**row, "size": tuple(row["size"])}) for row in rows]
        kept = [self._line(key, *entry) for key, entry in self._done.items()]
        write_atomically(self.path, _writer("".join(f"{line}\n" for line in [head, *kept]).encode()))

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


def coco_rows(results: Iterable[ImageResult]) -> list[dict[str, Any]]:
    """COCO results (``bbox`` as x, y, width, height) with ``file_name``, of videos with ``frame``."""
    rows = []
    for result in results:
        where = {"file_name": result.file} | ({} if result.frame is None else {"frame": result.frame})
        for (x1, y1, x2, y2), score, category in zip(result.boxes, result.scores, result.classes):
            box = [x1, y1, x2 - x1, y2 - y1]
            rows.append({**where, "image_id": result.name, "category_id": category, "bbox": box, "score": score})
    return rows


def csv_bytes(results: Iterable[ImageResult], class_names: Sequence[str]) -> bytes:
    """One line per detection, with corners in pixels and what the model was told of the image."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["name", "file", "frame", "class", "score", "xmin", "ymin", "xmax", "ymax", "platform", "band"])
    for result in results:
        known = [result.metadata.get("platform") or "", result.metadata.get("band") or ""]
        frame = "" if result.frame is None else result.frame
        for box, score, category in zip(result.boxes, result.scores, result.classes):
            writer.writerow([result.name, result.file, frame, class_names[category], score, *box, *known])
    return text.getvalue().encode()


def voc_bytes(result: ImageResult, class_names: Sequence[str]) -> bytes:
    """An annotation file with ``<score>`` in every object."""
    objects = tuple(
        VocObject(class_names[category], False, (x1, y1, x2, y2))
        for (x1, y1, x2, y2), category in zip(result.boxes, result.classes)
    )
    known = result.metadata.get("platform"), result.metadata.get("band")
    return format_voc_xml(VocRecord(*result.size, *known, objects), Path(result.file).name, scores=result.scores)


def write_results(
    folder: Path, results: Sequence[ImageResult], class_names: Sequence[str], formats: Iterable[str]
) -> None:
    """Write ``detections.json``, ``detections.csv`` and ``voc/NAME.xml``.

    Args:
        folder: to write into.
        results: of all images.
        class_names: by class number.
        formats: of ``coco``, ``csv``, ``voc``.
    """
    if "coco" in formats:
        rows = json.dumps(coco_rows(results), indent=1)
        write_atomically(folder / "detections.json", _writer(rows.encode()))
    if "csv" in formats:
        write_atomically(folder / "detections.csv", _writer(csv_bytes(results, class_names)))
    if "voc" in formats:
        for result in results:
            write_atomically(folder / "voc" / f"{result.name}.xml", _writer(voc_bytes(result, class_names)))


def _writer(data: bytes) -> Callable[[IO[bytes]], object]:
    return lambda file: file.write(data)
