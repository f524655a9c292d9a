"""The context stream: background features and sky of the whole image, sampled where a detector looks.

Letters in shapes: N images, C channels of the context, (A, B) size of the context, (h, w) of a level.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from detectron2.config import CfgNode, configurable
from detectron2.layers import Conv2d, get_norm
from torch import Tensor, nn
from torch.nn import functional as F

from ..data.context import IGNORED, fit


class Context(NamedTuple):
    """A batch of contexts.

    Attributes:
        image: (N, 1, A, B), each standardised, zero where ``valid`` is not.
        valid: (N, 1, A, B) bool; contexts of other aspect ratios leave a margin at the right or at the bottom.
        window: (N, 4) what each network input shows, in pixels of the context: left, top, right, bottom.
    """

    image: Tensor
    valid: Tensor
    window: Tensor


class ContextEncoder(nn.Module):
    """A small encoder-decoder over the whole image with a pooled global term.

    Infrared images have no common scale, so each context is standardised by its own mean and deviation.

    Args:
        size: (A, B) of the context; multiples of 16.
        channels: of the four scales, from stride 2 to stride 16. The first is that of the features.
        norm: of the convolutions.
    """

    @configurable
    def __init__(
        self, *, size: Sequence[int] = (128, 160), channels: Sequence[int] = (16, 32, 48, 64), norm: str = "BN"
    ):
        super().__init__()
        self.size = (int(size[0]), int(size[1]))
        self.out_channels = channels[0]
        widths = [1, *channels]
        self.down = nn.ModuleList(
            nn.Sequential(_conv(a, b, norm, stride=2), _conv(b, b, norm)) for a, b in zip(widths, channels)
        )
        self.pooled = nn.Linear(channels[-1], channels[-1])
        pairs = list(zip(channels[1:], channels))[::-1]
        self.up = nn.ModuleList(_conv(deep + skip, skip, norm) for deep, skip in pairs)
        self.sky = nn.Conv2d(channels[0], 1, 3, padding=1)

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        keys = cfg.MODEL.BAFE.CONTEXT
        return {"size": keys.SIZE, "channels": keys.CHANNELS, "norm": keys.NORM}

    def forward(self, context: Context) -> tuple[Tensor, Tensor]:
        """
        Returns:
            features (N, C, A / 2, B / 2), logits of sky (N, 1, A / 2, B / 2)
        """
        scales, x = [], context.image
        for stage in self.down:
            x = stage(x)
            scales.append(x)
        x = x + self.pooled(x.mean((2, 3)))[:, :, None, None]
        for merge, skip in zip(self.up, scales[-2::-1]):
            x = merge(
                torch.cat([F.interpolate(x, size=skip.shape[-2:], mode="bilinear", align_corners=False), skip], 1)
            )
        return x, self.sky(x)

    def batch(
        self, samples: Sequence[dict[str, Any]], images: Tensor, image_sizes: Sequence[tuple[int, int]]
    ) -> Context:
        """Gather the contexts of a batch; a sample without ``context`` shows the whole image itself.

        Args:
            samples: see ``bafe_d2.data.context``.
            images: (N, 3, H, W) of the batch, in any linear scale.
            image_sizes: (height, width) of each without padding.
        """
        canvas = images.new_zeros(len(samples), 1, *self.size)
        valid = torch.zeros_like(canvas, dtype=torch.bool)
        windows = []
        for i, (sample, (height, width)) in enumerate(zip(samples, image_sizes)):
            whole = sample.get("context_size", (height, width))
            window = sample.get("context_window", (0, 0, width, height))
            if "context" in sample:
                small = sample["context"].to(images)
            else:
                gray = images[i : i + 1, :, :height, :width].mean(1, keepdim=True)
                small = F.interpolate(gray, size=fit((height, width), self.size), mode="area")[0, 0]
            rows, columns = small.shape
            small = small - small.mean()
            canvas[i, 0, :rows, :columns] = small / small.std(unbiased=False).clamp_min(1e-3)
            valid[i, 0, :rows, :columns] = True
            scale = torch.tensor([columns / whole[1], rows / whole[0]] * 2, dtype=torch.float32)
            windows.append(torch.as_tensor(window, dtype=torch.float32).cpu() * scale)
        return Context(canvas, valid, torch.stack(windows).to(canvas.device))


def sample_context(
    maps: Tensor, window: Tensor, size: tuple[int, int], stride: int, image_sizes: Tensor, context_size: tuple[int, int]
) -> Tensor:
    """Read maps of the context at the points of one level, bilinearly; at its edge beyond it.

    Args:
        maps: (N, C, ...) that cover the context.
        window: (N, 4) see ``Context``.
        size: (h, w) of the level.
        stride: network pixels per point.
        image_sizes: (N, 2) height and width of the network inputs without padding.
        context_size: (A, B)

    Returns:
        (N, C, h, w)
    """
    grids = []
    for axis, count in ((0, size[1]), (1, size[0])):  # x, y
        place = (torch.arange(count, device=maps.device) + 0.5) * stride / image_sizes[:, 1 - axis, None]
        low, high = window[:, axis, None], window[:, axis + 2, None]
        grids.append((low + place * (high - low)) * (2 / context_size[1 - axis]) - 1)
    x, y = grids
    grid = torch.stack([x[:, None, :].expand(-1, size[0], -1), y[:, :, None].expand(-1, -1, size[1])], dim=-1)
    sampled = F.grid_sample(maps, grid.to(maps.dtype), mode="bilinear", padding_mode="border", align_corners=False)
    return sampled.contiguous(memory_format=torch.channels_last)


def stack_context_masks(samples: Sequence[dict[str, Any]], context: Context) -> Tensor:
    """(N, 1, A, B) shares of sky; negative outside the contexts, and for samples without ``context_sem_seg``."""
    stacked = torch.full_like(context.image, IGNORED)
    for target, sample in zip(stacked, samples):
        if "context_sem_seg" in sample:
            mask = sample["context_sem_seg"]
            target[0, : mask.shape[0], : mask.shape[1]] = mask.to(stacked)
    return stacked


def context_sky_loss(logits: Tensor, sky: Tensor) -> Tensor:
    """Binary cross entropy of sky over whole images, in which both classes of the batch weigh the same.

    Args:
        logits: (N, 1, a, b)
        sky: (N, 1, A, B) share of sky in 0..1, negative where ignored.
    """
    logits = F.interpolate(logits.float(), size=sky.shape[-2:], mode="bilinear", align_corners=False)
    counted = sky >= 0
    target = sky.clamp_min(0)
    losses = []
    for share, sign in ((target * counted, 1), ((1 - target) * counted, -1)):
        amount = share.sum()
        losses.append((F.softplus(-sign * logits) * share).sum() / amount.clamp_min(1))
    return torch.stack(losses).sum() / 2


def _conv(c_in: int, c_out: int, norm: str, stride: int = 1) -> nn.Module:
    return Conv2d(
        c_in,
        c_out,
        3,
        padding=1,
        stride=stride,
        bias=not norm,
        norm=get_norm(norm, c_out),
        activation=nn.ReLU(inplace=True),
    )
