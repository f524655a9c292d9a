"""Configuration keys of BAFE-Net."""

from __future__ import annotations

from detectron2.config import CfgNode


def add_bafe_config(cfg: CfgNode) -> None:
    """Add the keys of BAFE-Net to ``cfg``, in place."""
