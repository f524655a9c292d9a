"""Names of published BAFE-Net and FCOS checkpoints and of this project's models."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from irstd_d2.checkpoint import NameMap, fpn_rules, resnet_rules


def large_kernel_rules(published: str, ours: str) -> list[tuple[str, str]]:
    """Rules for one large-selective-kernel block."""
    names = {
        "conv0": "near",
        "conv_spatial": "far",
        "conv1": "reduce_near",
        "conv2": "reduce_far",
        "conv_squeeze": "select",
        "conv": "expand",
    }
    return [(f"{published}.{a}.{{p}}", f"{ours}.{b}.{{p}}") for a, b in names.items()]


def _tower_rules(published: str, ours: str) -> list[tuple[str, str]]:
    return [
        (f"bbox_head.{published}.{{i}}.gn.{{p}}", f"head.{ours}.{{i}}.norm.{{p}}"),
        (f"bbox_head.{published}.{{i}}.conv.{{p}}", f"head.{ours}.{{i}}.{{p}}"),
    ]


# Layers of the published head that are built but never run, 850,339 parameters: name -> shape of the weight. Some have
# a norm, of which the name is given, in place of or beside a bias.
_NEVER_RUN = {
    "conv_spatial": (256, 1, 3, 3),
    "conv_squeeze": (1, 2, 3, 3),
    "conv_post": (256, 256, 1, 1),
    "conv_squeeze_tgt.conv": (128, 256, 1, 1),
    "conv_squeeze_bg.conv": (128, 256, 1, 1),
    "conv_mix.conv": (256, 256, 1, 1),
    "conv_reduce.conv": (64, 256, 1, 1),
    "gen_weight.conv": (144, 64, 1, 1),
    "fusion_conv.conv": (128, 256, 1, 1),
    "convs_reg.0.layer.0": (128, 256, 3, 3),
    "convs_reg.1.layer.0": (256, 128, 3, 3),
}
_BATCH_NORMS = {
    **{f"{name}.bn": f"{name}.conv" for name in ("conv_squeeze_tgt", "conv_squeeze_bg", "conv_mix", "conv_reduce")},
    **{f"convs_reg.{i}.layer.1": f"convs_reg.{i}.layer.0" for i in range(2)},
}
_WITHOUT_BIAS = (
    "conv_squeeze_tgt.conv",
    "conv_squeeze_bg.conv",
    "conv_mix.conv",
    "conv_reduce.conv",
    "fusion_conv.conv",
)
NEVER_RUN = tuple(f"bbox_head.{name}.{{p}}" for name in dict.fromkeys(name.partition(".")[0] for name in _NEVER_RUN))


def _never_run(published: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The layers that never run, as zeros, for a head of the published width."""
    kernel = published.get("bbox_head.LSKModule.conv0.weight")
    if kernel is None or len(kernel) != 256:
        return {}
    state: dict[str, Tensor] = {}
    for name, shape in _NEVER_RUN.items():
        state[f"{name}.weight"] = torch.zeros(shape)
        if name not in _WITHOUT_BIAS:
            state[f"{name}.bias"] = torch.zeros(shape[0])
    for norm, layer in (_BATCH_NORMS | {"fusion_conv.gn": "fusion_conv.conv"}).items():
        width = _NEVER_RUN[layer][0]
        state |= {f"{norm}.weight": torch.ones(width), f"{norm}.bias": torch.zeros(width)}
        if norm in _BATCH_NORMS:
            state |= {f"{norm}.running_mean": torch.zeros(width), f"{norm}.running_var": torch.ones(width)}
            state[f"{norm}.num_batches_tracked"] = torch.tensor(0)
    return {f"bbox_head.{name}": value for name, value in state.items()}


BAFE_NAMES = NameMap(
    rules=[
        *resnet_rules(),
        *fpn_rules(first_level=3, num_levels=3),
        *_tower_rules("cls_convs", "cls_tower"),
        *_tower_rules("reg_convs", "box_tower"),
        *_tower_rules("seg_convs", "seg_tower"),
        ("bbox_head.conv_cls.{p}", "head.cls_logits.{p}"),
        ("bbox_head.conv_reg.{p}", "head.box_distances.{p}"),
        ("bbox_head.conv_centerness.{p}", "head.centerness.{p}"),
        ("bbox_head.conv_seg.{p}", "head.sky_logits.{p}"),
        ("bbox_head.scales.{i}.scale", "head.scales.{i}"),
        ("bbox_head.convs_cls.{i}.layer.{k}.{p}", "head.cross_task.cls_convs.{i}.{k}.{p}"),
        ("bbox_head.convs_seg.{i}.layer.{k}.{p}", "head.cross_task.seg_convs.{i}.{k}.{p}"),
        ("bbox_head.ChannelEx.mlp.{p}", "head.cross_task.exchange.adapter.{p}"),
        *large_kernel_rules("bbox_head.ChannelEx.attention_mask", "head.cross_task.exchange.mask"),
        *large_kernel_rules("bbox_head.LSKModule", "head.cross_task.large_kernel"),
    ],
    dropped=NEVER_RUN,
    restore=_never_run,
)
