"""Data layer: image and annotation reading, dataset registration and the mapper to samples."""

from .classes import ClassTable
from .coco import load_coco
from .config import add_data_config
from .dataset_mapper import MAPPER_REGISTRY, IRSTDAugInput, IRSTDDatasetMapper, build_mapper
from .datasets import align_classes, class_table, datasets_root, register_coco_folder, register_voc_folder
from .faults import set_skip_bad
from .image_io import read_image, read_image_size, read_sky_mask
from .layout import LAYOUTS, VocLayout
from .sidecar import read_sidecar
from .voc import load_voc
from .voc_xml import read_voc_xml

__all__ = [
    "LAYOUTS",
    "MAPPER_REGISTRY",
    "ClassTable",
    "IRSTDAugInput",
    "IRSTDDatasetMapper",
    "VocLayout",
    "add_data_config",
    "align_classes",
    "build_mapper",
    "class_table",
    "datasets_root",
    "load_coco",
    "load_voc",
    "read_image",
    "read_image_size",
    "read_sidecar",
    "read_sky_mask",
    "read_voc_xml",
    "register_coco_folder",
    "register_voc_folder",
    "set_skip_bad",
]
