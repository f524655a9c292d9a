"""Data of AuxDet; importing registers its mapper."""

from .dataset_mapper import MetadataDatasetMapper

__all__ = ["MetadataDatasetMapper"]
