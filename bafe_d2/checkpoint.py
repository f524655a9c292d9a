"""Names of published BAFE-Net and FCOS checkpoints and of this project's models."""

from __future__ import annotations

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


# Modules of the published head that are built but never run: 850,339 parameters.
NEVER_RUN = tuple(
    f"bbox_head.{name}.{{p}}"
    for name in (
        "conv_spatial",
        "conv_squeeze",
        "conv_post",
        "conv_squeeze_tgt",
        "conv_squeeze_bg",
        "conv_mix",
        "conv_reduce",
        "gen_weight",
        "fusion_conv",
        "convs_reg",
    )
)

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
)
