"""What BAFE-Net adds to exported detectors: the probability of sky; see ``irstd_d2.export``."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from irstd_d2.export.graphs import (
    NMS,
    Candidates,
    Features,
    Suppression,
    candidates,
    extra_outputs,
    extract_features,
    region_candidates,
    region_suppression,
)

from .modeling.context import Context, context_of_images
from .modeling.meta_arch import BackgroundRCNN, BAFENet
from .modeling.roi_heads import ExchangeROIHeads


def sky_probability(logits: Tensor, scale: int) -> Tensor:
    """Logits (N, 1, h, w) of the finest level to the probability of sky (N, 1, h * scale, w * scale)."""
    size = (logits.shape[-2] * scale, logits.shape[-1] * scale)
    return F.interpolate(logits.float().sigmoid(), size=size, mode="bilinear", align_corners=False)


@extra_outputs.register(BAFENet)
@extra_outputs.register(BackgroundRCNN)
def _(model: nn.Module) -> tuple[str, ...]:  # noqa: ARG001
    return ("sky",)


@extract_features.register(BAFENet)
@extract_features.register(BackgroundRCNN)
def _(model: BAFENet | BackgroundRCNN, images: Tensor, image_size: Tensor) -> Features:
    """Those of the backbone and, with context, the cells of it: the images are whole."""
    features = model.backbone(images)
    context = model.context if isinstance(model, BAFENet) else model.roi_heads.context
    if context is not None:
        features = {**features, **context_of_images(images, image_size, context.size)._asdict()}
    return features


@candidates.register
def _(model: BAFENet, features: Features, image_size: Tensor, suppress: NMS) -> Candidates:  # noqa: ARG001
    levels = [features[name] for name in model.head_in_features]
    if model.context is None:
        predictions = model.head(levels)
    else:
        context = Context(*(features[name] for name in Context._fields))
        predictions = model.predict_in_context(levels, context)
    sky = sky_probability(predictions["sky"][0], model.strides[0])
    return Candidates(*model.decode(predictions, image_size), extra={"sky": sky})


@region_candidates.register
def _(heads: ExchangeROIHeads, features: Features, boxes: Tensor, present: Tensor, image_size: Tensor) -> Candidates:
    exchanged, sky, _ = heads.exchange_features(features)
    found = region_candidates(heads.roi_heads, exchanged, boxes, present, image_size)
    # Regions and sky look at the same levels; the pooler knows the stride of the finest.
    stride = 2**heads.roi_heads.box_pooler.min_level
    return found._replace(extra={"sky": sky_probability(sky[0], stride)})


@region_suppression.register
def _(heads: ExchangeROIHeads) -> Suppression:
    return region_suppression(heads.roi_heads)
