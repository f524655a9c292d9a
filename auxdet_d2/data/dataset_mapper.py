"""From a dataset dict to a sample with the imaging metadata that AuxDet takes."""

from __future__ import annotations

from typing import Any

import numpy as np
from detectron2.config import CfgNode, configurable

from irstd_d2.data import MAPPER_REGISTRY, IRSTDDatasetMapper
from irstd_d2.errors import ConfigError

# What is dropped together.
_FIELDS = (("platform",), ("band",), ("width", "height"))


@MAPPER_REGISTRY.register()
class MetadataDatasetMapper(IRSTDDatasetMapper):
    """``IRSTDDatasetMapper`` with metadata dropout.

    The sample's ``metadata`` is that of the ORIGINAL image, whatever the augmentations do.

    Args:
        is_train: metadata is dropped in training only.
        metadata_dropout: probability with which a field (platform, band, size) of an image becomes unknown, each
            field for itself.
        kwargs: as for ``IRSTDDatasetMapper``.
    """

    @configurable
    def __init__(self, is_train: bool, *, metadata_dropout: float = 0.0, **kwargs: Any):
        super().__init__(is_train, **kwargs)
        if not 0 <= metadata_dropout <= 1:
            raise ConfigError(f"INPUT.METADATA_DROPOUT is {metadata_dropout}; give a probability in 0..1")
        self.metadata_dropout = metadata_dropout

    @classmethod
    def from_config(cls, cfg: CfgNode, is_train: bool = True) -> dict[str, Any]:
        return {**super().from_config(cfg, is_train), "metadata_dropout": cfg.INPUT.METADATA_DROPOUT}

    def process_metadata(self, metadata: dict[str, Any]) -> dict[str, Any]:
        """Return a copy of the metadata in which dropped fields are ``None``."""
        metadata = dict(metadata)
        if self.is_train and self.metadata_dropout:
            for keys in _FIELDS:
                if np.random.random() < self.metadata_dropout:
                    metadata.update(dict.fromkeys(keys))
        return metadata
