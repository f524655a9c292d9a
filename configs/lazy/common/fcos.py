"""FCOS as BAFE-Net's paper trains it, in Python alone; as configs/bafe/Base-FCOS.yaml."""

from detectron2.config import LazyCall as L
from detectron2.modeling.backbone import BasicStem

from irstd_d2.modeling import IRSTDFCOS, FCOSHead, IRSTDResNet, SelectiveFPN, make_stages

model = L(IRSTDFCOS)(
    backbone=L(SelectiveFPN)(
        bottom_up=L(IRSTDResNet)(
            stem=L(BasicStem)(in_channels=3, out_channels=64, norm="BN"),
            stages=L(make_stages)(depth=18, stride_in_1x1=True, norm="BN"),
            out_features=["res3", "res4", "res5"],
            norm_eval=True,
            norm_trainable=False,
        ),
        in_features="${.bottom_up.out_features}",
        out_channels=256,
    ),
    head=L(FCOSHead)(in_channels=256, num_levels=3, num_classes="${..num_classes}"),
    head_in_features=["p3", "p4", "p5"],
    pixel_mean=[102.9801, 115.9465, 122.7717],
    pixel_std=[1.0, 1.0, 1.0],
    num_classes=1,
    regress_ranges=[(-1, 64), (64, 128), (128, 256)],
)
