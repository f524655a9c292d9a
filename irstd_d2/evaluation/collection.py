"""Detections of a whole data set, collected image by image from a model or a saved file."""

from __future__ import annotations

import json
import logging
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import torch
from detectron2.evaluation import DatasetEvaluator
from detectron2.structures import Instances
from detectron2.utils import comm

from ..files import write_atomically
from .ground_truth import GroundTruth
from .matching import DetectionTable, detection_table
from .predictions import PREDICTIONS_FILE, Prediction, read_predictions

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class ImageColumns:
    """What is kept of one image: boxes (d, 4) float x1 y1 x2 y2 in original pixels, scores and classes (d,).

    ``measured`` leads from a target key to (g + d,) classes of its targets, then of its detections, and (C,) pixels of
    each class.
    """

    boxes: np.ndarray
    scores: np.ndarray
    classes: np.ndarray
    measured: dict[str, tuple[np.ndarray, np.ndarray]]


class DetectionCollector:
    """Small columns per image, in the order of the data set.

    With ``distributed`` the main process reports what all have collected, otherwise each process what it has.
    """

    def __init__(self, ground_truth: GroundTruth, *, distributed: bool = True):
        self.ground_truth, self._distributed = ground_truth, distributed
        self.reset()

    def reset(self) -> None:
        self._columns: dict[int, ImageColumns] = {}

    def process(self, inputs: list[dict[str, Any]], outputs: list[dict[str, Any]]) -> None:
        """Store what a model found on a batch; part of detectron2's evaluator."""
        for sample, output in zip(inputs, outputs):
            self.add(sample["image_id"], *columns_of(output["instances"]))

    def add(self, image_id: Any, boxes: np.ndarray, scores: np.ndarray, classes: np.ndarray) -> None:
        """Store the detections of one image, in original pixels; an image given again is replaced.

        Arguments and errors as of ``GroundTruth.check_detections``.
        """
        index = self.ground_truth.check_detections(image_id, boxes, scores, classes)
        self._columns[index] = ImageColumns(boxes, scores, classes, self._measure(index, boxes))

    def _measure(self, index: int, boxes: np.ndarray) -> dict[str, tuple[np.ndarray, np.ndarray]]:  # noqa: ARG002
        """What a subclass keeps of an image besides its detections; see ``ImageColumns.measured``."""
        return {}

    def _gather(self) -> list[ImageColumns] | None:
        """Return the columns of all images on the main process, ``None`` on the others."""
        columns = gather(self._columns, self._distributed)
        if columns is None:
            return None
        count = len(self.ground_truth.image_ids)
        if missing := count - len(columns):
            logger.warning("%d of %d images have no predictions and count as empty", missing, count)
        none = np.zeros((0, 4))
        return [
            columns.get(i) or ImageColumns(none, np.zeros(0), np.zeros(0, int), self._measure(i, none))
            for i in range(count)
        ]

    def detections(self) -> DetectionTable | None:
        """Return the table of all processes' detections on the main process, ``None`` on the others."""
        columns = self._gather()
        return None if columns is None else detections_of(columns)


def columns_of(instances: Instances) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Boxes, scores and classes of a model's result; numpy lacks the bfloat16 that autocast gives."""
    boxes, scores = (
        values.detach().to("cpu", torch.promote_types(values.dtype, torch.float32)).numpy()
        for values in (instances.pred_boxes.tensor, instances.scores)
    )
    return boxes, scores, instances.pred_classes.cpu().numpy()


def detections_of(columns: Sequence[ImageColumns]) -> DetectionTable:
    """The table of the columns of all images."""
    return detection_table(
        [column.boxes for column in columns],
        [column.scores for column in columns],
        [column.classes for column in columns],
    )


def gather(by_image: dict[Any, Any], distributed: bool = True) -> dict[Any, Any] | None:
    """Put together what all processes know of their images, on the main one; ``None`` on the others."""
    if not distributed or comm.get_world_size() == 1:
        return by_image
    comm.synchronize()
    parts = comm.gather(by_image, dst=0)
    return {key: value for part in parts for key, value in part.items()} if comm.is_main_process() else None


class PredictionsWriter(DetectionCollector, DatasetEvaluator):
    """Save all detections in a folder, as ``PREDICTIONS_FILE``: COCO results with the data set's own ids."""

    def __init__(self, ground_truth: GroundTruth, folder: str | PathLike, *, distributed: bool = True):
        super().__init__(ground_truth, distributed=distributed)
        self._path = Path(folder) / PREDICTIONS_FILE

    def process(self, inputs: list[dict[str, Any]], outputs: list[dict[str, Any]]) -> None:
        """Store what a model found on a batch; a model that only segments has no detections to store."""
        pairs = [(sample, output) for sample, output in zip(inputs, outputs) if "instances" in output]
        super().process([sample for sample, _ in pairs], [output for _, output in pairs])

    def evaluate(self) -> OrderedDict[str, dict[str, float]]:
        """Write the file, unless the model gives no detections at all; there are no metrics."""
        if not any(comm.all_gather(bool(self._columns)) if self._distributed else [self._columns]):
            logger.info("The model gives no detections: %s is not written", self._path)
            return OrderedDict()
        columns = self._gather()
        if columns is not None:
            rows = [row for number, image in enumerate(columns) for row in self._rows(number, image)]
            write_atomically(self._path, json.dumps(rows))
            logger.info("%d detections saved to %s", len(rows), self._path)
        return OrderedDict()

    def _rows(self, number: int, image: ImageColumns) -> list[dict[str, Any]]:
        boxes = np.asarray(image.boxes, float).reshape(-1, 4)  # sizes in double precision give back the corners exactly
        boxes = np.concatenate([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], axis=1)
        truth = self.ground_truth
        return [
            {"image_id": truth.image_ids[number], "category_id": truth.category_ids[index], "bbox": box, "score": score}
            for index, box, score in zip(image.classes.tolist(), boxes.tolist(), image.scores.tolist())
        ]


def add_predictions(collectors: Sequence[DetectionCollector], predictions: Mapping[Any, Prediction]) -> None:
    """Fill evaluators or other collectors image by image, so that what is read of an image is read once for all.

    Images of the data set without predictions are empty.
    """
    none = np.zeros((0, 4)), np.zeros(0), np.zeros(0, int)
    absent = dict.fromkeys(collectors[0].ground_truth.image_ids, none)
    for image_id, prediction in (absent | dict(predictions)).items():
        for collector in collectors:
            collector.add(image_id, *prediction)


def add_predictions_file(collector: DetectionCollector, path: str | PathLike) -> None:
    """Fill an empty collector from a saved file (``read_predictions``), to judge a run again without its model.

    Raises:
        DatasetError: for a file that is not a list of COCO results.
        ValueError: for predictions that do not belong to the data set, see ``DetectionCollector.add``.
    """
    add_predictions([collector], read_predictions(path, collector.ground_truth))
