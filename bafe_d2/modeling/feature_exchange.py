"""Hard exchange of features between two tasks.

Each task gives its most important channels (or columns of positions) to the other, which puts them in the place of its
own most important ones. Source: BAFE-Net, section IV-B, Eq. 4 to 8; ablations in Tables IV to VIII.

Letters in shapes: N images, C channels, K exchanged channels or columns.
"""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor, nn

from irstd_d2.errors import ConfigError, check_known, check_number

from .large_selective_kernel import LargeSelectiveKernel

Selection = Literal["dynamic", "straight_through", "fixed", "random"]
Mechanism = Literal["channel", "spatial", "channel+spatial", "spatial+channel"]


def top_k_sorted(scores: Tensor, count: int) -> Tensor:
    """Indices of the ``count`` highest scores of each row, in ascending order: (N, R) -> (N, count)."""
    return scores.topk(count, dim=1).indices.sort(dim=1).values


def frozen_draw(size: int, device: torch.device) -> Tensor:
    """Numbers that look random and are the same everywhere: (size,) int64, an integer hash of the position."""
    x = torch.arange(1, size + 1, device=device)
    for _ in range(2):
        x = (x ^ x >> 16) * 0x45D9F3B % 2**32
    return x ^ x >> 16


def halves(both: Tensor) -> tuple[Tensor, Tensor]:
    """Split a batch (2 N, ...) into its halves, as views whose sizes an exporter can follow, unlike ``chunk``."""
    first, second = both.unflatten(0, (2, -1)).unbind(0)
    return first, second


class ChannelAdapter(nn.Module):
    """MLP over the exchanged channels at every position (Table V): K -> ``width`` -> K."""

    def __init__(self, channels: int, width: int):
        super().__init__()
        self.fc1 = nn.Linear(channels, width)
        self.fc2 = nn.Linear(width, channels)

    def forward(self, x: Tensor) -> Tensor:
        """(N, K, H, W) -> (N, K, H, W)"""
        hidden = nn.functional.conv2d(x, self.fc1.weight[:, :, None, None], self.fc1.bias).relu()
        return nn.functional.conv2d(hidden, self.fc2.weight[:, :, None, None], self.fc2.bias)


class FeatureExchange(nn.Module):
    """Exchange the most important channels, columns of positions, or both, between two tasks.

    Args:
        channels: C, of both tasks.
        fraction: p, the share that is exchanged, in (0, 1] (Table VIII).
        mechanism: what is exchanged, and in which order (Table VI).
        selection: how it is chosen (Table VII). ``dynamic`` ranks by a learned mask; the choice is hard, so no
            gradient reaches the mask and, as in the published model, it keeps its initial weights.
            ``straight_through`` gives the same output and lets the mask learn. ``fixed`` takes evenly spaced ones,
            ``random`` draws anew in every training step and keeps one draw in evaluation.
        adapter_width: hidden units of the adapter on exchanged channels (Table V); 0 for none. Columns of positions
            are exchanged as they are, as their number depends on the image.
        rank_stride: channels are ranked by their means over squares of this side, 1 for every position (published).
    """

    def __init__(
        self,
        channels: int,
        *,
        fraction: float = 0.5,
        mechanism: Mechanism = "channel",
        selection: Selection = "dynamic",
        adapter_width: int = 64,
        rank_stride: int = 1,
    ):
        super().__init__()
        if not 0 < fraction <= 1:
            raise ConfigError(f"MODEL.BAFE.EXCHANGE.FRACTION is {fraction}; use a value in (0, 1]")
        check_known("MODEL.BAFE.EXCHANGE.SELECTION", selection, get_args(Selection))
        check_number("MODEL.BAFE.EXCHANGE.ADAPTER_WIDTH", adapter_width, 0)
        check_known("MODEL.BAFE.EXCHANGE.MECHANISM", mechanism, get_args(Mechanism))
        self.fraction, self.selection, self.rank_stride = fraction, selection, rank_stride
        self.steps = mechanism.split("+")
        self.num_exchanged = int(channels * fraction)
        if self.num_exchanged == 0:
            raise ConfigError(
                f"MODEL.BAFE.EXCHANGE.FRACTION is {fraction}, of {channels} channels none; use at least {1 / channels}"
            )
        learned = selection in ("dynamic", "straight_through")
        self.mask = LargeSelectiveKernel(channels) if learned else None
        if self.mask is not None and selection == "dynamic":
            self.mask.requires_grad_(False)
        with_adapter = adapter_width > 0 and "channel" in self.steps
        self.adapter = ChannelAdapter(self.num_exchanged, adapter_width) if with_adapter else None

    def forward(self, first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
        """Features (N, C, H, W) of the two tasks -> the same with exchanged parts."""
        both = torch.cat([first, second])
        for step in self.steps:
            both = self._exchange_channels(both) if step == "channel" else self._exchange_columns(both)
        return halves(both)

    def send(self, sender: Tensor) -> Tensor:
        """The sender's half of ``forward``: what the other task gets, (N, C, H, W) -> (N, K, H, W)."""
        self._check_one_sided()
        index, _ = self._choose(sender, 1, self.num_exchanged)
        sent = sender.flatten(0, 1).index_select(0, _rows(index, sender)).unflatten(0, (index.shape[0], -1))
        return sent if self.adapter is None else self.adapter(sent)

    def receive(self, receiver: Tensor, sent: Tensor) -> Tensor:
        """The receiver's half: ``receive(b, send(a))`` is ``forward(a, b)[1]``, without what ``a`` would get.

        (N, C, H, W) and what was sent, (N, K, H, W), -> (N, C, H, W)
        """
        self._check_one_sided()
        index, importance = self._choose(receiver, 1, self.num_exchanged)
        rows, table, sent = _rows(index, receiver), receiver.flatten(0, 1), sent.flatten(0, 1)
        if importance is not None:
            weight = importance.reshape(-1, 1, 1)
            sent = sent + (weight - weight.detach()) * (sent - table.index_select(0, rows))
        return table.index_copy(0, rows, sent.to(table.dtype)).view_as(receiver)

    def _check_one_sided(self) -> None:
        if self.steps != ["channel"]:
            raise ConfigError(f"one task alone sends or receives channels, not {'+'.join(self.steps)}")

    def importance(self, x: Tensor, dim: int = 1) -> Tensor:
        """Probability of each channel (``dim`` 1) or column (``dim`` 3) of (N, C, H, W) to be exchanged (Eq. 4 and 5).

        Returns:
            (N, size of ``dim``) in float32: at initialisation the probabilities differ by less than bfloat16 resolves.
        """
        if self.mask is None:
            raise RuntimeError(f"{self.selection} selection has no importance")
        if dim == 1 and self.rank_stride > 1:
            x = nn.functional.avg_pool2d(x, self.rank_stride, ceil_mode=True, count_include_pad=False)
        others = [d for d in (1, 2, 3) if d != dim]
        return (x.float() * self.mask(x).float()).mean(others).sigmoid()

    def _exchange_channels(self, both: Tensor) -> Tensor:
        """Exchange channels between the two halves of the batch; here and below (2 N, C, H, W) -> the same."""
        index, importance = self._choose(both, 1, self.num_exchanged)
        if importance is None:
            return _swap_channels(both, index, self.adapter)
        return _swap_halves(both, 1, index, importance, self.adapter)

    def _exchange_columns(self, both: Tensor) -> Tensor:
        index, importance = self._choose(both, 3, max(1, int(both.shape[3] * self.fraction)))
        return _swap_halves(both, 3, index, importance)

    def _choose(self, both: Tensor, dim: int, count: int) -> tuple[Tensor, Tensor | None]:
        """Sorted indices (2 N, count) along ``dim`` and, for straight-through, their importance (2 N, count)."""
        num_rows, size = both.shape[0], both.shape[dim]
        if self.selection == "fixed":
            index = torch.arange(count, device=both.device) * size // count
            return index.expand(num_rows, -1), None
        if self.selection == "random":
            if self.training:
                order = torch.rand(num_rows, size, device=both.device)
            else:
                order = frozen_draw(size, both.device).expand(num_rows, -1)
            return top_k_sorted(order, count), None
        learns = self.selection == "straight_through"
        with torch.set_grad_enabled(learns and torch.is_grad_enabled()):
            importance = self.importance(both, dim)
        index = top_k_sorted(importance, count)
        return index, importance.gather(1, index) if learns else None


def _rows(index: Tensor, x: Tensor) -> Tensor:
    """Channels (N, K) of each image to their rows in the table (N * C, ...) of all channels: (N * K,)."""
    num_images, channels = x.shape[:2]  # not len(), which a trace would keep
    return (index + channels * torch.arange(num_images, device=x.device)[:, None]).flatten()


def _swap_channels(both: Tensor, index: Tensor, adapter: nn.Module | None) -> Tensor:
    """As ``_swap_halves`` along the channels, which are moved as a whole."""
    rows, table = _rows(index, both).view_as(index), both.flatten(0, 1)
    sent = table.index_select(0, rows.flatten()).unflatten(0, (both.shape[0], -1))
    if adapter is not None:
        sent = adapter(sent)
    receivers = torch.cat(halves(rows)[::-1]).flatten()
    return table.index_copy(0, receivers, sent.flatten(0, 1).to(both.dtype)).view_as(both)


def _swap_halves(
    both: Tensor, dim: int, index: Tensor, importance: Tensor | None, adapter: nn.Module | None = None
) -> Tensor:
    """Replace the chosen slices of each half of a batch (2 N, C, H, W) by the chosen slices of the other half.

    ``index`` (2 N, K) are slices of each row along ``dim``, sorted: the k-th receives the other's k-th. ``importance``
    (2 N, K) lets the gradient say whether receiving helped; the values stay as they are. The ``adapter`` is applied to
    what is sent.
    """
    shape = [index.shape[0], 1, 1, 1]
    shape[dim] = -1
    sizes = list(both.shape)
    sizes[dim] = index.shape[1]
    index = index.view(shape).expand(sizes)
    own = both.gather(dim, index)
    sent = own if adapter is None else adapter(own)
    received = torch.cat(halves(sent)[::-1])
    if importance is not None:
        weight = importance.view(shape)
        # The difference is zero in value and carries the gradient of a soft exchange.
        received = received + (weight - weight.detach()) * (received - own)
    return both.scatter(dim, index, received.to(both.dtype))
