"""Cascade RPN with a two-stage detector, AuxDet's baseline, in Python; as configs/auxdet/Base-CascadeRPN.yaml."""

from detectron2.config import LazyCall as L
from detectron2.layers import ShapeSpec
from detectron2.modeling import GeneralizedRCNN
from detectron2.modeling.backbone import BasicStem
from detectron2.modeling.matcher import Matcher
from detectron2.modeling.poolers import ROIPooler
from detectron2.modeling.roi_heads import FastRCNNConvFCHead, FastRCNNOutputLayers

from auxdet_d2.modeling import AuxDetROIHeads, BoundedBox2BoxTransform, CascadeRPN
from irstd_d2.modeling import IRSTDResNet, LastLevelP6, SelectiveFPN, make_stages

model = L(GeneralizedRCNN)(
    backbone=L(SelectiveFPN)(
        bottom_up=L(IRSTDResNet)(
            stem=L(BasicStem)(in_channels=3, out_channels=64, norm="BN"),
            stages=L(make_stages)(depth=50, norm="BN"),
            out_features=["res2", "res3", "res4", "res5"],
            freeze_at=2,
            norm_eval=True,
        ),
        in_features="${.bottom_up.out_features}",
        out_features=["p2", "p3"],
        out_channels=256,
        top_block=L(LastLevelP6)(in_channels=256, out_channels=256, in_feature="p5"),
    ),
    proposal_generator=L(CascadeRPN)(in_features=["p2", "p3"], channels=256, strides=[4, 8]),
    roi_heads=L(AuxDetROIHeads)(
        num_classes=1,
        batch_size_per_image=256,
        positive_fraction=0.25,
        proposal_matcher=L(Matcher)(thresholds=[0.65], labels=[0, 1], allow_low_quality_matches=False),
        box_in_features=["p2", "p3"],
        box_pooler=L(ROIPooler)(output_size=7, scales=(1.0 / 4, 1.0 / 8), sampling_ratio=0, pooler_type="ROIAlignV2"),
        box_head=L(FastRCNNConvFCHead)(
            input_shape=ShapeSpec(channels=256, height=7, width=7), conv_dims=[], fc_dims=[1024, 1024]
        ),
        box_predictor=L(FastRCNNOutputLayers)(
            input_shape=ShapeSpec(channels=1024),
            box2box_transform=L(BoundedBox2BoxTransform)(weights=(25.0, 25.0, 12.5, 12.5)),
            num_classes="${..num_classes}",
            smooth_l1_beta=1.0,
            loss_weight={"loss_cls": 1.5, "loss_box_reg": 1.0},
            test_score_thresh=0.001,
            test_nms_thresh=0.5,
            test_topk_per_image=100,
        ),
    ),
    pixel_mean=[123.675, 116.28, 103.53],
    pixel_std=[58.395, 57.12, 57.375],
    input_format="RGB",
)
