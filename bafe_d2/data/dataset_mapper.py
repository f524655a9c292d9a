"""The mapper of BAFE-Net: sky masks beside images, and BAG-CP after the resize."""

from __future__ import annotations

from pathlib import Path

from detectron2.config import CfgNode
from detectron2.data import transforms as T

from irstd_d2.data import MAPPER_REGISTRY, IRSTDDatasetMapper

from .bag_cp import BAGCopyPaste, PasteRule
from .target_library import TargetLibrary


def build_bag_cp(cfg: CfgNode) -> BAGCopyPaste:
    """Build the augmentation of ``INPUT.BAG_CP``; its library holds the targets of ``DATASETS.TRAIN``."""
    keys = cfg.INPUT.BAG_CP
    library = TargetLibrary.from_datasets(cfg.DATASETS.TRAIN, Path(cfg.OUTPUT_DIR) / "target_library")
    rule = PasteRule(
        areas=tuple(keys.AREAS),
        targets=tuple(keys.TARGETS),
        area_edge=keys.AREA_EDGE,
        gaps=tuple(keys.GAPS),
        brightness=tuple(keys.BRIGHTNESS),
        offset=tuple(keys.OFFSET),
        sigma=tuple(keys.SIGMA),
        clusters=keys.CLUSTERS,
        gaussian=keys.GAUSSIAN,
        background_aware=keys.BACKGROUND_AWARE,
    )
    return BAGCopyPaste(library, rule, prob=keys.PROB)


@MAPPER_REGISTRY.register()
class BackgroundDatasetMapper(IRSTDDatasetMapper):
    """``IRSTDDatasetMapper`` that pastes targets into the sky of training images (``INPUT.BAG_CP``).

    Pasting comes last, at the size that the network sees, as the sizes of areas and targets are network pixels; with
    ``INPUT.BAG_CP.BEFORE_RESIZE`` it comes before the resize (and after the crop), and sizes are pixels of the image.
    """

    @classmethod
    def build_augmentation(cls, cfg: CfgNode, is_train: bool) -> list[T.Augmentation | T.Transform]:
        augmentations = super().build_augmentation(cfg, is_train)
        if is_train and cfg.INPUT.BAG_CP.ENABLED:
            first = int(cfg.INPUT.CROP.ENABLED)
            position = first if cfg.INPUT.BAG_CP.BEFORE_RESIZE else len(augmentations)
            augmentations.insert(position, build_bag_cp(cfg))
        return augmentations
