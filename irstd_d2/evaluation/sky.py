"""Background metrics: how well the sky is told from everything else, in the pixels of the original images."""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

import numpy as np
from detectron2.data import DatasetCatalog
from detectron2.evaluation import DatasetEvaluator

from ..data.image_io import OTHER, SKY, read_sky_mask
from .breakdown import TARGET_KEYS
from .collection import gather
from .ground_truth import GroundTruth

logger = logging.getLogger(__name__)


def confusion(predicted: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """Count pixels by true and predicted label: (2, 2) int64, rows are the true one.

    ``predicted`` is (H, W) bool, whether a pixel is sky; ``truth`` (H, W) 0 other, 1 sky, 255 what does not count.
    """
    rows = []
    for label in (OTHER, SKY):
        of_label = truth == label
        as_sky = np.count_nonzero(of_label & predicted)
        rows.append((np.count_nonzero(of_label) - as_sky, as_sky))
    return np.array(rows, dtype=np.int64)


def sky_metrics(matrix: np.ndarray) -> dict[str, float]:
    """Metrics of a confusion matrix (2, 2), summed over images, in percent; NaN where there are no such pixels.

    Returns:
        ``IoU`` of sky, ``IoU_other``, ``mIoU`` of both, ``pixel_accuracy``.
    """
    hits = matrix.diagonal().astype(float)
    union = matrix.sum(0) + matrix.sum(1) - hits
    with np.errstate(invalid="ignore"):
        other, sky = 100 * hits / union
        accuracy = 100 * hits.sum() / matrix.sum()
    return {"IoU": sky, "IoU_other": other, "mIoU": (sky + other) / 2, "pixel_accuracy": float(accuracy)}


class SkyEvaluator(DatasetEvaluator):
    """Sky metrics (``sky_metrics``) over all pixels of a registered data set, in ``sky`` of the results.

    Models give ``sem_seg`` (2, height, width) in the original size: scores of other and of sky. Images without a sky
    mask do not count.

    Args:
        group_by: keys of the metadata; metrics are repeated for the images of each group as ``KEY/GROUP/METRIC``.
            Keys of targets (``breakdown.TARGET_KEYS``) do not concern the background and are passed over.
    """

    def __init__(self, dataset_name: str, *, group_by: Sequence[str] = (), distributed: bool = True):
        dicts = DatasetCatalog.get(dataset_name)
        self._ground_truth = GroundTruth.from_dicts(dicts)
        self._masks = {record["image_id"]: record.get("sem_seg_file_name") for record in dicts}
        if not any(self._masks.values()):
            logger.warning("%s has no sky masks, so there are no sky metrics", dataset_name)
        self._distributed = distributed
        self._group_by = tuple(key for key in group_by if key not in TARGET_KEYS)
        self.reset()

    def reset(self) -> None:
        self._confusion: dict[Any, np.ndarray] = {}

    def process(self, inputs: list[dict[str, Any]], outputs: list[dict[str, Any]]) -> None:
        """Count the pixels of a batch.

        Raises:
            ValueError: for an image that the data set does not have, or a result without ``sem_seg`` or of another
                size than the mask.
        """
        for sample, output in zip(inputs, outputs):
            image_id = sample["image_id"]
            if image_id not in self._masks:
                raise ValueError(f"image {image_id!r} is not in the evaluated data set")
            if self._masks[image_id] is None:
                continue
            if "sem_seg" not in output:
                raise ValueError(
                    "the model gives no sem_seg: take 'sky' out of TEST.EVALUATORS or use a background model"
                )
            truth = read_sky_mask(self._masks[image_id])
            other, sky = output["sem_seg"]
            predicted = (sky > other).cpu().numpy()
            if predicted.shape != truth.shape:
                raise ValueError(
                    f"image {image_id!r}: the prediction is {predicted.shape}, the mask {truth.shape} (height, width)"
                )
            self._confusion[image_id] = confusion(predicted, truth)

    def evaluate(self) -> OrderedDict[str, dict[str, float]] | None:
        matrices = gather(self._confusion, self._distributed)
        if matrices is None:
            return None
        none = np.zeros((2, 2), np.int64)
        per_image = np.stack([matrices.get(image_id, none) for image_id in self._ground_truth.image_ids])
        metrics = sky_metrics(per_image.sum(0))
        for key in self._group_by:
            for group, images in self._ground_truth.image_groups(key).items():
                for metric, value in sky_metrics(per_image[images].sum(0)).items():
                    metrics[f"{key}/{group}/{metric}"] = value
        return OrderedDict(sky=metrics)
