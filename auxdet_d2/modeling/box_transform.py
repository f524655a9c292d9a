"""Box regression that bounds shrinking as well as growing."""

from __future__ import annotations

from detectron2.modeling.box_regression import Box2BoxTransform
from torch import Tensor


class BoundedBox2BoxTransform(Box2BoxTransform):
    """detectron2's transform with the size deltas clamped on both sides, to |log(1000 / 16)|."""

    def apply_deltas(self, deltas: Tensor, boxes: Tensor) -> Tensor:
        """(R, 4 K) deltas and (R, 4) boxes -> (R, 4 K)"""
        grouped = deltas.unflatten(1, (-1, 4))
        low_w, low_h = -self.scale_clamp * self.weights[2], -self.scale_clamp * self.weights[3]
        width, height = grouped[..., 2].clamp(min=low_w), grouped[..., 3].clamp(min=low_h)
        bounded = grouped.clone()
        bounded[..., 2], bounded[..., 3] = width, height
        return super().apply_deltas(bounded.view_as(deltas), boxes)
