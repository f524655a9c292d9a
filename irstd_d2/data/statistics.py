"""What a data set holds: counts, target sizes, contrasts, brightness and imaging domains.

Contrast and brightness follow section III-C of the DenseSIRST paper, which shows but does not define them:

* local contrast of a target: mean of its box divided by the mean of the surroundings, that is the box enlarged by its
  own width and height on every side, without the box. 1 is no contrast, below 1 is a dark target. Neighbours inside
  the surroundings count as background.
* brightness of a target: its highest pixel divided by the highest pixel of the image.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import cv2
import numpy as np

from .box_checks import boxes_of

SIZE_EDGES = (0, 2, 3, 4, 5, 6, 8, 10, 15, 20, 30, np.inf)  # square root of the box area, pixels
CONTRAST_EDGES = (0, 0.5, 0.8, 1, 1.2, 1.5, 2, 3, 5, 10, np.inf)
BRIGHTNESS_EDGES = (0, 0.2, 0.4, 0.6, 0.8, 1.0 - 1e-6, np.inf)
UNKNOWN = "unknown"

_DARK = 1e-6  # keeps a division by black surroundings finite


@dataclass(frozen=True)
class ImageStatistics:
    """One image, or N targets of it; platform and band may be ``"unknown"``, sizes and boxes are in pixels.

    Args:
        name: image id.
        boxes, contrast, brightness: ``(N, 4)`` XYXY, ``(N,)``, and ``(N,)`` in ``[0, 1]``.
        pixel_kind: such as ``"gray, 8 bits"``.
        levels: lowest and highest value in the file, and whether they fill a small part of their type only
            (:func:`irstd_d2.data.pixel_values.uses_small_part`); ``None`` where nobody looked.
        offsets: ``(N, 2)`` of the light from the boxes' centres, see :func:`light_offsets`; ``None`` as above.
    """

    name: str
    width: int
    height: int
    platform: str
    band: str
    boxes: np.ndarray
    contrast: np.ndarray
    brightness: np.ndarray
    pixel_kind: str
    levels: tuple[float, float, bool] | None = None
    offsets: np.ndarray | None = None


@dataclass(frozen=True)
class DatasetStatistics:
    """All images of a set, and which of them each split names."""

    images: Sequence[ImageStatistics]
    splits: dict[str, list[str]] = field(default_factory=dict)

    @property
    def num_targets(self) -> int:
        return sum(len(image.boxes) for image in self.images)

    def boxes(self) -> np.ndarray:
        """``(N, 4)`` boxes of all targets."""
        return np.concatenate([np.zeros((0, 4)), *(image.boxes for image in self.images)])

    def contrast(self) -> np.ndarray:
        """``(N,)`` local contrasts of all targets."""
        return np.concatenate([np.zeros(0), *(image.contrast for image in self.images)])

    def brightness(self) -> np.ndarray:
        """``(N,)`` brightness of all targets."""
        return np.concatenate([np.zeros(0), *(image.brightness for image in self.images)])

    def sizes(self) -> Counter[tuple[int, int]]:
        """Number of targets of each (width, height), rounded to pixels."""
        boxes = np.rint(self.boxes()).astype(int)
        return Counter(zip((boxes[:, 2] - boxes[:, 0]).tolist(), (boxes[:, 3] - boxes[:, 1]).tolist()))

    def split_rows(self) -> list[tuple[str, int, int, int]]:
        """(split, images, targets, images without a target) of every split, then of all."""
        targets = {image.name: len(image.boxes) for image in self.images}
        rows = []
        for split, names in [*self.splits.items(), ("all", list(targets))]:
            counts = [targets[name] for name in names if name in targets]
            rows.append((split, len(counts), sum(counts), counts.count(0)))
        return rows

    def domain_rows(self) -> list[tuple[str, str, int, int, str, str]]:
        """(platform, band, images, targets, range of sizes, most common size), most images first."""
        groups: dict[tuple[str, str], list[ImageStatistics]] = {}
        for image in self.images:
            groups.setdefault((image.platform, image.band), []).append(image)
        rows = []
        for (platform, band), images in sorted(groups.items(), key=lambda item: -len(item[1])):
            sizes = Counter((image.width, image.height) for image in images)
            ordered = sorted(sizes, key=lambda size: (size[0] * size[1], size))
            (width, height), count = sizes.most_common(1)[0]
            span = " to ".join(dict.fromkeys((_size_text(ordered[0]), _size_text(ordered[-1]))))
            common = f"{_size_text((width, height))} ({count})"
            rows.append((platform, band, len(images), sum(len(image.boxes) for image in images), span, common))
        return rows

    def pixel_kinds(self) -> Counter[str]:
        return Counter(image.pixel_kind for image in self.images)


def measure_image(
    sample: dict[str, Any], image: np.ndarray, pixel_kind: str, levels: tuple[float, float, bool] | None = None
) -> ImageStatistics:
    """Measure the targets of one image, (H, W, 3) float32 in ``[0, 255]``; see :class:`ImageStatistics`."""
    boxes = boxes_of(sample)
    gray = image.mean(axis=2)
    metadata = sample.get("metadata", {})
    return ImageStatistics(
        name=str(sample["image_id"]),
        width=gray.shape[1],
        height=gray.shape[0],
        platform=metadata.get("platform") or UNKNOWN,
        band=metadata.get("band") or UNKNOWN,
        boxes=boxes,
        contrast=local_contrast(gray, boxes),
        brightness=relative_brightness(gray, boxes),
        pixel_kind=pixel_kind,
        levels=levels,
        offsets=light_offsets(gray, boxes),
    )


def range_notes(images: Sequence[ImageStatistics]) -> list[str]:
    """Remarks on what a detector would see differently from image to image: depths, and counts of a sensor."""
    notes = []
    advice = "INPUT.HIGH_BIT_DEPTH decides how they become 0 to 255 (datasets/README.md)"
    depths = Counter(image.pixel_kind.split(", ")[-1] for image in images)
    if len(depths) > 1:
        mixture = ", ".join(f"{count} of {depth}" for depth, count in depths.most_common())
        notes.append(f"images of different depths: {mixture}; {advice}")
    known = [(image.pixel_kind, *image.levels) for image in images if image.levels is not None]
    for kind in sorted({kind for kind, _, _, small in known if small}):
        low = min(low for own, low, _, small in known if small and own == kind)
        high = max(high for own, _, high, small in known if small and own == kind)
        same = [small for own, _, _, small in known if own == kind]
        others = f"; the other {len(same) - sum(same)} are not" if not all(same) else ""
        notes.append(
            f"{sum(same)} images of {kind} hold values from {low:g} to {high:g} only, a small part of what the type "
            f"holds: the default (auto) stretches each of them{others}; {advice}"
        )
    return notes


def local_contrast(gray: np.ndarray, boxes: np.ndarray) -> np.ndarray:
    """Mean of each box over the mean of its surroundings, (N,) float64; 1 where these lie outside the image.

    ``gray`` is (H, W), ``boxes`` (N, 4) XYXY in pixels, widened to whole ones.
    """
    inner = _whole_pixels(boxes, gray.shape)
    sides = np.tile(inner[:, 2:] - inner[:, :2], 2)
    outer = _whole_pixels(inner + sides * (-1, -1, 1, 1), gray.shape)
    integral = cv2.integral(gray.astype(np.float64))
    inner_sum, inner_area = _box_sums(integral, inner)
    outer_sum, outer_area = _box_sums(integral, outer)
    ring_area = outer_area - inner_area
    ring_mean = (outer_sum - inner_sum) / np.maximum(ring_area, 1)
    ratio = (inner_sum / np.maximum(inner_area, 1) + _DARK) / (ring_mean + _DARK)
    return np.where(ring_area > 0, ratio, 1.0)


def light_offsets(gray: np.ndarray, boxes: np.ndarray) -> np.ndarray:
    """Where the light of each box and of one pixel around it is, from the box's centre.

    The light is what exceeds the middle between the highest pixel of the box and the median two pixels around it.
    Arguments are those of :func:`local_contrast`.

    Returns:
        ``(N, 2)`` pixels; NaN for boxes at the edge of the image, and for those no brighter than what is around.
    """
    offsets = np.full((len(boxes), 2), np.nan)
    height, width = gray.shape
    for i, (x1, y1, x2, y2) in enumerate(_whole_pixels(boxes, gray.shape).tolist()):
        if x1 < 2 or y1 < 2 or x2 > width - 2 or y2 > height - 2:
            continue
        around = gray[y1 - 2 : y2 + 2, x1 - 2 : x2 + 2]
        rim = np.concatenate([around[[0, -1]].ravel(), around[1:-1, [0, -1]].ravel()])
        light = np.maximum(around[1:-1, 1:-1] - (gray[y1:y2, x1:x2].max(initial=0) + np.median(rim)) / 2, 0.0)
        if light.sum() > 0 and gray[y1:y2, x1:x2].max(initial=0) > rim.max():
            rows, columns = np.mgrid[: light.shape[0], : light.shape[1]]
            centre = np.array([light.shape[1] - 1, light.shape[0] - 1]) / 2
            offsets[i] = np.array([(columns * light).sum(), (rows * light).sum()]) / light.sum() - centre
    return offsets


def relative_brightness(gray: np.ndarray, boxes: np.ndarray) -> np.ndarray:
    """Highest pixel of each box over the highest pixel of the image; ``(N,)`` in ``[0, 1]``."""
    peak = float(gray.max())
    inner = _whole_pixels(boxes, gray.shape)
    peaks = [float(gray[y1:y2, x1:x2].max(initial=0)) for x1, y1, x2, y2 in inner]
    return np.array(peaks, dtype=np.float64) / peak if peak > 0 else np.zeros(len(peaks))


def histogram_rows(values: np.ndarray, edges: Iterable[float]) -> list[tuple[str, int, float]]:
    """(interval, count, fraction) of values in ``[low, high)`` for consecutive edges."""
    edges = list(edges)
    counts, _ = np.histogram(values, bins=edges)
    total = max(len(values), 1)
    names = [f">= {low:.3g}" if np.isinf(high) else f"{low:.3g} to {high:.3g}" for low, high in pairwise(edges)]
    return [(name, int(count), float(count / total)) for name, count in zip(names, counts)]


def _whole_pixels(boxes: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    height, width = shape[:2]
    outward = np.concatenate([np.floor(boxes[:, :2]), np.ceil(boxes[:, 2:])], axis=1)
    return np.clip(outward, 0, (width, height, width, height)).astype(int)


def _box_sums(integral: np.ndarray, boxes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    x1, y1, x2, y2 = boxes.T
    sums = integral[y2, x2] - integral[y1, x2] - integral[y2, x1] + integral[y1, x1]
    return sums, (x2 - x1) * (y2 - y1)


def _size_text(size: tuple[int, int]) -> str:
    return f"{size[0]}x{size[1]}"
