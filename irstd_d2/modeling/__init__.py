"""Model parts that both systems use; importing registers them."""

from .fcos import IRSTDFCOS, FCOSHead
from .fpn import SelectiveFPN, build_irstd_resnet_fpn_backbone
from .resnet import IRSTDResNet, build_irstd_resnet_backbone

__all__ = [
    "IRSTDFCOS",
    "FCOSHead",
    "IRSTDResNet",
    "SelectiveFPN",
    "build_irstd_resnet_backbone",
    "build_irstd_resnet_fpn_backbone",
]
