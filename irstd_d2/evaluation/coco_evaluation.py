"""COCO metrics with the area ranges and thresholds that tiny targets need, without files on disk that can go stale."""

from __future__ import annotations

import contextlib
import io
import math
from collections.abc import Iterable, Sequence
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
        num_images, num_classes: in the data set.
        max_detections: per image and class, best first.
        use_faster: faster-coco-eval (True), pycocotools (False), or the first where installed.

    Returns:
        ``AP`` (IoU 0.5 to 0.95), ``AP25``, ``AP50``, ``AP75``, ``AR`` (0.5 to 0.95), ``recall50``, and ``AP50-AREA``
        and ``recall50-AREA`` of each range of ``AREA_BOUNDS``; NaN where there is no target.
    """
    areas = _box_areas(detections.boxes), _box_areas(targets.boxes)
    size = num_images, num_classes
    precision, recall = _solve(detections, targets, areas, _AREA_RANGES.values(), size, max_detections, use_faster)
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
    ranges = [(index, index) for index in range(len(breakdown.names))]
    if not ranges:
        return []
    places, size = (breakdown.detections, breakdown.targets), (breakdown.pixels.shape[1], num_classes)
    precision, recall = _solve(detections, targets, places, ranges, size, max_detections, use_faster)
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


def _solve(
    detections: DetectionTable,
    targets: TargetTable,
    areas: tuple[np.ndarray, np.ndarray],
    ranges: Iterable[tuple[float, float]],
    size: tuple[int, int],
    max_detections: int,
    use_faster: bool | None,
) -> tuple[np.ndarray, np.ndarray]:
    """Match and accumulate by COCO's libraries, in a data set of so many images and classes.

    Returns precision (thresholds, recalls, classes, ranges) and recall (thresholds, classes, ranges);
    -1 where there is no target.
    """
    coco_class, eval_class = _coco_api(use_faster)
    frame = {
        "info": {},
        "images": [{"id": i} for i in range(size[0])],
        "categories": [{"id": i, "name": str(i)} for i in range(size[1])],
    }
    # pycocotools reports by printing.
    with without_garbage_collection(), contextlib.redirect_stdout(io.StringIO()):
        truth, found = coco_class(), coco_class()
        truth.dataset = {**frame, "annotations": _annotations(targets, areas[1])}
        found.dataset = {**frame, "annotations": _annotations(detections, areas[0])}
        truth.createIndex()
        found.createIndex()
        evaluation = eval_class(truth, found, "bbox")
        params = evaluation.params
        params.iouThrs = IOU_THRESHOLDS
        params.maxDets = [max_detections]
        params.areaRng = [list(bounds) for bounds in ranges]
        params.areaRngLbl = [str(index) for index in range(len(params.areaRng))]
        evaluation.evaluate()
        evaluation.accumulate()
    return evaluation.eval["precision"][..., -1], evaluation.eval["recall"][..., -1]


def _annotations(table: DetectionTable | TargetTable, area: np.ndarray) -> list[dict[str, Any]]:
    none = np.zeros(len(table), int)
    columns = {
        "id": np.arange(1, len(table) + 1),
        "image_id": table.image,
        "category_id": table.category,
        "bbox": np.concatenate([table.boxes[:, :2], table.boxes[:, 2:] - table.boxes[:, :2]], axis=1),
        "area": area,
        "iscrowd": table.ignored.astype(int) if isinstance(table, TargetTable) else none,
        "score": table.scores if isinstance(table, DetectionTable) else none,
    }
    return [dict(zip(columns, row)) for row in zip(*(column.tolist() for column in columns.values()))]


class IRSTDCOCOEvaluator(TableEvaluator):
    """COCO box metrics of a registered data set (``coco_metrics``, for the options too), in ``bbox`` of the results."""

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
