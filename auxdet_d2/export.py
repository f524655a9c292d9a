"""What AuxDet adds to exported detectors: proposals of Cascade RPN and metadata inputs; see ``irstd_d2.export``."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any

from detectron2.modeling.roi_heads import StandardROIHeads
from torch import Tensor, nn

from irstd_d2.errors import ConfigError
from irstd_d2.export.graphs import (
    NMS,
    Candidates,
    Features,
    Suppression,
    best_proposals,
    candidates,
    conditioned,
    extra_outputs,
    extract_features,
    metadata_vocabulary,
    proposals,
    region_candidates,
    suppression,
)
from irstd_d2.modeling.decoding import take, top_candidates, without_empty

from .metadata import MetadataBatch
from .modeling.backbone import conditioned_on
from .modeling.cascade_rpn import CascadeRPN
from .modeling.meta_arch import AuxDet, MetadataConditionedModel
from .modeling.roi_heads import AuxDetROIHeads


@metadata_vocabulary.register(AuxDet)
@metadata_vocabulary.register(MetadataConditionedModel)
def _(model: AuxDet | MetadataConditionedModel) -> dict[str, Any]:
    if extra := list(model.vocabulary.extra_sizes):
        raise ConfigError(
            f"an exported file takes platform, band and size, not {extra}; export a model whose "
            "MODEL.METADATA.EXTRA_NUMERIC and EXTRA_CATEGORICAL are empty"
        )
    platforms, bands = model.vocabulary.platforms, model.vocabulary.bands
    aliases = {**platforms.aliases, **bands.aliases}
    return {"platforms": list(platforms.names), "bands": list(bands.names), "aliases": aliases}


@conditioned.register(AuxDet)
@conditioned.register(MetadataConditionedModel)
def _(model: nn.Module, platform: Tensor, band: Tensor, size: Tensor) -> AbstractContextManager[None]:  # noqa: ARG001
    return conditioned_on(MetadataBatch(platform, band, size))


@extract_features.register
def _(model: MetadataConditionedModel, images: Tensor, image_size: Tensor) -> Features:
    return extract_features(model.model, images, image_size)


@candidates.register
def _(model: MetadataConditionedModel, features: Features, image_size: Tensor, suppress: NMS) -> Candidates:
    return candidates(model.model, features, image_size, suppress)


@suppression.register
def _(model: MetadataConditionedModel) -> Suppression:
    return suppression(model.model)


@extra_outputs.register
def _(model: MetadataConditionedModel) -> tuple[str, ...]:
    return extra_outputs(model.model)


@proposals.register
def _(generator: CascadeRPN, features: Features, image_size: Tensor, suppress: NMS) -> tuple[Tensor, Tensor]:
    last = generator.predict(features, image_size)[1][-1]
    columns = []
    for boxes, logits in zip(last.boxes, last.logits):
        scores, place, _ = top_candidates(logits.sigmoid()[..., None], generator.pre_nms_topk[1])
        columns.append((take(boxes, place), scores))
    return best_proposals(columns, image_size, suppress, generator.nms_thresh, generator.post_nms_topk[1])


@region_candidates.register
def _(heads: AuxDetROIHeads, features: Features, boxes: Tensor, present: Tensor, image_size: Tensor) -> Candidates:
    standard = region_candidates.dispatch(StandardROIHeads)
    found: Candidates = standard(heads, features, boxes, present, image_size)
    return found._replace(scores=without_empty(found.boxes, found.scores))
