"""Configuration of the project: one ``CfgNode`` that knows the keys of all three packages."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module
from os import PathLike, fspath

from detectron2.config import CfgNode, get_cfg

from .data.config import add_data_config

# Looked up by name, so that this package depends on neither of them.
_EXTENSIONS = ("auxdet_d2.config:add_auxdet_config", "bafe_d2.config:add_bafe_config")


def add_irstd_config(cfg: CfgNode) -> None:
    """Add the keys that both systems share to ``cfg``, in place."""
    _add_model_keys(cfg)
    add_data_config(cfg)


def _add_model_keys(cfg: CfgNode) -> None:
    # Batch norm of the backbone keeps its running statistics in training (as with pretrained weights and small batches).
    cfg.MODEL.RESNETS.NORM_EVAL = False
    # Whether the scale and shift of the backbone's norms are trained.
    cfg.MODEL.RESNETS.NORM_TRAINABLE = True
    # Extra pyramid levels: "none", "maxpool" (P6 by subsampling), "p6" (one stride-2 conv on the last output),
    # "p6p7" (RetinaNet's, from the last backbone stage).
    cfg.MODEL.FPN.TOP_BLOCK = "none"
    # Pyramid levels that leave the neck, e.g. ["p2", "p3"]; empty means all. The others are not computed.
    cfg.MODEL.FPN.OUT_FEATURES = []


def get_config(path: str | PathLike | None = None, opts: Sequence[str] = ()) -> CfgNode:
    """Return a ``CfgNode`` with the keys of detectron2 and of this project, merged from a file.

    Args:
        path: a YAML file of this project or the user's own; ``None`` gives the defaults.
        opts: alternating keys and values, as on the command line: ``["SOLVER.MAX_ITER", 100]``.

    Returns:
        An unfrozen ``CfgNode``; ``detectron2.modeling.build_model`` accepts it after
        ``import auxdet_d2, bafe_d2``.
    """
    cfg = get_cfg()
    add_irstd_config(cfg)
    for extension in _EXTENSIONS:
        module, function = extension.split(":")
        getattr(import_module(module), function)(cfg)
    if path is not None:
        cfg.merge_from_file(fspath(path))
    cfg.merge_from_list(list(opts))
    return cfg


__all__ = ["add_irstd_config", "get_config"]
