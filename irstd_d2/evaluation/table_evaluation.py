"""Evaluators that collect small columns per image and judge the whole data set at once.

Memory grows with the number of detections, not with the size of the images, and several processes give exactly the
numbers of one: the columns are gathered, sorted into the data set's order and only then judged.
"""

from __future__ import annotations

import json
import logging
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
from detectron2.evaluation import DatasetEvaluator
from detectron2.utils import comm

from ..errors import DatasetError
from .average_precision import EXACT, VOCProtocol, average_precision, precision_recall, voc_verdicts
from .detection_probability import CENTRE_DISTANCE, operating_curve
from .ground_truth import GroundTruth
from .matching import DetectionTable, TargetTable, detection_table

logger = logging.getLogger(__name__)

Columns = tuple[np.ndarray, np.ndarray, np.ndarray]


class TableEvaluator(DatasetEvaluator):
    """Base of evaluators that work on the detection and target tables of a whole data set.

    Args:
        ground_truth: of the data set, in its order.
        group_by: keys of the metadata; metrics are repeated for the images of each group.
        distributed: gather the detections of all processes; the main one reports.
    """

    name = "table"

    def __init__(self, ground_truth: GroundTruth, *, group_by: Sequence[str] = (), distributed: bool = True):
        self.ground_truth, self.group_by, self._distributed = ground_truth, tuple(group_by), distributed
        self._index = {image_id: i for i, image_id in enumerate(ground_truth.image_ids)}
        self.reset()

    def reset(self) -> None:
        self._columns: dict[int, Columns] = {}

    def process(self, inputs: list[dict[str, Any]], outputs: list[dict[str, Any]]) -> None:
        for sample, output in zip(inputs, outputs):
            instances = output["instances"].to("cpu")
            self.add(
                sample["image_id"],
                instances.pred_boxes.tensor.numpy(),
                instances.scores.numpy(),
                instances.pred_classes.numpy(),
            )

    def add(self, image_id: Any, boxes: np.ndarray, scores: np.ndarray, classes: np.ndarray) -> None:
        """Store the detections of one image, in original pixels.

        Args:
            image_id: one of the ground truth's.
            boxes: (d, 4) x1 y1 x2 y2.
            scores: (d,)
            classes: (d,)

        Raises:
            ValueError: for an image that the data set does not have, or a score or box that is not finite.
        """
        if image_id not in self._index:
            raise ValueError(f"image {image_id!r} is not in the evaluated data set; were the right predictions given?")
        if not (np.isfinite(boxes).all() and np.isfinite(scores).all()):
            raise ValueError(f"image {image_id!r} has detections whose score or box is not finite")
        self._columns[self._index[image_id]] = (boxes, scores, classes)

    def detections(self) -> DetectionTable | None:
        """Return the table of all processes' detections on the main process, ``None`` on the others."""
        columns = self._columns
        if self._distributed and comm.get_world_size() > 1:
            comm.synchronize()
            gathered = comm.gather(columns, dst=0)
            if not comm.is_main_process():
                return None
            columns = {index: column for part in gathered for index, column in part.items()}
        none = (np.zeros((0, 4)), np.zeros(0), np.zeros(0, int))
        missing = len(self._index) - len(columns)
        if missing:
            logger.warning("%d of %d images have no predictions and count as empty", missing, len(self._index))
        rows = [columns.get(i, none) for i in range(len(self._index))]
        return detection_table(*(list(column) for column in zip(*rows))) if rows else detection_table([], [])

    def evaluate(self) -> OrderedDict[str, dict[str, float]] | None:
        detections = self.detections()
        if detections is None:
            return None
        truth = self.ground_truth
        results = OrderedDict([(self.name, self.compute(detections, truth.targets, truth.pixels))])
        for key in self.group_by:
            for group, images in truth.image_groups(key).items():
                part = select_images(detections, truth.targets, images)
                for metric, value in self.compute(*part, truth.pixels[images]).items():
                    results[self.name][f"{key}/{group}/{metric}"] = value
        return results

    def compute(self, detections: DetectionTable, targets: TargetTable, image_pixels: np.ndarray) -> dict[str, float]:
        """Compute the metrics of a set of images. Subclasses implement it.

        Args:
            detections: sorted by score.
            targets: ground truth.
            image_pixels: (I,) size of every image.

        Returns:
            metric name -> value; rates of detection in percent, NaN where there is nothing to measure.
        """
        raise NotImplementedError(f"{type(self).__name__} must implement compute")


def select_images(
    detections: DetectionTable, targets: TargetTable, images: np.ndarray
) -> tuple[DetectionTable, TargetTable]:
    """Keep the rows of some images and renumber them.

    Args:
        images: (I,) bool.
    """
    index = np.cumsum(images) - 1
    keep_d, keep_t = images[detections.image], images[targets.image]
    return (
        DetectionTable(
            detections.boxes[keep_d],
            index[detections.image[keep_d]],
            detections.category[keep_d],
            detections.scores[keep_d],
        ),
        TargetTable(
            targets.boxes[keep_t],
            index[targets.image[keep_t]],
            targets.category[keep_t],
            targets.ignored[keep_t],
        ),
    )


def _select_class(
    detections: DetectionTable, targets: TargetTable, category: int
) -> tuple[DetectionTable, TargetTable]:
    d, t = detections.category == category, targets.category == category
    return (
        DetectionTable(detections.boxes[d], detections.image[d], detections.category[d], detections.scores[d]),
        TargetTable(targets.boxes[t], targets.image[t], targets.category[t], targets.ignored[t]),
    )


class VOCDetectionEvaluator(TableEvaluator):
    """Average precision in both Pascal VOC modes, precision and recall, averaged over the classes that have targets.

    Metrics are named ``AP50_area`` (VOC 2012, the papers' mAP12), ``AP50_11point`` (VOC 2007, mAP07), ``recall50`` and
    ``precision50`` (both over all kept detections), for each IoU threshold, in percent.

    Args:
        ground_truth: of the data set.
        iou_thresholds: a detection that reaches the threshold is true.
        protocol: ``EXACT`` or ``PAPER`` (old +1 widths, float32); it becomes part of the result's name.
        group_by, distributed: see ``TableEvaluator``.
    """

    def __init__(
        self,
        ground_truth: GroundTruth,
        *,
        iou_thresholds: Sequence[float] = (0.5,),
        protocol: VOCProtocol = EXACT,
        group_by: Sequence[str] = (),
        distributed: bool = True,
    ):
        super().__init__(ground_truth, group_by=group_by, distributed=distributed)
        self.iou_thresholds, self.protocol = tuple(iou_thresholds), protocol
        self.name = f"voc_{protocol.name}"

    def compute(
        self,
        detections: DetectionTable,
        targets: TargetTable,
        image_pixels: np.ndarray,  # noqa: ARG002
    ) -> dict[str, float]:
        names = self.ground_truth.class_names
        results: dict[str, float] = {}
        for threshold in self.iou_thresholds:
            rows = {}
            for category, class_name in enumerate(names):
                row = self._one_class(*_select_class(detections, targets, category), threshold)
                if row is not None:
                    rows[class_name] = row
            suffix = f"{threshold * 100:.0f}"
            for metric in ("AP{}_area", "AP{}_11point", "recall{}", "precision{}"):
                values = [row[metric] for row in rows.values()]
                results[metric.format(suffix)] = float(np.mean(values)) if values else float("nan")
            if len(names) > 1:
                for class_name, row in rows.items():
                    results[f"AP{suffix}_area-{class_name}"] = row["AP{}_area"]
        return results

    def _one_class(self, detections: DetectionTable, targets: TargetTable, threshold: float) -> dict[str, float] | None:
        num_targets = int((~targets.ignored).sum())
        if not num_targets:
            return None
        verdicts = voc_verdicts(detections, targets, threshold, self.protocol)
        curve = precision_recall(verdicts, detections.scores, num_targets, self.protocol.dtype)
        return {
            "AP{}_area": 100 * average_precision(curve, "area"),
            "AP{}_11point": 100 * average_precision(curve, "11points"),
            "recall{}": 100 * curve.max_recall,
            "precision{}": 100 * curve.last_precision,
        }


class DetectionProbabilityEvaluator(TableEvaluator):
    """Pd, Fa, best F1 and FROC by centre distance (``detection_probability``).

    Metrics: ``Pd`` (percent), ``Fa`` (false pixels per million image pixels) and ``precision`` at ``score_threshold``;
    ``F1`` (percent, best over thresholds) and its threshold ``F1_score``; ``FAPI@80`` false alarms per image at 80 %
    recall (infinite where that recall is not reached).
    """

    name = "pd_fa"

    def __init__(
        self,
        ground_truth: GroundTruth,
        *,
        score_threshold: float = 0.5,
        max_distance: float = CENTRE_DISTANCE,
        froc_recalls: Sequence[float] = (0.5, 0.8),
        group_by: Sequence[str] = (),
        distributed: bool = True,
    ):
        super().__init__(ground_truth, group_by=group_by, distributed=distributed)
        self.score_threshold, self.max_distance = score_threshold, max_distance
        self.froc_recalls = tuple(froc_recalls)

    def compute(self, detections: DetectionTable, targets: TargetTable, image_pixels: np.ndarray) -> dict[str, float]:
        curve = operating_curve(detections, targets, image_pixels, self.max_distance)
        at = curve.at_score(self.score_threshold)
        f1, score = curve.best_f1()
        froc = zip(self.froc_recalls, curve.false_alarms_per_image(self.froc_recalls))
        return {
            "Pd": 100 * at["Pd"],
            "Fa": 1e6 * at["Fa"],
            "precision": 100 * at["precision"],
            "F1": 100 * f1,
            "F1_score": score,
            **{f"FAPI@{100 * recall:.0f}": float(rate) for recall, rate in froc},
        }


def add_predictions_file(
    evaluator: TableEvaluator, path: str | PathLike, category_ids: Mapping[int, int] | None = None
):
    """Fill an evaluator from a saved predictions file, so that a run can be judged again without its model.

    Args:
        evaluator: an empty evaluator.
        path: JSON in COCO's result format, as ``coco_instances_results.json``: a list of
            ``{"image_id", "category_id", "bbox": [x, y, w, h], "score"}``.
        category_ids: the file's category ids -> class indices; by default they are equal.

    Raises:
        DatasetError: for a file that is not such a list.
    """
    path = Path(path)
    rows: dict[Any, list[tuple[list[float], float, int]]] = {}
    try:
        for row in json.loads(path.read_text(encoding="utf-8")):
            x, y, w, h = row["bbox"]
            category = int(row["category_id"])
            category = category if category_ids is None else category_ids[category]
            rows.setdefault(row["image_id"], []).append(([x, y, x + w, y + h], float(row["score"]), category))
    except (ValueError, KeyError, TypeError) as error:
        raise DatasetError(
            path,
            "predictions",
            f"cannot be read: {error!r}",
            "give a list of COCO results with image_id, category_id, bbox [x, y, w, h] and score",
        ) from error
    for image_id, image_rows in rows.items():
        boxes, scores, classes = zip(*image_rows)
        evaluator.add(image_id, np.array(boxes, float), np.array(scores, float), np.array(classes, int))
