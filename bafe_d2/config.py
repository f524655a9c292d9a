"""Configuration keys of BAFE-Net."""

from __future__ import annotations

from detectron2.config import CfgNode


def add_bafe_config(cfg: CfgNode) -> None:
    """Add the keys of BAFE-Net to ``cfg``, in place."""
    _add_model_keys(cfg)


def _add_model_keys(cfg: CfgNode) -> None:
    cfg.MODEL.BAFE = bafe = CfgNode()
    # Weight of the background-segmentation loss.
    bafe.SKY_LOSS_WEIGHT = 1.0
    bafe.EXCHANGE = exchange = CfgNode()
    # Large selective kernel, task convolutions and exchange; without them the two tasks share the pyramid (Table IV).
    exchange.ENABLED = True
    # "channel", "spatial", "channel+spatial" or "spatial+channel" (Table VI).
    exchange.MECHANISM = "channel"
    # "dynamic", "fixed", "random" (Table VII), or "straight_through": dynamic with a mask that learns.
    exchange.SELECTION = "dynamic"
    # Share of channels that is exchanged, p (Table VIII).
    exchange.FRACTION = 0.5
    # Hidden units of the adapter, 0 for none (Tables IV and V).
    exchange.ADAPTER_WIDTH = 64
