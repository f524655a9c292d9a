"""ResNets of any width for small infrared images, on detectron2's blocks.

detectron2's own builder fixes the width of the shallow variants and turns frozen batch norms into buffers. Here a
ResNet can be narrow (for the CPU-sized ``tiny`` configs), and a norm that keeps its statistics remains a module with
parameters, so that published checkpoints load and published parameter counts can be checked.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import chain
from typing import Any

from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY
from detectron2.modeling.backbone.resnet import BasicBlock, BasicStem, BottleneckBlock, ResNet
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from ..errors import ConfigError, check_known

# depth -> (block, blocks per stage). 10 is for the tiny configs; the others are the published ones.
STAGES = {
    10: (BasicBlock, (1, 1, 1, 1)),
    18: (BasicBlock, (2, 2, 2, 2)),
    34: (BasicBlock, (3, 4, 6, 3)),
    50: (BottleneckBlock, (3, 4, 6, 3)),
    101: (BottleneckBlock, (3, 4, 23, 3)),
    152: (BottleneckBlock, (3, 8, 36, 3)),
}


class IRSTDResNet(ResNet):
    """A detectron2 ``ResNet`` whose norms can keep their statistics in training and stay parameters.

    Args:
        stem, stages: modules, one sequence of residual blocks per stage.
        out_features: names among ``stem, res2, ..., res5``.
        freeze_at: the stem (1) and the stages up to this one (2: res2, ...) are not trained and keep their statistics.
        norm_eval: all norms keep their running statistics in training.
        norm_trainable: whether the scale and shift of the norms outside the frozen part are trained.
    """

    def __init__(
        self,
        stem: nn.Module,
        stages: Sequence[Sequence[nn.Module]],
        *,
        out_features: Sequence[str],
        freeze_at: int = 0,
        norm_eval: bool = False,
        norm_trainable: bool = True,
    ):
        self.norm_eval = norm_eval
        super().__init__(stem, stages, out_features=out_features, freeze_at=freeze_at)
        if not norm_trainable:
            for norm in batch_norms(self.modules()):
                norm.requires_grad_(False)

    def freeze(self, freeze_at: int = 0) -> IRSTDResNet:
        """Stop training of the stem and the first stages; see ``freeze_at`` of the constructor."""
        parts = [self.stem, *self.stages][:freeze_at]
        for part in parts:
            part.requires_grad_(False)
        self._frozen_parts = parts
        return self

    def train(self, mode: bool = True) -> IRSTDResNet:
        super().train(mode)
        for norm in batch_norms(
            self.modules() if self.norm_eval else chain(*(p.modules() for p in self._frozen_parts))
        ):
            norm.eval()
        return self


def batch_norms(modules: Iterable[nn.Module]) -> list[_BatchNorm]:
    """The batch norms among some modules."""
    return [module for module in modules if isinstance(module, _BatchNorm)]


def make_stages(
    depth: int,
    *,
    stem_channels: int = 64,
    res2_channels: int | None = None,
    bottleneck_channels: int = 64,
    num_groups: int = 1,
    stride_in_1x1: bool = False,
    norm: str = "BN",
    last_stage: int = 5,
) -> list[list[nn.Module]]:
    """Build the residual stages res2 .. ``last_stage`` (2 to 5) of a ResNet.

    Args:
        depth: a key of ``STAGES``.
        stem_channels: channels that the stem gives.
        res2_channels: output channels of res2, doubled per stage; by default 64 for basic blocks, 256 for bottlenecks.
        bottleneck_channels: inner channels of a bottleneck in res2, doubled per stage.
        num_groups: groups of the bottleneck's 3x3 convolution.
        stride_in_1x1: place the stride in the bottleneck's first 1x1 convolution instead of the 3x3.
        norm: a norm that ``detectron2.layers.get_norm`` knows.
        last_stage: the last one that is built.
    """
    if depth not in STAGES:
        raise ConfigError(f"MODEL.RESNETS.DEPTH is {depth}; known depths are {sorted(STAGES)}")
    block, blocks_per_stage = STAGES[depth]
    channels = res2_channels or (256 if block is BottleneckBlock else 64)
    stages, in_channels = [], stem_channels
    for stage, num_blocks in enumerate(blocks_per_stage[: last_stage - 1]):
        kwargs: dict[str, Any] = {"norm": norm}
        if block is BottleneckBlock:
            kwargs.update(
                bottleneck_channels=bottleneck_channels * 2**stage, num_groups=num_groups, stride_in_1x1=stride_in_1x1
            )
        stages.append(
            ResNet.make_stage(
                block,
                num_blocks,
                stride_per_block=[1 if stage == 0 else 2] + [1] * (num_blocks - 1),
                in_channels=in_channels,
                out_channels=channels,
                **kwargs,
            )
        )
        in_channels, channels = channels, channels * 2
    return stages


@BACKBONE_REGISTRY.register()
def build_irstd_resnet_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> IRSTDResNet:
    """Build a ResNet from ``MODEL.RESNETS`` (depths 10 to 152, any width) and ``MODEL.BACKBONE.FREEZE_AT``."""
    resnets = cfg.MODEL.RESNETS
    if any(resnets.DEFORM_ON_PER_STAGE) or resnets.RES5_DILATION != 1:
        raise ConfigError("MODEL.RESNETS.DEFORM_ON_PER_STAGE and RES5_DILATION are not offered by this backbone")
    basic = STAGES.get(resnets.DEPTH, (BasicBlock,))[0] is BasicBlock
    # detectron2's default of 256 belongs to bottlenecks; basic blocks have a quarter of it.
    res2_channels = 64 if basic and resnets.RES2_OUT_CHANNELS == 256 else resnets.RES2_OUT_CHANNELS
    stage_of = {"stem": 1, "res2": 2, "res3": 3, "res4": 4, "res5": 5}
    check_known("MODEL.RESNETS.OUT_FEATURES", resnets.OUT_FEATURES, stage_of)
    stages = make_stages(
        resnets.DEPTH,
        stem_channels=resnets.STEM_OUT_CHANNELS,
        res2_channels=res2_channels,
        bottleneck_channels=resnets.NUM_GROUPS * resnets.WIDTH_PER_GROUP,
        num_groups=resnets.NUM_GROUPS,
        stride_in_1x1=resnets.STRIDE_IN_1X1,
        norm=resnets.NORM,
        last_stage=max(stage_of[name] for name in resnets.OUT_FEATURES),
    )
    return IRSTDResNet(
        BasicStem(input_shape.channels, resnets.STEM_OUT_CHANNELS, norm=resnets.NORM),
        stages,
        out_features=resnets.OUT_FEATURES,
        freeze_at=cfg.MODEL.BACKBONE.FREEZE_AT,
        norm_eval=resnets.NORM_EVAL,
        norm_trainable=resnets.NORM_TRAINABLE,
    )
