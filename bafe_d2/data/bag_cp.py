"""Background-aware Gaussian copy-paste (BAG-CP) as a detectron2 augmentation.

Clusters of small targets from a library are blended into the sky of a training image. Only the pixels that count as
target are changed, so a box is tight around what was pasted. Source: BAFE-Net, section IV-C,
and the rules of the data set's generation, section III-B; Table III ablates the parts. Existing targets stay exactly
as they are.

Randomness is numpy's global generator, as in detectron2's own augmentations.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import NamedTuple

import cv2
import numpy as np
from detectron2.data import transforms as T
from detectron2.utils.logger import log_first_n
from fvcore.transforms.transform import Transform

from irstd_d2.errors import ConfigError, check_number

from .gaussian_paste import COUNTED_ABOVE, gaussian_weights, target_window, tight_boxes
from .target_library import EDGE, TargetLibrary

_TRIES = 64  # random places looked at before every free place is listed


@dataclass(frozen=True)
class PasteRule:
    """What is pasted, and where.

    Attributes:
        areas: smallest and largest number of dense areas per image.
        targets: smallest and largest number of targets per area.
        area_edge: edge of a dense area in pixels.
        gaps: smallest and largest space between neighbours in pixels.
        brightness: range of lambda (Eq. 1).
        offset: range of the Gaussian's shift, as a share of the target's size (Eq. 2).
        sigma: range of its standard deviations (Eq. 2).
        clusters: dense areas; otherwise the same number of targets lies anywhere (Table III).
        gaussian: blend by Eq. 1 to 3; otherwise pixels are replaced (Table III).
        background_aware: sky only; otherwise anywhere (Table III).
        halo: paint also the faint rim of a target, whose pixels do not count and lie outside its box.
    """

    areas: tuple[int, int] = (1, 3)
    targets: tuple[int, int] = (8, 12)
    area_edge: int = 20
    gaps: tuple[int, int] = (1, 2)
    brightness: tuple[float, float] = (0.5, 1.0)
    offset: tuple[float, float] = (0.0, 0.2)
    sigma: tuple[float, float] = (0.3, 0.6)
    clusters: bool = True
    gaussian: bool = True
    background_aware: bool = True
    halo: bool = False

    def __post_init__(self):
        for name in ("areas", "targets", "gaps", "brightness", "offset", "sigma"):
            low, high = getattr(self, name)
            if not 0 <= low <= high or (name == "sigma" and low == 0):
                least = "0 <" if name == "sigma" else "0 <="
                raise ConfigError(
                    f"INPUT.BAG_CP.{name.upper()} is {(low, high)}; give two values, {least} first <= second"
                )
        if self.area_edge < EDGE:
            raise ConfigError(f"INPUT.BAG_CP.AREA_EDGE is {self.area_edge}; a target needs {EDGE} pixels")


class Blend(NamedTuple):
    """How T targets are blended in (Eq. 1 to 3).

    Attributes:
        offsets, sigmas: (T, 2), shares of a target's size in x and y, and in half sizes.
        angles, brightness: (T,), in radians, and lambda.
    """

    offsets: np.ndarray
    sigmas: np.ndarray
    angles: np.ndarray
    brightness: np.ndarray


class PasteTransform(Transform):
    """Change P pixels of an image, each once; geometry and segmentation stay.

    Args:
        rows, columns, values: (P,), the last in [0, 1] of the image's range.
        add: add to the background and clip, or replace it.
        pasted_boxes: (T, 4) float32 x1 y1 x2 y2 of the new targets.
        counted: (P,) bool, pixels that count as target; ``None`` = all of them.
        pasted_classes: (T,) of the new targets; ``None`` = 0.
    """

    def __init__(
        self,
        rows: np.ndarray,
        columns: np.ndarray,
        values: np.ndarray,
        add: bool,
        pasted_boxes: np.ndarray,
        counted: np.ndarray | None = None,
        pasted_classes: np.ndarray | None = None,
    ):
        super().__init__()
        self.rows, self.columns, self.values, self.add, self.pasted_boxes = rows, columns, values, add, pasted_boxes
        self.counted = np.ones(len(rows), bool) if counted is None else counted
        self.pasted_classes = np.zeros(len(pasted_boxes), np.int64) if pasted_classes is None else pasted_classes

    def apply_image(self, img: np.ndarray) -> np.ndarray:
        """(H, W) or (H, W, C), integers in their full range or floats in 0..255 -> the same with the targets."""
        if not len(self.rows):
            return img
        top = np.iinfo(img.dtype).max if img.dtype.kind in "ui" else 255.0
        result = img.copy()
        values = self.values * top
        old = img[self.rows, self.columns]
        if img.ndim == 3:
            values = values[:, None]
        new = np.minimum(old + values, top) if self.add else np.broadcast_to(values, old.shape)
        result[self.rows, self.columns] = np.round(new) if img.dtype.kind in "ui" else new
        return result

    def apply_coords(self, coords: np.ndarray) -> np.ndarray:
        return coords

    def apply_segmentation(self, segmentation: np.ndarray) -> np.ndarray:
        return segmentation


class BAGCopyPaste(T.Augmentation):
    """Paste clusters of small targets from a library into the sky of a share ``prob`` of the images.

    Works on any ``AugInput`` with ``image``, ``boxes`` and ``sem_seg`` (1 sky). The boxes of the new targets are put
    behind the existing ones, and behind ``classes``, if the input has those, their classes: ``pasted_class``, or those
    of the library. Both are also ``pasted_boxes`` and ``pasted_classes`` of the returned transform, and only there if
    the input has no boxes, as in detectron2's own mapper, which is warned of: targets without a label are learned as
    background. Without a free place in the sky the image stays as it is; without a sky mask too, which is warned of.
    """

    channelwise = True  # a gray image may stay (H, W) until here
    input_args = ("image", "boxes", "sem_seg")

    def __init__(
        self, library: TargetLibrary, rule: PasteRule | None = None, *, prob: float = 1, pasted_class: int | None = None
    ):
        super().__init__()
        check_number("INPUT.BAG_CP.PROB", prob, 0, 1)
        self.library, self.rule, self.prob, self.pasted_class = library, rule or PasteRule(), prob, pasted_class

    def __call__(self, aug_input: T.AugInput) -> Transform:
        sem_seg = getattr(aug_input, "sem_seg", None)
        transform = self.get_transform(aug_input.image, aug_input.boxes, sem_seg)
        aug_input.transform(transform)
        if isinstance(transform, PasteTransform) and aug_input.boxes is None:
            message = "BAG-CP pastes into images whose AugInput has no boxes: the new targets get no label"
            log_first_n(logging.WARNING, f"{message}; take pasted_boxes of the transform", name=__name__)
        elif isinstance(transform, PasteTransform):
            aug_input.boxes = np.concatenate([aug_input.boxes, transform.pasted_boxes])
            classes = getattr(aug_input, "classes", None)
            if classes is not None:
                aug_input.classes = np.concatenate([classes, transform.pasted_classes.astype(classes.dtype)])
        return transform

    def get_transform(self, image: np.ndarray, boxes: np.ndarray | None, sem_seg: np.ndarray | None) -> Transform:
        """Decide what is pasted where, in an image of which only the size matters.

        ``boxes`` (N, 4) are existing targets, x1 y1 x2 y2; without ``sem_seg`` (H, W), 1 sky, a background-aware rule
        pastes nothing.
        """
        rule = self.rule
        if rule.background_aware and sem_seg is None:
            log_first_n(logging.WARNING, "BAG-CP pastes nothing into images without a sky mask", name=__name__)
            return T.NoOpTransform()
        if np.random.rand() >= self.prob:
            return T.NoOpTransform()
        free = self._free_pixels(image.shape[:2], boxes, sem_seg)
        counts = np.random.randint(
            rule.targets[0], rule.targets[1] + 1, np.random.randint(rule.areas[0], rule.areas[1] + 1)
        )
        edge = rule.area_edge
        if not rule.clusters:
            counts, edge = np.ones(counts.sum(), int), EDGE
        places = self._find_places(free, edge, len(counts))
        if not len(places):
            return T.NoOpTransform()
        index, corners = [], []
        for count, place in zip(counts, places):
            chosen = np.random.randint(len(self.library), size=count)
            kept, inside = self._pack(self.library.sizes[chosen], edge)
            index.append(chosen[kept])
            corners.append(inside + place)
        return self._paste(np.concatenate(index), np.concatenate(corners))

    def _free_pixels(self, shape: tuple[int, int], boxes: np.ndarray | None, sem_seg: np.ndarray | None) -> np.ndarray:
        """(H, W) uint8, 1 where a target may lie: in the sky, not on a target nor right beside one."""
        aware = self.rule.background_aware
        free = np.equal(sem_seg, 1).astype(np.uint8) if aware and sem_seg is not None else np.ones(shape, np.uint8)
        if boxes is not None and len(boxes):
            gap = self.rule.gaps[0]
            low = np.maximum(np.floor(boxes[:, :2]).astype(int) - gap, 0).tolist()
            # Beside the image, as behind a crop, is not counted from its other edge.
            high = np.maximum(np.ceil(boxes[:, 2:]).astype(int) + gap, 0).tolist()
            for (x1, y1), (x2, y2) in zip(low, high):
                free[y1:y2, x1:x2] = 0
        return free

    def _find_places(self, free: np.ndarray, edge: int, count: int) -> np.ndarray:
        """Upper left corners (n <= count, 2), x and y, of free squares that do not touch: uniform over all of them."""
        height, width = free.shape
        if height < edge or width < edge:
            return np.zeros((0, 2), int)
        integral = cv2.integral(free)
        places: list[tuple[int, int]] = []
        reach = edge + self.rule.gaps[0]
        listed: np.ndarray | None = None
        for _ in range(count):
            place = self._draw_place(integral, edge, places, reach)
            if place is None:
                if listed is None:
                    listed = self._all_places(integral, edge)
                apart = np.ones(len(listed), bool)
                for x, y in places:
                    apart &= np.abs(listed - (x, y)).max(1) >= reach
                if not apart.any():
                    break
                x, y = listed[np.random.choice(np.flatnonzero(apart))].tolist()
                place = (x, y)
            places.append(place)
        return np.array(places, int).reshape(-1, 2)

    @staticmethod
    def _draw_place(
        integral: np.ndarray, edge: int, places: list[tuple[int, int]], reach: int
    ) -> tuple[int, int] | None:
        """One of some random squares that is free and apart from the others, or ``None``."""
        height, width = integral.shape[0] - 1, integral.shape[1] - 1
        x = np.random.randint(0, width - edge + 1, _TRIES)
        y = np.random.randint(0, height - edge + 1, _TRIES)
        filled = integral[y + edge, x + edge] - integral[y, x + edge] - integral[y + edge, x] + integral[y, x]
        good = filled == edge * edge
        for px, py in places:
            good &= np.maximum(np.abs(x - px), np.abs(y - py)) >= reach
        first = int(good.argmax())
        return (int(x[first]), int(y[first])) if good[first] else None

    @staticmethod
    def _all_places(integral: np.ndarray, edge: int) -> np.ndarray:
        """(n, 2) x and y of every free square."""
        filled = integral[edge:, edge:] - integral[:-edge, edge:] - integral[edge:, :-edge] + integral[:-edge, :-edge]
        y, x = np.nonzero(filled == edge * edge)
        return np.stack([x, y], 1)

    def _pack(self, sizes: np.ndarray, edge: int) -> tuple[np.ndarray, np.ndarray]:
        """Lay out targets of ``sizes`` (t, 2), width and height, in rows with the rule's gaps.

        Returns the indices of the targets that fit, and their corners (n, 2) in the area.
        """
        low, high = self.rule.gaps
        gaps = np.random.randint(low, high + 1, (len(sizes), 2)).tolist()
        kept, corners = [], []
        x = y = row_height = 0
        for i, ((width, height), (gap_x, gap_y)) in enumerate(zip(sizes.tolist(), gaps)):
            if x and x + width > edge:
                x, y, row_height = 0, y + row_height + gap_y, 0
            if x + width > edge or y + height > edge:
                continue
            kept.append(i)
            corners.append((x, y))
            x, row_height = x + width + gap_x, max(row_height, height)
        layout = np.array(corners, int).reshape(-1, 2)
        # The block of rows moves as a whole within its area, so that areas do not all begin at their corner.
        slack = edge - (layout + sizes[kept]).max(0, initial=0)
        return np.array(kept, int), layout + np.random.randint(0, slack + 1)

    def _draw_blend(self, count: int) -> Blend:
        rule = self.rule
        return Blend(
            offsets=np.random.uniform(*rule.offset, (count, 2)),
            sigmas=np.random.uniform(*rule.sigma, (count, 2)),
            angles=np.deg2rad(np.random.uniform(-90, 90, count)),
            brightness=np.random.uniform(*rule.brightness, count),
        )

    def _paste(self, index: np.ndarray, corners: np.ndarray) -> PasteTransform:
        """Turn targets (T,) at corners (T, 2) into pixels and boxes."""
        rule, count = self.rule, len(index)
        sizes, patches = self.library.sizes[index], self.library.patches[index]
        window = target_window(sizes, EDGE)
        if rule.gaussian:
            blend = self._draw_blend(count)
            weights = gaussian_weights(sizes, blend.offsets, blend.sigmas, blend.angles, EDGE)
            weights *= blend.brightness[:, None, None]
            counted = weights > COUNTED_ABOVE
        else:
            weights, counted = np.ones_like(patches, dtype=float), window
        # Of a faint target no pixel counts: there is nothing to find, so it is not pasted.
        seen = counted.any((1, 2))
        patches, weights, counted, corners, index = (x[seen] for x in (patches, weights, counted, corners, index))
        changed = np.nonzero(weights > 0 if rule.halo else counted)
        rows, columns = corners[changed[0], 1] + changed[1], corners[changed[0], 0] + changed[2]
        boxes = tight_boxes(counted, corners)
        classes, values = self.library.classes, (patches * weights)[changed]
        if classes is not None:
            classes = classes[index]
        if self.pasted_class is not None:
            classes = np.full(len(index), self.pasted_class)
        return PasteTransform(rows, columns, values, rule.gaussian, boxes, counted[changed], classes)
