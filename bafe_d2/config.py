"""Configuration keys of BAFE-Net."""

from __future__ import annotations

from detectron2.config import CfgNode


def add_bafe_config(cfg: CfgNode) -> None:
    """Add the keys of BAFE-Net to ``cfg``, in place; its models also need those of ``irstd_d2.add_irstd_config``."""
    _add_model_keys(cfg)
    _add_data_keys(cfg)


def _add_model_keys(cfg: CfgNode) -> None:
    cfg.MODEL.BAFE = bafe = CfgNode()
    # Weight of the background-segmentation loss.
    bafe.SKY_LOSS_WEIGHT = 1.0
    # BAFENet: final scores times this power of the predicted probability of sky; 0 for none (published). The root of
    # MODEL.FCOS.SCORE_MODE "sqrt" comes after it and halves the power.
    bafe.SKY_SCORE_POWER = 0.0
    # Two-stage detectors (ROI_HEADS.NAME ExchangeROIHeads): the heads that follow the exchange, and the convolutions
    # and norm of the segmentation tower. BAFENet takes the latter two from MODEL.FCOS.
    bafe.ROI_HEADS = "StandardROIHeads"
    bafe.SEG_NUM_CONVS = 4
    bafe.SEG_NORM = "GN"
    # The background from the whole image at low resolution, sampled where the detector looks; off: as published.
    bafe.CONTEXT = context = CfgNode()
    context.ENABLED = False
    # (height, width) of the context; the image is fitted into it.
    context.SIZE = (128, 160)
    # Channels at strides 2, 4, 8 and 16 of the context, and their norm.
    context.CHANNELS = (16, 32, 48, 64)
    context.NORM = "BN"
    # Classification logits get a learned multiple of the logit of sky. For data whose targets lie in the sky.
    context.LEARN_SKY_SCORE = False
    bafe.EXCHANGE = exchange = CfgNode()
    # Large selective kernel, task convolutions and exchange; without them the two tasks share the pyramid (Table IV).
    exchange.ENABLED = True
    # "channel", "spatial", "channel+spatial" or "spatial+channel" (Table VI).
    exchange.MECHANISM = "channel"
    # "dynamic", "fixed", "random" (Table VII), or "straight_through": dynamic with a mask that learns.
    exchange.SELECTION = "dynamic"
    # Share of the channels, or of the columns of positions, that is exchanged, p (Table VIII).
    exchange.FRACTION = 0.5
    # Hidden units of the adapter, 0 for none (Tables IV and V).
    exchange.ADAPTER_WIDTH = 64


def _add_data_keys(cfg: CfgNode) -> None:
    cfg.INPUT.BAG_CP = bag_cp = CfgNode()
    # Needs INPUT.MAPPER BackgroundDatasetMapper.
    bag_cp.ENABLED = False
    # Share of the training images that get pasted targets.
    bag_cp.PROB = 1.0
    # Paste before the resize: sizes below are then pixels of the image, not of the network.
    bag_cp.BEFORE_RESIZE = False
    # Dense areas per image, targets per area, edge of an area and gaps between targets in network pixels.
    bag_cp.AREAS = (1, 3)
    bag_cp.TARGETS = (8, 12)
    bag_cp.AREA_EDGE = 20
    bag_cp.GAPS = (1, 2)
    # lambda of Eq. 1; shift and standard deviations of the Gaussian, Eq. 2.
    bag_cp.BRIGHTNESS = (0.5, 1.0)
    bag_cp.OFFSET = (0.0, 0.2)
    bag_cp.SIGMA = (0.3, 0.6)
    # The parts of Table III.
    bag_cp.CLUSTERS = True
    bag_cp.GAUSSIAN = True
    bag_cp.BACKGROUND_AWARE = True
