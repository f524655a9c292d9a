"""AuxDet: metadata-conditioned detection of infrared small targets. Importing registers its parts."""

from . import data, modeling
from .config import add_auxdet_config
from .metadata import ImagingMetadata, MetadataBatch, MetadataVocabulary, collate_metadata

__all__ = [
    "ImagingMetadata",
    "MetadataBatch",
    "MetadataVocabulary",
    "add_auxdet_config",
    "collate_metadata",
    "data",
    "modeling",
]
