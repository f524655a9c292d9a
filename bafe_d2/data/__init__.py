"""Data of BAFE-Net: BAG-CP, its target library and mapper, DenseSIRST; importing registers the mapper."""

from .bag_cp import BAGCopyPaste, PasteRule, PasteTransform
from .dataset_mapper import BackgroundDatasetMapper, build_bag_cp
from .densesirst_generator import GeneratorConfig, generate_densesirst, read_sparse_set
from .target_library import TargetLibrary

__all__ = [
    "BAGCopyPaste",
    "BackgroundDatasetMapper",
    "GeneratorConfig",
    "PasteRule",
    "PasteTransform",
    "TargetLibrary",
    "build_bag_cp",
    "generate_densesirst",
    "read_sparse_set",
]
