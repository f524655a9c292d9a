"""Model parts of AuxDet; importing registers them."""

from .backbone import (
    AuxDetBackbone,
    AuxDetFPN,
    FeatureRefinement,
    MetadataConditionedBackbone,
    build_auxdet_backbone,
    build_auxdet_fpn_backbone,
    build_auxdet_resnet_backbone,
    build_auxdet_resnet_fpn_backbone,
    build_auxdet_retinanet_resnet_fpn_backbone,
    conditioned_parts,
)
from .box_transform import BoundedBox2BoxTransform
from .cascade_rpn import CascadeRPN
from .dynamic_mlp import DynamicMLP
from .leem import LEEM
from .m2dm import M2DM
from .meta_arch import MetadataConditioned, build_metadata_conditioned, condition_on_metadata
from .metadata_encoder import AuxiliaryEncoder
from .metadata_prediction import MetadataPredictor
from .roi_heads import AuxDetROIHeads

__all__ = [
    "LEEM",
    "M2DM",
    "AuxDetBackbone",
    "AuxDetFPN",
    "AuxDetROIHeads",
    "AuxiliaryEncoder",
    "BoundedBox2BoxTransform",
    "CascadeRPN",
    "DynamicMLP",
    "FeatureRefinement",
    "MetadataConditioned",
    "MetadataConditionedBackbone",
    "MetadataPredictor",
    "build_auxdet_backbone",
    "build_auxdet_fpn_backbone",
    "build_auxdet_resnet_backbone",
    "build_auxdet_resnet_fpn_backbone",
    "build_auxdet_retinanet_resnet_fpn_backbone",
    "build_metadata_conditioned",
    "condition_on_metadata",
    "conditioned_parts",
]
