"""AuxDet's box head: detectron2's standard one with the details of the published model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.modeling.roi_heads import ROI_HEADS_REGISTRY, StandardROIHeads
from detectron2.structures import Boxes, Instances

from .box_transform import BoundedBox2BoxTransform


@ROI_HEADS_REGISTRY.register()
class AuxDetROIHeads(StandardROIHeads):
    """``StandardROIHeads`` whose size deltas are bounded on both sides and whose ground truth is sampled first.

    ``MODEL.ROI_BOX_HEAD.CLS_LOSS_WEIGHT`` weighs the classification loss. The ground-truth boxes stand before the
    proposals, not behind them; this matters only to a sampler that is not random.
    """

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        # Here, and not once more by detectron2.
        self.targets_first: bool = self.proposal_append_gt
        self.proposal_append_gt: bool = False

    @classmethod
    def _init_box_head(cls, cfg: CfgNode, input_shape: Mapping[str, ShapeSpec]) -> dict[str, Any]:
        result = super()._init_box_head(cfg, input_shape)
        predictor = result["box_predictor"]
        predictor.box2box_transform = BoundedBox2BoxTransform(cfg.MODEL.ROI_BOX_HEAD.BBOX_REG_WEIGHTS)
        predictor.loss_weight["loss_cls"] = cfg.MODEL.ROI_BOX_HEAD.CLS_LOSS_WEIGHT
        return result

    @torch.no_grad()
    def label_and_sample_proposals(self, proposals: list[Instances], targets: list[Instances]) -> list[Instances]:
        """Label and sample the ground-truth boxes and proposals of each image; see detectron2's ``ROIHeads``."""
        if not self.targets_first:
            return super().label_and_sample_proposals(proposals, targets)
        known = [_targets_first(t, p) for t, p in zip(targets, proposals)]
        return super().label_and_sample_proposals(known, targets)


def _targets_first(targets: Instances, proposals: Instances) -> Instances:
    known = Instances(proposals.image_size)
    known.proposal_boxes = Boxes(targets.gt_boxes.tensor)
    known.objectness_logits = proposals.objectness_logits.new_ones(len(targets))
    rest = Instances(proposals.image_size)
    rest.proposal_boxes, rest.objectness_logits = proposals.proposal_boxes, proposals.objectness_logits
    return Instances.cat([known, rest])
