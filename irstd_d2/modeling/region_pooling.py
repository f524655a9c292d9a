"""Region pooling where the boxes are, also under autocast."""

from __future__ import annotations

from typing import Any

import torch
from detectron2.modeling.poolers import ROIPooler
from torch import nn


def pool_exactly(model: nn.Module) -> None:
    """Let all region poolers of a model read float32 under autocast.

    detectron2 rounds the boxes to the type of the features: bfloat16 moves a corner by up to 2 pixels from 512 on,
    which is most of a small target.
    """
    for module in model.modules():
        if isinstance(module, ROIPooler) and _widen not in module._forward_pre_hooks.values():
            module.register_forward_pre_hook(_widen)


def _widen(_: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
    features, *others = args
    if torch.is_autocast_enabled(features[0].device.type):
        features = [x.float() for x in features]
    return (features, *others)
