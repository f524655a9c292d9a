"""Configuration keys of AuxDet."""

from __future__ import annotations

from detectron2.config import CfgNode


def add_auxdet_config(cfg: CfgNode) -> None:
    """Add the keys of AuxDet to ``cfg``, in place."""
