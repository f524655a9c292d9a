"""Scenes without targets: what the sensor sees behind them, and where that is sky.

Every painter takes a random generator and the image's height and width and returns a :class:`Background`. Radiance is
relative: 0 is the coldest or darkest level of the sensor, 1 its saturation; painters stay between 0.01 and 0.75 so that
targets have room.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from .blobs import Blobs, BlobShape, add_light, render
from .fields import Image, Mask, grid, perspective_rows, plane, power_law_field, power_law_line, smooth_step

_SPECK = BlobShape("point", psf=(0.6, 0.9))


@dataclass(frozen=True)
class Background:
    """One background.

    Args:
        image: (H, W) relative radiance.
        sky: (H, W) True where the line of sight ends in the atmosphere or in space.
    """

    image: Image
    sky: Mask


Painter = Callable[[np.random.Generator, int, int], Background]


def featureless(rng: np.random.Generator, height: int, width: int) -> Background:
    """Haze, stratus or empty space filling the view: a weak gradient, which looks the same from every platform."""
    image = rng.uniform(0.18, 0.42) + rng.uniform(0, 0.06) * plane(rng, height, width)
    image += rng.uniform(0, 0.015) * power_law_field(rng, height, width, slope=3.5)
    return Background(image.astype(np.float32), np.ones((height, width), bool))


def _clear_sky(rng: np.random.Generator, height: int, width: int, horizon: float) -> Image:
    """The sky grows brighter towards the horizon, where the path through the warm lower air is longest."""
    y, _ = grid(height, width)
    zenith, rise = rng.uniform(0.05, 0.35), rng.uniform(0.02, 0.25)
    elevation = np.clip((horizon - y) / height, 0, 1)
    sky = zenith + rise * np.exp(-elevation / rng.uniform(0.12, 0.5)) + 0.01 * plane(rng, height, width)
    return sky + 0.006 * power_law_field(rng, height, width, slope=3)


def _cumulus(rng: np.random.Generator, height: int, width: int, cover: float) -> tuple[Image, Image]:
    """Return the opacity and the brightness (both (H, W)) of a broken cloud layer covering about a fraction of it."""
    shape = power_law_field(
        rng, height, width, slope=rng.uniform(3.0, 3.7), outer=max(height, width) / 2, stretch=rng.uniform(1, 2.2)
    )
    edge = np.quantile(shape, 1 - cover)
    opacity = smooth_step((shape - edge) / rng.uniform(0.8, 3.0))
    relief = power_law_field(rng, height, width, slope=2.8)
    brightness = rng.uniform(0.35, 0.65) + 0.06 * shape + 0.02 * relief
    return opacity, brightness


def clouds(rng: np.random.Generator, height: int, width: int) -> Background:
    """Cloud layers before a clear sky, seen from below or from the side; all of it is sky."""
    image = _clear_sky(rng, height, width, horizon=1.1 * height)
    if rng.random() < 0.5:
        fibres = power_law_field(
            rng, height, width, slope=3, stretch=rng.uniform(3, 7), angle=rng.uniform(-0.6, 0.6), outer=40
        )
        image += rng.uniform(0.03, 0.12) * smooth_step((fibres + 0.3) / 2)
    if rng.random() < 0.8:
        opacity, brightness = _cumulus(rng, height, width, cover=rng.uniform(0.15, 0.7))
        image += opacity * np.maximum(brightness - image, 0.02) * rng.uniform(0.5, 1)
    return Background(image, np.ones((height, width), bool))


def _town(rng: np.random.Generator, height: int, width: int) -> tuple[Image, Image]:
    """Return the heights (W,) of a row of houses, some of them missing, and their walls with windows (H, W)."""
    y, x = grid(height, width)
    widths = rng.integers(width // 20 + 2, width // 6 + 3, size=24)
    heights = rng.gamma(2.0, 0.05 * height, size=24) * (rng.random(24) < 0.75)
    warmth = rng.uniform(0.2, 0.55, size=24)
    columns, rows = rng.uniform(4, 7, size=2)
    windows = (x % columns < 0.45 * columns) & (y % rows < 0.4 * rows)
    walls = np.repeat(warmth, widths)[None, :width] + rng.uniform(-0.08, 0.12) * windows
    return np.repeat(heights, widths)[:width].astype(np.float32), walls.astype(np.float32)


def _other_level(rng: np.random.Generator, sky: float, colder: float, warmer: float) -> float:
    """Return the level of the surface below the horizon, which differs from the sky's by at least 0.05."""
    change = rng.uniform(-colder, warmer)
    change += np.copysign(0.05, change)
    return float(sky + change if 0.04 < sky + change < 0.65 else sky - change)


def land_horizon(rng: np.random.Generator, height: int, width: int) -> Background:
    """Sky over hills or a town: the ground is warm and textured, or as smooth as the sky above it."""
    y, x = grid(height, width)
    horizon = rng.uniform(0.45, 0.72) * height
    image = _clear_sky(rng, height, width, horizon)
    if rng.random() < 0.4:
        opacity, brightness = _cumulus(rng, height, width, cover=rng.uniform(0.1, 0.4))
        image += opacity * np.maximum(brightness - image, 0) * rng.uniform(0.2, 0.7)

    top = horizon - rng.uniform(0.01, 0.07) * height * power_law_line(rng, width, slope=rng.uniform(2.4, 3.4))
    depth = np.maximum(y - top[None], 0)
    texture = power_law_field(rng, height, width, slope=2.3, stretch=3)
    level = _other_level(rng, image[int(horizon) - 1].mean(), colder=0.1, warmer=0.3)
    ground = level + rng.uniform(0.004, 0.05) * perspective_rows(texture, depth, eye_height=0.3 * height)
    image = np.where(y > top[None], ground, image)
    roofs = top
    if rng.random() < 0.5:
        heights, walls = _town(rng, height, width)
        roofs = top - heights
        image = np.where((y > roofs[None]) & (y <= top[None]), walls, image)
    if rng.random() < 0.25:
        wire = rng.uniform(0.1, 0.8) * horizon + rng.uniform(-0.15, 0.15) * x + 0.1 * height * (x / width - 0.5) ** 2
        image += rng.uniform(0.05, 0.2) * np.exp(-0.5 * ((y - wire) / 0.7) ** 2) * (y <= roofs[None])
    return Background(image.astype(np.float32), y <= roofs[None])


def sea_horizon(rng: np.random.Generator, height: int, width: int) -> Background:
    """Sky over the sea: waves that grow towards the viewer, and sun glint on their crests."""
    y, x = grid(height, width)
    horizon = rng.uniform(0.4, 0.7) * height + rng.uniform(-0.06, 0.06) * (x - width / 2)
    image = _clear_sky(rng, height, width, horizon.mean())
    depth = np.maximum(y - horizon, 0)
    waves = power_law_field(rng, height, width, slope=1.8, stretch=rng.uniform(2, 5), outer=30)
    waves = perspective_rows(waves, depth, eye_height=0.25 * height)
    swell = rng.uniform(0.008, 0.05) * (0.3 + depth / height)
    sea = _other_level(rng, image[int(horizon.min()) - 1].mean(), colder=0.12, warmer=0.08) + swell * waves
    if rng.random() < 0.5:
        path = np.exp(-0.5 * ((x - rng.uniform(0.2, 0.8) * width) / (0.08 * width)) ** 2)
        sea = sea + 0.12 * path * np.maximum(waves - 1, 0)
    sky = y <= horizon
    return Background(np.where(sky, image, sea).astype(np.float32), sky)


def terrain(rng: np.random.Generator, height: int, width: int) -> Background:
    """Ground seen from an aircraft: vegetation, bare patches, a track, sensor stripes; hot stones are points."""
    y, x = grid(height, width)
    image = rng.uniform(0.3, 0.48) + rng.uniform(0.015, 0.05) * power_law_field(rng, height, width, slope=2.3)
    patches = power_law_field(
        rng, height, width, slope=3.8, outer=40, stretch=rng.uniform(1, 3), angle=rng.uniform(0, 3)
    )
    image += rng.uniform(-0.08, 0.14) * smooth_step((patches - rng.uniform(-0.5, 1)) * 1.5)
    if rng.random() < 0.5:
        angle, bend = rng.uniform(0, np.pi), rng.uniform(-0.3, 0.3)
        u = np.cos(angle) * (x - rng.uniform(0, width)) + np.sin(angle) * (y - rng.uniform(0, height))
        v = np.cos(angle) * (y - height / 2) - np.sin(angle) * (x - width / 2)
        image += rng.uniform(0.03, 0.12) * np.exp(-0.5 * ((u - bend * v * v / height) / rng.uniform(1, 2.5)) ** 2)
    image += 0.006 * rng.standard_normal(width)[None]
    _add_specks(rng, image, density=0.0004, peak=0.15, shape=_SPECK)
    return Background(image.astype(np.float32), np.zeros((height, width), bool))


def sea_surface(rng: np.random.Generator, height: int, width: int) -> Background:
    """Sea seen from above: dark water, swell, and a patch of sun glint made of many bright points."""
    y, x = grid(height, width)
    angle = rng.uniform(0, np.pi)
    image = rng.uniform(0.1, 0.2) + rng.uniform(0.015, 0.035) * power_law_field(
        rng, height, width, slope=1.6, stretch=rng.uniform(1, 3), angle=angle, outer=25
    )
    centre = rng.uniform(0, height), rng.uniform(0, width)
    radius = rng.uniform(0.15, 0.5) * max(height, width)
    glitter = np.exp(-0.5 * ((y - centre[0]) ** 2 + (x - centre[1]) ** 2) / radius**2)
    image += 0.08 * glitter
    _add_specks(rng, image, density=0.02 * glitter, peak=0.12, shape=_SPECK)
    return Background(image.astype(np.float32), np.zeros((height, width), bool))


def cloud_tops(rng: np.random.Generator, height: int, width: int) -> Background:
    """Clouds over the dark surface, seen from space: no sky."""
    opacity, brightness = _cumulus(rng, height, width, cover=rng.uniform(0.25, 0.75))
    surface = rng.uniform(0.06, 0.2) + 0.012 * power_law_field(rng, height, width, slope=2.2)
    image = surface + opacity * np.maximum(brightness - surface, 0.02)
    return Background(image, np.zeros((height, width), bool))


def stars(rng: np.random.Generator, height: int, width: int) -> Background:
    """Star field of a telescope that follows the sky: the stars are points."""
    return _star_field(rng, height, width, length=0.0)


def star_trails(rng: np.random.Generator, height: int, width: int) -> Background:
    """Star field of a telescope that follows a moving object: all stars draw the same streak."""
    return _star_field(rng, height, width, length=rng.uniform(8, 11))


def _star_field(rng: np.random.Generator, height: int, width: int, length: float) -> Background:
    image = rng.uniform(0.03, 0.1) + rng.uniform(0, 0.03) * plane(rng, height, width)
    image += 0.003 * power_law_field(rng, height, width, slope=3)
    shape = BlobShape("streak", psf=(0.9, 1.3), length=(length, length))
    _add_specks(rng, image, density=rng.uniform(0.0008, 0.003), peak=0.1, shape=shape, angle=rng.uniform(0, np.pi))
    return Background(image.astype(np.float32), np.ones((height, width), bool))


def limb(rng: np.random.Generator, height: int, width: int) -> Background:
    """Edge of the Earth from orbit: clouds below, a thin glowing layer of air, space with faint stars above."""
    y, x = grid(height, width)
    radius = rng.uniform(1.5, 4) * max(height, width)
    tilt = rng.uniform(-0.5, 0.5)
    edge = rng.uniform(0.4, 0.65) * height
    centre = edge + radius * np.cos(tilt), width / 2 + radius * np.sin(tilt)
    altitude = np.sqrt((y - centre[0]) ** 2 + (x - centre[1]) ** 2) - radius
    opacity, brightness = _cumulus(rng, height, width, cover=rng.uniform(0.2, 0.6))
    earth = rng.uniform(0.15, 0.3) + 0.6 * opacity * np.maximum(brightness - 0.2, 0)
    earth *= 1 - 0.4 * np.exp(np.minimum(altitude, 0) / (0.1 * height))
    space = np.full((height, width), rng.uniform(0.02, 0.06))
    _add_specks(rng, space, density=0.001, peak=0.05, shape=_SPECK)
    space += rng.uniform(0.1, 0.25) * np.exp(-np.maximum(altitude, 0) / rng.uniform(2, 5))
    sky = altitude > 0
    return Background(np.where(sky, space, earth).astype(np.float32), sky)


def _add_specks(
    rng: np.random.Generator,
    image: Image,
    density: float | Image,
    peak: float,
    shape: BlobShape,
    angle: float | None = None,
) -> None:
    """Add faint objects to a background, in place.

    Args:
        rng: source of randomness.
        image: (H, W).
        density: objects per pixel, one value or one for each pixel.
        peak: mean amplitude; few are bright, most are faint.
        shape: of all of them.
        angle: direction of all of them in radians; ``None`` = each its own.
    """
    pixels = np.argwhere(rng.random(image.shape, dtype=np.float32) < density)
    blobs = Blobs.sample(rng, [shape] * len(pixels), pixels)
    if angle is not None:
        blobs = Blobs(blobs.centre, blobs.psf, blobs.length, blobs.radius, np.full(len(blobs), angle, np.float32))
    amplitude = np.minimum(rng.exponential(peak, size=len(pixels)), 5 * peak)
    add_light(image, render(blobs), amplitude)


PAINTERS: dict[str, Painter] = {
    painter.__name__: painter
    for painter in (
        featureless,
        clouds,
        land_horizon,
        sea_horizon,
        terrain,
        sea_surface,
        cloud_tops,
        stars,
        star_trails,
        limb,
    )
}


def paint(name: str, rng: np.random.Generator, height: int, width: int) -> Background:
    """Return a background of the named kind, its radiance limited to the range that leaves room for targets."""
    background = PAINTERS[name](rng, height, width)
    return Background(np.clip(background.image, 0.01, 0.75).astype(np.float32), background.sky)


__all__ = ["PAINTERS", "Background", "Painter", "paint"]
