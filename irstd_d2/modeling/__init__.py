"""Model parts that both systems use; importing registers them."""

from .fpn import SelectiveFPN, build_irstd_resnet_fpn_backbone
from .resnet import IRSTDResNet, build_irstd_resnet_backbone

__all__ = ["IRSTDResNet", "SelectiveFPN", "build_irstd_resnet_backbone", "build_irstd_resnet_fpn_backbone"]
