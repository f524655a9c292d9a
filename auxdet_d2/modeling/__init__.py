"""Model parts of AuxDet; importing registers them."""

from .backbone import (
    AuxDetBackbone,
    AuxDetFPN,
    FeatureRefinement,
    MetadataConditionedBackbone,
    build_auxdet_resnet_backbone,
    build_auxdet_resnet_fpn_backbone,
    build_auxdet_retinanet_resnet_fpn_backbone,
)
from .dynamic_mlp import DynamicMLP
from .leem import LEEM
from .m2dm import M2DM
from .metadata_encoder import AuxiliaryEncoder

__all__ = [
    "LEEM",
    "M2DM",
    "AuxDetBackbone",
    "AuxDetFPN",
    "AuxiliaryEncoder",
    "DynamicMLP",
    "FeatureRefinement",
    "MetadataConditionedBackbone",
    "build_auxdet_resnet_backbone",
    "build_auxdet_resnet_fpn_backbone",
    "build_auxdet_retinanet_resnet_fpn_backbone",
]
