"""COCO metrics with the area ranges and thresholds that tiny targets need, without files on disk that can go stale."""

from __future__ import annotations

import contextlib
import io
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from ..memory import without_garbage_collection
from .breakdown import AREA_BOUNDS, Breakdown
from .ground_truth import GroundTruth
from .matching import DetectionTable, TargetTable
from .table_evaluation import TableEvaluator

# detectron2 and COCO average over the last ten.
IOU_THRESHOLDS = np.array([0.25, *np.linspace(0.5, 0.95, 10)])
_AT = {25: 0, 50: 1, 75: 6}
# COCO's ranges include both bounds.
_AREA_RANGES = {"all": (0, 1e10), **{name: (low, math.nextafter(up, 0)) for name, (low, up) in AREA_BOUNDS.items()}}


def _coco_api(use_faster: bool | None) -> tuple[Any, Any]:
    """The COCO and COCOeval classes: faster-coco-eval's where it is installed, else pycocotools'."""
    if use_faster is not False:
        try:
            from faster_coco_eval import COCO, COCOeval_faster

            return COCO, COCOeval_faster
        except ImportError:
            if use_faster:
                raise
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    return COCO, COCOeval


def coco_metrics(
    detections: DetectionTable,
    targets: TargetTable,
    num_images: int,
    *,
    num_classes: int = 1,
    max_detections: int = 100,
    use_faster: bool | None = None,
) -> dict[str, float]:
    """Compute box metrics in percent.

    Args:
        detections: sorted by score.
        targets: ground truth; an ignored one is a crowd in COCO's sense.
        num_images: in the data set.
        num_classes: in the data set.
        max_detections: per image and class, best first.
        use_faster: faster-coco-eval (True), pycocotools (False), or the first where installed.

    Returns:
        ``AP`` (IoU 0.5 to 0.95), ``AP25``, ``AP50``, ``AP75``, ``AR`` (0.5 to 0.95), ``recall50``, and ``AP50-AREA``
        and ``recall50-AREA`` of each range of ``AREA_BOUNDS``; NaN where there is no target.
    """
    areas = _box_areas(detections.boxes), _box_areas(targets.boxes)
    problem = _Problem(detections, targets, num_images, num_classes)
    precision, recall = problem.solve(*areas, list(_AREA_RANGES.values()), max_detections, use_faster)
    metrics = _main_metrics(precision[..., 0], recall[..., 0])
    for index, name in enumerate(AREA_BOUNDS, 1):
        metrics[f"AP50-{name}"] = _mean(precision[_AT[50], :, :, index])
        metrics[f"recall50-{name}"] = _mean(recall[_AT[50], :, index])
    return metrics


def coco_part_metrics(
    detections: DetectionTable,
    targets: TargetTable,
    breakdown: Breakdown,
    *,
    num_classes: int = 1,
    max_detections: int = 100,
    use_faster: bool | None = None,
) -> list[dict[str, float]]:
    """Compute the metrics of ``coco_metrics``, except those of areas, for every class of a breakdown at once.

    COCO ignores what lies outside a range of areas just as a breakdown ignores what is outside a class, so the class
    index takes the place of the area.
    """
    problem = _Problem(detections, targets, breakdown.pixels.shape[1], num_classes)
    ranges = [(index, index) for index in range(len(breakdown.names))]
    if not ranges:
        return []
    precision, recall = problem.solve(breakdown.detections, breakdown.targets, ranges, max_detections, use_faster)
    return [_main_metrics(precision[..., index], recall[..., index]) for index in range(len(ranges))]


def _mean(values: np.ndarray) -> float:
    values = values[values > -1]
    return 100 * float(values.mean()) if values.size else float("nan")


def _main_metrics(precision: np.ndarray, recall: np.ndarray) -> dict[str, float]:
    """Metrics of precision (thresholds, recalls, classes) and recall (thresholds, classes)."""
    metrics = {"AP": _mean(precision[1:])}
    metrics.update({f"AP{iou}": _mean(precision[index]) for iou, index in _AT.items()})
    metrics["AR"] = _mean(recall[1:])
    metrics["recall50"] = _mean(recall[_AT[50]])
    return metrics


def _box_areas(boxes: np.ndarray) -> np.ndarray:
    return (boxes[:, 2:] - boxes[:, :2]).prod(1)


class _Problem:
    """Detections and targets in the form that COCO's libraries take."""

    def __init__(self, detections: DetectionTable, targets: TargetTable, num_images: int, num_classes: int):
        self._detections, self._targets = detections, targets
        self._images = [{"id": i} for i in range(num_images)]
        self._categories = [{"id": i, "name": str(i)} for i in range(num_classes)]

    def solve(
        self,
        detection_area: np.ndarray,
        target_area: np.ndarray,
        ranges: Sequence[tuple[float, float]],
        max_detections: int,
        use_faster: bool | None,
    ) -> tuple[np.ndarray, np.ndarray]:
        """Match and accumulate.

        Returns:
            Precision (thresholds, recalls, classes, ranges) and recall (thresholds, classes, ranges), -1 where there is
            no target.
        """
        coco_class, eval_class = _coco_api(use_faster)
        # pycocotools reports by printing.
        with without_garbage_collection(), contextlib.redirect_stdout(io.StringIO()):
            none = np.zeros(len(self._detections), int)
            truth = self._load(coco_class, self._targets, target_area, self._targets.ignored.astype(int))
            results = self._load(coco_class, self._detections, detection_area, none, self._detections.scores)
            evaluation = eval_class(truth, results, "bbox")
            params = evaluation.params
            params.iouThrs = IOU_THRESHOLDS
            params.maxDets = [max_detections]
            params.areaRng = [list(bounds) for bounds in ranges]
            params.areaRngLbl = [str(index) for index in range(len(ranges))]
            evaluation.evaluate()
            evaluation.accumulate()
        return evaluation.eval["precision"][..., -1], evaluation.eval["recall"][..., -1]

    def _load(
        self,
        coco_class: Any,
        table: DetectionTable | TargetTable,
        area: np.ndarray,
        iscrowd: np.ndarray,
        scores: np.ndarray | None = None,
    ) -> Any:
        boxes = np.concatenate([table.boxes[:, :2], table.boxes[:, 2:] - table.boxes[:, :2]], axis=1)
        scores = np.zeros(len(table)) if scores is None else scores  # targets need none
        columns = (table.image, table.category, boxes, area, iscrowd, scores)
        coco = coco_class()
        coco.dataset = {
            "info": {},
            "images": self._images,
            "categories": self._categories,
            "annotations": [
                {
                    "id": number,
                    "image_id": image,
                    "category_id": category,
                    "bbox": box,
                    "area": size,
                    "iscrowd": crowd,
                    "score": score,
                }
                for number, (image, category, box, size, crowd, score) in enumerate(
                    zip(*(column.tolist() for column in columns)), 1
                )
            ],
        }
        coco.createIndex()
        return coco


class IRSTDCOCOEvaluator(TableEvaluator):
    """COCO box metrics of a registered data set (``coco_metrics``), in ``bbox`` of the results.

    Args:
        dataset_name: registered name.
        max_detections: per image and class.
        group_by, distributed: see ``TableEvaluator``.
        use_faster: see ``coco_metrics``.
    """

    name = "bbox"

    def __init__(
        self,
        dataset_name: str,
        *,
        max_detections: int = 100,
        group_by: Sequence[str] = (),
        use_faster: bool | None = None,
        distributed: bool = True,
    ):
        truth = GroundTruth.from_dataset(dataset_name)
        super().__init__(truth, group_by=group_by, distributed=distributed)
        self._options: dict[str, Any] = {
            "num_classes": len(truth.class_names),
            "max_detections": max_detections,
            "use_faster": use_faster,
        }

    def compute(self, detections: DetectionTable, targets: TargetTable, image_pixels: np.ndarray) -> dict[str, float]:
        return coco_metrics(detections, targets, len(image_pixels), **self._options)

    def compute_parts(
        self, detections: DetectionTable, targets: TargetTable, breakdown: Breakdown
    ) -> list[dict[str, float]]:
        return coco_part_metrics(detections, targets, breakdown, **self._options)
