"""Backbones conditioned on imaging metadata: M2DM and LEEM on pyramid laterals or on the stages of any backbone."""

from __future__ import annotations

import logging
from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY
from detectron2.modeling.backbone import Backbone
from detectron2.modeling.backbone.fpn import LastLevelP6P7
from detectron2.utils.logger import log_first_n
from torch import Tensor, nn

from irstd_d2.errors import ConfigError, check_known
from irstd_d2.modeling import SelectiveFPN, build_irstd_resnet_backbone
from irstd_d2.modeling.fast_paths import in_graph
from irstd_d2.modeling.fpn import build_bottom_up, build_top_block, fpn_arguments

from ..metadata import MetadataBatch, MetadataVocabulary
from .leem import LEEM, ResidualGate
from .m2dm import M2DM
from .metadata_encoder import AuxiliaryEncoder, DetailCompensation

logger = logging.getLogger(__name__)


class FeatureRefinement(nn.Module):
    """M2DM, then LEEM, on chosen stages of a list of feature maps (Fig. 2).

    The auxiliary features of all stages are computed first, from the unrefined maps.

    Args:
        input_shape: stage name -> channels and stride.
        m2dm_stages: stages with M2DM (Tables 5, 7).
        leem_stages: stages with LEEM (Tables 5, 7).
        visual: the visual hint among the auxiliary features (Table 2): "none"; "high_level", the pooled coarsest map;
            "detail", the pooled difference of the aligned stage and the coarsest map.
        gated: the residual of LEEM is scaled per image by a gate on the auxiliary features.
        leem_window: edge of the window of LEEM's moments in network pixels; 0 (published): the whole image.
        encoder: arguments of ``AuxiliaryEncoder`` besides ``num_stages`` and ``visual_channels``.
        m2dm: arguments of ``M2DM`` besides the widths.
        leem: arguments of ``LEEM`` besides width and window.

    Raises:
        ConfigError: for an unknown stage or option.
    """

    @configurable
    def __init__(
        self,
        input_shape: Mapping[str, ShapeSpec],
        *,
        m2dm_stages: Sequence[str] = ("res2", "res3"),
        leem_stages: Sequence[str] = ("res2", "res3"),
        visual: str = "detail",
        gated: bool = True,
        leem_window: int = 0,
        encoder: Mapping[str, Any] | None = None,
        m2dm: Mapping[str, Any] | None = None,
        leem: Mapping[str, Any] | None = None,
    ):
        super().__init__()
        input_shape = dict(sorted(input_shape.items(), key=lambda item: item[1].stride))
        self.stages = tuple(input_shape)
        for key, chosen in (("M2DM", m2dm_stages), ("LEEM", leem_stages)):
            if foreign := set(chosen) - set(self.stages):
                raise ConfigError(
                    f"MODEL.AUXDET.{key}.STAGES has {sorted(foreign)}; the features to refine are {list(self.stages)}"
                )
        check_known("MODEL.AUXDET.ENCODER.VISUAL", visual, ("none", "high_level", "detail"))
        self.visual = visual
        self.refined_stages = {*m2dm_stages, *leem_stages}
        conditioned = {*m2dm_stages, *(leem_stages if gated else ())}
        self.conditioned_stages = tuple(stage for stage in self.stages if stage in conditioned)

        channels = {name: shape.channels for name, shape in input_shape.items()}
        coarsest = self.stages[-1]
        self.encoder: AuxiliaryEncoder | None = None
        self.gate: ResidualGate | None = None
        self.detail = nn.ModuleDict()
        self.m2dm = nn.ModuleDict()
        if self.conditioned_stages:
            self.encoder = AuxiliaryEncoder(
                **(encoder or {}),
                num_stages=len(self.conditioned_stages),
                visual_channels=0 if visual == "none" else channels[coarsest],
            )
            if visual == "detail":
                for stage in self.conditioned_stages:
                    stride = input_shape[coarsest].stride // input_shape[stage].stride
                    self.detail[stage] = DetailCompensation(channels[stage], channels[coarsest], stride)
            aux_features = self.encoder.out_features
            self.m2dm.update(
                {s: M2DM(channels[s], aux_features, **(m2dm or {})) for s in self.stages if s in m2dm_stages}
            )
            if gated and leem_stages:
                self.gate = ResidualGate(aux_features)
        windows = {s: leem_window // input_shape[s].stride for s in leem_stages}
        if leem_window and min(windows.values(), default=2) < 2:
            raise ConfigError(f"MODEL.AUXDET.LEEM.WINDOW is {leem_window} pixels; two cells at least, or 0, are needed")
        self.leem = nn.ModuleDict(
            {s: LEEM(channels[s], window=windows[s], **(leem or {})) for s in self.stages if s in leem_stages}
        )

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: Mapping[str, ShapeSpec]) -> dict[str, Any]:
        auxdet, vocabulary = cfg.MODEL.AUXDET, MetadataVocabulary.from_config(cfg)
        if cfg.INPUT.CROP.ENABLED and auxdet.LEEM.STAGES and not auxdet.LEEM.WINDOW:
            logger.warning(
                "with INPUT.CROP, LEEM takes mean and deviation of crops in training and of whole images afterwards; "
                "set MODEL.AUXDET.LEEM.WINDOW to the edge of the crops in network pixels"
            )
        encoder, gated = auxdet.ENCODER, auxdet.LEEM.STAGES if auxdet.LEEM.GATED else ()
        shared = encoder.NORM == "BN" and encoder.VISUAL != "none" and len({*auxdet.M2DM.STAGES, *gated}) > 1
        if cfg.TEST.PRECISE_BN.ENABLED and shared:
            raise ConfigError(
                "TEST.PRECISE_BN.ENABLED: the stages share the batch norm of the visual hint, whose statistics cannot "
                "be recomputed; set it to False, or MODEL.AUXDET.ENCODER.NORM to 'LN'"
            )
        names = {"num_platforms": len(vocabulary.platforms), "num_bands": len(vocabulary.bands)}
        return {
            "input_shape": input_shape,
            "m2dm_stages": auxdet.M2DM.STAGES,
            "leem_stages": auxdet.LEEM.STAGES,
            "visual": auxdet.ENCODER.VISUAL,
            "gated": auxdet.LEEM.GATED,
            "leem_window": auxdet.LEEM.WINDOW,
            "encoder": {
                **names,
                "fields": auxdet.ENCODER.FIELDS,
                "extra": vocabulary.extra_sizes,
                "embed_dim": auxdet.ENCODER.EMBED_DIM,
                "num_metadata_layers": auxdet.ENCODER.NUM_METADATA_LAYERS,
                "num_fusion_layers": auxdet.ENCODER.NUM_FUSION_LAYERS,
                "dropout": auxdet.ENCODER.DROPOUT,
                "norm": auxdet.ENCODER.NORM,
                "unknown": auxdet.ENCODER.UNKNOWN,
                "size_scale": auxdet.ENCODER.SIZE_SCALE,
            },
            "m2dm": {
                "mode": auxdet.M2DM.MODE,
                "tap_order": auxdet.M2DM.TAP_ORDER,
                "detach_kernels": auxdet.M2DM.DETACH_KERNELS,
                "bottleneck": auxdet.DYNAMIC_MLP.BOTTLENECK or None,
                "hidden": auxdet.DYNAMIC_MLP.HIDDEN,
                "num_layers": auxdet.DYNAMIC_MLP.NUM_LAYERS,
                "variant": auxdet.DYNAMIC_MLP.VARIANT,
            },
            "leem": {
                "kernel": auxdet.LEEM.KERNEL,
                "connection": auxdet.LEEM.CONNECTION,
                "init": auxdet.LEEM.INIT,
                "norm": auxdet.LEEM.NORM,
            },
        }

    def encode(self, features: Mapping[str, Tensor], metadata: MetadataBatch) -> dict[str, Tensor]:
        """Return the auxiliary features of every conditioned stage, stage -> (N, A)."""
        if self.encoder is None:
            return {}
        hints: list[Tensor] = []
        if self.visual != "none":
            pooled = features[self.stages[-1]].mean(dim=(2, 3))
            hints = [
                self.detail[stage](features[stage], pooled) if stage in self.detail else pooled
                for stage in self.conditioned_stages
            ]
        return dict(zip(self.conditioned_stages, self.encoder(metadata, hints)))

    def forward(self, features: Mapping[str, Tensor], metadata: MetadataBatch) -> dict[str, Tensor]:
        """Refine the chosen stages and pass the others on, finest first, shapes unchanged.

        ``features`` holds every stage of ``input_shape``, (N, C, H, W).
        """
        aux = self.encode(features, metadata)
        refined = {}
        for stage in self.stages:
            x = features[stage]
            if stage in self.m2dm:
                x = self.m2dm[stage](x, aux[stage])
            if stage in self.leem:
                edges = self.leem[stage](x)
                if self.gate is not None:
                    edges = edges * self.gate(aux[stage])[:, :, None, None].to(edges.dtype)
                x = x + edges
            refined[stage] = x
        return refined


_metadata: ContextVar[MetadataBatch | None] = ContextVar("metadata of the batch in work", default=None)


@contextmanager
def conditioned_on(metadata: MetadataBatch) -> Iterator[None]:
    """Within the block, backbones that take metadata and are called without any see this one.

    For callers in between that only know ``backbone(x)``. It ends with the block, whatever happens inside, and other
    threads do not see it.
    """
    token = _metadata.set(metadata)
    try:
        yield
    finally:
        _metadata.reset(token)


class MetadataConditionedBackbone(Backbone):
    """A backbone whose forward pass takes the metadata of its images; subclasses write ``forward_conditioned``."""

    def forward(self, x: Tensor, metadata: MetadataBatch | None = None) -> dict[str, Tensor]:
        """Compute the feature maps of images (N, 3, H, W): name -> (N, C, H / stride, W / stride).

        A ``metadata`` of ``None`` takes that of ``conditioned_on``; outside of it all is unknown, with a warning.

        Raises:
            ValueError: if images and metadata differ in number.
        """
        if metadata is None:
            metadata = _metadata.get()
        num_images = x.shape[0]  # a symbol while the model is exported
        if metadata is None:
            if not in_graph():
                message = "AuxDet's backbone gets no metadata, all is unknown: see MetadataConditionedModel"
                log_first_n(logging.WARNING, message, name=__name__)
            metadata = MetadataBatch.unknown(num_images, x.device)
        if metadata.num_images != num_images:
            raise ValueError(
                f"{num_images} images came with metadata of {metadata.num_images}; give one entry per image"
            )
        return self.forward_conditioned(x, metadata.to(x.device))

    @abstractmethod
    def forward_conditioned(self, x: Tensor, metadata: MetadataBatch) -> dict[str, Tensor]:
        """Compute the feature maps of N images under their metadata, which is on their device."""


def conditioned_parts(model: nn.Module) -> list[MetadataConditionedBackbone]:
    """Return the parts of a model that take metadata: its backbone, or one under a neck that knows nothing of it."""
    return [part for part in model.modules() if isinstance(part, MetadataConditionedBackbone)]


class AuxDetFPN(MetadataConditionedBackbone, SelectiveFPN):
    """Feature pyramid whose lateral features pass M2DM and LEEM before the top-down sum: AuxDet's neck.

    ``refinement`` acts on laterals, which have the names of ``in_features``; other arguments as of ``SelectiveFPN``.

    Raises:
        ConfigError: if a refined stage is finer than every level that leaves the neck.
    """

    def __init__(
        self,
        bottom_up: Backbone,
        in_features: Sequence[str],
        out_channels: int,
        *,
        refinement: FeatureRefinement,
        **fpn: Any,
    ):
        super().__init__(bottom_up, in_features, out_channels, **fpn)
        if useless := refinement.refined_stages & set(self.in_features[: self._finest]):
            raise ConfigError(
                f"MODEL.AUXDET refines {sorted(useless)}, which feed none of {self._out_features}; take them "
                "out of M2DM.STAGES and LEEM.STAGES, or add their levels to MODEL.FPN.OUT_FEATURES"
            )
        self.refinement = refinement

    def forward_conditioned(self, x: Tensor, metadata: MetadataBatch) -> dict[str, Tensor]:
        features = self.bottom_up(x)
        laterals = self.refinement(dict(zip(self.in_features, self.project_laterals(features))), metadata)
        return self.merge(features, list(laterals.values()))


class AuxDetBackbone(MetadataConditionedBackbone):
    """Any backbone with M2DM and LEEM on all its outputs, coarsest last, for any neck or head.

    The refined maps leave the backbone; its own later stages see the unrefined ones, because the auxiliary features
    need the coarsest map.
    """

    def __init__(self, bottom_up: Backbone, refinement: FeatureRefinement):
        super().__init__()
        self.bottom_up = bottom_up
        self.refinement = refinement

    @property
    def size_divisibility(self) -> int:
        return self.bottom_up.size_divisibility

    @property
    def padding_constraints(self) -> dict[str, int]:
        return self.bottom_up.padding_constraints

    def output_shape(self) -> dict[str, ShapeSpec]:
        return self.bottom_up.output_shape()

    def forward_conditioned(self, x: Tensor, metadata: MetadataBatch) -> dict[str, Tensor]:
        return self.refinement(self.bottom_up(x), metadata)


def _build_auxdet_fpn(cfg: CfgNode, bottom_up: Backbone, top_block: nn.Module | None) -> AuxDetFPN:
    fpn, shapes = cfg.MODEL.FPN, bottom_up.output_shape()
    laterals = {name: ShapeSpec(channels=fpn.OUT_CHANNELS, stride=shapes[name].stride) for name in fpn.IN_FEATURES}
    return AuxDetFPN(bottom_up, **fpn_arguments(cfg), top_block=top_block, refinement=FeatureRefinement(cfg, laterals))


@BACKBONE_REGISTRY.register()
def build_auxdet_resnet_fpn_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> AuxDetFPN:
    """Build the published form: a ResNet under a pyramid with M2DM and LEEM on its laterals (keys ``MODEL.AUXDET``)."""
    bottom_up = build_irstd_resnet_backbone(cfg, input_shape)
    return _build_auxdet_fpn(cfg, bottom_up, build_top_block(cfg, bottom_up))


@BACKBONE_REGISTRY.register()
def build_auxdet_retinanet_resnet_fpn_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> AuxDetFPN:
    """Build the pyramid of ``build_auxdet_resnet_fpn_backbone`` with RetinaNet's two extra levels.

    They start from the last entry of ``MODEL.FPN.IN_FEATURES``, whatever ``MODEL.FPN.TOP_BLOCK`` says.
    """
    bottom_up = build_irstd_resnet_backbone(cfg, input_shape)
    coarsest = cfg.MODEL.FPN.IN_FEATURES[-1]
    channels = bottom_up.output_shape()[coarsest].channels
    return _build_auxdet_fpn(cfg, bottom_up, LastLevelP6P7(channels, cfg.MODEL.FPN.OUT_CHANNELS, coarsest))


@BACKBONE_REGISTRY.register()
def build_auxdet_resnet_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> AuxDetBackbone:
    """Build a ResNet with M2DM and LEEM on its own stages, for any neck (keys ``MODEL.AUXDET``)."""
    bottom_up = build_irstd_resnet_backbone(cfg, input_shape)
    return AuxDetBackbone(bottom_up, FeatureRefinement(cfg, bottom_up.output_shape()))


@BACKBONE_REGISTRY.register()
def build_auxdet_fpn_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> AuxDetFPN:
    """Build ``MODEL.BACKBONE.BOTTOM_UP`` under a pyramid with M2DM and LEEM on its laterals (keys ``MODEL.AUXDET``)."""
    bottom_up = build_bottom_up(cfg, input_shape)
    return _build_auxdet_fpn(cfg, bottom_up, build_top_block(cfg, bottom_up))


@BACKBONE_REGISTRY.register()
def build_auxdet_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> AuxDetBackbone:
    """Build ``MODEL.BACKBONE.BOTTOM_UP`` with M2DM and LEEM on its outputs (keys ``MODEL.AUXDET``).

    Also for a backbone that ends in a pyramid of its own, such as ``build_vit_pyramid_backbone``.
    """
    bottom_up = build_bottom_up(cfg, input_shape)
    return AuxDetBackbone(bottom_up, FeatureRefinement(cfg, bottom_up.output_shape()))
