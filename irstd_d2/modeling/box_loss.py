"""Box losses of FCOS: overlap, and the distance of Gaussians, which also pulls boxes that do not overlap."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torchvision.ops import complete_box_iou_loss, distance_box_iou_loss, generalized_box_iou_loss

from ..errors import ConfigError, check_known
from .fcos_targets import iou_of_distances, log_iou_loss
from .gaussian_distance import wasserstein_similarity

_OF_CORNERS = {"giou": generalized_box_iou_loss, "diou": distance_box_iou_loss, "ciou": complete_box_iou_loss}
BOX_LOSSES = ("iou", "linear_iou", *_OF_CORNERS)


@dataclass(frozen=True)
class BoxLoss:
    """(1 - nwd_share) x a loss of overlaps + nwd_share x (1 - NWD), for boxes given by their side distances.

    Attributes:
        kind: "iou" (-log IoU), "linear_iou" (1 - IoU), or torchvision's "giou", "diou" or "ciou".
        nwd_share: 0 for overlaps alone, 1 for NWD alone.
        nwd_scale: C of NWD in network pixels; see ``gaussian_distance``.

    Raises:
        ConfigError: for an unknown kind, a share outside 0 to 1, a scale that is not positive.
    """

    kind: str = "iou"
    nwd_share: float = 0.0
    nwd_scale: float = 12.8

    def __post_init__(self) -> None:
        check_known("MODEL.FCOS.BBOX_REG_LOSS_TYPE", self.kind, BOX_LOSSES)
        if not 0 <= self.nwd_share <= 1:
            raise ConfigError(f"MODEL.FCOS.NWD_LOSS_SHARE is {self.nwd_share}; it must lie between 0 and 1")
        if self.nwd_scale <= 0:
            raise ConfigError(f"MODEL.NWD_SCALE is {self.nwd_scale}; it must be positive")

    def __call__(self, predicted: Tensor, target: Tensor) -> Tensor:
        """Loss of each pair of boxes around the same point, (..., 4) side distances each: (...,)."""
        if self.nwd_share == 0:
            return self._of_overlap(predicted, target)
        nwd = 1 - wasserstein_similarity(predicted, target, self.nwd_scale)
        if self.nwd_share == 1:
            return nwd
        return torch.lerp(self._of_overlap(predicted, target), nwd, self.nwd_share)

    def _of_overlap(self, predicted: Tensor, target: Tensor) -> Tensor:
        if self.kind == "iou":
            return log_iou_loss(predicted, target)
        if self.kind == "linear_iou":
            return 1 - iou_of_distances(predicted, target)
        return _OF_CORNERS[self.kind](_corners(predicted), _corners(target))


def _corners(distances: Tensor) -> Tensor:
    """Side distances (..., 4) as boxes around the origin."""
    return torch.cat([-distances[..., :2], distances[..., 2:]], dim=-1)
