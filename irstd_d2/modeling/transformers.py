"""detectron2's Swin and plain vision transformers as backbones that a configuration can name."""

from __future__ import annotations

import importlib.util
import math
from typing import Any

from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY
from detectron2.modeling.backbone import SimpleFeaturePyramid, SwinTransformer, ViT
from torch import Tensor, nn
from torchvision.ops import StochasticDepth

from ..errors import ConfigError, check_known

_SWIN_STAGES = ("res2", "res3", "res4", "res5")
_PYRAMID_LEVELS = ("p2", "p3", "p4", "p5")


class SwinBackbone(SwinTransformer):
    """detectron2's ``SwinTransformer`` with the names of a ResNet's stages, for images of any size.

    Args:
        out_features: names among ``res2`` .. ``res5``, at strides 4 .. 32; stages beyond the last one are not built.
        depths, num_heads: blocks and attention heads of the four stages.
        freeze_at: the patch embedding (1) and the stages up to this one (2: res2, ...) are not trained.
        drop_path: probability with which the residual of the last block is left out for an image in training; the
            first block has 0, those between lie between.
        kwargs: ``embed_dim``, ``window_size`` and the others of detectron2.
    """

    def __init__(
        self,
        *,
        out_features: tuple[str, ...] = _SWIN_STAGES,
        depths: tuple[int, ...] = (2, 2, 6, 2),
        num_heads: tuple[int, ...] = (3, 6, 12, 24),
        freeze_at: int = 0,
        drop_path: float = 0.0,
        **kwargs: Any,
    ):
        check_known("MODEL.SWIN.OUT_FEATURES", out_features, _SWIN_STAGES)
        indices = sorted(_SWIN_STAGES.index(name) for name in out_features)
        built = indices[-1] + 1
        super().__init__(
            depths=depths[:built],
            num_heads=num_heads[:built],
            out_indices=indices,
            frozen_stages=freeze_at if freeze_at > 1 else freeze_at - 1,
            drop_path_rate=0.0,
            **kwargs,
        )
        self._names = {f"p{index}": _SWIN_STAGES[index] for index in indices}
        self._out_features = list(self._names.values())
        for values in (self._out_feature_channels, self._out_feature_strides):
            values.update({name: values.pop(index) for index, name in self._names.items()})
        _set_drop_path(self, drop_path)

    @property
    def size_divisibility(self) -> int:
        return max(self._out_feature_strides.values())

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """(N, 3, H, W) -> stage -> (N, C, ceil(H / stride), ceil(W / stride))"""
        return {self._names[index]: feature for index, feature in super().forward(x).items()}


class ViTPyramid(SimpleFeaturePyramid):
    """A plain vision transformer under detectron2's ``SimpleFeaturePyramid`` (ViTDet).

    ``levels`` are consecutive ones of ``p2`` .. ``p5``, strides 4 .. 32, each of 1/4 to 2 times the stride of ``net``;
    ``norm`` is as in detectron2, ``drop_path`` as in :class:`SwinBackbone`.
    """

    def __init__(
        self,
        net: ViT,
        *,
        levels: tuple[str, ...] = _PYRAMID_LEVELS,
        out_channels: int = 256,
        norm: str = "LN",
        drop_path: float = 0.0,
    ):
        (name, shape), *_ = net.output_shape().items()
        check_known("MODEL.VIT.LEVELS", levels, _PYRAMID_LEVELS)
        factors = [shape.stride / 2 ** int(level[1:]) for level in sorted(levels)]
        if not set(factors) <= {0.5, 1.0, 2.0, 4.0}:
            raise ConfigError(
                f"MODEL.VIT.LEVELS is {list(levels)} with patches of {shape.stride} pixels; take levels of strides "
                f"{shape.stride // 4} to {shape.stride * 2}, or another MODEL.VIT.PATCH_SIZE"
            )
        super().__init__(net, name, out_channels, factors, norm=norm)
        self._size_divisibility = max(shape.stride, *self._out_feature_strides.values())
        _set_drop_path(net, drop_path)

    @property
    def size_divisibility(self) -> int:
        return self._size_divisibility

    @property
    def padding_constraints(self) -> dict[str, int]:
        return {"size_divisibility": self._size_divisibility}


def _set_drop_path(transformer: nn.Module, probability: float) -> None:
    """Give every trained block stochastic depth, rising from 0 to ``probability`` with the depth.

    detectron2's own takes it from a further package.
    """
    blocks = [module for module in transformer.modules() if isinstance(getattr(module, "drop_path", None), nn.Identity)]
    for number, block in enumerate(blocks):
        own = probability * number / max(len(blocks) - 1, 1)
        if own > 0 and any(p.requires_grad for p in block.parameters()):
            block.drop_path = StochasticDepth(own, "row")


@BACKBONE_REGISTRY.register()
def build_swin_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> SwinBackbone:
    """Build a Swin transformer from ``MODEL.SWIN`` and ``MODEL.BACKBONE.FREEZE_AT``."""
    swin = cfg.MODEL.SWIN
    return SwinBackbone(
        in_chans=input_shape.channels,
        embed_dim=swin.EMBED_DIM,
        depths=tuple(swin.DEPTHS),
        num_heads=tuple(swin.NUM_HEADS),
        window_size=swin.WINDOW_SIZE,
        out_features=tuple(swin.OUT_FEATURES),
        freeze_at=cfg.MODEL.BACKBONE.FREEZE_AT,
        drop_path=swin.DROP_PATH,
    )


@BACKBONE_REGISTRY.register()
def build_vit_pyramid_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> ViTPyramid:
    """Build a plain vision transformer with a simple pyramid from ``MODEL.VIT`` and ``MODEL.FPN``.

    Of ``MODEL.FPN`` it takes ``OUT_CHANNELS`` and ``NORM``.

    Raises:
        ConfigError: for levels or a patch size that do not fit, and where the package ``timm`` is missing, from which
            detectron2 takes a layer.
    """
    vit = cfg.MODEL.VIT
    if vit.PATCH_SIZE < 1 or not math.log2(vit.PATCH_SIZE).is_integer():
        raise ConfigError(f"MODEL.VIT.PATCH_SIZE is {vit.PATCH_SIZE}; use a power of two, such as 16 or 8")
    if importlib.util.find_spec("timm") is None:
        raise ConfigError("detectron2's vision transformer needs the package timm: pip install timm")
    net = ViT(
        img_size=vit.IMAGE_SIZE,
        patch_size=vit.PATCH_SIZE,
        in_chans=input_shape.channels,
        embed_dim=vit.EMBED_DIM,
        depth=vit.DEPTH,
        num_heads=vit.NUM_HEADS,
        use_rel_pos=vit.RELATIVE_POSITION,
        window_size=vit.WINDOW_SIZE,
        window_block_indexes=tuple(vit.WINDOW_BLOCKS),
        pretrain_img_size=vit.PRETRAIN_IMAGE_SIZE,
    )
    return ViTPyramid(
        net,
        levels=tuple(vit.LEVELS),
        out_channels=cfg.MODEL.FPN.OUT_CHANNELS,
        norm=cfg.MODEL.FPN.NORM,
        drop_path=vit.DROP_PATH,
    )
