"""What AuxDet adds to exported detectors: proposals of Cascade RPN and metadata inputs; see ``irstd_d2.export``."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from unittest import mock

import torch
import torch.nn.functional as F
from torch import Tensor

from irstd_d2.errors import ConfigError
from irstd_d2.export.candidates import clip_boxes, take, top_candidates
from irstd_d2.export.graphs import (
    EXPORT_PATCHES,
    NMS,
    Features,
    best_proposals,
    condition,
    metadata_vocabulary,
    proposals,
)

from .metadata import MetadataBatch
from .modeling import m2dm
from .modeling.backbone import conditioned_parts
from .modeling.cascade_rpn import CascadeRPN, adaptive_offsets, grid_anchors
from .modeling.meta_arch import MetadataConditioned


@metadata_vocabulary.register
def _(model: MetadataConditioned) -> tuple[tuple[str, ...], tuple[str, ...]]:
    if extra := list(model.vocabulary.extra_sizes):
        raise ConfigError(
            f"an exported file takes platform, band and size, not {extra}; export a model whose "
            "MODEL.METADATA.EXTRA_NUMERIC and EXTRA_CATEGORICAL are empty"
        )
    return model.vocabulary.platforms.names, model.vocabulary.bands.names


@condition.register
def _(model: MetadataConditioned, platform: Tensor, band: Tensor, size: Tensor) -> None:
    for part in conditioned_parts(model.backbone):
        part.condition_on(MetadataBatch(platform, band, size))


@proposals.register
def _(generator: CascadeRPN, features: Features, image_size: Tensor, suppress: NMS) -> tuple[Tensor, Tensor]:
    # Level by level: the stages of one level see nothing of the others.
    columns = []
    for name, stride in zip(generator.in_features, generator.strides):
        x = features[name]
        size = (x.shape[-2], x.shape[-1])
        anchors = grid_anchors(size, stride, generator.anchor_scale * stride, x.device)
        anchors = anchors[None].expand(x.shape[0], -1, -1)
        for stage, transform in zip(generator.stages, generator.transforms):
            offsets = adaptive_offsets(anchors, size, stride) if stage.uses_offsets else None
            x, deltas, logits = stage(x, offsets)
            flat = deltas.flatten(2).transpose(1, 2)
            decoded = transform.apply_deltas(flat.reshape(-1, 4), anchors.reshape(-1, 4))
            anchors = clip_boxes(decoded.view(flat.shape), image_size)
        scores, place, _ = top_candidates(logits.flatten(2).transpose(1, 2).sigmoid(), generator.pre_nms_topk[1])
        columns.append((take(anchors, place), scores))
    return best_proposals(columns, image_size, suppress, generator.nms_threshold, generator.post_nms_topk[1])


def sum_shifted(maps: Tensor, kernels: Tensor) -> Tensor:
    """``apply_edge_kernels`` as a sum over shifted maps: a convolution in a file has a fixed number of groups.

    Args:
        maps: (N, 2, H, W).
        kernels: (N, 2, 3, 3).

    Returns:
        (N, 1, H, W)
    """
    height, width = maps.shape[-2:]
    padded = F.pad(maps, (1, 1, 1, 1))
    total = torch.zeros_like(maps[:, :1])
    for dy in range(3):
        for dx in range(3):
            weight = kernels[:, :, dy, dx, None, None]
            shifted = padded[:, :, dy : dy + height, dx : dx + width]
            total = total + (shifted * weight).sum(dim=1, keepdim=True)
    return total


@contextmanager
def _patches() -> Iterator[None]:
    with mock.patch.object(m2dm, "apply_edge_kernels", sum_shifted):
        yield


EXPORT_PATCHES.append(_patches)
