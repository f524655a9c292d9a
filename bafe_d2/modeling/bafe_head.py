"""The head of BAFE-Net: detection and background segmentation that exchange features.

Source: BAFE-Net, section IV-B and Figure 4, with the parts that the text leaves out as the published model has them:
the large selective kernel is shared by both tasks, and two convolutions per task stand before the exchange.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from detectron2.config import CfgNode
from torch import Tensor, nn

from irstd_d2.errors import ConfigError
from irstd_d2.modeling.fcos import ConvTower, FCOSHead, Predictions, init_head

from .context import Sampling
from .feature_exchange import FeatureExchange, halves
from .large_selective_kernel import LargeSelectiveKernel


class Bottleneck(nn.Sequential):
    """Two 3x3 convolutions with batch norm and ReLU: C -> C / 2 -> C."""

    def __init__(self, channels: int):
        super().__init__()
        for c_in, c_out in ((channels, channels // 2), (channels // 2, channels)):
            self.append(
                nn.Sequential(nn.Conv2d(c_in, c_out, 3, padding=1), nn.BatchNorm2d(c_out), nn.ReLU(inplace=True))
            )


class CrossTask(nn.Module):
    """Large selective kernel, task-specific convolutions and feature exchange between two tasks.

    Args:
        channels: of both tasks.
        exchange: keyword arguments of ``FeatureExchange``.
    """

    def __init__(self, channels: int, **exchange: Any):
        super().__init__()
        self.large_kernel = LargeSelectiveKernel(channels)
        self.seg_convs = Bottleneck(channels)
        self.cls_convs = Bottleneck(channels)
        self.exchange = FeatureExchange(channels, **exchange)

    def forward(self, seg: Tensor, cls: Tensor) -> tuple[Tensor, Tensor]:
        """(N, C, H, W) features of background segmentation and of classification -> the same, exchanged."""
        seg, cls = halves(self.large_kernel(torch.cat([seg, cls])))
        return self.exchange(self.seg_convs(seg), self.cls_convs(cls))


def cross_task_arguments(cfg: CfgNode) -> dict[str, Any] | None:
    """The arguments of ``CrossTask`` from ``MODEL.BAFE.EXCHANGE``, without the channels; ``None`` if it is off."""
    exchange, context = cfg.MODEL.BAFE.EXCHANGE, cfg.MODEL.BAFE.CONTEXT.ENABLED
    if not exchange.ENABLED:
        return None
    if context and exchange.MECHANISM != "channel":
        raise ConfigError(
            f"MODEL.BAFE.EXCHANGE.MECHANISM is {exchange.MECHANISM!r}; with MODEL.BAFE.CONTEXT use 'channel', or set "
            "MODEL.BAFE.CONTEXT.ENABLED and TEST.PRECISE_BN.ENABLED to False"
        )
    if cfg.TEST.PRECISE_BN.ENABLED and not context:
        raise ConfigError(
            "TEST.PRECISE_BN.ENABLED: the levels share the batch norms of the published exchange, whose statistics "
            "cannot be recomputed; set it to False, or MODEL.BAFE.CONTEXT.ENABLED to True"
        )
    return {
        "fraction": exchange.FRACTION,
        "mechanism": exchange.MECHANISM,
        "selection": exchange.SELECTION,
        "adapter_width": exchange.ADAPTER_WIDTH,
    }


class BAFEHead(FCOSHead):
    """FCOS towers beside a background-segmentation tower that exchanges features with classification.

    Args:
        in_channels, num_levels, num_convs, norm, fcos: see ``FCOSHead``.
        cross_task: arguments of ``CrossTask`` without the channels; ``None`` leaves the tasks apart (Table IV b).
    """

    def __init__(
        self,
        in_channels: int,
        *,
        num_levels: int,
        num_convs: int = 4,
        norm: str = "GN",
        cross_task: dict[str, Any] | None = None,
        **fcos: Any,
    ):
        super().__init__(in_channels, num_levels=num_levels, num_convs=num_convs, norm=norm, **fcos)
        self.seg_tower = ConvTower(in_channels, num_convs, norm, num_levels)
        self.sky_logits = nn.Conv2d(in_channels, 1, 3, padding=1)
        for part in (self.seg_tower, self.sky_logits):
            init_head(part)
        # Its convolutions keep torch's own initialisation, as in the published model.
        self.cross_task = None if cross_task is None else CrossTask(in_channels, **cross_task)

    def forward(self, features: list[Tensor]) -> Predictions:
        """As ``FCOSHead``, with ``sky`` (N, 1, H, W) logits of sky per level."""
        seg_features, cls_features = [], []
        for number, x in enumerate(features):
            seg, cls = self.seg_tower(x, number), self.cls_tower(x, number)
            if self.cross_task is not None:
                seg, cls = self.cross_task(seg, cls)
            seg_features.append(seg)
            cls_features.append(cls)
        predictions = self.predict(cls_features, features)
        predictions["sky"] = [self.sky_logits(x) for x in seg_features]
        return predictions


class Background(NamedTuple):
    """What the context says at the points of one level.

    Attributes:
        features: (N, C, h, w), to be added to what a tower reads.
        sky: (N, 1, h, w) logits.
        sent: (N, K, h, w) channels for ``FeatureExchange.receive``; ``None`` without exchange.
    """

    features: Tensor
    sky: Tensor
    sent: Tensor | None


class ContextExchange(nn.Module):
    """The background branch of a detector with context: no tower at native pixels, its features are the context's.

    What needs no native pixels is computed in the context, once for all levels. The background's most important
    channels take the place of a level's own, which are ranked by their means over 4x4 points.

    Args:
        channels: C, of every level.
        context_channels: of the context's features.
        exchange: arguments of ``FeatureExchange`` without the channels, of the mechanism "channel"; ``None`` for none.
    """

    def __init__(self, channels: int, context_channels: int, exchange: dict[str, Any] | None = None):
        super().__init__()
        self.inject = nn.Conv2d(context_channels, channels, 1)
        self.seg_convs = nn.Sequential(nn.Conv2d(context_channels, channels, 1), nn.ReLU()) if exchange else None
        self.exchange = FeatureExchange(channels, **exchange, rank_stride=4) if exchange else None

    def forward(self, context: Tensor, sky: Tensor, sampling: Sequence[Sampling]) -> list[Background]:
        """The background at the points of each level.

        ``context`` are (N, context_channels, a, b) features of the whole image, ``sky`` (N, 1, a, b) logits;
        ``sampling`` reads maps of the context at the points of each level.
        """
        parts = [self.inject(context), sky]
        if self.exchange is not None and self.seg_convs is not None:
            parts.append(self.exchange.send(self.seg_convs(context)))
        maps, sizes = torch.cat(parts, dim=1), [part.shape[1] for part in parts]
        levels = [sample(maps).split(sizes, dim=1) for sample in sampling]
        return [Background(*level, *([None] if self.exchange is None else [])) for level in levels]

    def receive(self, x: Tensor, background: Background) -> Tensor:
        """The features (N, C, h, w) of a level after the exchange, if there is one."""
        if self.exchange is None or background.sent is None:
            return x
        return self.exchange.receive(x, background.sent)


class ContextHead(FCOSHead):
    """FCOS towers that see the background of the whole image at every point.

    It is added to what the classification tower reads, and exchanges channels with what it gives (``ContextExchange``).
    With ``learn_sky_score`` classification logits get a learned multiple of the logit of sky, from 0 on. Other
    arguments are those of ``FCOSHead``.
    """

    def __init__(
        self,
        in_channels: int,
        *,
        num_classes: int,
        context_channels: int,
        exchange: dict[str, Any] | None = None,
        learn_sky_score: bool = False,
        **fcos: Any,
    ):
        super().__init__(in_channels, num_classes=num_classes, **fcos)
        self.background = ContextExchange(in_channels, context_channels, exchange)
        self.sky_gain = nn.Parameter(torch.zeros(num_classes, 1, 1)) if learn_sky_score else None

    def forward(  # type: ignore[override]
        self, features: list[Tensor], context: Tensor, sky: Tensor, sampling: Sequence[Sampling]
    ) -> Predictions:
        """As ``FCOSHead``, with ``sky`` (N, 1, H, W) logits of sky per level; others as of ``ContextExchange``."""
        levels = self.background(context, sky, sampling)
        cls_features = [
            self.background.receive(self.cls_tower(x + level.features, number), level)
            for number, (x, level) in enumerate(zip(features, levels))
        ]
        predictions = self.predict(cls_features, features)
        if self.sky_gain is not None:
            gain = self.sky_gain
            logits = zip(predictions["logits"], levels)
            predictions["logits"] = [x + gain * level.sky.detach() for x, level in logits]
        predictions["sky"] = [level.sky for level in levels]
        return predictions
