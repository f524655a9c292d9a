"""A trained model as a function of one image file."""

from __future__ import annotations

from collections.abc import Mapping
from os import PathLike, fspath
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.modeling import build_model
from detectron2.structures import Instances

from ..data import build_mapper
from ..engine.checkpoint import IRSTDCheckpointer


class Predictor:
    """Read, resize and detect as the evaluation of the same configuration does.

    Args:
        cfg: configuration; ``MODEL.WEIGHTS`` are loaded.
    """

    def __init__(self, cfg: CfgNode):
        self.model = build_model(cfg).eval()
        IRSTDCheckpointer(self.model).load(cfg.MODEL.WEIGHTS)
        self._mapper = build_mapper(cfg, is_train=False)

    @torch.no_grad()
    def __call__(self, path: str | PathLike, metadata: Mapping[str, Any] | None = None) -> Instances:
        """Detect the targets of one image.

        Args:
            path: an image file.
            metadata: what is known of the image: ``platform``, ``band``; width and height come from the file.

        Returns:
            ``pred_boxes`` in pixels of the file, ``scores`` and ``pred_classes``, on the CPU.

        Raises:
            DatasetError: the file cannot be read.
        """
        sample = self._mapper({"file_name": fspath(path), "metadata": dict(metadata or {})})
        return self.model([sample])[0]["instances"].to("cpu")
