"""From predictions to boxes: operations on whole batches that models and their exported forms share.

Letters in shapes: N images, P places, T chosen ones.
"""

from __future__ import annotations

import torch
from torch import Tensor


def take(values: Tensor, index: Tensor) -> Tensor:
    """Look up rows: (N, P, C) at (N, T) gives (N, T, C)."""
    return values.gather(1, index[..., None].expand(-1, -1, values.shape[2]))


def clip_boxes(boxes: Tensor, image_size: Tensor) -> Tensor:
    """Clip (N, T, 4) boxes to the (height, width) of each image, (N, 2)."""
    limit = image_size.flip(1).repeat(1, 2)[:, None]
    return torch.minimum(boxes.clamp(min=0), limit)
