"""BAFE-Net as a meta-architecture: FCOS that also tells sky from everything else."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec
from detectron2.modeling import META_ARCH_REGISTRY
from detectron2.modeling.postprocessing import sem_seg_postprocess
from detectron2.structures import ImageList
from torch import Tensor, nn
from torch.nn import functional as F

from irstd_d2.modeling.fcos import IRSTDFCOS, Predictions, head_arguments
from irstd_d2.modeling.fcos_targets import Points

from .bafe_head import BAFEHead

IGNORE = 255


def sky_loss(logits: list[Tensor], sky: Tensor) -> Tensor:
    """Binary cross entropy of sky, averaged over the pixels of all levels together.

    Args:
        logits: per level (N, 1, h, w).
        sky: (N, H, W) int64 in the size of the padded batch: 1 sky, 0 other, 255 ignore. It is resized to every level
            by the nearest pixel. Ignored pixels add nothing and still count in the mean, as in the published model.
    """
    levels, targets = [], []
    for level in logits:
        resized = F.interpolate(sky[:, None].float(), size=level.shape[-2:], mode="nearest")
        levels.append(level.float().flatten())
        targets.append(resized.flatten())
    target = torch.cat(targets)
    counted = target != IGNORE
    loss = F.binary_cross_entropy_with_logits(torch.cat(levels), target * counted, reduction="none")
    return (loss * counted).mean()


@META_ARCH_REGISTRY.register()
class BAFENet(IRSTDFCOS):
    """FCOS with a background-segmentation task.

    Samples carry ``sem_seg`` (H, W) in training; a sample without it adds nothing to the sky loss. At test time
    each result has, beside ``instances``, ``sem_seg`` (2, height, width): the probabilities of other and of sky in the
    original image, from the finest level.

    Args:
        sky_loss_weight: of the segmentation loss.
        fcos: arguments of ``IRSTDFCOS``.
    """

    @configurable
    def __init__(self, *, sky_loss_weight: float = 1.0, **fcos: Any):
        super().__init__(**fcos)
        self.sky_loss_weight = sky_loss_weight

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        return {**super().from_config(cfg), "sky_loss_weight": cfg.MODEL.BAFE.SKY_LOSS_WEIGHT}

    @classmethod
    def build_head(cls, cfg: CfgNode, shapes: Sequence[ShapeSpec]) -> nn.Module:
        exchange = cfg.MODEL.BAFE.EXCHANGE
        cross_task = {
            "fraction": exchange.FRACTION,
            "mechanism": exchange.MECHANISM,
            "selection": exchange.SELECTION,
            "adapter_width": exchange.ADAPTER_WIDTH,
        }
        return BAFEHead(**head_arguments(cfg, shapes), cross_task=cross_task if exchange.ENABLED else None)

    def losses(
        self, points: Points, predictions: Predictions, batched_inputs: list[dict[str, Any]]
    ) -> dict[str, Tensor]:
        """The losses of FCOS and ``loss_sky``."""
        predictions = dict(predictions)
        sky_logits = predictions.pop("sky")
        losses = super().losses(points, predictions, batched_inputs)
        losses["loss_sky"] = self.sky_loss_weight * sky_loss(sky_logits, self._sky_targets(batched_inputs, sky_logits))
        return losses

    def _sky_targets(self, batched_inputs: list[dict[str, Any]], sky_logits: list[Tensor]) -> Tensor:
        """Sky masks of the batch (N, H, W), padded with ignore to the size that the finest level covers."""
        stride = self.strides[0]
        height, width = (size * stride for size in sky_logits[0].shape[-2:])
        masks = [
            sample["sem_seg"].to(self.device)
            if "sem_seg" in sample
            else torch.full(sample["image"].shape[-2:], IGNORE, device=self.device)
            for sample in batched_inputs
        ]
        return torch.stack(
            [F.pad(mask, (0, width - mask.shape[1], 0, height - mask.shape[0]), value=IGNORE) for mask in masks]
        )

    def outputs(
        self,
        points: Points,
        predictions: Predictions,
        images: ImageList,
        batched_inputs: list[dict[str, Any]],
    ) -> list[dict[str, Any]]:
        """The results of FCOS, each with ``sem_seg``."""
        results = super().outputs(points, predictions, images, batched_inputs)
        sky = predictions["sky"][0].float().sigmoid()
        sky = F.interpolate(sky, scale_factor=self.strides[0], mode="bilinear", align_corners=False)
        for result, sample, size, probability in zip(results, batched_inputs, images.image_sizes, sky):
            both = torch.cat([1 - probability, probability])
            height, width = sample.get("height", size[0]), sample.get("width", size[1])
            result["sem_seg"] = sem_seg_postprocess(both, size, height, width)
        return results
