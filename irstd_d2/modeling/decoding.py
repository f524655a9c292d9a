"""From predictions to boxes: operations on whole batches that models and their exported forms share.

Shapes depend on the number of images alone and never on the pixels, so that a traced graph serves every batch.

Letters in shapes: N images, P places of a level, K classes, T chosen ones.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

INVALID = -1.0  # the score of what is not there; below every probability


def top_candidates(scores: Tensor, count: int) -> tuple[Tensor, Tensor, Tensor]:
    """Take the best (place, class) pairs of every image from ``scores`` (N, P, K), not below 0.

    Returns:
        Scores (N, T) in descending order, ``INVALID`` where there are fewer pairs than ``count`` (T), places (N, T) and
        classes (N, T); place and class of an invalid entry are those of some other pair.
    """
    num_classes = scores.shape[2]
    flat = scores.flatten(1)
    best, index = F.pad(flat, (0, count), value=INVALID).topk(count, dim=1)
    # What was padded lies behind the pairs; it must not be looked up there.
    index = torch.where(best >= 0, index, torch.zeros_like(index))
    place = index.div(num_classes, rounding_mode="floor")
    return best, place, index - place * num_classes


def take(values: Tensor, index: Tensor) -> Tensor:
    """Look up rows: (N, P, C) at (N, T) gives (N, T, C)."""
    return values.gather(1, index[..., None].expand(-1, -1, values.shape[2]))


def clip_boxes(boxes: Tensor, image_size: Tensor) -> Tensor:
    """Clip (N, T, 4) boxes to the (height, width) of each image, (N, 2)."""
    limit = image_size.flip(1).repeat(1, 2)[:, None]
    return torch.minimum(boxes.clamp(min=0), limit)


def without_empty(boxes: Tensor, scores: Tensor) -> Tensor:
    """Give boxes (..., 4) without area, or with NaN, the score ``INVALID``: scores (...,).

    A box that was clipped to nothing, as one in the padding of a batch, would otherwise take part in suppression and
    take the place of a detection.
    """
    solid = (boxes[..., 2:] > boxes[..., :2]).all(-1)
    return torch.where(solid, scores, torch.full_like(scores, INVALID))
