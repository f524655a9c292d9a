"""detectron2's resizes with a faster resize of float images, and a crop that finds the targets."""

from __future__ import annotations

import cv2
import numpy as np
from detectron2.data import transforms as T
from PIL import Image

from ..errors import ConfigError, check_number

_BILINEAR = Image.Resampling.BILINEAR


class ResizeTransform(T.ResizeTransform):
    """detectron2's resize; float32 images of several channels pass through OpenCV, ten times faster than torch.

    Both sample bilinearly at pixel centres without anti-aliasing, so results agree to float rounding.
    """

    def apply_image(self, img: np.ndarray, interp: int | None = None) -> np.ndarray:
        plain = img.dtype == np.float32 and (img.ndim == 2 or (img.ndim == 3 and 1 < img.shape[2] <= 4))
        if not plain or (self.interp if interp is None else interp) != _BILINEAR:
            return super().apply_image(img, interp)
        return cv2.resize(img, (self.new_w, self.new_h), interpolation=cv2.INTER_LINEAR)


class Resize(T.Resize):
    """Resize to a fixed ``(height, width)``; the aspect ratio is not kept."""

    def get_transform(self, image: np.ndarray) -> T.Transform:
        return ResizeTransform(*image.shape[:2], *self.shape, self.interp)


class ResizeShortestEdge(T.ResizeShortestEdge):
    """Resize the shorter edge to a length while the longer one stays below a bound; no edge shrinks to nothing."""

    def get_transform(self, image: np.ndarray) -> T.Transform:
        plan = super().get_transform(image)
        if not isinstance(plan, T.ResizeTransform):
            return plan
        return ResizeTransform(plan.h, plan.w, max(1, plan.new_h), max(1, plan.new_w), plan.interp)


class ResizeByFactor(T.Augmentation):
    """Enlarge or shrink every image by the same factor, so that a target keeps its size in network pixels.

    Args:
        factor: network pixels per pixel of the image.
        jitter: the factor varies at random from ``factor / jitter`` to ``factor * jitter``.
    """

    def __init__(self, factor: float, jitter: float = 1.0):
        super().__init__()
        if not factor > 0:
            raise ConfigError(f"INPUT.SCALE is {factor}; it must be positive")
        if not jitter >= 1:
            raise ConfigError(f"INPUT.SCALE_JITTER is {jitter}; it must be 1 or more")
        self.factor, self.jitter = factor, jitter

    def get_transform(self, image: np.ndarray) -> T.Transform:
        height, width = image.shape[:2]
        factor = self.factor if self.jitter == 1 else self.factor * self.jitter ** np.random.uniform(-1, 1)
        return ResizeTransform(height, width, *(max(1, round(n * factor)) for n in (height, width)), _BILINEAR)


class GainOffsetTransform(T.NoOpTransform):
    """``gain * pixel + offset``; boxes and masks stay."""

    def __init__(self, gain: float, offset: float):
        super().__init__()
        self.gain, self.offset = gain, offset

    def apply_image(self, img: np.ndarray) -> np.ndarray:
        return img * np.float32(self.gain) + np.float32(self.offset)

    def apply_segmentation(self, segmentation: np.ndarray) -> np.ndarray:
        return segmentation  # detectron2 applies what the image gets


class RandomGainOffset(T.Augmentation):
    """Another gain and offset of the sensor, and now and then hot and cold exchanged.

    Args:
        gain_range: (low, high) factor of the contrast around the middle, 127.5.
        offset_range: levels of 255 that are added or taken off at most.
        invert_prob: share of the images whose contrast changes its sign.
    """

    def __init__(self, gain_range: tuple[float, float], offset_range: float, invert_prob: float = 0.0):
        super().__init__()
        if not (0 < gain_range[0] <= gain_range[1] and offset_range >= 0 and 0 <= invert_prob <= 1):
            raise ConfigError(
                f"INPUT.GAIN_RANGE {tuple(gain_range)}, OFFSET_RANGE {offset_range}, INVERT_PROB {invert_prob}: use "
                "positive gains in ascending order, an offset of at least 0 and a probability"
            )
        self.gain_range, self.offset_range, self.invert_prob = tuple(gain_range), offset_range, invert_prob

    def get_transform(self, image: np.ndarray) -> T.Transform:  # noqa: ARG002
        low, high = self.gain_range
        gain = np.random.uniform(low, high)
        if np.random.uniform() < self.invert_prob:
            gain = -gain
        offset = np.random.uniform(-self.offset_range, self.offset_range)
        return GainOffsetTransform(gain, offset + 127.5 * (1 - gain))


class TargetCrop(T.RandomCrop):
    """A random crop that holds a random target whole with a given probability, wherever it then lies in it.

    In large images with few targets most plain crops are empty. ``target_prob`` is the share of the crops that hold a
    target, in images that have one; see ``detectron2.data.transforms.RandomCrop`` for the others.
    """

    def __init__(self, crop_type: str, crop_size: tuple[float, float], target_prob: float):
        super().__init__(crop_type, crop_size)
        for length in crop_size:
            check_number("INPUT.CROP.SIZE", length, *((0.001, 1) if crop_type.startswith("relative") else (1,)))
        check_number("INPUT.CROP.TARGET_PROB", target_prob, 0, 1)
        self.target_prob = target_prob

    def get_transform(self, image: np.ndarray, boxes: np.ndarray | None) -> T.Transform:  # type: ignore[override]
        if boxes is None or not len(boxes) or np.random.rand() >= self.target_prob:
            return super().get_transform(image)
        size = np.array(image.shape[1::-1])
        crop = np.array(self.get_crop_size(image.shape[:2])[::-1])
        box = boxes[np.random.randint(len(boxes))]
        # Of a target larger than the crop, the crop holds as much as it can.
        low = np.clip(np.ceil(box[2:]) - crop, 0, size - crop)
        high = np.clip(np.floor(box[:2]), 0, size - crop)
        low, high = np.minimum(low, high).astype(int), np.maximum(low, high).astype(int)
        return T.CropTransform(*np.random.randint(low, high + 1), *crop)
