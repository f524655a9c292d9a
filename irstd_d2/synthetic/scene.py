"""Scenes: a background, objects on it, and which of them are targets."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Literal, NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from ..errors import ConfigError
from .backgrounds import paint_background
from .domains import DENSE_RULE, Balance, DomainRule, DomainSequence, ImagingDomain, Size, domain_table, rule_for
from .objects import SHAPES, ObjectShape, Patch, draw_object
from .textures import Image, Mask

MIN_SIDE = 64
CONTRAST = (0.1, 0.35)  # peak of an object before a smooth background, as a fraction of the full range
NOISE = (0.005, 0.015)  # standard deviation of the sensor noise, likewise
EMPTY_SHARE = 0.03  # of the scenes with a background of their own that have no target

# Dense areas of 20 x 20 pixels, as section III-B of the DenseSIRST paper defines them.
AREA_SIDE = 20
AREA_OBJECTS = (8, 12)
TARGET_AREAS = (1, 3)
LOOKALIKE_AREAS = (0, 1)
DENSE_SHAPE = ObjectShape(psf=(0.6, 0.75))


@dataclass(frozen=True)
class SceneConfig:
    """Everything that decides what scene number i looks like.

    Args:
        size: ``"small"`` (sides from 96 to 192), ``"real"`` (formats of WideIRSTD-Full, up to 1024) or one size for all
            images as (width, height).
        balance: ``"real"`` or ``"uniform"`` frequencies of platform and band.
        domain_conflict: fraction, 0 to 1, of scenes that show objects of every kind before a featureless background.
            The distribution of their pixels does not depend on the domain, so nothing but the metadata tells which
            kind is the target. In the other scenes the background belongs to the domain, and objects of another kind
            do not occur besides the stars and stones that are part of it.
        bits: 8 or 16 per pixel.
        dense: a set like DenseSIRST instead, in which the background decides: clusters of tiny points in the sky are
            targets; the same points, single or clustered, below the horizon are clutter.

    Raises:
        ConfigError: for a value that cannot work.
    """

    seed: int = 0
    size: Size = "small"
    balance: Balance = "real"
    domain_conflict: float = 0.6
    bits: Literal[8, 16] = 8
    dense: bool = False

    def __post_init__(self):
        if not 0 <= self.domain_conflict <= 1:
            raise ConfigError(f"SceneConfig.domain_conflict is {self.domain_conflict}; a number from 0 to 1 is needed")
        if self.bits not in (8, 16):
            raise ConfigError(f"SceneConfig.bits is {self.bits}; accepted are 8 and 16")
        if self.balance not in ("real", "uniform"):
            raise ConfigError(f"SceneConfig.balance is {self.balance!r}; accepted are 'real' and 'uniform'")
        words = self.size in ("small", "real")
        if not words and (isinstance(self.size, str) or len(self.size) != 2 or min(self.size) < MIN_SIDE):
            raise ConfigError(
                f"SceneConfig.size is {self.size!r}; 'small', 'real' or a pair (width, height) of at least {MIN_SIDE} "
                "pixels each is needed"
            )


def dense_config(seed: int = 0, size: Size = "small", bits: Literal[8, 16] = 8) -> SceneConfig:
    """Return the configuration of a set like DenseSIRST, see :class:`SceneConfig`."""
    return SceneConfig(seed=seed, size=size, bits=bits, domain_conflict=0.0, dense=True)


@dataclass(frozen=True)
class Scene:
    """One annotated image with n targets and m other objects.

    Args:
        image: (H, W) uint8 or uint16, full range.
        boxes: (n, 4) float32 x1, y1, x2, y2 of the targets: tight around their counted pixels, 0-based, half-open.
        kinds: kind of each target.
        target_mask: (H, W) uint8: 0 = none, k = pixel of target number k (counted from 1).
        sky_mask: (H, W) uint8: 1 = sky, 0 = other.
        metadata: platform, band, width and height.
        clutter_boxes: (m, 4) like ``boxes``, of the objects that are not targets here.
        clutter_kinds: kind of each of those.
        background: name of its painter.
        conflict: whether nothing but the metadata tells targets from clutter.
    """

    image: NDArray[np.uint8] | NDArray[np.uint16]
    boxes: Image
    kinds: tuple[str, ...]
    target_mask: NDArray[np.uint8]
    sky_mask: NDArray[np.uint8]
    metadata: dict[str, str | int]
    clutter_boxes: Image
    clutter_kinds: tuple[str, ...]
    background: str
    conflict: bool


class _Placed(NamedTuple):
    """An object to draw: row and column of its centre's pixel."""

    pixel: NDArray[np.intp]
    kind: str
    is_target: bool
    is_cold: bool = False


class SceneGenerator:
    """Makes scene number i of a set; it depends on the configuration and on i, on nothing else."""

    def __init__(self, config: SceneConfig):
        self.config = config
        self._shapes = {"point": DENSE_SHAPE} if config.dense else SHAPES
        self._sequence = DomainSequence(domain_table(config.size, config.balance, config.dense), config.seed)
        self._reach = max(shape.reach for shape in self._shapes.values())
        self._separation = 2 * self._reach + 2

    def scene(self, index: int, domain: ImagingDomain | None = None) -> Scene:
        """Return scene number ``index``, in ``domain`` instead of its own if that is given.

        The pixels of a conflict scene stay the same when the size does, while its targets become clutter and the other
        way round: a test of whether a detector uses the metadata.
        """
        own, chance = self._sequence(index)
        domain = domain or own
        rule = DENSE_RULE if self.config.dense else rule_for(domain)
        conflict = chance < self.config.domain_conflict
        rng = np.random.default_rng(np.random.SeedSequence([self.config.seed, index]))
        if conflict:
            name = "featureless"
        else:
            weights = np.array(list(rule.backgrounds.values()))
            name = list(rule.backgrounds)[rng.choice(len(weights), p=weights / weights.sum())]
        image, sky = paint_background(name, rng, domain.height, domain.width)
        if conflict:
            objects = self._place_all_kinds(rng, sky, rule)
        else:
            objects = self._place_targets(rng, sky, rule, rule.cold.get(name, 0.0))

        noise = np.float32(rng.uniform(*NOISE))
        patches = [draw_object(rng, image.shape, self._shapes[item.kind], item.pixel) for item in objects]
        contrasts = rng.uniform(*CONTRAST, size=len(objects))
        peaks = [
            _peak(image, patch, contrast, item.is_cold) for item, patch, contrast in zip(objects, patches, contrasts)
        ]
        for patch, peak in zip(patches, peaks):
            patch.add_to(image, peak)
        image += noise * rng.standard_normal(image.shape, dtype=np.float32)

        targets = [patch for item, patch in zip(objects, patches) if item.is_target]
        mask = np.zeros(image.shape, np.uint8)
        for number, patch in enumerate(targets, start=1):
            mask[patch.rows, patch.columns][patch.counted] = number
        full = 2**self.config.bits - 1
        return Scene(
            image=np.rint(np.clip(image, 0, 1) * full).astype(np.uint8 if self.config.bits == 8 else np.uint16),
            boxes=_boxes(targets),
            kinds=tuple(item.kind for item in objects if item.is_target),
            target_mask=mask,
            sky_mask=sky.astype(np.uint8),
            metadata=asdict(replace(domain, width=image.shape[1], height=image.shape[0])),
            clutter_boxes=_boxes([patch for item, patch in zip(objects, patches) if not item.is_target]),
            clutter_kinds=tuple(item.kind for item in objects if not item.is_target),
            background=name,
            conflict=conflict,
        )

    def _place_all_kinds(self, rng: np.random.Generator, sky: Mask, rule: DomainRule) -> list[_Placed]:
        """One or two objects of every kind. What is drawn from ``rng`` does not depend on the rule."""
        twice = rng.random(len(self._shapes)) < 0.5
        # One of each kind before a second of any, should there be no room for all.
        kinds = [*self._shapes, *(kind for kind, again in zip(self._shapes, twice) if again)]
        pixels = scatter(rng, _centers(sky, self._reach), len(kinds), self._separation)
        return [_Placed(pixel, kind, kind == rule.target) for pixel, kind in zip(pixels, kinds)]

    def _place_targets(self, rng: np.random.Generator, sky: Mask, rule: DomainRule, cold: float) -> list[_Placed]:
        """Targets of the domain's own kind: in the sky where there is a horizon, with look-alikes below it."""
        kind = rule.target
        shape = self._shapes[kind]
        above = sky.copy() if sky.any() else np.ones_like(sky)
        below = ~above
        placed = []
        if self.config.dense:
            for region, areas, is_target in ((above, TARGET_AREAS, True), (below, LOOKALIKE_AREAS, False)):
                pixels = _dense_areas(rng, region, _draw(rng, areas), shape)
                placed += [_Placed(pixel, kind, is_target) for pixel in pixels]
        target_count, lookalike_count = ((0, 2), (2, 6)) if self.config.dense else ((1, 3), (1, 3))
        count = _draw(rng, target_count) if rng.random() >= EMPTY_SHARE else 0
        for pixel in scatter(rng, _centers(above, shape.reach), count, self._separation):
            placed.append(_Placed(pixel, kind, True, bool(rng.random() < cold)))
        pixels = scatter(rng, _centers(below, shape.reach), _draw(rng, lookalike_count), self._separation)
        return placed + [_Placed(pixel, kind, False) for pixel in pixels]


def scatter(rng: np.random.Generator, allowed: Mask, count: int, separation: int) -> NDArray[np.intp]:
    """Draw up to ``count`` pixels (n, 2), row and column, in random order, that keep a distance; fewer without room.

    They lie in ``allowed`` (H, W); ``separation`` is the least distance between two, the larger of that in rows and
    that in columns.
    """
    free = np.flatnonzero(allowed)
    if count == 0 or len(free) == 0:
        return np.zeros((0, 2), np.intp)
    drawn = free[rng.integers(len(free), size=64 * count)]
    candidates = np.stack(np.divmod(drawn, allowed.shape[1]), axis=1)
    chosen: list[NDArray[np.intp]] = []
    while len(chosen) < count and len(candidates):
        chosen.append(candidates[0])
        candidates = candidates[np.abs(candidates - candidates[0]).max(axis=1) >= separation]
    return np.array(chosen)


def _boxes(patches: list[Patch]) -> Image:
    return np.array([patch.box for patch in patches], np.float32).reshape(-1, 4)


def _draw(rng: np.random.Generator, bounds: tuple[int, int]) -> int:
    return int(rng.integers(bounds[0], bounds[1] + 1))


def _window_fits(region: Mask, side: int, anchor: int) -> Mask:
    """Tell (H, W) where a square window fits into a region whose row and column number ``anchor`` lie on the pixel."""
    window = np.ones((side, side), np.uint8)
    free = cv2.erode(
        region.astype(np.uint8), window, anchor=(anchor, anchor), borderType=cv2.BORDER_CONSTANT, borderValue=0
    )
    return free.astype(bool)


def _centers(region: Mask, reach: int) -> Mask:
    """Return (H, W): True where an object centred there stays ``reach`` pixels inside the region and the image."""
    return _window_fits(region, 2 * reach + 1, reach)


def _dense_areas(rng: np.random.Generator, region: Mask, count: int, shape: ObjectShape) -> NDArray[np.intp]:
    """Place dense areas inside a region and take them, with a margin, out of it; returns their pixels (n, 2)."""
    pixels = [np.zeros((0, 2), np.intp)]
    inner = _centers(np.ones((AREA_SIDE, AREA_SIDE), bool), shape.reach)
    for corner in scatter(rng, _window_fits(region, AREA_SIDE, 0), count, AREA_SIDE + 4):
        pixels.append(corner + scatter(rng, inner, _draw(rng, AREA_OBJECTS), shape.extent + 1))
        top, left = np.maximum(corner - 2, 0)
        region[top : corner[0] + AREA_SIDE + 2, left : corner[1] + AREA_SIDE + 2] = False
    return np.concatenate(pixels)


def _peak(image: Image, patch: Patch, contrast: float, is_cold: bool) -> float:
    """Return the signed peak: the contrast plus the local variation, within what the sensor's range leaves."""
    local = image[patch.rows, patch.columns]
    level = local[patch.counted].mean()
    wanted = contrast + 1.5 * local.std()
    return -min(wanted, level) if is_cold else min(wanted, 1 - level)
