"""Model parts that both systems use; importing registers them."""

from .fcos import IRSTDFCOS, FCOSHead
from .fpn import LastLevelP6, SelectiveFPN, build_irstd_resnet_fpn_backbone
from .resnet import IRSTDResNet, build_irstd_resnet_backbone, make_stages

__all__ = [
    "IRSTDFCOS",
    "FCOSHead",
    "IRSTDResNet",
    "LastLevelP6",
    "SelectiveFPN",
    "build_irstd_resnet_backbone",
    "build_irstd_resnet_fpn_backbone",
    "make_stages",
]
