"""COCO metrics with the area ranges and thresholds that tiny targets need, without files on disk that can go stale."""

from __future__ import annotations

import contextlib
import io
import json
import logging
import math
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.evaluation import DatasetEvaluator
from detectron2.evaluation.coco_evaluation import instances_to_coco_json
from detectron2.structures import BoxMode
from detectron2.utils import comm

from ..files import write_atomically
from .ground_truth import GroundTruth

logger = logging.getLogger(__name__)

# Square pixels of the original image: from the first, up to but not including the second. COCO's own rule includes the
# upper bound, which would count the most common target, of 3x3 pixels, twice.
AREA_BOUNDS = {"<9": (0, 9), "9-25": (9, 25), "25-81": (25, 81), "81-1024": (81, 1024)}
# detectron2 and COCO average over the last ten.
IOU_THRESHOLDS = np.array([0.25, *np.linspace(0.5, 0.95, 10)])
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


def coco_ground_truth(dicts: Sequence[dict[str, Any]], class_names: Sequence[str]) -> dict[str, Any]:
    """Return a COCO data set of detectron2 dicts; image ids are positions in ``dicts``, from 1."""
    annotations: list[dict[str, Any]] = []
    for number, record in enumerate(dicts, 1):
        for annotation in record.get("annotations", []):
            x, y, w, h = BoxMode.convert(list(annotation["bbox"]), annotation["bbox_mode"], BoxMode.XYWH_ABS)
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": number,
                    "category_id": annotation["category_id"],
                    "bbox": [x, y, w, h],
                    "area": w * h,
                    "iscrowd": int(annotation.get("iscrowd", 0)),
                }
            )
    return {
        "info": {},
        "images": [
            {"id": i, "file_name": str(r["file_name"]), "height": r["height"], "width": r["width"]}
            for i, r in enumerate(dicts, 1)
        ],
        "annotations": annotations,
        "categories": [{"id": i, "name": name} for i, name in enumerate(class_names)],
    }


def coco_metrics(
    ground_truth: dict[str, Any],
    detections: Sequence[dict[str, Any]],
    *,
    max_detections: int = 100,
    use_faster: bool | None = None,
) -> dict[str, float]:
    """Compute box metrics in percent.

    Args:
        ground_truth: from ``coco_ground_truth``.
        detections: COCO results with the same image ids.
        max_detections: per image, best first.
        use_faster: faster-coco-eval (True), pycocotools (False), or the first where installed.

    Returns:
        ``AP`` (IoU 0.5 to 0.95), ``AP25``, ``AP50``, ``AP75``, ``AR`` (0.5 to 0.95), ``recall50``, and ``AP50-AREA``
        and ``recall50-AREA`` of each range of ``AREA_BOUNDS``; NaN where there is no target.
    """
    with contextlib.redirect_stdout(io.StringIO()):  # pycocotools reports by printing
        precision, recall = _accumulate(ground_truth, detections, max_detections, use_faster)

    def mean(values: np.ndarray) -> float:
        values = values[values > -1]
        return 100 * float(values.mean()) if values.size else float("nan")

    at = {25: 0, 50: 1, 75: 6}
    metrics = {"AP": mean(precision[1:, :, :, 0])}
    metrics.update({f"AP{iou}": mean(precision[index, :, :, 0]) for iou, index in at.items()})
    metrics["AR"] = mean(recall[1:, :, 0])
    metrics["recall50"] = mean(recall[at[50], :, 0])
    for index, name in enumerate(AREA_BOUNDS, 1):
        metrics[f"AP50-{name}"] = mean(precision[at[50], :, :, index])
        metrics[f"recall50-{name}"] = mean(recall[at[50], :, index])
    return metrics


def _accumulate(
    ground_truth: dict[str, Any], detections: Sequence[dict[str, Any]], max_detections: int, use_faster: bool | None
) -> tuple[np.ndarray, np.ndarray]:
    """Match and accumulate: precision (thresholds, recalls, classes, areas), recall (thresholds, classes, areas)."""
    coco_class, eval_class = _coco_api(use_faster)
    truth = coco_class()
    truth.dataset = ground_truth
    truth.createIndex()
    if detections:
        results = truth.loadRes([dict(d) for d in detections])
    else:  # loadRes refuses an empty list
        results = coco_class()
        results.dataset = {**ground_truth, "annotations": []}
        results.createIndex()
    evaluation = eval_class(truth, results, "bbox")
    params = evaluation.params
    params.iouThrs = IOU_THRESHOLDS
    params.maxDets = [1, 10, max_detections]
    params.areaRng = [list(bounds) for bounds in _AREA_RANGES.values()]
    params.areaRngLbl = list(_AREA_RANGES)
    evaluation.evaluate()
    evaluation.accumulate()
    return evaluation.eval["precision"][..., -1], evaluation.eval["recall"][..., -1]


class IRSTDCOCOEvaluator(DatasetEvaluator):
    """COCO box metrics of a registered data set (``coco_metrics``), in ``bbox`` of the results.

    Saves the detections as ``coco_instances_results.json``: COCO's result format with the data set's image ids and
    class indices.

    Args:
        dataset_name: registered name.
        output_dir: where the detections are saved; ``None`` saves nothing.
        max_detections: per image.
        group_by: keys of the metadata; metrics are repeated for the images of each group as ``KEY/GROUP/METRIC``.
        use_faster: see ``coco_metrics``.
        distributed: gather from all processes; the main one reports.
    """

    def __init__(
        self,
        dataset_name: str,
        *,
        output_dir: str | None = None,
        max_detections: int = 100,
        group_by: Sequence[str] = (),
        use_faster: bool | None = None,
        distributed: bool = True,
    ):
        self._dicts = DatasetCatalog.get(dataset_name)
        self._class_names = MetadataCatalog.get(dataset_name).thing_classes
        self._number = {record["image_id"]: i for i, record in enumerate(self._dicts, 1)}
        self._output_dir, self._max_detections, self._group_by = output_dir, max_detections, tuple(group_by)
        self._use_faster, self._distributed = use_faster, distributed
        self.reset()

    def reset(self) -> None:
        self._rows: list[dict[str, Any]] = []

    def process(self, inputs: list[dict[str, Any]], outputs: list[dict[str, Any]]) -> None:
        for sample, output in zip(inputs, outputs):
            if sample["image_id"] not in self._number:
                raise ValueError(f"image {sample['image_id']!r} is not in the evaluated data set")
            instances = output["instances"].to("cpu")
            if not (instances.pred_boxes.tensor.isfinite().all() and instances.scores.isfinite().all()):
                raise ValueError(f"image {sample['image_id']!r} has detections whose score or box is not finite")
            self._rows += instances_to_coco_json(instances, sample["image_id"])

    def evaluate(self) -> OrderedDict[str, dict[str, float]] | None:
        rows = self._rows
        if self._distributed and comm.get_world_size() > 1:
            comm.synchronize()
            parts = comm.gather(rows, dst=0)
            if not comm.is_main_process():
                return None
            rows = [row for part in parts for row in part]
        rows = sorted(rows, key=lambda row: self._number[row["image_id"]])
        if self._output_dir:
            path = Path(self._output_dir) / "coco_instances_results.json"
            write_atomically(path, lambda file: file.write(json.dumps(rows).encode()))
            logger.info("%d detections saved to %s", len(rows), path)
        metrics = self._metrics(self._dicts, rows)
        for key in self._group_by:
            for group, images in GroundTruth.from_dicts(self._dicts, self._class_names).image_groups(key).items():
                for metric, value in self._metrics([self._dicts[i] for i in np.flatnonzero(images)], rows).items():
                    metrics[f"{key}/{group}/{metric}"] = value
        return OrderedDict(bbox=metrics)

    def _metrics(self, dicts: Sequence[dict[str, Any]], rows: Sequence[dict[str, Any]]) -> dict[str, float]:
        """Metrics over some images; detections on others are left out."""
        number = {record["image_id"]: i for i, record in enumerate(dicts, 1)}
        numbered = [{**row, "image_id": number[row["image_id"]]} for row in rows if row["image_id"] in number]
        return coco_metrics(
            coco_ground_truth(dicts, self._class_names),
            numbered,
            max_detections=self._max_detections,
            use_faster=self._use_faster,
        )
