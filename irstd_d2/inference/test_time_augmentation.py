"""Test-time augmentation for every detector of the project, one-stage or two-stage.

detectron2's own works inside ``GeneralizedRCNN`` only. Here a detector stays a function from samples to results in the
pixels of the original image: it is shown several views of each image, resized and mirrored, with the same ``height``,
``width`` and metadata, and undoes the resize itself, so that only the mirroring is left to invert.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np
import torch
from detectron2.config import CfgNode, configurable
from detectron2.data import transforms as T
from detectron2.structures import Boxes, Instances
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from ..data.transforms import ResizeByFactor, ResizeShortestEdge
from ..errors import ConfigError, check_known
from .merging import merge_views, nms_thresh_of
from .tiling import batches_of_one_size


@dataclass(frozen=True)
class View:
    """One way to show an image to a detector.

    Attributes:
        sample: the model's input; ``image`` (3, h, w) is resized and mirrored.
        mirror: what was done, as a transform of the ORIGINAL image.
    """

    sample: dict[str, Any]
    mirror: T.TransformList


class DetectorWithTTA(nn.Module):
    """A detector that looks at several views of each image; called as the detector itself at test time.

    Results have ``instances`` with ``pred_boxes``, ``scores`` and ``pred_classes`` and, of a model with background
    segmentation, ``sem_seg``, the mean over the views. Nothing else is kept (no instance masks).

    Args:
        model: takes detectron2's samples, gives detectron2's results in the pixels of ``height`` and ``width``.
        scales: factors by which the network's input is resized.
        min_sizes: lengths to which its shorter edge is resized, in network pixels; added to ``scales``.
        max_size: bound of the longer edge for ``min_sizes``.
        flip: add the mirror image, left and right exchanged, of every size.
        vertical_flip: add every view upside down.
        merge: ``vote`` averages the detections of a target, ``nms`` takes the best (``merging.merge_views``).
        nms_thresh: IoU above which two detections are of one target.
        max_detections: kept per image, best first.
        batch_size: views per call of the model; those of one size are batched, so that none is padded for another.
    """

    @configurable
    def __init__(
        self,
        model: nn.Module,
        *,
        scales: Sequence[float] = (1.0,),
        min_sizes: Sequence[int] = (),
        max_size: int = 4000,
        flip: bool = True,
        vertical_flip: bool = False,
        merge: str = "vote",
        nms_thresh: float = 0.5,
        max_detections: int = 100,
        batch_size: int = 4,
    ):
        super().__init__()
        if not scales and not min_sizes:
            raise ConfigError("TEST.AUG.SCALES and TEST.AUG.MIN_SIZES are empty; SCALES (1.0,) keeps the size")
        for key, values in (("SCALES", scales), ("MIN_SIZES", min_sizes)):
            if not all(value > 0 for value in values):
                raise ConfigError(f"TEST.AUG.{key} is {tuple(values)}; all must be positive")
        check_known("TEST.AUG.MERGE", merge, ("vote", "nms"))
        self.model = model.module if isinstance(model, DistributedDataParallel) else model
        self.resizes: list[T.Augmentation] = [ResizeByFactor(scale) for scale in scales]
        self.resizes += [ResizeShortestEdge(size, max_size) for size in min_sizes]
        self.flips = list(product((False, True) if vertical_flip else (False,), (False, True) if flip else (False,)))
        self.vote, self.nms_thresh, self.max_detections = merge == "vote", nms_thresh, max_detections
        self.batch_size = batch_size
        self.train(self.model.training)

    @classmethod
    def from_config(cls, cfg: CfgNode, model: nn.Module) -> dict[str, Any]:
        if cfg.MODEL.MASK_ON or cfg.MODEL.KEYPOINT_ON:
            raise ConfigError("TEST.AUG merges boxes; set MODEL.MASK_ON and MODEL.KEYPOINT_ON to False")
        aug = cfg.TEST.AUG
        unwrapped = model.module if isinstance(model, DistributedDataParallel) else model
        return {
            "model": model,
            "scales": aug.SCALES,
            "min_sizes": aug.MIN_SIZES,
            "max_size": aug.MAX_SIZE,
            "flip": aug.FLIP,
            "vertical_flip": aug.VERTICAL_FLIP,
            "merge": aug.MERGE,
            "nms_thresh": nms_thresh_of(cfg, unwrapped),
            "max_detections": cfg.TEST.DETECTIONS_PER_IMAGE,
        }

    def forward(self, batched_inputs: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Detect in a batch; samples need ``image`` (3, h, w) and may have ``height``, ``width`` and anything else."""
        views = [self.views(sample) for sample in batched_inputs]
        outputs = iter(self._detect([view.sample for of_image in views for view in of_image]))
        return [self._merge([_original(next(outputs), view.mirror) for view in of_image]) for of_image in views]

    def views(self, sample: dict[str, Any]) -> list[View]:
        """All views of an image, the sizes in the order of the options, each first as it is and then mirrored."""
        image = np.ascontiguousarray(sample["image"].permute(1, 2, 0).cpu().numpy())
        original = (sample.get("height") or image.shape[0], sample.get("width") or image.shape[1])
        sizes = {}
        for resize in self.resizes:
            resized = resize.get_transform(image).apply_image(image)
            sizes[resized.shape[:2]] = resized  # two options may come to the same size
        views = []
        for resized, (vertical, horizontal) in product(sizes.values(), self.flips):
            shown = _mirror(resized.shape[:2], horizontal, vertical).apply_image(resized)
            tensor = torch.from_numpy(shown.transpose(2, 0, 1).copy())
            view = {**sample, "image": tensor, "height": original[0], "width": original[1]}
            if "context_window" in sample:
                x1, y1, x2, y2 = sample["context_window"]
                x1, x2 = (x2, x1) if horizontal else (x1, x2)
                y1, y2 = (y2, y1) if vertical else (y1, y2)
                view["context_window"] = torch.stack([x1, y1, x2, y2])
            views.append(View(view, _mirror(original, horizontal, vertical)))
        return views

    def _detect(self, samples: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Run the model on batches of one size; results come in the order of the samples."""
        results: dict[int, dict[str, Any]] = {}
        for batch in batches_of_one_size([tuple(sample["image"].shape) for sample in samples], self.batch_size):
            results.update(zip(batch, self.model([samples[i] for i in batch])))
        return [results[i] for i in range(len(samples))]

    def _merge(self, results: list[dict[str, Any]]) -> dict[str, Any]:
        found = merge_views([result["instances"] for result in results], self.nms_thresh, vote=self.vote)
        merged: dict[str, Any] = {"instances": found[: self.max_detections]}
        if "sem_seg" in results[0]:
            merged["sem_seg"] = torch.stack([result["sem_seg"] for result in results]).mean(0)
        return merged


def _mirror(size: tuple[int, int], horizontal: bool, vertical: bool) -> T.TransformList:
    """The mirroring of an image of (height, width)."""
    steps = [T.HFlipTransform(size[1])] if horizontal else []
    return T.TransformList([*steps, *([T.VFlipTransform(size[0])] if vertical else [])])


def _original(result: dict[str, Any], mirror: T.TransformList) -> dict[str, Any]:
    """The result of a view in the original image."""
    back, found = mirror.inverse(), result["instances"]
    boxes = found.pred_boxes.tensor
    instances = Instances(found.image_size)
    instances.pred_boxes = Boxes(torch.as_tensor(back.apply_box(boxes.float().cpu().numpy()), device=boxes.device))
    instances.scores, instances.pred_classes = found.scores.float(), found.pred_classes
    if "sem_seg" not in result:
        return {"instances": instances}
    maps = result["sem_seg"]
    mirrored = back.apply_image(maps.permute(1, 2, 0).cpu().numpy()).transpose(2, 0, 1)
    return {"instances": instances, "sem_seg": torch.as_tensor(mirrored.copy(), device=maps.device)}
