"""Configuration keys of the backbones that detectron2 configures without YAML."""

from __future__ import annotations

from detectron2.config import CfgNode


def add_backbone_config(cfg: CfgNode) -> None:
    """Add the keys of exchangeable and transformer backbones to ``cfg``, in place."""
    # For the backbones build_irstd_fpn_backbone, build_auxdet_fpn_backbone and build_auxdet_backbone: the registered
    # backbone below the pyramid, or below M2DM and LEEM.
    cfg.MODEL.BACKBONE.BOTTOM_UP = "build_irstd_resnet_backbone"

    # Network of the package timm (build_timm_backbone); it follows MODEL.RESNETS.OUT_FEATURES and BACKBONE.FREEZE_AT.
    cfg.MODEL.TIMM = CfgNode()
    cfg.MODEL.TIMM.NAME = "tf_efficientnet_lite0"
    # Start from timm's own weights, which it downloads; MODEL.WEIGHTS replace them.
    cfg.MODEL.TIMM.PRETRAINED = False

    # Swin transformer (build_swin_backbone); the defaults are Swin-T.
    cfg.MODEL.SWIN = swin = CfgNode()
    swin.EMBED_DIM = 96
    # Blocks and attention heads of the four stages.
    swin.DEPTHS = (2, 2, 6, 2)
    swin.NUM_HEADS = (3, 6, 12, 24)
    # In tokens of the stage.
    swin.WINDOW_SIZE = 7
    # Stochastic depth of the last block; it rises from 0 at the first.
    swin.DROP_PATH = 0.2
    # Names among "res2" .. "res5", strides 4 .. 32.
    swin.OUT_FEATURES = ("res2", "res3", "res4", "res5")

    # Plain vision transformer with a simple pyramid (build_vit_pyramid_backbone); the defaults are ViT-B of ViTDet.
    cfg.MODEL.VIT = vit = CfgNode()
    # In pixels, a power of two.
    vit.PATCH_SIZE = 16
    vit.EMBED_DIM = 768
    vit.DEPTH = 12
    vit.NUM_HEADS = 12
    # Numbers of the blocks with attention inside windows, and the windows' edge in patches; the other blocks see all.
    vit.WINDOW_BLOCKS = (0, 1, 3, 4, 6, 7, 9, 10)
    vit.WINDOW_SIZE = 14
    # A learned bias of the attention by relative position; IMAGE_SIZE (pixels) sets the length of its table.
    vit.RELATIVE_POSITION = True
    vit.IMAGE_SIZE = 1024
    # Image size (pixels) of the pretraining, which sets the number of position codes; others are interpolated.
    vit.PRETRAIN_IMAGE_SIZE = 224
    vit.DROP_PATH = 0.1
    # Consecutive ones of "p2" .. "p5", of 1/4 to 2 times the stride of a patch.
    vit.LEVELS = ("p2", "p3", "p4", "p5")
