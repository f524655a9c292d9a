"""Judging masks: of a segmenter's files, or made from a detector's boxes, against the masks of a data set."""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from detectron2.data import MetadataCatalog
from detectron2.evaluation import DatasetEvaluator

from ..data.image_io import read_raw
from ..data.target_masks import read_target_labels, target_labels
from ..errors import DatasetError
from ..files import list_files
from .bootstrap import Comparison, Interval, draws_with_data_set, exchanges, p_value
from .breakdown import TARGET_KEYS
from .collection import columns_of, gather
from .ground_truth import GroundTruth
from .mask_files import read_map
from .mask_metrics import COLUMNS, LEVELS, PixelCurves, count_masks, level_counts, mask_metrics, pixel_curves
from .masks_and_boxes import boxes_to_map
from .predictions import MASK_SUFFIXES, match_mask_files

logger = logging.getLogger(__name__)

# Metrics of masks that can be resampled over images.
RESAMPLED = ("IoU", "nIoU", "F1", "Pd", "Fa", "hIoU")


@dataclass(frozen=True)
class MaskTable:
    """Counts of all images, in the data set's order.

    Attributes:
        counts: (I, C) of ``mask_metrics.COLUMNS``.
        true_at, false_at: (I, L) of ``level_counts``.
    """

    counts: np.ndarray
    true_at: np.ndarray
    false_at: np.ndarray

    def metrics(self, weights: np.ndarray) -> dict[str, np.ndarray]:
        """``mask_metrics`` when image i counts ``weights[b, i]`` times, (B,) each.

        NaN for no image, and without a target for all but ``Fa`` and its variants.
        """
        count = weights.sum(1)
        sums = dict(zip(COLUMNS, (weights @ self.counts).T))
        return {
            name: np.where((count if name.startswith("Fa") else sums["targets"]) > 0, value, np.nan)
            for name, value in mask_metrics(sums, count).items()
        }

    def curves(self, images: np.ndarray | None = None) -> PixelCurves:
        """ROC, precision and recall over all pixels, of some images."""
        keep = slice(None) if images is None else images
        column = dict(zip(COLUMNS, self.counts[keep].T))
        targets = column["true_pixels"] + column["missed_pixels"]
        return pixel_curves(self.true_at[keep], self.false_at[keep], targets, column["pixels"] - targets)

    def results(self, images: np.ndarray | None = None) -> dict[str, float]:
        """All metrics of some images, in percent (``Fa`` per million pixels)."""
        keep = np.ones(len(self.counts), bool) if images is None else images
        metrics = {name: float(value[0]) for name, value in self.metrics(keep[None].astype(int)).items()}
        column = dict(zip(COLUMNS, self.counts[keep].T))
        targets = column["true_pixels"].sum() + column["missed_pixels"].sum()
        if not targets:
            return {**metrics, **dict.fromkeys(("ROC_AUC", "PR_AUC", "IoU_best", "IoU_threshold"), float("nan"))}
        curves = self.curves(images)
        true, false = self.true_at[keep].sum(0), self.false_at[keep].sum(0)
        iou = true / np.maximum(targets + false, 1)
        best = int(iou.argmax())
        metrics |= {"ROC_AUC": 100 * curves.roc_area, "PR_AUC": 100 * curves.pr_area}
        return {**metrics, "IoU_best": 100 * float(iou[best]), "IoU_threshold": float(curves.thresholds[best])}


class TargetMasks:
    """The true masks of a data set.

    Args:
        files: by image, in the data set's order; ``None`` for an image without targets.

    Raises:
        DatasetError: an image with targets has no mask.
    """

    def __init__(self, files: Sequence[Path | None], truth: GroundTruth):
        self._files, self._truth = tuple(files), truth
        with_targets = set(truth.targets.image.tolist())
        absent = [truth.image_ids[i] for i, file in enumerate(files) if file is None and i in with_targets]
        if absent:
            raise DatasetError(
                str(absent[0]),
                "target mask",
                f"{len(absent)} of {len(files)} images with targets have no mask",
                "give the folder of masks (--masks), or judge boxes alone",
            )

    @classmethod
    def of(cls, dataset_name: str, truth: GroundTruth, folder: str | Path | None = None) -> TargetMasks:
        """Find the masks in a folder, by the names of the images, or where the data set's layout has them."""
        if folder is not None:
            paths = list_files(folder, MASK_SUFFIXES)
            if not paths:
                raise DatasetError(folder, "folder", "holds no masks", "give the folder of the set's masks")
            found = match_mask_files(Path(folder), paths, truth).masks
            return cls([found.get(image_id) for image_id in truth.image_ids], truth)
        from ..data.datasets import VocSource
        from ..data.layout import get_layout

        source = MetadataCatalog.get(dataset_name).get("source")
        files: list[Path | None] = []
        if isinstance(source, VocSource):
            root = source.resolve_root()
            layout = get_layout(source.layout, root)
            files = [layout.target_mask_of(root, image_id) for image_id in truth.image_ids]
        if not any(files):
            raise DatasetError(dataset_name, "target masks", "the set has none", "give their folder (--masks)")
        return cls(files, truth)

    def __getitem__(self, index: int) -> np.ndarray:
        """(H, W) bool of an image."""
        files, path = self._truth.files[index], self._files[index]
        if path is None:
            return np.zeros((files.height, files.width), bool)
        if path.suffix.lower() == ".npy":
            return target_labels(read_map(path, (files.height, files.width))).labels > 0
        return read_target_labels(path, (files.width, files.height)).labels > 0


class MaskEvaluator(DatasetEvaluator):
    """Metrics of masks (``mask_metrics``) in ``mask`` of the results.

    Beside them ``ROC_AUC`` and ``PR_AUC`` of pixels over all thresholds, and ``IoU_best`` with its ``IoU_threshold``.
    Boxes become masks by the rule of ``masks_and_boxes``.

    Args:
        threshold: a pixel above it is predicted.
        group_by: keys of the metadata of images; keys of targets do not concern pixels and are passed over.
    """

    name = "mask"

    def __init__(
        self,
        ground_truth: GroundTruth,
        targets: TargetMasks,
        *,
        threshold: float = 0.5,
        group_by: Sequence[str] = (),
        distributed: bool = True,
    ):
        self.ground_truth, self._targets, self.threshold = ground_truth, targets, threshold
        self._distributed = distributed
        self.group_by = tuple(key for key in group_by if key not in TARGET_KEYS)
        self.reset()

    def reset(self) -> None:
        self._images: dict[int, tuple[np.ndarray, ...]] = {}  # the columns of ``MaskTable``

    def process(self, inputs: list[dict[str, Any]], outputs: list[dict[str, Any]]) -> None:
        """Count what a detector found on a batch."""
        for sample, output in zip(inputs, outputs):
            self.add(sample["image_id"], *columns_of(output["instances"]))

    def add(self, image_id: Any, boxes: np.ndarray, scores: np.ndarray, classes: np.ndarray) -> None:
        """Count the masks that are made from the boxes of one image; see ``GroundTruth.check_detections``."""
        files = self.ground_truth.files[self.ground_truth.check_detections(image_id, boxes, scores, classes)]
        if not len(boxes):
            self.add_map(image_id, np.zeros((files.height, files.width), np.uint8))
            return
        if files.image is None:
            raise DatasetError(str(image_id), "file_name", "no image, so no mask can be made", "judge boxes alone")
        if np.min(scores) < 0 or np.max(scores) > 1:
            problem = f"from {np.min(scores):g} to {np.max(scores):g}, where masks need probabilities"
            raise DatasetError(str(image_id), "scores", problem, "give scores of 0 to 1, or judge boxes alone")
        raw = read_raw(files.image)
        gray = raw if raw.ndim == 2 else raw[:, :, :3].mean(axis=2)
        self.add_map(image_id, boxes_to_map(gray, boxes, scores))

    def add_map(self, image_id: Any, probability: np.ndarray) -> None:
        """Count the pixels of one image.

        Args:
            image_id: one of the ground truth's.
            probability: (H, W) float in 0 to 1, or uint8 of 0 to 255.
        """
        index = self.ground_truth.index_of(image_id)
        target = self._targets[index]
        threshold = self.threshold * (255 if probability.dtype == np.uint8 else 1)
        row = vars(count_masks(probability > threshold, target))
        counts = np.array([row[name] for name in COLUMNS], float)
        self._images[index] = counts, *level_counts(probability, target, LEVELS)

    def table(self) -> MaskTable | None:
        """Counts of all processes' images on the main process, ``None`` on the others; absent images are empty."""
        images = gather(self._images, self._distributed)
        if images is None:
            return None
        for index, image_id in enumerate(self.ground_truth.image_ids):
            if index not in images:
                files = self.ground_truth.files[index]
                self.add_map(image_id, np.zeros((files.height, files.width), np.uint8))
                images[index] = self._images[index]
        ordered = [images[index] for index in range(len(self.ground_truth.image_ids))]
        widths = len(COLUMNS), LEVELS - 1, LEVELS - 1
        return MaskTable(*(np.array([image[i] for image in ordered]).reshape(-1, n) for i, n in enumerate(widths)))

    def evaluate(self) -> OrderedDict[str, dict[str, float]] | None:
        table = self.table()
        return None if table is None else OrderedDict([(self.name, dict(self.results(table)))])

    def results(self, table: MaskTable) -> Mapping[str, float]:
        """All metrics, of everything and of groups of images."""
        metrics = table.results()
        for key in self.group_by:
            for group, images in self.ground_truth.image_groups(key).items():
                metrics |= {f"{key}/{group}/{name}": value for name, value in table.results(images).items()}
        return metrics


def mask_intervals(masks: MaskTable, *, draws: int = 1000, level: float = 0.95, seed: int = 0) -> dict[str, Interval]:
    """``bootstrap.metric_interval`` of the metrics in ``RESAMPLED``, by ``mask/METRIC``."""
    values = masks.metrics(draws_with_data_set(len(masks.counts), draws, seed))
    return {f"mask/{name}": Interval.of(values[name], level) for name in RESAMPLED}


def compare_masks(
    first: MaskTable, second: MaskTable, *, draws: int = 1000, level: float = 0.95, seed: int = 0
) -> dict[str, Comparison]:
    """``bootstrap.compare_metric`` of the metrics in ``RESAMPLED``, by ``mask/METRIC``."""
    num_images = len(first.counts)
    weights = draws_with_data_set(num_images, draws, seed)
    values = first.metrics(weights), second.metrics(weights)
    swap = exchanges(num_images, draws, seed)
    images = np.concatenate([~swap, swap], axis=1).astype(int)
    both = MaskTable(*(np.concatenate([getattr(first, name), getattr(second, name)]) for name in vars(first)))
    mixed, other = both.metrics(images), both.metrics(1 - images)
    found = {}
    for name in RESAMPLED:
        difference = Interval.of(values[1][name] - values[0][name], level)
        found[f"mask/{name}"] = Comparison(difference, p_value(other[name] - mixed[name], difference.value))
    return found
