"""Detectors with a background-segmentation task, one-stage (BAFE-Net) and two-stage, as meta-architectures."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec
from detectron2.modeling import META_ARCH_REGISTRY, GeneralizedRCNN
from detectron2.modeling.postprocessing import detector_postprocess
from detectron2.structures import ImageList, Instances
from torch import Tensor, nn

from irstd_d2.errors import ConfigError, check_number
from irstd_d2.modeling.fcos import IRSTDFCOS, Predictions, head_arguments

from .background import add_sky, sky_loss, stack_sky_masks
from .bafe_head import BAFEHead, ContextHead, cross_task_arguments
from .context import Context, ContextEncoder, context_sky_loss, stack_context_masks


@META_ARCH_REGISTRY.register()
class BAFENet(IRSTDFCOS):
    """FCOS with a background-segmentation task.

    Samples carry ``sem_seg`` (H, W) in training; a sample without it adds nothing to the sky loss. At test time each
    result has ``sem_seg`` beside ``instances`` (see ``background``).

    Args:
        sky_loss_weight: of the segmentation loss.
        sky_score_power: final scores are multiplied by this power of the predicted probability of sky at their point;
            0 leaves them (published). For data whose targets lie in the sky.
        context: sees the whole image at low resolution; then ``head`` is a ``ContextHead``, samples carry what
            ``bafe_d2.data.context`` describes, and the sky is that of the whole image. ``None``: as published.
        fcos: arguments of ``IRSTDFCOS``; its ``head`` is a ``BAFEHead``.
    """

    @configurable
    def __init__(
        self,
        *,
        sky_loss_weight: float = 1.0,
        sky_score_power: float = 0.0,
        context: ContextEncoder | None = None,
        **fcos: Any,
    ):
        super().__init__(**fcos)
        self.context = context
        check_number("MODEL.BAFE.SKY_SCORE_POWER", sky_score_power, 0)
        check_number("MODEL.BAFE.SKY_LOSS_WEIGHT", sky_loss_weight, 0)
        self.sky_loss_weight, self.sky_score_power = sky_loss_weight, sky_score_power

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        bafe = cfg.MODEL.BAFE
        return {
            **super().from_config(cfg),
            "sky_loss_weight": bafe.SKY_LOSS_WEIGHT,
            "sky_score_power": bafe.SKY_SCORE_POWER,
            "context": ContextEncoder(cfg) if bafe.CONTEXT.ENABLED else None,
        }

    @classmethod
    def build_head(cls, cfg: CfgNode, shapes: Sequence[ShapeSpec]) -> nn.Module:
        arguments, cross_task = head_arguments(cfg, shapes), cross_task_arguments(cfg)
        context = cfg.MODEL.BAFE.CONTEXT
        if not context.ENABLED:
            return BAFEHead(**arguments, cross_task=cross_task)
        return ContextHead(
            **arguments,
            context_channels=context.CHANNELS[0],
            exchange=cross_task,
            learn_sky_score=context.LEARN_SKY_SCORE,
        )

    def forward(self, batched_inputs: list[dict[str, Any]]) -> dict[str, Tensor] | list[dict[str, Any]]:
        """Return the losses in training, else one dict per image with ``instances`` and ``sem_seg``."""
        images = self.preprocess_image(batched_inputs)
        maps = self.backbone(images.tensor)
        features = [maps[name] for name in self.head_in_features]
        if self.context is None:
            context = None
            predictions = self.head(features)
        else:
            context = self.context.batch(batched_inputs, images.tensor, images.image_sizes)
            predictions = self.predict_in_context(features, context)
        if self.training:
            instances = [sample["instances"].to(self.device) for sample in batched_inputs]
            losses = self.forward_training(images, features, predictions, instances)
            losses["loss_sky"] = self.sky_loss_weight * self.sky_loss(predictions, context, batched_inputs)
            return losses
        return self.postprocess(
            self.forward_inference(images, features, predictions), predictions, images, batched_inputs
        )

    def postprocess(
        self,
        found: Sequence[Instances],
        predictions: Predictions,
        images: ImageList,
        batched_inputs: Sequence[dict[str, Any]],
    ) -> list[dict[str, Any]]:
        """Detections in network pixels and predictions to one dict per image, in original pixels."""
        results: list[dict[str, Any]] = []
        for instances, sample, size in zip(found, batched_inputs, images.image_sizes):
            height, width = sample.get("height", size[0]), sample.get("width", size[1])
            results.append({"instances": detector_postprocess(instances, height, width)})
        add_sky(results, predictions["sky"][0], self._covered(predictions), images.image_sizes, batched_inputs)
        return results

    def predict_in_context(self, features: list[Tensor], context: Context) -> Predictions:
        """Apply the context network and the head to features (N, C, H, W) of each level.

        Returns:
            The predictions of the head, and ``context_sky``, the logits of sky in the context (N, 1, a, b).
        """
        if self.context is None:
            raise ConfigError("MODEL.BAFE.CONTEXT.ENABLED is False: the background is segmented on every level")
        maps, sky = self.context(context)
        predictions = self.head(features, maps, sky, self.context.sampling(context, features, self.strides))
        return {**predictions, "context_sky": [sky]}

    def sky_loss(
        self, predictions: Predictions, context: Context | None, batched_inputs: list[dict[str, Any]]
    ) -> Tensor:
        """Loss of the background, over the context if there is one, else over all levels."""
        if context is not None:
            return context_sky_loss(predictions["context_sky"][0], stack_context_masks(batched_inputs, context))
        return sky_loss(predictions["sky"], stack_sky_masks(batched_inputs, self._covered(predictions), self.device))

    def quality(self, predictions: Predictions, level: int) -> Tensor:
        """Centerness, times the power of the probability of sky, (N, H * W)."""
        quality = super().quality(predictions, level)
        if not self.sky_score_power:
            return quality
        return quality * predictions["sky"][level].float().sigmoid().flatten(1) ** self.sky_score_power

    def _covered(self, predictions: Predictions) -> tuple[int, int]:
        """Size of the padded batch, as the finest level covers it."""
        height, width = predictions["sky"][0].shape[-2:]
        return height * self.strides[0], width * self.strides[0]


@META_ARCH_REGISTRY.register()
class BackgroundRCNN(GeneralizedRCNN):
    """``GeneralizedRCNN`` that gives sky masks to its region-of-interest heads and returns their prediction.

    For ``ROI_HEADS.NAME`` ``ExchangeROIHeads``; samples and results as of ``BAFENet``.
    """

    def forward(self, batched_inputs: list[dict[str, Any]]) -> dict[str, Tensor] | list[dict[str, Any]]:
        """Return the losses in training, else one dict per image with ``instances`` and ``sem_seg``."""
        if not self.training:
            return self.inference(batched_inputs)
        images = self.preprocess_image(batched_inputs)
        instances = [sample["instances"].to(self.device) for sample in batched_inputs]
        features, context = self.extract_features(batched_inputs, images)
        proposals, losses = self.proposal_generator(images, features, instances)
        if context is None:
            height, width = images.tensor.shape[-2:]
            sky = stack_sky_masks(batched_inputs, (height, width), self.device)
        else:
            sky = stack_context_masks(batched_inputs, context)
        _, detector_losses = self.roi_heads(images, features, proposals, instances, sky)
        return {**losses, **detector_losses}

    def extract_features(
        self, batched_inputs: list[dict[str, Any]], images: ImageList
    ) -> tuple[dict[str, Tensor], Context | None]:
        """The levels of the backbone and, for heads with context, the entries of ``Context`` beside them."""
        features = self.backbone(images.tensor)
        if self.roi_heads.context is None:
            return features, None
        context = self.roi_heads.context.batch(batched_inputs, images.tensor, images.image_sizes)
        return {**features, **context._asdict()}, context

    def inference(
        self,
        batched_inputs: list[dict[str, Any]],
        detected_instances: list[Instances] | None = None,
        do_postprocess: bool = True,
    ) -> list[dict[str, Any]] | list[Instances]:
        """As ``GeneralizedRCNN``; post-processed results of its own detections also have ``sem_seg``."""
        images = self.preprocess_image(batched_inputs)
        features, _ = self.extract_features(batched_inputs, images)
        sky = None
        if detected_instances is None:
            proposals, _ = self.proposal_generator(images, features, None)
            instances, extra = self.roi_heads(images, features, proposals)
            sky = extra["sky"]
        else:
            given = [boxes.to(self.device) for boxes in detected_instances]
            instances = self.roi_heads.forward_with_given_boxes(features, given)
        if not do_postprocess:
            return instances
        results = self._postprocess(instances, batched_inputs, images.image_sizes)
        if sky is not None:
            height, width = images.tensor.shape[-2:]
            add_sky(results, sky, (height, width), images.image_sizes, batched_inputs)
        return results
