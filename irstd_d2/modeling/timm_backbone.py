"""Networks of the package timm as backbones, among them EfficientNet-Lite0, whose ImageNet weights come as a package.

The weights of the Lite family expect RGB, mean 127 and standard deviation 128 for every channel.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY
from detectron2.modeling.backbone import Backbone
from torch import Tensor, nn

from ..errors import ConfigError
from .resnet import batch_norms

# Stride of a stage -> its name in detectron2.
_STAGES = {2: "stem", 4: "res2", 8: "res3", 16: "res4", 32: "res5"}
EFFICIENTNET_LITE0 = "tf_efficientnet_lite0"


class TimmBackbone(Backbone):
    """A convolutional network of timm whose stages have the names of a ResNet's.

    Args:
        name: of timm, a network that knows ``features_only``, e.g. "tf_efficientnet_lite0" or "convnext_tiny".
        out_features: names among ``stem`` (stride 2) and ``res2`` .. ``res5`` (4 .. 32), as far as the network has
            them; what lies behind the last one is not built.
        pretrained: start from timm's weights, which it downloads.
        freeze_at: the network up to the stem (1), res2 (2), ... is not trained, and norms there keep their statistics.
        norm_eval: all batch norms keep their statistics in training.
        norm_trainable: whether the scale and shift of batch norms outside the frozen part are trained.

    Raises:
        ConfigError: for a network or a stage that does not exist, and where timm is missing.
    """

    def __init__(
        self,
        name: str,
        *,
        out_features: Sequence[str] = ("res2", "res3", "res4", "res5"),
        in_channels: int = 3,
        pretrained: bool = False,
        freeze_at: int = 0,
        norm_eval: bool = False,
        norm_trainable: bool = True,
    ):
        super().__init__()
        with torch.device("meta"):
            strides = _create(name).feature_info.reduction()
        names = [_STAGES.get(stride, str(stride)) for stride in strides]
        if unknown := set(out_features) - set(names):
            raise ConfigError(f"MODEL.RESNETS.OUT_FEATURES has {sorted(unknown)}; {name} has {names}")
        indices = [i for i, stage in enumerate(names) if stage in out_features]
        self.net = _create(name, out_indices=indices, in_chans=in_channels, pretrained=pretrained)
        self._out_features = [names[i] for i in indices]
        self._shapes = [
            ShapeSpec(channels=channels, stride=stride)
            for channels, stride in zip(self.net.feature_info.channels(), self.net.feature_info.reduction())
        ]
        self.pretrained, self.norm_eval = pretrained, norm_eval
        self._frozen = self._parts_up_to(freeze_at)
        for module in self._frozen:
            for parameter in module.parameters(recurse=False):
                parameter.requires_grad_(False)
        if not norm_trainable:
            for norm in batch_norms(self.modules()):
                norm.requires_grad_(False)

    def _parts_up_to(self, freeze_at: int) -> list[nn.Module]:
        """The layers up to the end of the stage with this number; timm lists them in their order."""
        if not freeze_at:
            return []
        info = [stage for stage in self.net.feature_info.info if stage["reduction"] <= 2**freeze_at]
        if not info:
            return []
        last = info[-1]["module"]
        ends = (last, last.replace(".", "_"))  # as timm flattens some networks
        layers = [(name, m) for name, m in self.net.named_modules() if list(m.parameters(recurse=False))]
        inside = [i for i, (name, _) in enumerate(layers) if any(f"{name}.".startswith(f"{end}.") for end in ends)]
        return [module for _, module in layers[: max(inside) + 1]]

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """(N, 3, H, W) -> stage -> (N, C, H / stride, W / stride), rounded as the network rounds"""
        return dict(zip(self._out_features, self.net(x)))

    def output_shape(self) -> dict[str, ShapeSpec]:
        return dict(zip(self._out_features, self._shapes))

    def train(self, mode: bool = True) -> TimmBackbone:
        super().train(mode)
        for norm in batch_norms(self.modules() if self.norm_eval else self._frozen):
            norm.eval()
        return self


def _create(name: str, **options: Any) -> Any:
    if importlib.util.find_spec("timm") is None:
        raise ConfigError(f"the backbone {name} needs the package timm: pip install timm")
    import timm

    if not timm.is_model(name):
        similar = timm.list_models(f"*{name.split('_')[0]}*")[:5]
        raise ConfigError(f"MODEL.TIMM.NAME is {name!r}, which timm does not know; similar are {similar}")
    net: Any = timm.create_model(name, features_only=True, **options)
    last = net.feature_info.info[max(net.feature_info.out_indices)]["module"]
    if isinstance(getattr(net, "blocks", None), nn.Sequential) and last.startswith("blocks."):
        net.blocks = net.blocks[: int(last.removeprefix("blocks.")) + 1]  # timm builds those behind it, too
    return net


@BACKBONE_REGISTRY.register()
def build_timm_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> TimmBackbone:
    """Build ``MODEL.TIMM.NAME`` with outputs ``stem`` and ``res2`` .. ``res5`` at strides 2, 4 .. 32.

    Of ``MODEL.RESNETS`` it takes ``OUT_FEATURES`` and the three keys of norms, of which ``NORM`` is "BN" or "FrozenBN",
    and ``MODEL.BACKBONE.FREEZE_AT``.
    """
    return _build(cfg, input_shape, cfg.MODEL.TIMM.NAME, cfg.MODEL.TIMM.PRETRAINED)


@BACKBONE_REGISTRY.register()
def build_efficientnet_lite0_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> TimmBackbone:
    """Build ``build_timm_backbone`` with EfficientNet-Lite0."""
    return _build(cfg, input_shape, EFFICIENTNET_LITE0, cfg.MODEL.TIMM.PRETRAINED)


def _build(cfg: CfgNode, input_shape: ShapeSpec, name: str, pretrained: bool) -> TimmBackbone:
    resnets = cfg.MODEL.RESNETS
    if resnets.NORM not in ("BN", "FrozenBN"):
        raise ConfigError(f"MODEL.RESNETS.NORM is {resnets.NORM!r}; {name} has batch norm: 'BN' or 'FrozenBN'")
    frozen = resnets.NORM == "FrozenBN"
    return TimmBackbone(
        name,
        out_features=resnets.OUT_FEATURES,
        in_channels=input_shape.channels,
        pretrained=pretrained,
        freeze_at=cfg.MODEL.BACKBONE.FREEZE_AT,
        norm_eval=resnets.NORM_EVAL or frozen,
        norm_trainable=resnets.NORM_TRAINABLE and not frozen,
    )
