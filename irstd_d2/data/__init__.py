"""Data layer: image and annotation reading, dataset registration and the mapper to samples."""

from .config import add_data_config
from .dataset_mapper import MAPPER_REGISTRY, IRSTDAugInput, IRSTDDatasetMapper, build_mapper
from .image_io import read_image, read_image_size, read_sky_mask

__all__ = [
    "MAPPER_REGISTRY",
    "IRSTDAugInput",
    "IRSTDDatasetMapper",
    "add_data_config",
    "build_mapper",
    "read_image",
    "read_image_size",
    "read_sky_mask",
]
