"""Multi-modal dynamic modulation: channel and edge-like spatial gains, predicted per image (Sec. 3.3).

N images, C channels, H x W cells.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from irstd_d2.errors import ConfigError, check_known
from irstd_d2.modeling.fast_paths import in_graph

from .dynamic_mlp import DynamicMLP

NUM_TAPS = 8  # four neighbours for each of the two pooled maps
MODES = ("parallel", "channel", "spatial", "channel_spatial", "spatial_channel")


def build_edge_kernels(taps: Tensor, order: str = "up_down_left_right") -> Tensor:
    """Build kernels with zero corners and zero sum from their four outer taps (Eqs. 10, 11): (N, 8) -> (N, 2, 3, 3).

    Of the taps four are for the kernel of the first map, then four for the second; the published code has the order
    "up_down_left_right", the paper "up_left_right_down".
    """
    taps = taps.unflatten(1, (2, 4))
    tap = dict(zip(order.split("_"), taps.unbind(dim=2)))
    centre, zero = -taps.sum(dim=2), torch.zeros_like(taps[:, :, 0])
    rows = [zero, tap["up"], zero, tap["left"], centre, tap["right"], zero, tap["down"], zero]
    return torch.stack(rows, dim=2).unflatten(2, (3, 3))


def apply_edge_kernels(maps: Tensor, kernels: Tensor) -> Tensor:
    """Correlate each image's maps with its own kernels and sum over the maps (Eq. 12), zero padded.

    (N, 2, H, W) and (N, 2, 3, 3) -> (N, 1, H, W)
    """
    if in_graph():
        return _sum_of_shifted(maps, kernels)
    # One group per image.
    num_images = maps.shape[0]
    return F.conv2d(maps.flatten(0, 1)[None], kernels, padding=1, groups=num_images).transpose(0, 1)


def _sum_of_shifted(maps: Tensor, kernels: Tensor) -> Tensor:
    """``apply_edge_kernels`` as a sum over shifted maps: a convolution in a graph has a fixed number of groups."""
    height, width = maps.shape[-2:]
    padded = F.pad(maps, (1, 1, 1, 1))
    total = torch.zeros_like(maps[:, :1])
    for dy in range(3):
        for dx in range(3):
            weight = kernels[:, :, dy, dx, None, None]
            shifted = padded[:, :, dy : dy + height, dx : dx + width]
            total = total + (shifted * weight).sum(dim=1, keepdim=True)
    return total


class ChannelPool(torch.autograd.Function):
    """Mean and maximum over the channels; the gradient of a maximum goes to the first channel that has it."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        """Map (N, C, H, W) to (N, 2, H, W)."""
        highest, index = x.max(dim=1)
        ctx.save_for_backward(x, index)
        return torch.stack([x.mean(dim=1), highest], dim=1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        x, index = ctx.saved_tensors
        by_mean, by_highest = grad.split(1, dim=1)
        return torch.empty_like(x).copy_(by_mean / x.shape[1]).scatter_add_(1, index[:, None], by_highest)


class SumOfGains(torch.autograd.Function):
    """x * (spatial + channel) without the map of the sum, and with one product for both gradients."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, spatial: Tensor, channel: Tensor) -> Tensor:
        """Multiply (N, C, H, W) by the sum of (N, 1, H, W) and (N, C, 1, 1)."""
        ctx.save_for_backward(x, spatial, channel)
        return (x * spatial).addcmul_(x, channel)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        x, spatial, channel = ctx.saved_tensors
        buffer = grad * x
        by_spatial, by_channel = buffer.sum(dim=1, keepdim=True), buffer.sum(dim=(2, 3), keepdim=True)
        return torch.mul(grad, spatial, out=buffer).addcmul_(grad, channel), by_spatial, by_channel


def _own_gradient() -> bool:
    """Whether the functions with a gradient of their own serve: where there is one, and nothing records operations."""
    return torch.is_grad_enabled() and not in_graph()


def pool_channels(x: Tensor) -> Tensor:
    """Return mean and maximum over the channels: (N, C, H, W) gives (N, 2, H, W)."""
    if _own_gradient():
        return ChannelPool.apply(x)
    return torch.stack([x.mean(dim=1), x.amax(dim=1)], dim=1)


def channel_gain(modulation: Tensor) -> Tensor:
    """Gain of per-sample channel modulation (PSCM): (N, C) in 0..1 gives (N, C, 1, 1) in 1..2."""
    return 1 + modulation[:, :, None, None]


def spatial_gain(x: Tensor, modulation: Tensor, tap_order: str = "up_down_left_right") -> Tensor:
    """Gain of per-sample spatial modulation (PSSM, Eqs. 10-13): (N, C, H, W) -> (N, 1, H, W) in 1..2.

    ``modulation`` (N, 8) and ``tap_order`` as for ``build_edge_kernels``.
    """
    # The kernels sum to zero only in full precision, and two maps cost nothing.
    with torch.autocast(x.device.type, enabled=False):
        maps, kernels = pool_channels(x).float(), build_edge_kernels(modulation.float(), tap_order)
        return (1 + apply_edge_kernels(maps, kernels).sigmoid()).to(x.dtype)


class M2DM(nn.Module):
    """Modulate a feature map by what its auxiliary features say about the image.

    Args:
        channels: C.
        aux_features: A, width of the auxiliary features.
        mode: how PSCM and PSSM combine (Table 3). "parallel" (published): x + PSCM(x) + PSSM(x); "channel" and
            "spatial": x plus that one; "channel_spatial": x + PSSM(PSCM(x)); "spatial_channel": x + PSCM(PSSM(x)).
        tap_order: see ``build_edge_kernels``.
        detach_kernels: the spatial kernels get no gradient, as published.
        dynamic_mlp: further arguments of ``DynamicMLP``.

    Raises:
        ConfigError: for an unknown option, or if nothing would train the modulation.
    """

    def __init__(
        self,
        channels: int,
        aux_features: int,
        *,
        mode: str = "parallel",
        tap_order: str = "up_down_left_right",
        detach_kernels: bool = True,
        **dynamic_mlp: Any,
    ):
        super().__init__()
        check_known("MODEL.AUXDET.M2DM.MODE", mode, MODES)
        check_known("MODEL.AUXDET.M2DM.TAP_ORDER", tap_order, ("up_down_left_right", "up_left_right_down"))
        if mode == "spatial" and detach_kernels:
            raise ConfigError(
                "MODEL.AUXDET.M2DM.MODE 'spatial' with DETACH_KERNELS True trains nothing; set DETACH_KERNELS False"
            )
        self.channels, self.mode, self.tap_order, self.detach_kernels = channels, mode, tap_order, detach_kernels
        # Channel modulation alone needs no projection: the fused vector has one entry per channel already. So counts
        # Table 3, row (c).
        widths = {"channel": None, "spatial": NUM_TAPS}
        out_features = widths.get(mode, channels + NUM_TAPS)
        self.dynamic_mlp = DynamicMLP(channels, aux_features, out_features, **dynamic_mlp)

    def predict_modulation(self, x: Tensor, aux: Tensor) -> Tensor:
        """Return the modulation vectors in 0..1 (Eq. 9): C for the channels, then 8 taps, as the mode needs them."""
        return self.dynamic_mlp(x.mean(dim=(2, 3)), aux).sigmoid()

    def forward(self, x: Tensor, aux: Tensor) -> Tensor:
        """Modulate (N, C, H, W) under (N, A): the same shape."""
        modulation = self.predict_modulation(x, aux).to(x.dtype)
        if self.mode == "channel":
            return x * (1 + channel_gain(modulation))
        channels, taps = modulation[:, :-NUM_TAPS], modulation[:, -NUM_TAPS:]
        if self.detach_kernels:
            taps = taps.detach()
        if self.mode == "channel_spatial":
            inner = x * channel_gain(channels)
            return x + inner * spatial_gain(inner, taps, self.tap_order)
        spatial = spatial_gain(x, taps, self.tap_order)
        if self.mode == "spatial":
            return x * (1 + spatial)
        if self.mode == "spatial_channel":
            return x * (1 + spatial * channel_gain(channels))
        gain = channel_gain(channels)
        if _own_gradient():
            return SumOfGains.apply(x, 1 + spatial, gain)
        return x * (1 + spatial + gain)
