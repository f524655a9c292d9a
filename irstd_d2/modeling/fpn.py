"""A feature pyramid that computes only what is used, cut where a neck can be extended."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch.nn.functional as F
from detectron2.config import CfgNode
from detectron2.layers import Conv2d, ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY
from detectron2.modeling.backbone import FPN, Backbone
from detectron2.modeling.backbone.fpn import LastLevelMaxPool, LastLevelP6P7
from torch import Tensor, nn

from ..errors import ConfigError, check_known
from .resnet import build_irstd_resnet_backbone


class LastLevelP6(nn.Module):
    """One extra level P6: a stride-2 3x3 convolution on the coarsest pyramid output."""

    def __init__(self, in_channels: int, out_channels: int, in_feature: str = "p5"):
        super().__init__()
        self.num_levels, self.in_feature = 1, in_feature
        self.p6 = Conv2d(in_channels, out_channels, 3, stride=2, padding=1)

    def forward(self, x: Tensor) -> list[Tensor]:
        return [self.p6(x)]


class SelectiveFPN(FPN):
    """detectron2's ``FPN`` with selectable outputs, in two steps between which a neck can refine the laterals.

    Output convolutions that feed nothing are kept (published checkpoints hold them) but neither run nor trained, so
    that they cost no time and distributed training sees no unused parameter. Laterals finer than every output are not
    trained either.

    ``out_features`` are the levels that leave the neck, e.g. ``["p2", "p3"]``, ``None`` for all; ``in_features`` come
    finest first, and other arguments are those of detectron2's ``FPN``.
    """

    _out_features: list[str]  # detectron2 leaves it untyped

    def __init__(
        self,
        bottom_up: Backbone,
        in_features: Sequence[str],
        out_channels: int,
        *,
        out_features: Sequence[str] | None = None,
        norm: str = "",
        top_block: nn.Module | None = None,
        fuse_type: str = "sum",
    ):
        super().__init__(bottom_up, in_features, out_channels, norm, top_block, fuse_type)
        self._all_features = tuple(self._out_features)
        if out_features:
            check_known("MODEL.FPN.OUT_FEATURES", out_features, self._all_features)
            self._out_features = [name for name in self._all_features if name in set(out_features)]
        self._levels = self._all_features[: len(self.in_features)]
        extra = self._all_features[len(self._levels) :]
        self._needs_top = any(name in self._out_features for name in extra)
        needed = set(self._out_features)
        if self._needs_top and self.top_block.in_feature in self._levels:
            needed.add(self.top_block.in_feature)
        self._needed = tuple(name in needed for name in self._levels)
        for conv, used in zip(reversed(self.output_convs), self._needed):
            if not used:
                conv.requires_grad_(False)
        # A lateral feeds its own level and the finer ones.
        self._finest = self._needed.index(True) if any(self._needed) else len(self._needed)
        for conv in list(reversed(self.lateral_convs))[: self._finest]:
            conv.requires_grad_(False)
        if top_block is not None and not self._needs_top:
            top_block.requires_grad_(False)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """(N, 3, H, W), multiples of the coarsest stride, -> level -> (N, out_channels, H / stride, W / stride)"""
        features = self.bottom_up(x)
        return self.merge(features, self.project_laterals(features))

    def project_laterals(self, features: Mapping[str, Tensor]) -> list[Tensor]:
        """Return the lateral features, finest first, of at least all ``in_features``, name -> (N, C, H, W)."""
        # detectron2 keeps its convolutions coarsest first.
        return [conv(features[name]) for conv, name in zip(reversed(self.lateral_convs), self.in_features)]

    def merge(self, features: Mapping[str, Tensor], laterals: Sequence[Tensor]) -> dict[str, Tensor]:
        """Sum the laterals top down and compute the levels that leave the neck.

        ``features`` are those of the bottom-up backbone, from which extra levels may start; ``laterals`` as
        ``project_laterals`` gives them, maybe refined since.
        """
        merged = list(laterals)
        for i in range(len(merged) - 1, 0, -1):
            merged[i - 1] = merged[i - 1] + F.interpolate(merged[i], size=merged[i - 1].shape[-2:], mode="nearest")
            if self._fuse_type == "avg":
                merged[i - 1] = merged[i - 1] / 2
        outputs = {
            name: conv(feature)
            for name, conv, feature, used in zip(self._levels, reversed(self.output_convs), merged, self._needed)
            if used
        }
        if self._needs_top:
            source = self.top_block.in_feature
            top = self.top_block(features[source] if source in features else outputs[source])
            outputs.update(zip(self._all_features[len(self._levels) :], top))
        return {name: outputs[name] for name in self._out_features}

    def output_shape(self) -> dict[str, ShapeSpec]:
        return {
            name: ShapeSpec(channels=self._out_feature_channels[name], stride=self._out_feature_strides[name])
            for name in self._out_features
        }


def build_top_block(cfg: CfgNode, bottom_up: Backbone) -> nn.Module | None:
    """Build the extra levels named by ``MODEL.FPN.TOP_BLOCK``."""
    kind, channels, in_feature = cfg.MODEL.FPN.TOP_BLOCK, cfg.MODEL.FPN.OUT_CHANNELS, cfg.MODEL.FPN.IN_FEATURES[-1]
    if kind == "none":
        return None
    if kind == "maxpool":
        return LastLevelMaxPool()
    if kind == "p6":
        return LastLevelP6(channels, channels, in_feature.replace("res", "p"))
    if kind == "p6p7":
        return LastLevelP6P7(bottom_up.output_shape()[in_feature].channels, channels, in_feature)
    raise ConfigError(f"MODEL.FPN.TOP_BLOCK is {kind!r}; known are 'none', 'maxpool', 'p6', 'p6p7'")


def build_bottom_up(cfg: CfgNode, input_shape: ShapeSpec) -> Backbone:
    """Build the backbone that ``MODEL.BACKBONE.BOTTOM_UP`` names in detectron2's registry."""
    name = cfg.MODEL.BACKBONE.BOTTOM_UP
    check_known("MODEL.BACKBONE.BOTTOM_UP", name, sorted(key for key, _ in BACKBONE_REGISTRY))
    return BACKBONE_REGISTRY.get(name)(cfg, input_shape)


@BACKBONE_REGISTRY.register()
def build_irstd_resnet_fpn_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> SelectiveFPN:
    """Build ``build_irstd_resnet_backbone`` under a ``SelectiveFPN`` (keys ``MODEL.FPN``)."""
    return _build_fpn(cfg, build_irstd_resnet_backbone(cfg, input_shape))


@BACKBONE_REGISTRY.register()
def build_irstd_fpn_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> SelectiveFPN:
    """Build ``MODEL.BACKBONE.BOTTOM_UP`` under a ``SelectiveFPN`` (keys ``MODEL.FPN``)."""
    return _build_fpn(cfg, build_bottom_up(cfg, input_shape))


def _build_fpn(cfg: CfgNode, bottom_up: Backbone) -> SelectiveFPN:
    return SelectiveFPN(bottom_up, **fpn_arguments(cfg), top_block=build_top_block(cfg, bottom_up))


def fpn_arguments(cfg: CfgNode) -> dict[str, Any]:
    """The arguments of ``SelectiveFPN`` from ``MODEL.FPN``, but the backbone and the extra levels."""
    fpn = cfg.MODEL.FPN
    return {
        "in_features": fpn.IN_FEATURES,
        "out_channels": fpn.OUT_CHANNELS,
        "out_features": fpn.OUT_FEATURES,
        "norm": fpn.NORM,
        "fuse_type": fpn.FUSE_TYPE,
    }
