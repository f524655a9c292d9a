"""Scenes: a background, objects on it, and which of them are targets."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .backgrounds import Background, paint
from .blobs import BlobKind, Blobs, BlobShape, Patches, add_light, render
from .config import DomainRule, SceneConfig
from .domains import DomainSequence, ImagingDomain
from .fields import Image, Mask, scatter, window_fits

_AREA_SIDE = 20  # of a dense area, pixels


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
    kinds: tuple[BlobKind, ...]
    target_mask: NDArray[np.uint8]
    sky_mask: NDArray[np.uint8]
    metadata: dict[str, str | int]
    clutter_boxes: Image
    clutter_kinds: tuple[BlobKind, ...]
    background: str
    conflict: bool


@dataclass(frozen=True)
class _Objects:
    """n objects to draw: pixel of the centre (n, 2), shape, whether a target, whether colder than the background."""

    pixels: NDArray[np.intp]
    shapes: list[BlobShape]
    is_target: Mask
    cold: Mask

    @classmethod
    def join(cls, parts: Sequence[_Objects]) -> _Objects:
        return cls(
            np.concatenate([part.pixels for part in parts]),
            [shape for part in parts for shape in part.shapes],
            np.concatenate([part.is_target for part in parts]),
            np.concatenate([part.cold for part in parts]),
        )

    @classmethod
    def alike(cls, pixels: NDArray[np.intp], shape: BlobShape, is_target: bool, cold: Mask | None = None) -> _Objects:
        n = len(pixels)
        return cls(
            pixels.reshape(n, 2), [shape] * n, np.full(n, is_target), np.zeros(n, bool) if cold is None else cold
        )


class SceneGenerator:
    """Makes scene number i of a set; it depends on the configuration and on i, on nothing else.

    Args:
        config: of the set.
    """

    def __init__(self, config: SceneConfig):
        self.config = config
        self._sequence = DomainSequence(config.size, config.balance, config.seed, config.pairs)
        self._shapes: dict[BlobKind, BlobShape] = {shape.kind: shape for shape in config.shapes}
        self._separation = 2 * max(shape.reach for shape in config.shapes) + 2

    def domain(self, index: int) -> ImagingDomain:
        """Return how image ``index`` was taken, without making it."""
        return self._sequence(index)[0]

    def scene(self, index: int, domain: ImagingDomain | None = None) -> Scene:
        """Return scene number ``index``.

        Args:
            index: 0 or more.
            domain: take the scene in this domain instead of its own. The pixels of a conflict scene stay the same when
                the size does, while its targets become clutter and the other way round: a test of whether a detector
                uses the metadata.
        """
        own, chance = self._sequence(index)
        domain = domain or own
        rule = self.config.rule_for(domain)
        conflict = chance < self.config.domain_conflict
        rng = np.random.default_rng(np.random.SeedSequence([self.config.seed, index]))
        if conflict:
            name = "featureless"
            background = paint(name, rng, domain.height, domain.width)
            objects = self._all_kinds(rng, background, rule)
        else:
            weights = np.array([choice.weight for choice in rule.backgrounds])
            choice = rule.backgrounds[rng.choice(len(weights), p=weights / weights.sum())]
            name = choice.name
            background = paint(name, rng, domain.height, domain.width)
            objects = self._native(rng, background, rule, choice.cold_share)
        return self._compose(rng, background, objects, domain, name, conflict)

    def _all_kinds(self, rng: np.random.Generator, background: Background, rule: DomainRule) -> _Objects:
        """Objects of every kind. What is drawn from ``rng`` does not depend on the rule."""
        low, high = self.config.conflict_count
        counts = rng.integers(low, high + 1, size=len(self.config.shapes))
        # One of each kind before a second of any, should there be no room for all.
        shapes = [
            shape for turn in range(high) for shape, count in zip(self.config.shapes, counts.tolist()) if turn < count
        ]
        reach = max(shape.reach for shape in self.config.shapes)
        pixels = scatter(rng, _centres(background.sky, reach), len(shapes), self._separation)
        shapes = shapes[: len(pixels)]
        is_target = np.array([shape.kind == rule.target for shape in shapes], bool)
        return _Objects(pixels.reshape(-1, 2), shapes, is_target, np.zeros(len(shapes), bool))

    def _native(self, rng: np.random.Generator, background: Background, rule: DomainRule, cold: float) -> _Objects:
        """Targets of the domain's own kind: in the sky where there is a horizon, with look-alikes below it."""
        config, shape = self.config, self._shapes[rule.target]
        has_horizon = bool(background.sky.any() and not background.sky.all())
        place = background.sky.copy() if has_horizon else np.ones_like(background.sky)
        ground = ~place
        parts = []
        if config.clusters is not None:
            for region, bounds, is_target in (
                (place, config.clusters.areas, True),
                (ground, config.clusters.lookalike_areas, False),
            ):
                pixels = _dense_areas(rng, region, _draw(rng, bounds), config.clusters.objects, shape)
                parts.append(_Objects.alike(pixels, shape, is_target))
        count = _draw(rng, config.target_count) if rng.random() >= config.empty_share else 0
        pixels = scatter(rng, _centres(place, shape.reach), count, self._separation)
        parts.append(_Objects.alike(pixels, shape, True, rng.random(len(pixels)) < cold))
        pixels = scatter(rng, _centres(ground, shape.reach), _draw(rng, config.lookalike_count), self._separation)
        parts.append(_Objects.alike(pixels, shape, False))
        return _Objects.join(parts)

    def _compose(
        self,
        rng: np.random.Generator,
        background: Background,
        objects: _Objects,
        domain: ImagingDomain,
        name: str,
        conflict: bool,
    ) -> Scene:
        noise = rng.uniform(*self.config.noise)
        image = background.image
        patches = render(Blobs.sample(rng, objects.shapes, objects.pixels))
        contrast = rng.uniform(*self.config.contrast, size=len(objects.shapes))
        add_light(image, patches, _amplitudes(image, patches, contrast, objects.cold))
        image += np.float32(noise) * rng.standard_normal(image.shape, dtype=np.float32)

        mask = np.zeros(image.shape, np.uint8)
        windows = list(patches.windows(*image.shape))
        for number, k in enumerate(np.flatnonzero(objects.is_target), start=1):
            place, part = windows[k]
            mask[place][patches.counted[k][part]] = number
        boxes = patches.boxes()
        full = 2**self.config.bits - 1
        return Scene(
            image=np.rint(np.clip(image, 0, 1) * full).astype(np.uint8 if self.config.bits == 8 else np.uint16),
            boxes=boxes[objects.is_target],
            kinds=tuple(shape.kind for shape, hit in zip(objects.shapes, objects.is_target) if hit),
            target_mask=mask,
            sky_mask=background.sky.astype(np.uint8),
            metadata=domain.as_metadata(),
            clutter_boxes=boxes[~objects.is_target],
            clutter_kinds=tuple(shape.kind for shape, hit in zip(objects.shapes, objects.is_target) if not hit),
            background=name,
            conflict=conflict,
        )


def _draw(rng: np.random.Generator, bounds: tuple[int, int]) -> int:
    return int(rng.integers(bounds[0], bounds[1] + 1))


def _centres(region: Mask, reach: int) -> Mask:
    """Return (H, W): True where an object centred there stays ``reach`` pixels inside the region and the image."""
    side = 2 * reach + 1
    centres = np.zeros_like(region)
    if min(region.shape) >= side:
        centres[reach:-reach, reach:-reach] = window_fits(region, side, side)
    return centres


def _dense_areas(
    rng: np.random.Generator, region: Mask, count: int, objects: tuple[int, int], shape: BlobShape
) -> NDArray[np.intp]:
    """Place dense areas inside a region and take them, with a margin, out of it.

    Args:
        rng: source of randomness.
        region: (H, W), changed in place.
        count: of the areas; fewer where there is no room.
        objects: least and largest number of objects in an area.
        shape: of the objects.

    Returns:
        (n, 2) pixels of all their objects.
    """
    pixels = [np.zeros((0, 2), np.intp)]
    inner = _centres(np.ones((_AREA_SIDE, _AREA_SIDE), bool), shape.reach)
    for corner in scatter(rng, window_fits(region, _AREA_SIDE, _AREA_SIDE), count, _AREA_SIDE + 4):
        pixels.append(corner + scatter(rng, inner, _draw(rng, objects), shape.extent + 1))
        top, left = np.maximum(corner - 2, 0)
        region[top : corner[0] + _AREA_SIDE + 2, left : corner[1] + _AREA_SIDE + 2] = False
    return np.concatenate(pixels)


def _amplitudes(image: Image, patches: Patches, contrast: Image, cold: Mask) -> Image:
    """Return the signed peaks (n,): the contrast plus the local variation, within what the sensor's range leaves.

    Args:
        image: (H, W) the background.
        patches: the n objects.
        contrast: (n,) over a smooth background.
        cold: (n,) whether below the background.
    """
    peaks = np.zeros(len(contrast), np.float32)
    for k, (place, part) in enumerate(patches.windows(*image.shape)):
        local = image[place]
        level = local[patches.counted[k][part]].mean()
        wanted = contrast[k] + 1.5 * local.std()
        peaks[k] = -min(wanted, level) if cold[k] else min(wanted, 1 - level)
    return peaks


__all__ = ["Scene", "SceneGenerator"]
