"""Large selective kernel: two receptive fields, weighted per position.

Source: BAFE-Net, Eq. 1 to 3, after Li et al., "Large Selective Kernel Network for Remote Sensing Object Detection"
(ICCV 2023).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


class LargeSelectiveKernel(nn.Module):
    """Mix a 5x5 and a 23x23 receptive field by weights that depend on the position.

    Args:
        channels: of input and output; even.
    """

    def __init__(self, channels: int):
        super().__init__()
        half = channels // 2
        self.near = nn.Conv2d(channels, channels, 5, padding=2, groups=channels)
        self.far = nn.Conv2d(channels, channels, 7, padding=9, dilation=3, groups=channels)
        self.reduce_near = nn.Conv2d(channels, half, 1)
        self.reduce_far = nn.Conv2d(channels, half, 1)
        self.select = nn.Conv2d(2, 2, 7, padding=3)
        self.expand = nn.Conv2d(half, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """
        Args:
            x: (N, C, H, W)

        Returns:
            (N, C, H, W)
        """
        near = self.near(x)
        far = self.far(near)
        near, far = self.reduce_near(near), self.reduce_far(far)
        both = torch.cat([near, far], dim=1)
        pooled = torch.cat([both.mean(1, keepdim=True), both.amax(1, keepdim=True)], dim=1)
        weight = self.select(pooled).sigmoid()
        return self.expand(near * weight[:, :1] + far * weight[:, 1:])
