"""From a dataset dict to the sample that a model takes."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from detectron2.config import CfgNode, configurable
from detectron2.data import transforms as T
from detectron2.structures import Boxes, BoxMode, Instances
from fvcore.common.registry import Registry

from ..errors import ConfigError, DatasetError, check_known
from .image_io import check_size, read_raw, read_sky_mask, to_float_image
from .transforms import RandomGainOffset, Resize, ResizeByFactor, ResizeShortestEdge, TargetCrop

MAPPER_REGISTRY = Registry("MAPPER")
MAPPER_REGISTRY.__doc__ = """
Mappers from a dataset dict to a sample, chosen by ``cfg.INPUT.MAPPER``.
A registered class is called as ``cls(cfg, is_train)``.
"""

_MIN_BOX_SIDE = 1e-5  # pixels; as detectron2's filter_empty_instances
# Augmentations that do the same to every channel, and work on a gray image as well.
_SAME_FOR_ALL_CHANNELS = (
    RandomGainOffset,
    Resize,
    ResizeByFactor,
    ResizeShortestEdge,
    TargetCrop,
    T.RandomCrop,
    T.RandomFlip,
)
_logger = logging.getLogger(__name__)


def build_mapper(cfg: CfgNode, is_train: bool):
    """Build the mapper named by ``cfg.INPUT.MAPPER``."""
    return MAPPER_REGISTRY.get(cfg.INPUT.MAPPER)(cfg, is_train)


class IRSTDAugInput(T.AugInput):
    """detectron2's ``AugInput`` that also carries the class of each box.

    An augmentation may replace ``boxes`` and ``classes`` together, and so add or remove targets.

    Args:
        image: ``(H, W, 3)`` float32 in ``[0, 255]``; ``(H, W)`` for a gray one where all augmentations do the same to
            every channel (those of this project, detectron2's flip and crop, and others with ``channelwise = True``).
        boxes: ``(N, 4)`` float32, XYXY in pixels, half-open; ``None`` at test time.
        classes: ``(N,)`` int64.
        sem_seg: ``(H, W)`` uint8, 1 sky, 0 other, 255 ignore.
    """

    def __init__(
        self,
        image: np.ndarray,
        *,
        boxes: np.ndarray | None = None,
        classes: np.ndarray | None = None,
        sem_seg: np.ndarray | None = None,
    ):
        super().__init__(image, boxes=boxes, sem_seg=sem_seg)
        self.boxes: np.ndarray | None  # detectron2 leaves them untyped
        self.sem_seg: np.ndarray | None
        self.classes = classes


@MAPPER_REGISTRY.register()
class IRSTDDatasetMapper:
    """Read, augment and pack one image with its boxes, sky mask and imaging metadata.

    Subclasses change :meth:`load`, :meth:`process_metadata` or :meth:`build_augmentation`.

    Args:
        is_train: whether samples carry ``instances`` and ``sem_seg``.
        augmentations: detectron2 augmentations or transforms, applied in order.
        image_format: channel order, ``"RGB"`` or ``"BGR"``.
        high_bit_depth: see :func:`irstd_d2.data.read_image`.
        load_sem_seg: whether training samples carry sky masks.
        skip_bad: in training, return ``None`` for an unreadable image (detectron2's loader then takes another) and
            log it, in place of raising.
    """

    @configurable
    def __init__(
        self,
        is_train: bool,
        *,
        augmentations: list[T.Augmentation | T.Transform],
        image_format: str = "RGB",
        high_bit_depth: str = "auto",
        load_sem_seg: bool = True,
        skip_bad: bool = False,
    ):
        self.is_train = is_train
        self.augmentations = T.AugmentationList(augmentations)
        # A gray image gets its three channels last.
        self.keep_gray = all(
            type(aug) in _SAME_FOR_ALL_CHANNELS or getattr(aug, "channelwise", False) for aug in augmentations
        )
        self.image_format = image_format
        self.high_bit_depth = high_bit_depth
        self.load_sem_seg = load_sem_seg
        self.skip_bad = skip_bad
        _logger.info("Augmentations in %s: %s", "training" if is_train else "inference", augmentations)

    @classmethod
    def from_config(cls, cfg: CfgNode, is_train: bool = True) -> dict[str, Any]:
        return {
            "is_train": is_train,
            "augmentations": cls.build_augmentation(cfg, is_train),
            "image_format": cfg.INPUT.FORMAT,
            "high_bit_depth": cfg.INPUT.HIGH_BIT_DEPTH,
            "load_sem_seg": cfg.INPUT.LOAD_SEM_SEG,
            "skip_bad": cfg.DATASETS.SKIP_BAD,
        }

    @classmethod
    def build_augmentation(cls, cfg: CfgNode, is_train: bool) -> list[T.Augmentation | T.Transform]:
        """Resize, then in training crop (``INPUT.CROP``) before it and flip (``INPUT.RANDOM_FLIP``) after it."""
        augmentations: list[T.Augmentation | T.Transform] = []
        if is_train and cfg.INPUT.CROP.ENABLED:
            crop = cfg.INPUT.CROP
            augmentations.append(TargetCrop(crop.TYPE, crop.SIZE, crop.TARGET_PROB))
        augmentations.append(_build_resize(cfg, is_train))
        if is_train and (cfg.INPUT.GAIN_RANGE != (1.0, 1.0) or cfg.INPUT.OFFSET_RANGE or cfg.INPUT.INVERT_PROB):
            augmentations.append(RandomGainOffset(cfg.INPUT.GAIN_RANGE, cfg.INPUT.OFFSET_RANGE, cfg.INPUT.INVERT_PROB))
        check_known("INPUT.RANDOM_FLIP", cfg.INPUT.RANDOM_FLIP, ("none", "horizontal", "vertical"))
        if is_train and cfg.INPUT.RANDOM_FLIP != "none":
            horizontal = cfg.INPUT.RANDOM_FLIP == "horizontal"
            augmentations.append(T.RandomFlip(horizontal=horizontal, vertical=not horizontal))
        return augmentations

    def __call__(self, dataset_dict: dict[str, Any]) -> dict[str, Any] | None:
        """Map one dataset dict, which stays as it is.

        Returns:
            The dict without ``annotations`` and ``sem_seg_file_name``, and with ``image`` ``(3, H, W)`` float32,
            ``metadata`` and, in training, ``instances`` (``gt_boxes``, ``gt_classes``) and ``sem_seg`` ``(H, W)``
            int64 where the data set has them.

        Raises:
            DatasetError: a file cannot be read, or its size is not the annotated one.
        """
        try:
            aug_input = self.load(dataset_dict)
        except DatasetError as error:
            if not (self.is_train and self.skip_bad):
                raise
            _logger.warning("Skipped: %s", error)
            return None
        sample = {k: v for k, v in dataset_dict.items() if k not in ("annotations", "sem_seg_file_name")}
        sample.setdefault("height", aug_input.image.shape[0])
        sample.setdefault("width", aug_input.image.shape[1])
        size = {"width": sample["width"], "height": sample["height"]}
        sample["metadata"] = self.process_metadata({**size, **(dataset_dict.get("metadata") or {})})

        self.augment(sample, aug_input)
        sample["image"] = _pack_image(aug_input.image)
        if aug_input.sem_seg is not None:
            sample["sem_seg"] = torch.from_numpy(aug_input.sem_seg.astype(np.int64))
        if aug_input.boxes is not None and aug_input.classes is not None:
            sample["instances"] = _pack_instances(aug_input.boxes, aug_input.classes, aug_input.image.shape[:2])
        return sample

    def load(self, dataset_dict: dict[str, Any]) -> IRSTDAugInput:
        """Read the files of one dataset dict; in training also its boxes and sky mask.

        A dict with an ``image``, as :func:`irstd_d2.data.read_image` returns it, has it taken in place of the file.
        """
        file_name = dataset_dict["file_name"]
        image = dataset_dict.get("image")
        if image is None:
            raw = read_raw(file_name)
            image = to_float_image(raw, file_name, self.image_format, self.high_bit_depth, keep_gray=self.keep_gray)
        size = dataset_dict.get("height") or image.shape[0], dataset_dict.get("width") or image.shape[1]
        check_size(file_name, image.shape, size)
        if not self.is_train:
            return IRSTDAugInput(image)
        sem_seg = None
        if self.load_sem_seg and (sky_file := dataset_dict.get("sem_seg_file_name")) is not None:
            sem_seg = read_sky_mask(sky_file)
            check_size(sky_file, sem_seg.shape, size)
        boxes, classes = None, None
        if "annotations" in dataset_dict:
            boxes, classes = _annotation_arrays(dataset_dict["annotations"])
        return IRSTDAugInput(image, boxes=boxes, classes=classes, sem_seg=sem_seg)

    def augment(self, sample: dict[str, Any], aug_input: IRSTDAugInput) -> None:  # noqa: ARG002
        """Augment in place; subclasses may add to the sample what depends on the image before or on the transforms."""
        self.augmentations(aug_input)

    def of_whole_image(
        self,
        image: np.ndarray,  # noqa: ARG002
        prepare: Callable[[np.ndarray], np.ndarray] | None = None,  # noqa: ARG002
    ) -> dict[str, Any]:
        """What every crop or tile of an image carries of the whole image, beside ``context_window``; here nothing.

        ``image`` is (H, W) or (H, W, C), maybe memory-mapped; ``prepare`` turns some of its rows into floats in 0..255.
        """
        return {}

    def process_metadata(self, metadata: dict[str, Any]) -> dict[str, Any]:
        """Return the metadata of the sample; ``width`` and ``height`` are those of the original image."""
        return metadata


def _build_resize(cfg: CfgNode, is_train: bool) -> T.Augmentation:
    mode = cfg.INPUT.RESIZE_MODE
    if mode == "fixed":
        return Resize(tuple(cfg.INPUT.FIXED_SIZE))
    if mode == "scale":
        return ResizeByFactor(cfg.INPUT.SCALE, cfg.INPUT.SCALE_JITTER if is_train else 1.0)
    if mode != "shortest_edge":
        raise ConfigError(f"INPUT.RESIZE_MODE is {mode!r}; use 'shortest_edge', 'fixed' or 'scale'")
    if is_train:
        return ResizeShortestEdge(cfg.INPUT.MIN_SIZE_TRAIN, cfg.INPUT.MAX_SIZE_TRAIN, cfg.INPUT.MIN_SIZE_TRAIN_SAMPLING)
    return ResizeShortestEdge(cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST, "choice")


def _annotation_arrays(annotations: list[dict[str, Any]]) -> tuple[np.ndarray, np.ndarray]:
    """Boxes ``(N, 4)`` float32 XYXY and classes ``(N,)`` int64 of all objects that are not marked difficult."""
    kept = [obj for obj in annotations if not obj.get("iscrowd", 0)]
    boxes = [BoxMode.convert(list(obj["bbox"]), obj["bbox_mode"], BoxMode.XYXY_ABS) for obj in kept]
    classes = [obj["category_id"] for obj in kept]
    return np.array(boxes, dtype=np.float32).reshape(-1, 4), np.array(classes, dtype=np.int64)


def _pack_image(image: np.ndarray) -> torch.Tensor:
    """(H, W, 3) or gray (H, W) -> (3, H, W)"""
    if image.ndim == 3:
        return torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1)))
    packed = np.empty((3, *image.shape), np.float32)
    packed[:] = image
    return torch.from_numpy(packed)


def _pack_instances(boxes: np.ndarray, classes: np.ndarray, image_size: tuple[int, int]) -> Instances:
    """Clip boxes ``(N, 4)`` to an image of ``(height, width)`` and drop those without area."""
    height, width = image_size
    boxes = np.clip(boxes, 0, np.array([width, height, width, height], dtype=np.float32))
    keep = ((boxes[:, 2:] - boxes[:, :2]) > _MIN_BOX_SIDE).all(axis=1)
    instances = Instances((height, width))
    instances.gt_boxes = Boxes(torch.from_numpy(boxes[keep].astype(np.float32, copy=False)))
    instances.gt_classes = torch.from_numpy(classes[keep].astype(np.int64, copy=False))
    return instances
