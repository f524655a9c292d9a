"""AuxDet's box head: detectron2's standard one with the details of the published model."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec
from detectron2.modeling.roi_heads import ROI_HEADS_REGISTRY, StandardROIHeads
from detectron2.modeling.roi_heads.fast_rcnn import fast_rcnn_inference
from detectron2.modeling.sampling import subsample_labels
from detectron2.structures import Boxes, Instances, pairwise_iou
from detectron2.utils.events import get_event_storage
from torch import Tensor

from irstd_d2.errors import ConfigError, check_known
from irstd_d2.modeling.decoding import clip_boxes, without_empty
from irstd_d2.modeling.gaussian_distance import pairwise_nwd
from irstd_d2.modeling.region_pooling import pool_exactly

from .box_transform import BoundedBox2BoxTransform


@ROI_HEADS_REGISTRY.register()
class AuxDetROIHeads(StandardROIHeads):
    """``StandardROIHeads`` with bounded size deltas, ground truth sampled first, and a choice of how boxes match.

    ``MODEL.ROI_BOX_HEAD.CLS_LOSS_WEIGHT`` weighs the classification loss. The ground-truth boxes stand before the
    proposals, not behind them; this matters only to a sampler that is not random. For the matcher, ``similarity`` is of
    M targets and A proposals, (M, A), 0 or above; ``sampler`` draws from labels as detectron2's ``subsample_labels``.
    """

    @configurable
    def __init__(
        self,
        *,
        similarity: Callable[[Boxes, Boxes], Tensor] = pairwise_iou,
        sampler: Callable[[Tensor, int, float, int], tuple[Tensor, Tensor]] = subsample_labels,
        **roi_heads: Any,
    ):
        super().__init__(**roi_heads)
        pool_exactly(self)
        self.similarity, self.sampler = similarity, sampler
        # Here, and not once more by detectron2.
        self.targets_first: bool = self.proposal_append_gt
        self.proposal_append_gt: bool = False

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: Mapping[str, ShapeSpec]) -> dict[str, Any]:
        match_by, scale = cfg.MODEL.ROI_HEADS.MATCH_BY, cfg.MODEL.NWD_SCALE
        check_known("MODEL.ROI_HEADS.MATCH_BY", match_by, ("iou", "nwd"))
        if scale <= 0:
            raise ConfigError(f"MODEL.NWD_SCALE is {scale}; it must be positive")
        result = super().from_config(cfg, input_shape)
        result["similarity"] = pairwise_iou if match_by == "iou" else partial(pairwise_nwd, scale=scale)
        predictor = result["box_predictor"]
        predictor.box2box_transform = BoundedBox2BoxTransform(cfg.MODEL.ROI_BOX_HEAD.BBOX_REG_WEIGHTS)
        predictor.loss_weight["loss_cls"] = cfg.MODEL.ROI_BOX_HEAD.CLS_LOSS_WEIGHT
        return result

    def _forward_box(self, features: dict[str, Tensor], proposals: list[Instances]) -> Any:
        """Detect as ``StandardROIHeads``, but a box that is clipped to no area takes no place of a detection."""
        if self.training:
            return super()._forward_box(features, proposals)
        levels = [features[name] for name in self.box_in_features]
        pooled = self.box_pooler(levels, [image.proposal_boxes for image in proposals])
        predictor = self.box_predictor
        predictions = predictor(self.box_head(pooled))
        boxes, scores = predictor.predict_boxes(predictions, proposals), predictor.predict_probs(predictions, proposals)
        sizes = [image.image_size for image in proposals]
        solid = [_score_solid(*image) for image in zip(boxes, scores, sizes)]
        thresholds = predictor.test_score_thresh, predictor.test_nms_thresh, predictor.test_topk_per_image
        return fast_rcnn_inference(boxes, solid, sizes, *thresholds)[0]

    @torch.no_grad()
    def label_and_sample_proposals(self, proposals: list[Instances], targets: list[Instances]) -> list[Instances]:
        """Label and sample the ground-truth boxes and proposals of each image; see detectron2's ``ROIHeads``."""
        if self.targets_first:
            proposals = [_targets_first(t, p) for t, p in zip(targets, proposals)]
        sampled = [self._label_and_sample(p, t) for p, t in zip(proposals, targets)]
        classes = torch.cat([instances.gt_classes for instances in sampled])
        background = int((classes == self.num_classes).sum())
        storage = get_event_storage()
        storage.put_scalar("roi_head/num_fg_samples", (len(classes) - background) / len(sampled))
        storage.put_scalar("roi_head/num_bg_samples", background / len(sampled))
        return sampled

    def _label_and_sample(self, proposals: Instances, targets: Instances) -> Instances:
        """One image of ``label_and_sample_proposals``."""
        matches, labels = self.proposal_matcher(self.similarity(targets.gt_boxes, proposals.proposal_boxes))
        classes = torch.full_like(matches, self.num_classes)
        if len(targets):
            classes = targets.gt_classes[matches].where(labels == 1, classes)
            classes[labels == -1] = -1
        drawn = torch.cat(self.sampler(classes, self.batch_size_per_image, self.positive_fraction, self.num_classes))
        sampled = proposals[drawn]
        sampled.gt_classes = classes[drawn]
        if len(targets):
            for name, value in targets.get_fields().items():
                if name.startswith("gt_") and not sampled.has(name):
                    sampled.set(name, value[matches[drawn]])
        return sampled


def _score_solid(boxes: Tensor, scores: Tensor, size: tuple[int, int]) -> Tensor:
    """Scores (R, K + 1), below every threshold for boxes (R, 4) or (R, 4 K) without area in an image of ``size``."""
    clipped = clip_boxes(boxes.unflatten(1, (-1, 4)), boxes.new_tensor([size]))
    classes = scores[:, :-1]
    return torch.cat([without_empty(clipped.expand(-1, classes.shape[1], -1), classes), scores[:, -1:]], dim=1)


def _targets_first(targets: Instances, proposals: Instances) -> Instances:
    known = Instances(proposals.image_size)
    known.proposal_boxes = Boxes(targets.gt_boxes.tensor)
    known.objectness_logits = proposals.objectness_logits.new_ones(len(targets))
    rest = Instances(proposals.image_size)
    rest.proposal_boxes, rest.objectness_logits = proposals.proposal_boxes, proposals.objectness_logits
    return Instances.cat([known, rest])
