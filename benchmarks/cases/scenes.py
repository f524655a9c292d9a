"""Inputs that several cases share."""

from __future__ import annotations

from typing import Any

import torch
from detectron2.structures import Boxes, Instances
from torch import Tensor


def small_boxes(count: int, size: int) -> Tensor:
    """(count, 4) targets of 3 to 15 pixels anywhere in a square image."""
    corner = torch.rand(count, 2) * (size - 16)
    return torch.cat([corner, corner + 3 + torch.rand(count, 2) * 12], dim=1)


def sample(size: int, num_targets: int = 13) -> dict[str, Any]:
    """One training sample of noise, with targets, sky and metadata."""
    instances = Instances((size, size))
    instances.gt_boxes = Boxes(small_boxes(num_targets, size))
    instances.gt_classes = torch.zeros(num_targets, dtype=torch.int64)
    return {
        "image": torch.rand(3, size, size) * 255,
        "height": size,
        "width": size,
        "instances": instances,
        "sem_seg": (torch.arange(size) < size // 2).long()[:, None].expand(size, size).contiguous(),
        "metadata": {"platform": "Air", "band": "LWIR", "width": size, "height": size},
    }


def sample_with_context(size: int) -> dict[str, Any]:
    """The same as a crop of a whole image that is enlarged twice, for BAFE-Net with context."""
    sky = torch.zeros(128, 160)
    sky[:64] = 1
    context = {"context": torch.rand(128, 160) * 255, "context_sem_seg": sky, "context_size": (512, 640)}
    return {**sample(size), **context, "context_window": torch.tensor([8.0, 8, 8 + size / 2, 8 + size / 2])}
