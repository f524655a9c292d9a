"""From dense scores to a fixed number of detections per image, for a whole batch and without a Python loop over images.

The shapes depend on the number of images alone and never on the pixels, so that a traced graph serves every batch.

Letters in shapes: N images, P places of a level, K classes, T candidates, D detections.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.ops import nms

from ..modeling.decoding import INVALID


def nms_mask(boxes: Tensor, scores: Tensor, groups: Tensor, num_groups: int, threshold: float) -> Tensor:
    """Mark what non-maximum suppression within each group of each image keeps.

    Args:
        boxes: (N, T, 4) finite.
        scores: (N, T); entries below 0 are not there.
        groups: (N, T) int64, the class or the level of each box.
        num_groups: number of them.
        threshold: IoU.

    Returns:
        (N, T) bool
    """
    present = (scores >= 0).flatten().nonzero()[:, 0]
    image = torch.arange(boxes.shape[0], device=boxes.device)[:, None]
    group = (image * num_groups + groups).flatten()[present]
    # Images and groups lie apart from each other, so that one run serves all. Single precision would lose the last
    # digits of far boxes.
    apart = boxes.detach().amax() - boxes.detach().amin() + 1
    moved = boxes.flatten(0, 1)[present].double() + (group.double() * apart.double())[:, None]
    kept = present[nms(moved, scores.flatten()[present].double(), threshold)]
    return torch.zeros_like(scores).flatten().index_fill(0, kept, 1.0).view_as(scores) > 0


@torch.library.custom_op("irstd_d2::nms_mask", mutates_args=())
def nms_mask_op(boxes: Tensor, scores: Tensor, groups: Tensor, num_groups: int, threshold: float) -> Tensor:
    """``nms_mask`` as one operator, for exporters that cannot look into it."""
    return nms_mask(boxes, scores, groups, num_groups, threshold)


@nms_mask_op.register_fake
def _(boxes: Tensor, scores: Tensor, groups: Tensor, num_groups: int, threshold: float) -> Tensor:  # noqa: ARG001
    return torch.empty_like(scores, dtype=torch.bool)


def keep_best(scores: Tensor, kept: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Take the best D = ``count`` of the scores (N, T) that are kept (N, T).

    Returns:
        Scores (N, D) in descending order, ``INVALID`` behind the last; positions (N, D) among the T.
    """
    masked = torch.where(kept, scores, torch.full_like(scores, INVALID))
    best, index = F.pad(masked, (0, count), value=INVALID).topk(count, dim=1)
    return best, torch.where(best >= 0, index, torch.zeros_like(index))
