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

from irstd_d2.errors import ConfigError

from ..data.context import IGNORED, area_weights

# Of a context: that of an image of one value is zero.
_LEAST_DEVIATION = 1e-3


class Context(NamedTuple):
    """A batch of contexts.

    Attributes:
        image: (N, 1, A, B), each standardised, zero where ``valid`` is not.
        valid: (N, 1, A, B) bool; contexts of other aspect ratios leave a margin at the right or at the bottom.
        view: (N, 4) where the network's inputs lie in it: x and y of their left top corners and of one step of a pixel
            right and down, in pixels of the context. The steps of a mirrored image are negative.
    """

    image: Tensor
    valid: Tensor
    view: Tensor


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
        """Features (N, C, A / 2, B / 2) and logits of sky (N, 1, A / 2, B / 2)."""
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

    def sampling(self, context: Context, features: Sequence[Tensor], strides: Sequence[int]) -> list[Sampling]:
        """What reads the results of ``forward`` at the points of each level, features (N, C, h, w).

        ``strides`` are network pixels per point.
        """
        return [
            sampling_of_level(context.view, x.shape[-2:], stride, self.size) for x, stride in zip(features, strides)
        ]

    def batch(
        self, samples: Sequence[dict[str, Any]], images: Tensor, image_sizes: Sequence[tuple[int, int]]
    ) -> Context:
        """Gather the contexts of a batch; at test time a sample without ``context`` shows the whole image itself.

        ``samples`` see ``bafe_d2.data.context``; ``images`` are (N, 3, H, W) in any linear scale, ``image_sizes``
        (height, width) of each without padding.

        Raises:
            ConfigError: a training sample has no context, as a crop is not the whole image; or one is too large.
        """
        if not any("context" in sample for sample in samples) and not self.training:
            return context_of_images(images, torch.tensor(image_sizes, device=images.device), self.size)
        contexts = []
        for i, (sample, (height, width)) in enumerate(zip(samples, image_sizes)):
            if "context" not in sample:
                if self.training:
                    raise ConfigError(
                        "MODEL.BAFE.CONTEXT: a training sample has no `context`; set INPUT.MAPPER to "
                        "BackgroundDatasetMapper, or see bafe_d2.data.context for the entries of a sample"
                    )
                size = torch.tensor([[height, width]], device=images.device)
                contexts.append(context_of_images(images[i : i + 1], size, self.size))
                continue
            contexts.append(self._given(sample, images, (height, width)))
        return Context(*(torch.cat(column) for column in zip(*contexts)))

    def _given(self, sample: dict[str, Any], images: Tensor, image_size: tuple[int, int]) -> Context:
        """The context that a sample carries, mirrored as its image is."""
        small, (height, width) = sample["context"].to(images), sample["context_size"]
        rows, columns = small.shape
        if rows > self.size[0] or columns > self.size[1]:
            raise ConfigError(
                f"a sample's `context` has {rows}x{columns} cells and MODEL.BAFE.CONTEXT.SIZE is {self.size}; make it "
                "with that size"
            )
        window = torch.as_tensor(sample["context_window"], dtype=torch.float32).cpu()
        window = window * torch.tensor([columns / width, rows / height] * 2)
        axes = mirrored_axes(sample["context_window"])
        for axis, length in ((1, columns), (0, rows)):
            if axis in axes:
                window[1 - axis :: 2] = length - window[1 - axis :: 2]
        small = small.flip(axes)
        padding = (0, self.size[1] - columns, 0, self.size[0] - rows)
        small, valid = (F.pad(cells, padding)[None, None] for cells in (small, torch.ones_like(small)))
        view = torch.cat([window[:2], (window[2:] - window[:2]) / torch.tensor(image_size[::-1])])
        return Context(standardise(small, valid), valid > 0, view.to(images.device)[None])


def mirrored_axes(window: Any) -> list[int]:
    """Axes (0 rows, 1 columns) along which an image is mirrored that shows such a ``context_window``."""
    x1, y1, x2, y2 = (float(value) for value in window)
    return [axis for axis, mirrored in enumerate((y1 > y2, x1 > x2)) if mirrored]


def context_of_images(images: Tensor, image_sizes: Tensor, size: tuple[int, int]) -> Context:
    """The contexts of whole images, computed from a padded batch: operations on tensors alone, fit for a graph.

    ``images`` are (N, 3, H, W), in any linear scale, ``image_sizes`` (N, 2) height and width without padding, and
    ``size`` is (A, B).
    """
    sizes = image_sizes.float()
    scale = (sizes.new_tensor(size) / sizes).amin(1, keepdim=True)
    fitted = (sizes * scale).round().clamp(min=1)  # bafe_d2.data.context.fit
    rows, columns = (
        area_weights(sizes[:, axis], fitted[:, axis], images.shape[2 + axis], cells) for axis, cells in enumerate(size)
    )
    small = (rows @ images.float().mean(1) @ columns.transpose(1, 2))[:, None]
    valid = torch.ones_like(small)
    for axis, cells in enumerate(size):
        inside = torch.arange(cells, device=small.device) < fitted[:, axis, None]
        valid = valid * (inside[:, None, :, None] if axis == 0 else inside[:, None, None, :])
    view = torch.cat([torch.zeros_like(fitted), (fitted / sizes).flip(1)], dim=1)
    return Context(standardise(small, valid), valid > 0, view)


def standardise(contexts: Tensor, valid: Tensor) -> Tensor:
    """Each of (N, 1, A, B) by mean and deviation of its ``valid`` cells (1, else 0), and zero in the others."""
    count = valid.sum((1, 2, 3), keepdim=True).clamp(min=1)
    centered = (contexts - (contexts * valid).sum((1, 2, 3), keepdim=True) / count) * valid
    deviation = ((centered**2).sum((1, 2, 3), keepdim=True) / count).sqrt()
    return centered / deviation.clamp_min(_LEAST_DEVIATION)


class Sampling(NamedTuple):
    """Bilinear reading of maps of the context at the points of one level, at its edge beyond it.

    The view is parallel to the axes, so two products of matrices do it: with weights (N, h, a) of the rows of the maps
    for each row of the level, and (N, b, w) of the columns likewise.
    """

    rows: Tensor
    columns: Tensor

    def __call__(self, maps: Tensor) -> Tensor:
        """(N, C, a, b) -> (N, C, h, w)"""
        rows, columns = (weights[:, None].to(maps.dtype) for weights in self)
        return (rows @ (maps @ columns)).contiguous(memory_format=torch.channels_last)


def sampling_of_level(view: Tensor, size: Sequence[int], stride: int, context_size: tuple[int, int]) -> Sampling:
    """The reading of a level of ``size`` (h, w), ``stride`` network pixels per point, under a ``view`` of ``Context``.

    The maps of the context have half of ``context_size``, (A, B).
    """
    weights = []
    for axis in (0, 1):  # y, x
        count, cells = size[axis], context_size[axis] // 2
        place = (torch.arange(count, device=view.device) + 0.5) * stride
        place = view[:, 1 - axis, None] + place * view[:, 3 - axis, None]
        place = (place / 2 - 0.5).clamp(0, cells - 1)
        cell = torch.arange(cells, device=view.device)
        weights.append((1 - (place[:, :, None] - cell).abs()).clamp_min(0))
    return Sampling(weights[0], weights[1].transpose(1, 2))


def stack_context_masks(samples: Sequence[dict[str, Any]], context: Context) -> Tensor:
    """(N, 1, A, B) shares of sky; negative outside the contexts, and for samples without ``context_sem_seg``."""
    stacked = torch.full_like(context.image, IGNORED)
    for target, sample in zip(stacked, samples):
        if "context_sem_seg" in sample:
            mask = sample["context_sem_seg"].flip(mirrored_axes(sample["context_window"]))
            target[0, : mask.shape[0], : mask.shape[1]] = mask.to(stacked)
    return stacked


def context_sky_loss(logits: Tensor, sky: Tensor) -> Tensor:
    """Binary cross entropy of sky over whole images, in which every image with a mask weighs the same.

    ``logits`` are (N, 1, a, b), ``sky`` (N, 1, A, B) the share of sky in 0..1, negative where ignored.
    """
    logits = F.interpolate(logits.float(), size=sky.shape[-2:], mode="bilinear", align_corners=False)
    counted = (sky >= 0).float()
    losses = F.binary_cross_entropy_with_logits(logits, sky.clamp_min(0), weight=counted, reduction="none")
    known = counted.sum((1, 2, 3))
    return (losses.sum((1, 2, 3)) / known.clamp_min(1)).sum() / (known > 0).sum().clamp_min(1)


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
