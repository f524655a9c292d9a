"""Evaluators that judge the collected detections of a whole data set at once.

Memory grows with the number of detections, not with the size of the images, and several processes give exactly the
numbers of one: the columns are gathered, sorted into the data set's order and only then judged.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections import OrderedDict
from collections.abc import Sequence

import numpy as np
from detectron2.evaluation import DatasetEvaluator

from .average_precision import EXACT, VOCProtocol, average_precision, precision_recall, voc_verdicts
from .breakdown import TARGET_KEYS, Breakdown, image_breakdown
from .collection import DetectionCollector, ImageColumns, detections_of
from .detection_probability import CENTRE_DISTANCE, centre_pairs, centre_verdicts, operating_curve
from .ground_truth import GroundTruth
from .matching import DetectionTable, TargetTable, rows_by_image, select_class


class TableEvaluator(DetectionCollector, DatasetEvaluator, ABC):
    """Base of evaluators that work on the detection and target tables of a whole data set.

    Args:
        ground_truth: of the data set, in its order.
        group_by: what metrics are repeated for, named ``KEY/GROUP/METRIC``: ``size``, ``contrast``, ``sky`` of targets
            (``breakdown``), ``resolution`` or keys of the metadata of images.
        distributed: gather the detections of all processes; the main one reports.
    """

    name = "table"

    def __init__(self, ground_truth: GroundTruth, *, group_by: Sequence[str] = (), distributed: bool = True):
        self.group_by = tuple(group_by)
        targets = ground_truth.targets
        self._target_boxes = [targets.boxes[rows] for rows in rows_by_image(targets, len(ground_truth.image_ids))]
        super().__init__(ground_truth, distributed=distributed)

    def _measure(self, index: int, boxes: np.ndarray) -> dict[str, tuple[np.ndarray, np.ndarray]]:
        keys = [key for key in self.group_by if key in TARGET_KEYS]
        if not keys:
            return {}
        both = np.concatenate([self._target_boxes[index], boxes])
        return {key: TARGET_KEYS[key].measure(self.ground_truth.files[index], both) for key in keys}

    def evaluate(self) -> OrderedDict[str, dict[str, float]] | None:
        columns = self._gather()
        return None if columns is None else self.metrics_of(columns)

    def metrics_of(self, columns: Sequence[ImageColumns]) -> OrderedDict[str, dict[str, float]]:
        """Compute all metrics from the columns of all images, in the data set's order."""
        detections, targets = detections_of(columns), self.ground_truth.targets
        metrics = self.compute(detections, targets, self.ground_truth.pixels)
        for key in self.group_by:
            breakdown = self._breakdown(key, columns, detections)
            for group, values in zip(breakdown.names, self.compute_parts(detections, targets, breakdown)):
                metrics.update({f"{key}/{group}/{metric}": value for metric, value in values.items()})
        return OrderedDict([(self.name, metrics)])

    def _breakdown(self, key: str, columns: Sequence[ImageColumns], detections: DetectionTable) -> Breakdown:
        truth = self.ground_truth
        if key not in TARGET_KEYS:
            return image_breakdown(truth.image_groups(key), truth.pixels, detections, truth.targets)
        names = TARGET_KEYS[key].names
        counts = [len(boxes) for boxes in self._target_boxes]
        labels = [column.measured[key][0] for column in columns]
        none = np.zeros(0, int)
        scores = np.concatenate([none, *(column.scores for column in columns)])
        order = np.argsort(-scores, kind="stable")  # as in detection_table
        return Breakdown(
            names,
            targets=np.concatenate([none, *(label[:count] for label, count in zip(labels, counts))]),
            detections=np.concatenate([none, *(label[count:] for label, count in zip(labels, counts))])[order],
            pixels=np.array([column.measured[key][1] for column in columns]).reshape(-1, len(names)).T,
        )

    def compute_parts(
        self, detections: DetectionTable, targets: TargetTable, breakdown: Breakdown
    ) -> list[dict[str, float]]:
        """Compute the metrics of every class of a breakdown."""
        return [self.compute(*breakdown.part(i, detections, targets)) for i in range(len(breakdown.names))]

    @abstractmethod
    def compute(self, detections: DetectionTable, targets: TargetTable, image_pixels: np.ndarray) -> dict[str, float]:
        """Compute the metrics of a set of images: rates of detection in percent, NaN where there is nothing to measure.

        Args:
            detections: sorted by score.
            image_pixels: (I,) size of every image.
        """


class VOCDetectionEvaluator(TableEvaluator):
    """Average precision in both Pascal VOC modes, precision and recall, averaged over the classes that have targets.

    Metrics are named ``AP50_area`` (VOC 2012, the papers' mAP12), ``AP50_11point`` (VOC 2007, mAP07), ``recall50`` and
    ``precision50`` (both over all kept detections), for each IoU threshold, in percent.

    Args:
        iou_thresholds: a detection that reaches the threshold is true.
        protocol: ``EXACT`` or ``PAPER`` (old +1 widths, float32); it becomes part of the result's name.
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
                row = self._one_class(*select_class(detections, targets, category), threshold)
                if row is not None:
                    rows[class_name] = row
            suffix = f"{threshold * 100:.0f}"
            for metric in ("AP{}_area", "AP{}_11point", "recall{}", "precision{}"):
                values = [row[metric] for row in rows.values()]
                results[metric.format(suffix)] = float(np.mean(values)) if values else float("nan")
            if len(names) > 1:
                for class_name, row in rows.items():
                    # "/" parts the names of groups from those of metrics.
                    results[f"AP{suffix}_area-{class_name.replace('/', '_')}"] = row["AP{}_area"]
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

    Metrics at ``score_thresh``: ``Pd`` (percent), ``Fa`` (pixels in false detections per million image pixels),
    ``Fa_boxes`` (false detections per million image pixels), ``precision`` (percent). Over all thresholds: the best
    ``F1`` (percent) and the score threshold that gives it, ``F1_threshold``; ``FAPI@80``, false alarms per image at
    80 % recall (infinite where that recall is not reached); ``Pd@Fa10``, the highest Pd with an Fa of at most 10;
    ``Pd@FAPI1``, the highest Pd with at most one false alarm per image, and ``threshold@FAPI1``, the score threshold
    that gives it, an operating point that does not depend on how a model's scores are calibrated. Without targets all
    but Fa are NaN.

    Args:
        score_thresh: of detections that count for Pd and Fa.
        max_distance: pixels of the original image between centres; a detection exactly this far is right.
        froc_recalls, fa_rates, false_alarms_per_image: where ``FAPI@``, ``Pd@Fa`` and ``Pd@FAPI`` are read.
    """

    name = "pd_fa"

    def __init__(
        self,
        ground_truth: GroundTruth,
        *,
        score_thresh: float = 0.5,
        max_distance: float = CENTRE_DISTANCE,
        froc_recalls: Sequence[float] = (0.5, 0.8),
        fa_rates: Sequence[float] = (10, 100),
        false_alarms_per_image: float = 1,
        group_by: Sequence[str] = (),
        distributed: bool = True,
    ):
        super().__init__(ground_truth, group_by=group_by, distributed=distributed)
        self.score_thresh, self.max_distance = score_thresh, max_distance
        self.froc_recalls, self.fa_rates = tuple(froc_recalls), tuple(fa_rates)
        self.false_alarms_per_image = false_alarms_per_image

    def compute(self, detections: DetectionTable, targets: TargetTable, image_pixels: np.ndarray) -> dict[str, float]:
        curve = operating_curve(detections, targets, image_pixels, self.max_distance)
        at = curve.at_score(self.score_thresh)
        f1, score = curve.best_f1()
        pd_at_rate, threshold = curve.at_false_alarms_per_image(self.false_alarms_per_image)
        froc = zip(self.froc_recalls, curve.false_alarms_per_image(self.froc_recalls))
        pd_at_fa = zip(self.fa_rates, curve.pd_at_fa([1e-6 * rate for rate in self.fa_rates]))
        of_targets = {
            "Pd": 100 * at["Pd"],
            "precision": 100 * at["precision"],
            "F1": 100 * f1,
            "F1_threshold": score,
            **{f"FAPI@{100 * recall:.0f}": float(rate) for recall, rate in froc},
            **{f"Pd@Fa{rate:g}": 100 * float(pd) for rate, pd in pd_at_fa},
            f"Pd@FAPI{self.false_alarms_per_image:g}": 100 * pd_at_rate,
            f"threshold@FAPI{self.false_alarms_per_image:g}": threshold,
        }
        if not curve.num_targets:
            of_targets = dict.fromkeys(of_targets, math.nan)
        of_pixels = {"Fa": 1e6 * at["Fa"], "Fa_boxes": 1e6 * at["Fa_boxes"]}
        return {"Pd": of_targets.pop("Pd"), **of_pixels, **of_targets}


class CentreDistanceEvaluator(TableEvaluator):
    """Average precision when a detection is right by the distance of centres, averaged over classes with targets.

    Metrics, in percent: ``AP@1px`` and so on for each distance, and ``AP``, their mean.

    Args:
        distances: pixels of the original image; a detection exactly this far is right.
    """

    name = "centre"

    def __init__(
        self,
        ground_truth: GroundTruth,
        *,
        distances: Sequence[float] = (1, 2, 3, 5),
        group_by: Sequence[str] = (),
        distributed: bool = True,
    ):
        super().__init__(ground_truth, group_by=group_by, distributed=distributed)
        self.distances = tuple(distances)

    def compute(
        self,
        detections: DetectionTable,
        targets: TargetTable,
        image_pixels: np.ndarray,  # noqa: ARG002
    ) -> dict[str, float]:
        by_class = []
        for category in range(len(self.ground_truth.class_names)):
            of_class, truth = select_class(detections, targets, category)
            num_targets = int((~truth.ignored).sum())
            if num_targets:
                pairs = centre_pairs(of_class, truth, max(self.distances))
                verdicts = [centre_verdicts(of_class, truth, distance, pairs) for distance in self.distances]
                curves = [precision_recall(verdict, of_class.scores, num_targets) for verdict in verdicts]
                by_class.append([100 * average_precision(curve) for curve in curves])
        values = np.mean(by_class, axis=0) if by_class else np.full(len(self.distances), np.nan)
        metrics = {f"AP@{distance:g}px": float(value) for distance, value in zip(self.distances, values)}
        return {"AP": float(values.mean()), **metrics}
