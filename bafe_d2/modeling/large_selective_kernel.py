"""Large selective kernel: two receptive fields, weighted per position.

Source: BAFE-Net, Eq. 1 to 3, after Li et al., "Large Selective Kernel Network for Remote Sensing Object Detection"
(ICCV 2023).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from irstd_d2.modeling.fast_paths import eager_on_cpu


class DilatedDepthwiseConv(nn.Conv2d):
    """Depthwise convolution with dilation, in cells, and an odd kernel that keeps the size.

    CPU libraries have fast kernels for depthwise convolutions without dilation alone. Cells at a distance of the
    dilation never meet: on a CPU every such sub-grid is convolved as an image of its own, without dilation.
    """

    def __init__(self, channels: int, kernel_size: int, dilation: int):
        padding = dilation * (kernel_size // 2)
        super().__init__(channels, channels, kernel_size, padding=padding, dilation=dilation, groups=channels)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, C, H, W)"""
        return self.convolve_sub_grids(x) if eager_on_cpu(x) else super().forward(x)

    def convolve_sub_grids(self, x: Tensor) -> Tensor:
        """As ``forward``; the same sums in another order."""
        step, channels = self.dilation[0], x.shape[1]
        num_images, _, height, width = x.shape
        rows, columns = -(-height // step), -(-width // step)
        reach, bottom, right = self.kernel_size[0] // 2, rows * step - height, columns * step - width
        # Zeros behind the last row and column are what the convolution would see there.
        if x.is_contiguous(memory_format=torch.channels_last):  # whole rows of channels are copied
            grids = F.pad(x.permute(0, 2, 3, 1), (0, 0, 0, right, 0, bottom))
            grids = grids.reshape(num_images, rows, step, columns, step, channels).permute(2, 4, 0, 1, 3, 5)
            grids = grids.flatten(0, 2).permute(0, 3, 1, 2)
        else:
            grids = F.pad(x, (0, right, 0, bottom)).view(num_images, channels, rows, step, columns, step)
            grids = grids.permute(3, 5, 0, 1, 2, 4).flatten(0, 2)
        result = F.conv2d(grids, self.weight, self.bias, padding=reach, groups=channels)
        result = result.unflatten(0, (step, step, num_images))
        if x.is_contiguous(memory_format=torch.channels_last):
            result = result.permute(2, 4, 0, 5, 1, 3).reshape(num_images, rows * step, columns * step, channels)
            return result[:, :height, :width].permute(0, 3, 1, 2)
        result = result.permute(2, 3, 4, 0, 5, 1)
        return result.reshape(num_images, channels, rows * step, columns * step)[:, :, :height, :width]


class LargeSelectiveKernel(nn.Module):
    """Mix a 5x5 and a 23x23 receptive field by weights that depend on the position; ``channels`` are even."""

    def __init__(self, channels: int):
        super().__init__()
        half = channels // 2
        self.near = nn.Conv2d(channels, channels, 5, padding=2, groups=channels)
        self.far = DilatedDepthwiseConv(channels, 7, dilation=3)
        self.reduce_near = nn.Conv2d(channels, half, 1)
        self.reduce_far = nn.Conv2d(channels, half, 1)
        self.select = nn.Conv2d(2, 2, 7, padding=3)
        self.expand = nn.Conv2d(half, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, C, H, W)"""
        near = self.near(x)
        far = self.far(near)
        near, far = self.reduce_near(near), self.reduce_far(far)
        # Mean and maximum over the channels of both, without a copy of the two side by side.
        mean = (near.mean(1) + far.mean(1)) / 2
        pooled = torch.stack([mean, torch.maximum(near.amax(1), far.amax(1))], dim=1)
        weight = self.select(pooled).sigmoid()
        return self.expand((near * weight[:, :1]).addcmul(far, weight[:, 1:]))
