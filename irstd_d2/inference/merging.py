"""One set of detections out of those of several views of the same image."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from detectron2.config import CfgNode
from detectron2.layers import batched_nms
from detectron2.modeling import RetinaNet
from detectron2.structures import Boxes, Instances, pairwise_iou
from torch import Tensor, nn


def nms_thresh_of(cfg: CfgNode, model: nn.Module) -> float:
    """IoU above which a detector itself takes two detections for one."""
    if hasattr(model, "roi_heads"):
        return cfg.MODEL.ROI_HEADS.NMS_THRESH_TEST
    inner = getattr(model, "model", model)  # of a model that is wrapped
    return cfg.MODEL.RETINANET.NMS_THRESH_TEST if isinstance(inner, RetinaNet) else cfg.MODEL.FCOS.NMS_THRESH_TEST


def merge_views(views: Sequence[Instances], threshold: float, *, vote: bool) -> Instances:
    """Merge the detections of all views, in pixels of the same image, best first.

    Of detections of a class whose IoU is above ``threshold`` the best is kept, as in detectron2. With ``vote`` every
    other detection then joins the one that it overlaps most. The box becomes the mean of its members, weighted by score
    (box voting, Gidaris and Komodakis, ICCV 2015), and the score the mean over all views of the best member of each, 0
    for a view without one (weighted boxes fusion, Solovyev et al., 2021). So boxes get finer than the pixels of one
    view, and what one view alone sees loses against what all see.
    """
    views = [view[view.pred_boxes.nonempty()] for view in views]
    found = Instances.cat(views)
    kept = batched_nms(found.pred_boxes.tensor, found.scores, found.pred_classes, threshold)
    merged = found[kept]
    if not vote or not len(kept):
        return merged
    source = torch.cat([torch.full_like(view.pred_classes, i) for i, view in enumerate(views)])
    merged.pred_boxes, merged.scores = _average(found, kept, source, len(views))
    return merged[merged.scores.argsort(descending=True, stable=True)]


def _average(found: Instances, kept: Tensor, source: Tensor, num_views: int) -> tuple[Boxes, Tensor]:
    """Average D detections, ``source`` (D,) the view of each, around the K kept ones: boxes (K, 4), scores (K,)."""
    boxes, scores, classes = found.pred_boxes.tensor, found.scores, found.pred_classes
    count = len(kept)
    overlap = pairwise_iou(Boxes(boxes[kept]), found.pred_boxes)
    target = overlap.masked_fill(classes[kept, None] != classes, -1).argmax(0)
    target[kept] = torch.arange(count, device=kept.device)
    weights = scores.clamp(min=torch.finfo(scores.dtype).tiny)[:, None]
    total = weights.new_zeros(count, 1).index_add_(0, target, weights)
    mean = boxes.new_zeros(count, 4).index_add_(0, target, boxes * weights) / total
    best = scores.new_zeros(count * num_views).scatter_reduce_(0, target * num_views + source, scores, "amax")
    return Boxes(mean), best.view(count, num_views).mean(1)
