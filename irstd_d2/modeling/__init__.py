"""Model parts that both systems use; importing registers them."""

from .fcos import IRSTDFCOS, FCOSHead
from .fpn import LastLevelP6, SelectiveFPN, build_irstd_fpn_backbone, build_irstd_resnet_fpn_backbone
from .resnet import IRSTDResNet, build_irstd_resnet_backbone, make_stages
from .timm_backbone import TimmBackbone, build_efficientnet_lite0_backbone, build_timm_backbone
from .transformers import SwinBackbone, ViTPyramid, build_swin_backbone, build_vit_pyramid_backbone

__all__ = [
    "IRSTDFCOS",
    "FCOSHead",
    "IRSTDResNet",
    "LastLevelP6",
    "SelectiveFPN",
    "SwinBackbone",
    "TimmBackbone",
    "ViTPyramid",
    "build_efficientnet_lite0_backbone",
    "build_irstd_fpn_backbone",
    "build_irstd_resnet_backbone",
    "build_irstd_resnet_fpn_backbone",
    "build_swin_backbone",
    "build_timm_backbone",
    "build_vit_pyramid_backbone",
    "make_stages",
]
