"""3x3 convolutions with a quarter of the multiplications, for inference on a CPU in single precision.

Source: Lavin and Gray, "Fast Algorithms for Convolutional Neural Networks" (CVPR 2016), F(4x4, 3x3): both a tile of
6x6 places and the kernel are polynomials that are evaluated at 6 points in each direction, multiplied there, and
interpolated. The multiplications become 36 matrix products over the channels, which processors do at their full rate.

PyTorch's CPU library convolves directly: at the rate of a matrix product, but with all multiplications.
"""

from __future__ import annotations

from functools import cache, partial
from typing import TypeGuard

import numpy as np
import torch
import torch.nn.functional as F
from detectron2.layers import Conv2d
from torch import Tensor, nn

from ..modeling.fast_paths import eager_on_cpu

OUT, SIDE = 4, 6  # places of a tile in each direction: that come out, and that go in
# Finite points; the sixth is infinity. Of the small ones these round least: 3e-6 of the largest value, against
# 1e-6 of a direct convolution and 9e-6 with the usual 0, 1, -1, 2, -2.
POINTS = (0.0, 1.0, -1.0, 0.5, -2.0)
# With fewer channels the transforms take longer than what they save; with more the kernels at the points, four times
# the weights, take more memory than the gain is worth.
CHANNELS = range(128, 257)
FEWEST_TILES = 16  # below, reading the kernels takes longer than multiplying
TILES_AT_ONCE = 128  # 5 MB for 256 channels: what lies in the caches is read a second time at once


@cache
def _transforms() -> tuple[Tensor, Tensor, Tensor]:
    """Matrices that evaluate a tile (36, 36), evaluate a kernel (6, 3), and interpolate a product (16, 36)."""

    def powers(count: int) -> np.ndarray:
        return np.vstack([np.vander(POINTS, count, increasing=True), np.eye(1, count, count - 1)])

    evaluate, kernel, interpolate = np.linalg.inv(powers(SIDE)).T, powers(3), powers(OUT).T
    largest = np.abs(evaluate).max(1, keepdims=True)
    evaluate, kernel = evaluate / largest, kernel * largest
    tile, product = (np.kron(matrix, matrix) for matrix in (evaluate, interpolate))
    return torch.from_numpy(tile).float(), torch.from_numpy(kernel), torch.from_numpy(product).float()


class WinogradConv2d(nn.Module):
    """A 3x3 convolution that keeps the size, with fewer multiplications on a CPU outside of a graph.

    Elsewhere, and on small maps, it convolves as before.

    Args:
        conv: whose weights are taken over; see ``suits``.
    """

    def __init__(self, conv: nn.Conv2d):
        super().__init__()
        self.weight, self.bias, self.dilation = conv.weight, conv.bias, conv.dilation[0]
        self.norm, self.activation = getattr(conv, "norm", None), getattr(conv, "activation", None)
        kernel = _transforms()[1]
        at_points = torch.einsum("yu,xv,ocuv->yxco", kernel, kernel, conv.weight.detach().cpu().double())
        # No buffer, which an exported file would hold.
        self._by_tiles = partial(_convolve, kernels=at_points.flatten(0, 1).float().contiguous())

    @staticmethod
    def suits(conv: nn.Module) -> TypeGuard[nn.Conv2d]:
        """Whether a module is such a convolution, and one that gets faster."""
        return (
            isinstance(conv, nn.Conv2d)
            and type(conv) in (nn.Conv2d, Conv2d)
            and (conv.kernel_size, conv.stride, conv.groups, conv.padding_mode) == ((3, 3), (1, 1), 1, "zeros")
            and conv.padding == conv.dilation
            and conv.dilation[0] == conv.dilation[1]
            and conv.in_channels in CHANNELS
            and conv.out_channels in CHANNELS
            and conv.weight.dtype == torch.float32
        )

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, O, H, W)"""
        step = self.dilation
        tiles = x.shape[0] * x.shape[2] * x.shape[3] // (OUT * OUT)
        if not eager_on_cpu(x) or x.dtype != torch.float32 or tiles < FEWEST_TILES or torch.is_autocast_enabled("cpu"):
            y = F.conv2d(x, self.weight, self.bias, padding=step, dilation=step)
        else:
            y = self._by_tiles(x, bias=self.bias, step=step)
        if self.norm is not None:
            y = self.norm(y)
        return y if self.activation is None else self.activation(y)


def _convolve(x: Tensor, kernels: Tensor, bias: Tensor | None, step: int) -> Tensor:
    """Convolve (N, C, H, W) with kernels (36, C, O) at the points.

    With a dilation ``step``, places at its distance are an image of their own: ``step`` x ``step`` of them.
    """
    evaluate, _, interpolate = _transforms()
    num_images, channels, height, width = x.shape
    rows, columns = -(-height // (OUT * step)), -(-width // (OUT * step))
    bottom, right = rows * OUT * step - height, columns * OUT * step - width
    x = F.pad(x.permute(0, 2, 3, 1), (0, 0, step, right + step, step, bottom + step)).contiguous()
    along, down, image = channels, x.shape[2] * channels, x.shape[1] * x.shape[2] * channels
    out = x.new_empty(num_images, rows, OUT, step, columns, OUT, step, kernels.shape[2])
    rows_at_once = max(1, TILES_AT_ONCE // (num_images * columns * step * step))
    for first in range(0, rows, rows_at_once):
        count = min(rows_at_once, rows - first)
        tiles = x.as_strided(
            (SIDE, SIDE, num_images, count, step, columns, step, channels),
            (step * down, step * along, image, OUT * step * down, down, OUT * step * along, along, 1),
            first * OUT * step * down,
        )
        points = (evaluate @ tiles.reshape(SIDE * SIDE, -1)).view(SIDE * SIDE, -1, channels)
        products = torch.bmm(points, kernels).view(SIDE * SIDE, -1)
        result = (interpolate @ products).view(OUT, OUT, *tiles.shape[2:-1], -1).permute(2, 3, 0, 4, 5, 1, 6, 7)
        part = out[:, first : first + count]
        if bias is None:
            part.copy_(result)
        else:
            torch.add(result, bias, out=part)
    out = out.view(num_images, height + bottom, width + right, -1)
    return out[:, :height, :width].permute(0, 3, 1, 2)
