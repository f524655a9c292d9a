"""EfficientNet-Lite0: a backbone with ImageNet weights to be had as a package, light enough for a CPU.

Architecture and weights are those of the Lite family: EfficientNet-B0 (Table 1 of its paper, arXiv 1905.11946) without
squeeze-and-excitation and with ReLU6 in place of swish. The weights expect RGB, mean 127 and standard deviation 128 for
every channel.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import fvcore.nn.weight_init as weight_init
import torch.nn.functional as F
from detectron2.config import CfgNode
from detectron2.layers import CNNBlockBase, Conv2d, FrozenBatchNorm2d, ShapeSpec, get_norm
from detectron2.modeling import BACKBONE_REGISTRY
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from ..errors import ConfigError
from .resnet import IRSTDResNet

_NORM_EPS = 1e-3  # of the published weights


class BlockGroup(NamedTuple):
    """Blocks of one row of the paper's Table 1; the first one has the stride."""

    expansion: int
    kernel_size: int
    stride: int
    channels: int
    num_blocks: int


STEM_CHANNELS = 32
STEM_GROUP = BlockGroup(1, 3, 1, 16, 1)
# Groups at strides 4, 8, 16 and 32: res2 to res5.
STAGE_GROUPS: tuple[tuple[BlockGroup, ...], ...] = (
    (BlockGroup(6, 3, 2, 24, 2),),
    (BlockGroup(6, 5, 2, 40, 2),),
    (BlockGroup(6, 3, 2, 80, 3), BlockGroup(6, 5, 1, 112, 3)),
    (BlockGroup(6, 5, 2, 192, 4), BlockGroup(6, 3, 1, 320, 1)),
)


class SamePadConv2d(Conv2d):
    """A convolution with TensorFlow's padding: ceil(size / stride) outputs, the odd pixel of padding last.

    With stride 2 and an even input it lies half a pixel beside PyTorch's symmetric padding, which pretrained weights
    would feel.
    """

    def forward(self, x: Tensor) -> Tensor:
        sides = [side for axis in (1, 0) for side in self._padding(x.shape[axis + 2], axis)]  # left, right, top, bottom
        return super().forward(F.pad(x, sides))

    def _padding(self, size: int, axis: int) -> tuple[int, int]:
        kernel, stride = self.kernel_size[axis], self.stride[axis]
        total = max(kernel - stride, 0) if size % stride == 0 else max(kernel - size % stride, 0)
        return total // 2, total - total // 2


def _conv(
    in_channels: int, out_channels: int, kernel_size: int, *, norm: str, stride: int = 1, groups: int = 1, act: bool
) -> Conv2d:
    layer_norm = get_norm(norm, out_channels)
    if isinstance(layer_norm, (_BatchNorm, FrozenBatchNorm2d)):
        layer_norm.eps = _NORM_EPS
    conv = (Conv2d if stride == 1 else SamePadConv2d)(
        in_channels,
        out_channels,
        kernel_size,
        stride=stride,
        padding=kernel_size // 2 if stride == 1 else 0,
        groups=groups,
        bias=layer_norm is None,
        norm=layer_norm,
        activation=F.relu6 if act else None,
    )
    weight_init.c2_msra_fill(conv)
    return conv


class InvertedBottleneck(CNNBlockBase):
    """1x1 expansion, depthwise convolution, linear 1x1 projection; added to the input where the shapes agree.

    Args:
        in_channels, out_channels: of the block.
        expansion: inner channels per input channel; 1 has no expanding convolution.
        kernel_size, stride: of the depthwise convolution.
        norm: a norm that ``detectron2.layers.get_norm`` knows.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        expansion: int,
        kernel_size: int,
        stride: int = 1,
        norm: str = "BN",
    ):
        super().__init__(in_channels, out_channels, stride)
        inner = in_channels * expansion
        self.expand = _conv(in_channels, inner, 1, norm=norm, act=True) if expansion > 1 else nn.Identity()
        self.depthwise = _conv(inner, inner, kernel_size, norm=norm, stride=stride, groups=inner, act=True)
        self.project = _conv(inner, out_channels, 1, norm=norm, act=False)
        self.residual = stride == 1 and in_channels == out_channels

    def forward(self, x: Tensor) -> Tensor:
        """(N, C_in, H, W) -> (N, C_out, ceil(H / stride), ceil(W / stride))"""
        y = self.project(self.depthwise(self.expand(x)))
        return x + y if self.residual else y


class EfficientNetStem(CNNBlockBase):
    """A stride-2 convolution and the first block, which does not expand: (N, C, H, W) -> (N, 16, H / 2, W / 2)."""

    def __init__(self, in_channels: int = 3, norm: str = "BN"):
        super().__init__(in_channels, STEM_GROUP.channels, 2)
        self.conv = _conv(in_channels, STEM_CHANNELS, 3, norm=norm, stride=2, act=True)
        (self.block,) = make_blocks(STEM_CHANNELS, [STEM_GROUP], norm=norm)

    def forward(self, x: Tensor) -> Tensor:
        return self.block(self.conv(x))


def make_blocks(in_channels: int, groups: Sequence[BlockGroup], *, norm: str = "BN") -> list[InvertedBottleneck]:
    """Build the blocks of some groups, one after another."""
    blocks = []
    for group in groups:
        for number in range(group.num_blocks):
            blocks.append(
                InvertedBottleneck(
                    in_channels,
                    group.channels,
                    expansion=group.expansion,
                    kernel_size=group.kernel_size,
                    stride=group.stride if number == 0 else 1,
                    norm=norm,
                )
            )
            in_channels = group.channels
    return blocks


@BACKBONE_REGISTRY.register()
def build_efficientnet_lite0_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> IRSTDResNet:
    """Build an EfficientNet-Lite0 with outputs ``stem`` and ``res2`` .. ``res5`` at strides 2, 4 .. 32.

    Of ``MODEL.RESNETS`` it takes ``OUT_FEATURES`` and the three keys of norms, and ``MODEL.BACKBONE.FREEZE_AT``; the
    rest is fixed. Stages beyond the last output are not built.

    Raises:
        ConfigError: for an unknown output.
    """
    resnets = cfg.MODEL.RESNETS
    names = ["stem", "res2", "res3", "res4", "res5"]
    if unknown := set(resnets.OUT_FEATURES) - set(names):
        raise ConfigError(f"MODEL.RESNETS.OUT_FEATURES has {sorted(unknown)}; known are {names}")
    channels, stages = STEM_GROUP.channels, []
    for groups in STAGE_GROUPS[: max(names.index(name) for name in resnets.OUT_FEATURES)]:
        stages.append(make_blocks(channels, groups, norm=resnets.NORM))
        channels = groups[-1].channels
    return IRSTDResNet(
        EfficientNetStem(input_shape.channels, norm=resnets.NORM),
        stages,
        out_features=resnets.OUT_FEATURES,
        freeze_at=cfg.MODEL.BACKBONE.FREEZE_AT,
        norm_eval=resnets.NORM_EVAL,
        norm_trainable=resnets.NORM_TRAINABLE,
    )
