"""Scenes without targets: what the sensor sees behind them, and where that is sky.

Every painter takes a random generator and the image's height and width and returns the relative radiance (H, W) and the
sky (H, W): True where the line of sight ends in the atmosphere or in space. A radiance of 0 is the coldest or darkest
level of the sensor, 1 its saturation.
"""

from __future__ import annotations

import numpy as np

from .objects import ObjectShape, draw_object
from .textures import Image, Mask, grid, perspective_rows, plane, power_law_field, power_law_line, smooth_step

_SPECK = ObjectShape(psf=(0.6, 0.9))


def featureless(rng: np.random.Generator, height: int, width: int) -> tuple[Image, Mask]:
    """Haze, stratus or empty space filling the view: a weak gradient, which looks the same from every platform."""
    image = rng.uniform(0.18, 0.42) + rng.uniform(0, 0.06) * plane(rng, height, width)
    image += rng.uniform(0, 0.015) * power_law_field(rng, height, width, slope=3.5)
    return image, np.ones((height, width), bool)


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
    opacity = smooth_step((shape - np.quantile(shape, 1 - cover)) / rng.uniform(0.8, 3.0))
    relief = power_law_field(rng, height, width, slope=2.8)
    return opacity, rng.uniform(0.35, 0.65) + 0.06 * shape + 0.02 * relief


def clouds(rng: np.random.Generator, height: int, width: int) -> tuple[Image, Mask]:
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
    return image, np.ones((height, width), bool)


def _town(rng: np.random.Generator, height: int, width: int) -> tuple[Image, Image]:
    """Return the heights (W,) of a row of houses, some of them missing, and their walls with windows (H, W)."""
    y, x = grid(height, width)
    widths = rng.integers(width // 20 + 2, width // 6 + 3, size=24)
    heights = rng.gamma(2.0, 0.05 * height, size=24) * (rng.random(24) < 0.75)
    warmth = rng.uniform(0.2, 0.55, size=24)
    columns, rows = rng.uniform(4, 7, size=2)
    windows = (x % columns < 0.45 * columns) & (y % rows < 0.4 * rows)
    walls = np.repeat(warmth, widths)[None, :width] + rng.uniform(-0.08, 0.12) * windows
    return np.repeat(heights, widths)[:width], walls


def _level_below_horizon(rng: np.random.Generator, sky: float, colder: float, warmer: float) -> float:
    """Return the level of the surface below the horizon, which differs from the sky's by at least 0.05."""
    change = rng.uniform(-colder, warmer)
    change += np.copysign(0.05, change)
    return float(sky + change if 0.04 < sky + change < 0.65 else sky - change)


def land_horizon(rng: np.random.Generator, height: int, width: int) -> tuple[Image, Mask]:
    """Sky over hills or a town: the ground is warm and textured, or as smooth as the sky above it."""
    y, _ = grid(height, width)
    horizon = rng.uniform(0.45, 0.72) * height
    image = _clear_sky(rng, height, width, horizon)
    if rng.random() < 0.4:
        opacity, brightness = _cumulus(rng, height, width, cover=rng.uniform(0.1, 0.4))
        image += opacity * np.maximum(brightness - image, 0) * rng.uniform(0.2, 0.7)
    top = horizon - rng.uniform(0.01, 0.07) * height * power_law_line(rng, width, slope=rng.uniform(2.4, 3.4))
    texture = power_law_field(rng, height, width, slope=2.3, stretch=3)
    level = _level_below_horizon(rng, image[int(horizon) - 1].mean(), colder=0.1, warmer=0.3)
    relief = perspective_rows(texture, np.maximum(y - top, 0), eye_height=0.3 * height)
    image = np.where(y > top, level + rng.uniform(0.004, 0.05) * relief, image)
    roofs = top
    if rng.random() < 0.5:
        heights, walls = _town(rng, height, width)
        roofs = top - heights
        image = np.where((y > roofs) & (y <= top), walls, image)
    return image, y <= roofs


def sea_horizon(rng: np.random.Generator, height: int, width: int) -> tuple[Image, Mask]:
    """Sky over the sea: waves that grow towards the viewer, and sun glint on their crests."""
    y, x = grid(height, width)
    horizon = rng.uniform(0.4, 0.7) * height + rng.uniform(-0.06, 0.06) * (x - width / 2)
    image = _clear_sky(rng, height, width, horizon.mean())
    depth = np.maximum(y - horizon, 0)
    waves = power_law_field(rng, height, width, slope=1.8, stretch=rng.uniform(2, 5), outer=30)
    waves = perspective_rows(waves, depth, eye_height=0.25 * height)
    swell = rng.uniform(0.008, 0.05) * (0.3 + depth / height)
    sea = _level_below_horizon(rng, image[int(horizon.min()) - 1].mean(), colder=0.12, warmer=0.08) + swell * waves
    if rng.random() < 0.5:
        path = np.exp(-0.5 * ((x - rng.uniform(0.2, 0.8) * width) / (0.08 * width)) ** 2)
        sea = sea + 0.12 * path * np.maximum(waves - 1, 0)
    sky = y <= horizon
    return np.where(sky, image, sea), sky


def terrain(rng: np.random.Generator, height: int, width: int) -> tuple[Image, Mask]:
    """Ground seen from an aircraft: vegetation, bare patches, sensor stripes; hot stones are points."""
    image = rng.uniform(0.3, 0.48) + rng.uniform(0.015, 0.05) * power_law_field(rng, height, width, slope=2.3)
    patches = power_law_field(
        rng, height, width, slope=3.8, outer=40, stretch=rng.uniform(1, 3), angle=rng.uniform(0, 3)
    )
    image += rng.uniform(-0.08, 0.14) * smooth_step((patches - rng.uniform(-0.5, 1)) * 1.5)
    image += 0.006 * rng.standard_normal(width)[None]
    _add_specks(rng, image, density=0.0004, peak=0.15, shape=_SPECK)
    return image, np.zeros((height, width), bool)


def cloud_tops(rng: np.random.Generator, height: int, width: int) -> tuple[Image, Mask]:
    """Clouds over the dark surface, seen from space: no sky."""
    opacity, brightness = _cumulus(rng, height, width, cover=rng.uniform(0.25, 0.75))
    surface = rng.uniform(0.06, 0.2) + 0.012 * power_law_field(rng, height, width, slope=2.2)
    return surface + opacity * np.maximum(brightness - surface, 0.02), np.zeros((height, width), bool)


def stars(rng: np.random.Generator, height: int, width: int, length: float = 0.0) -> tuple[Image, Mask]:
    """Star field of a telescope that follows the sky: the stars are points."""
    image = rng.uniform(0.03, 0.1) + rng.uniform(0, 0.03) * plane(rng, height, width)
    image += 0.003 * power_law_field(rng, height, width, slope=3)
    shape = ObjectShape(psf=(0.9, 1.3), length=(length, length))
    _add_specks(rng, image, density=rng.uniform(0.0008, 0.003), peak=0.1, shape=shape, angle=rng.uniform(0, np.pi))
    return image, np.ones((height, width), bool)


def star_trails(rng: np.random.Generator, height: int, width: int) -> tuple[Image, Mask]:
    """Star field of a telescope that follows a moving object: all stars draw the same streak."""
    return stars(rng, height, width, length=rng.uniform(8, 11))


def _add_specks(
    rng: np.random.Generator, image: Image, density: float, peak: float, shape: ObjectShape, angle: float | None = None
) -> None:
    """Add objects with this density per pixel in place: few are bright, most are faint, ``peak`` is their mean."""
    for pixel in np.argwhere(rng.random(image.shape, dtype=np.float32) < density):
        draw_object(rng, image.shape, shape, pixel, angle).add_to(image, min(rng.exponential(peak), 5 * peak))


PAINTERS = {
    painter.__name__: painter
    for painter in (featureless, clouds, land_horizon, sea_horizon, terrain, cloud_tops, stars, star_trails)
}


def paint_background(name: str, rng: np.random.Generator, height: int, width: int) -> tuple[Image, Mask]:
    """Return the radiance (H, W), within 0.01 and 0.75 so that targets have room, and the sky (H, W)."""
    image, sky = PAINTERS[name](rng, height, width)
    return np.clip(image, 0.01, 0.75).astype(np.float32), sky
