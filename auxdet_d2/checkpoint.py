"""Names of published AuxDet and Cascade RPN checkpoints and of this project's models."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from irstd_d2.checkpoint import NameMap, fpn_rules, resnet_rules


def neck_rules(stages: Sequence[str] = ("res2", "res3")) -> list[tuple[str, str]]:
    """Rules for the neck with M2DM and LEEM on ``stages``."""
    refinement, meta = "backbone.refinement", "neck.meta_process_with_sem"
    rules = fpn_rules(2, 4)
    for i, stage in enumerate(stages):
        mlp, ours = f"neck.dynamic_atts.{i}.loc_att", f"{refinement}.m2dm.{stage}.dynamic_mlp"
        leem = f"{refinement}.leem.{stage}"
        rules += [
            (f"neck.downsamples.{i}.{{p}}", f"{refinement}.detail.{stage}.conv.{{p}}"),
            (f"{mlp}.conv1.{{p}}", f"{ours}.reduce.{{p}}"),
            (f"{mlp}.conv2.{{k}}.dynamic_conv.get_weight.{{p}}", f"{ours}.layers.{{k}}.weights.{{p}}"),
            (f"{mlp}.conv2.{{k}}.dynamic_conv.norm.{{p}}", f"{ours}.layers.{{k}}.norm.{{p}}"),
            (f"{mlp}.conv3.{{p}}", f"{ours}.expand.{{p}}"),
            (f"{mlp}.norm3.{{p}}", f"{ours}.expand_norm.{{p}}"),
            (f"{mlp}.conv4.{{p}}", f"{ours}.project.{{p}}"),
            (f"{mlp}.norm4.{{p}}", f"{ours}.project_norm.{{p}}"),
            (f"neck.edge_convs.{i}.alpha", f"{leem}.response_gate"),
            (f"neck.edge_convs.{i}.beta", f"{leem}.scale"),
            (f"neck.edge_convs.{i}.conv_vert.{{p}}", f"{leem}.vertical.{{p}}"),
            (f"neck.edge_convs.{i}.conv_hori.{{p}}", f"{leem}.horizontal.{{p}}"),
        ]
    fields = {"view_mlp": "fields.platform", "band_mlp": "fields.band", "size_mlp": "fields.size", "sem_mlp": "visual"}
    for published, ours in fields.items():
        rules += [
            (f"{meta}.{published}.0.{{p}}", f"{refinement}.encoder.{ours}.linear.{{p}}"),
            (f"{meta}.{published}.2.{{p}}", f"{refinement}.encoder.{ours}.norm.{{p}}"),
        ]
    return [
        *rules,
        (f"{meta}.aux_fusion_mlp.w{{k}}.{{p}}", f"{refinement}.encoder.metadata_fusion.0.fc{{k}}.{{p}}"),
        (f"{meta}.fusion_mlp.{{i}}.w{{k}}.{{p}}", f"{refinement}.encoder.fusion.{{i}}.fc{{k}}.{{p}}"),
        ("neck.mlp.0.{p}", f"{refinement}.gate.hidden.{{p}}"),
        ("neck.mlp.2.{p}", f"{refinement}.gate.score.{{p}}"),
    ]


def detector_rules() -> list[tuple[str, str]]:
    """Rules for the two-stage proposal head and the box head."""
    rpn, box = "rpn_head.stages", "roi_head.bbox_head"
    return [
        (f"{rpn}.{{i}}.rpn_conv.conv.{{p}}", "proposal_generator.stages.{i}.conv.{p}"),
        (f"{rpn}.{{i}}.rpn_reg.{{p}}", "proposal_generator.stages.{i}.deltas.{p}"),
        (f"{rpn}.{{i}}.rpn_cls.{{p}}", "proposal_generator.stages.{i}.logits.{p}"),
        (f"{box}.fc_cls.{{p}}", "roi_heads.box_predictor.cls_score.{p}"),
        (f"{box}.fc_reg.{{p}}", "roi_heads.box_predictor.bbox_pred.{p}"),
        (f"{box}.shared_fcs.0.{{p}}", "roi_heads.box_head.fc1.{p}"),
        (f"{box}.shared_fcs.1.{{p}}", "roi_heads.box_head.fc2.{p}"),
    ]


def _leem_constants(published: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The constant of LEEM's normalisation, a buffer of the published model beside every scale."""
    scales = [name for name in published if name.startswith("neck.edge_convs.") and name.endswith(".beta")]
    return {name.removesuffix("beta") + "epsilon": torch.tensor(1e-5) for name in scales}


AUXDET_NAMES = NameMap(
    [*resnet_rules(), *neck_rules(), *detector_rules()],
    dropped=("neck.edge_convs.{i}.epsilon",),
    restore=_leem_constants,
)

# The baseline: a plain pyramid whose fifth output is one more convolution.
CASCADE_RPN_NAMES = NameMap(
    [*resnet_rules(), *fpn_rules(2, 4), ("neck.fpn_convs.4.conv.{p}", "backbone.top_block.p6.{p}"), *detector_rules()]
)
