"""Background semantics for two-stage detectors: the exchange before a region-of-interest box head."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec
from detectron2.modeling import ROI_HEADS_REGISTRY, ROIHeads
from detectron2.structures import ImageList, Instances
from torch import Tensor, nn

from irstd_d2.errors import ConfigError, check_known, check_number
from irstd_d2.modeling.fcos import NORMS, ConvTower, init_head
from irstd_d2.modeling.region_pooling import pool_exactly

from .background import sky_loss
from .bafe_head import ContextExchange, CrossTask, cross_task_arguments
from .context import Context, ContextEncoder, context_sky_loss


class ExchangeSegHead(nn.Module):
    """Segment sky on every level and exchange features with those that the box head pools.

    The box head's side has no tower of its own: the pyramid's features enter the exchange. Arguments are those of
    ``BAFEHead``.
    """

    def __init__(
        self,
        in_channels: int,
        *,
        num_levels: int,
        num_convs: int = 4,
        norm: str = "GN",
        cross_task: dict[str, Any] | None = None,
    ):
        super().__init__()
        self.seg_tower = ConvTower(in_channels, num_convs, norm, num_levels)
        self.sky_logits = nn.Conv2d(in_channels, 1, 3, padding=1)
        init_head(self)
        self.cross_task = None if cross_task is None else CrossTask(in_channels, **cross_task)

    def forward(self, features: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """Features (N, C, H, W) per level -> features for the box head and logits of sky (N, 1, H, W), per level."""
        box_features, logits = [], []
        for level, x in enumerate(features):
            seg = self.seg_tower(x, level)
            if self.cross_task is not None:
                seg, x = self.cross_task(seg, x)
            box_features.append(x)
            logits.append(self.sky_logits(seg))
        return box_features, logits


@ROI_HEADS_REGISTRY.register()
class ExchangeROIHeads(nn.Module):
    """Any region-of-interest heads on features that were exchanged with a background-segmentation task.

    ``BackgroundRCNN`` hands over the sky masks and returns the prediction. The proposal generator keeps the pyramid's
    own features.

    Args:
        roi_heads: detectron2's ``ROIHeads`` or a subclass.
        seg_head: an ``ExchangeSegHead``, or with context a ``ContextExchange``.
        in_features: names of the levels that take part, finest first.
        sky_loss_weight: of the segmentation loss.
        context: sees the whole image at low resolution; then the features hold the entries of ``Context`` as well.
        strides: of the levels; for ``context``.
    """

    @configurable
    def __init__(
        self,
        *,
        roi_heads: ROIHeads,
        seg_head: nn.Module,
        in_features: Sequence[str],
        sky_loss_weight: float = 1.0,
        context: ContextEncoder | None = None,
        strides: Sequence[int] = (),
    ):
        super().__init__()
        pool_exactly(roi_heads)
        self.roi_heads, self.seg_head, self.context = roi_heads, seg_head, context
        self.in_features, self.strides = list(in_features), list(strides)
        self.sky_loss_weight = sky_loss_weight

    @property
    def num_classes(self) -> int:
        """Of the heads that follow the exchange."""
        return self.roi_heads.num_classes

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: Mapping[str, ShapeSpec]) -> dict[str, Any]:
        bafe, in_features = cfg.MODEL.BAFE, cfg.MODEL.ROI_HEADS.IN_FEATURES
        if bafe.ROI_HEADS == "ExchangeROIHeads":
            raise ConfigError("MODEL.BAFE.ROI_HEADS is ExchangeROIHeads itself; name the heads that it should extend")
        check_known("MODEL.BAFE.ROI_HEADS", bafe.ROI_HEADS, sorted(name for name, _ in ROI_HEADS_REGISTRY))
        check_known("MODEL.BAFE.SEG_NORM", bafe.SEG_NORM, NORMS)
        check_number("MODEL.BAFE.SKY_LOSS_WEIGHT", bafe.SKY_LOSS_WEIGHT, 0)
        channels = {input_shape[name].channels for name in in_features}
        if len(channels) != 1:
            raise ConfigError(f"MODEL.ROI_HEADS.IN_FEATURES have {sorted(channels)} channels; they must be equal")
        common = {
            "roi_heads": ROI_HEADS_REGISTRY.get(bafe.ROI_HEADS)(cfg, input_shape),
            "in_features": in_features,
            "sky_loss_weight": bafe.SKY_LOSS_WEIGHT,
        }
        exchange = cross_task_arguments(cfg)
        if bafe.CONTEXT.ENABLED:
            context = ContextEncoder(cfg)
            seg_head: nn.Module = ContextExchange(channels.pop(), context.out_channels, exchange)
            return {
                **common,
                "seg_head": seg_head,
                "context": context,
                "strides": [input_shape[name].stride for name in in_features],
            }
        seg_head = ExchangeSegHead(
            channels.pop(),
            num_levels=len(in_features),
            num_convs=bafe.SEG_NUM_CONVS,
            norm=bafe.SEG_NORM,
            cross_task=exchange,
        )
        return {**common, "seg_head": seg_head}

    def forward(
        self,
        images: ImageList,
        features: Mapping[str, Tensor],
        proposals: list[Instances],
        targets: list[Instances] | None = None,
        sem_seg: Tensor | None = None,
    ) -> tuple[list[Instances], dict[str, Tensor]]:
        """See ``ROIHeads.forward``; ``features`` lead from the level's name to (N, C, H, W).

        ``sem_seg`` are sky masks, in training; see ``background.stack_sky_masks``, or ``context.stack_context_masks``.

        Returns:
            As the inner heads, with ``loss_sky`` among the losses; at test time the second value holds ``sky``, the
            logits (N, 1, h, w) of the finest level.
        """
        exchanged, sky, context_sky = self.exchange_features(features)
        results, losses = self.roi_heads(images, exchanged, proposals, targets)
        if not self.training:
            return results, {"sky": sky[0]}
        if sem_seg is None:
            raise ValueError("ExchangeROIHeads trains on sky masks: set MODEL.META_ARCHITECTURE to BackgroundRCNN")
        loss = sky_loss(sky, sem_seg) if context_sky is None else context_sky_loss(context_sky, sem_seg)
        losses["loss_sky"] = self.sky_loss_weight * loss
        return results, losses

    def forward_with_given_boxes(self, features: Mapping[str, Tensor], instances: list[Instances]) -> list[Instances]:
        """See ``ROIHeads.forward_with_given_boxes``."""
        exchanged, *_ = self.exchange_features(features)
        return self.roi_heads.forward_with_given_boxes(exchanged, instances)

    def exchange_features(
        self, features: Mapping[str, Tensor]
    ) -> tuple[dict[str, Tensor], list[Tensor], Tensor | None]:
        """The levels as the box head sees them, the logits of sky (N, 1, h, w) per level, and those of the context."""
        levels, context_sky = [features[name] for name in self.in_features], None
        if self.context is None or not isinstance(self.seg_head, ContextExchange):
            box_features, sky = self.seg_head(levels)
        else:
            context = Context(*(features[name] for name in Context._fields))
            maps, context_sky = self.context(context)
            backgrounds = self.seg_head(maps, context_sky, self.context.sampling(context, levels, self.strides))
            box_features = [self.seg_head.receive(x + b.features, b) for x, b in zip(levels, backgrounds)]
            sky = [background.sky for background in backgrounds]
        return {**features, **dict(zip(self.in_features, box_features))}, sky, context_sky
