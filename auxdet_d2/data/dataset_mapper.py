"""From a dataset dict to a sample with the imaging metadata that AuxDet takes."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
from detectron2.config import CfgNode, configurable

from irstd_d2.data import MAPPER_REGISTRY, IRSTDDatasetMapper
from irstd_d2.errors import ConfigError

from ..metadata import MetadataVocabulary

# What is dropped together.
_FIELDS: tuple[tuple[str, ...], ...] = (("platform",), ("band",), ("width", "height"))


@MAPPER_REGISTRY.register()
class MetadataDatasetMapper(IRSTDDatasetMapper):
    """``IRSTDDatasetMapper`` with metadata dropout in training.

    The sample's ``metadata`` is that of the ORIGINAL image, whatever the augmentations do.

    Args:
        metadata_dropout: probability with which a field (platform, band, size, and each of the names ``extra_fields``)
            of an image becomes unknown, each for itself.
        metadata_dropout_all: probability with which an image has no metadata at all.
        kwargs: as for ``IRSTDDatasetMapper``.
    """

    @configurable
    def __init__(
        self,
        is_train: bool,
        *,
        metadata_dropout: float = 0.0,
        metadata_dropout_all: float = 0.0,
        extra_fields: Iterable[str] = (),
        **kwargs: Any,
    ):
        super().__init__(is_train, **kwargs)
        for key, value in (("METADATA_DROPOUT", metadata_dropout), ("METADATA_DROPOUT_ALL", metadata_dropout_all)):
            if not 0 <= value <= 1:
                raise ConfigError(f"INPUT.{key} is {value}; give a probability in 0..1")
        self.metadata_dropout, self.metadata_dropout_all = metadata_dropout, metadata_dropout_all
        self.fields = (*_FIELDS, *((name,) for name in extra_fields))

    @classmethod
    def from_config(cls, cfg: CfgNode, is_train: bool = True) -> dict[str, Any]:
        return {
            **super().from_config(cfg, is_train),
            "metadata_dropout": cfg.INPUT.METADATA_DROPOUT,
            "metadata_dropout_all": cfg.INPUT.METADATA_DROPOUT_ALL,
            "extra_fields": MetadataVocabulary.from_config(cfg).extra_sizes,
        }

    def process_metadata(self, metadata: dict[str, Any]) -> dict[str, Any]:
        """Return a copy of the metadata in which dropped fields are ``None``."""
        metadata = dict(metadata)
        if not self.is_train or not (self.metadata_dropout or self.metadata_dropout_all):
            return metadata
        nothing_known = np.random.random() < self.metadata_dropout_all
        for keys in self.fields:
            if nothing_known or np.random.random() < self.metadata_dropout:
                metadata.update(dict.fromkeys(keys))
        return metadata
