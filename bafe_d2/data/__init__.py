"""Data of BAFE-Net: BAG-CP, its target library and mapper; importing registers the mapper."""

from .bag_cp import BAGCopyPaste, PasteRule, PasteTransform
from .dataset_mapper import BackgroundDatasetMapper, build_bag_cp
from .target_library import TargetLibrary

__all__ = ["BAGCopyPaste", "BackgroundDatasetMapper", "PasteRule", "PasteTransform", "TargetLibrary", "build_bag_cp"]
