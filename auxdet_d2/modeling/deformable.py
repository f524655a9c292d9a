"""Deformable convolution that is fast on a CPU, forward and above all backward.

torchvision's operator gathers each tap's inputs element by element, and its backward pass computes gradients of the
offsets whether they are wanted or not. Here the convolution is split in two that are fast everywhere: the kernel is a
matrix that acts on every cell, and the taps then gather whole rows of channels, four around each sampled place. Where
the offsets need no gradient none is computed.

N images, C channels in, O out, H x W cells, K = k * k taps.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.ops import deform_conv2d

from irstd_d2.modeling.fast_paths import eager_on_cpu


def bilinear_corners(offsets: Tensor, kernel: int) -> tuple[Tensor, Tensor]:
    """Rows of a (N * H * W, C) table that bilinear sampling needs, and their weights.

    Args:
        offsets: (N, 2 * K, H, W) in cells, y before x for every tap, from the taps of a padded convolution.
        kernel: k, odd.

    Returns:
        (N * H * W, K, 4) int32 rows, and float weights of the same shape, 0 where a corner lies outside the map.
    """
    num_images, _, height, width = offsets.shape
    device, dtype = offsets.device, offsets.dtype
    taps = torch.arange(kernel, device=device, dtype=dtype) - kernel // 2
    place = offsets.unflatten(1, (kernel * kernel, 2)).permute(0, 3, 4, 1, 2)  # (N, H, W, K, 2)
    y = place[..., 0] + taps.repeat_interleave(kernel) + torch.arange(height, device=device, dtype=dtype)[:, None, None]
    x = place[..., 1] + taps.repeat(kernel) + torch.arange(width, device=device, dtype=dtype)[:, None]
    top, left = y.floor(), x.floor()
    down, right = y - top, x - left
    ys, xs = torch.stack([top, top, top + 1, top + 1], -1), torch.stack([left, left + 1, left, left + 1], -1)
    weights = torch.stack([(1 - down) * (1 - right), (1 - down) * right, down * (1 - right), down * right], -1) * (
        (ys >= 0) & (ys < height) & (xs >= 0) & (xs < width)
    )
    # Clamped before it becomes an integer: a wild offset must not overflow.
    rows = ys.clamp(0, height - 1).int() * width + xs.clamp(0, width - 1).int()
    first = torch.arange(num_images, device=device, dtype=torch.int32) * (height * width)
    return (rows + first.view(-1, 1, 1, 1, 1)).flatten(0, 2), weights.flatten(0, 2)


def deformable_conv2d_by_rows(x: Tensor, offsets: Tensor, weight: Tensor) -> Tensor:
    """Deformable convolution of stride 1 that keeps the size, by gathering rows of channels.

    Args:
        x: (N, C, H, W)
        offsets: (N, 2 * K, H, W), see ``bilinear_corners``.
        weight: (O, C, k, k)

    Returns:
        (N, O, H, W), as ``torchvision.ops.deform_conv2d`` with a padding of k // 2.
    """
    num_images, channels, height, width = x.shape
    kernel = weight.shape[-1]
    rows, weights = bilinear_corners(offsets, kernel)
    table = x.permute(0, 2, 3, 1).reshape(-1, channels)
    tap = torch.arange(kernel, device=x.device, dtype=torch.int32)[:, None]
    result = table.new_zeros(())
    # One row of the kernel at a time: as fast as all at once, in a k-th of the memory.
    for number, kernel_row in enumerate(weight.unbind(2)):
        taps = slice(number * kernel, (number + 1) * kernel)
        products = (table @ kernel_row.permute(1, 2, 0).flatten(1)).view(-1, weight.shape[0])
        result = result + F.embedding_bag(
            (rows[:, taps] * kernel + tap).flatten(1),
            products,
            per_sample_weights=weights[:, taps].flatten(1),
            mode="sum",
        )
    return result.view(num_images, height, width, -1).permute(0, 3, 1, 2)


def deformable_conv2d(x: Tensor, offsets: Tensor, weight: Tensor) -> Tensor:
    """``deformable_conv2d_by_rows`` by the faster way of the device.

    A model that is compiled, traced or exported keeps torchvision's operator, which other run times know.
    """
    if eager_on_cpu(x):
        return deformable_conv2d_by_rows(x, offsets, weight)
    # A number, where tracing has a tensor for a size.
    return deform_conv2d(x, offsets, weight, padding=int(weight.shape[-1]) // 2)
