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
    conditioned_on,
    conditioned_parts,
)
from .box_transform import BoundedBox2BoxTransform
from .cascade_rpn import CascadeRPN
from .dynamic_mlp import DynamicMLP
from .leem import LEEM
from .m2dm import M2DM
from .meta_arch import AuxDet, MetadataConditionedModel
from .metadata_encoder import AuxiliaryEncoder
from .roi_heads import AuxDetROIHeads

__all__ = [
    "LEEM",
    "M2DM",
    "AuxDet",
    "AuxDetBackbone",
    "AuxDetFPN",
    "AuxDetROIHeads",
    "AuxiliaryEncoder",
    "BoundedBox2BoxTransform",
    "CascadeRPN",
    "DynamicMLP",
    "FeatureRefinement",
    "MetadataConditionedBackbone",
    "MetadataConditionedModel",
    "build_auxdet_backbone",
    "build_auxdet_fpn_backbone",
    "build_auxdet_resnet_backbone",
    "build_auxdet_resnet_fpn_backbone",
    "build_auxdet_retinanet_resnet_fpn_backbone",
    "conditioned_on",
    "conditioned_parts",
]
