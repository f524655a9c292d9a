"""The mapper of BAFE-Net: sky masks beside images, and BAG-CP after the resize."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from detectron2.config import CfgNode, configurable
from detectron2.data import transforms as T

from irstd_d2.data import MAPPER_REGISTRY, IRSTDAugInput, IRSTDDatasetMapper
from irstd_d2.data.transforms import RandomGainOffset
from irstd_d2.errors import ConfigError

from .bag_cp import BAGCopyPaste, PasteRule
from .context import context_image, context_mask, window_of
from .target_library import TargetLibrary


def build_bag_cp(cfg: CfgNode) -> BAGCopyPaste:
    """Build the augmentation of ``INPUT.BAG_CP``; its library holds the targets of ``DATASETS.TRAIN``."""
    keys = cfg.INPUT.BAG_CP
    if keys.BACKGROUND_AWARE and not cfg.INPUT.LOAD_SEM_SEG:
        raise ConfigError(
            "INPUT.BAG_CP.ENABLED pastes into the sky, but INPUT.LOAD_SEM_SEG is False; set it, or "
            "INPUT.BAG_CP.BACKGROUND_AWARE to False"
        )
    library = TargetLibrary.from_datasets(
        cfg.DATASETS.TRAIN, Path(cfg.OUTPUT_DIR) / "target_library", high_bit_depth=cfg.INPUT.HIGH_BIT_DEPTH
    )
    own = {"ENABLED", "PROB", "BEFORE_RESIZE"}  # the other keys are the fields of a rule
    rule = PasteRule(**{key.lower(): value for key, value in keys.items() if key not in own})
    return BAGCopyPaste(library, rule, prob=keys.PROB)


@MAPPER_REGISTRY.register()
class BackgroundDatasetMapper(IRSTDDatasetMapper):
    """``IRSTDDatasetMapper`` that pastes targets into the sky of training images (``INPUT.BAG_CP``).

    Pasting comes last, at the size that the network sees, as the sizes of areas and targets are network pixels, but
    before gain and offset, which act on all targets of an image alike; with ``INPUT.BAG_CP.BEFORE_RESIZE`` it comes
    before the resize (and after the crop), and sizes are pixels of the image.

    With ``MODEL.BAFE.CONTEXT`` the samples carry the whole image at low resolution (``context``), of ``context_size``
    (height, width).
    """

    @configurable
    def __init__(self, is_train: bool, *, context_size: Sequence[int] | None = None, **mapper: Any):
        super().__init__(is_train, **mapper)
        self.context_size = None if context_size is None else (int(context_size[0]), int(context_size[1]))

    @classmethod
    def from_config(cls, cfg: CfgNode, is_train: bool = True) -> dict[str, Any]:
        context = cfg.MODEL.BAFE.CONTEXT
        return {**super().from_config(cfg, is_train), "context_size": context.SIZE if context.ENABLED else None}

    def augment(self, sample: dict[str, Any], aug_input: IRSTDAugInput) -> None:
        """Augment, and note what the result shows of the whole image."""
        if self.context_size is None:
            super().augment(sample, aug_input)
            return
        size = self.context_size
        sample.update(self.of_whole_image(aug_input.image))
        if aug_input.sem_seg is not None:
            sample["context_sem_seg"] = context_mask(aug_input.sem_seg, size)
        transforms = self.augmentations(aug_input)
        sample["context_window"] = window_of(transforms, aug_input.image.shape[:2])

    def of_whole_image(
        self, image: np.ndarray, prepare: Callable[[np.ndarray], np.ndarray] | None = None
    ) -> dict[str, Any]:
        if self.context_size is None:
            return {}
        return {"context": context_image(image, self.context_size, prepare), "context_size": image.shape[:2]}

    @classmethod
    def build_augmentation(cls, cfg: CfgNode, is_train: bool) -> list[T.Augmentation | T.Transform]:
        augmentations = super().build_augmentation(cfg, is_train)
        if is_train and cfg.INPUT.BAG_CP.ENABLED:
            kinds = [*map(type, augmentations), RandomGainOffset]
            before_resize = cfg.INPUT.BAG_CP.BEFORE_RESIZE
            position = int(cfg.INPUT.CROP.ENABLED) if before_resize else kinds.index(RandomGainOffset)
            augmentations.insert(position, build_bag_cp(cfg))
        return augmentations
