"""Random textures and small image operations that the backgrounds are made of."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Image = NDArray[np.floating]
Mask = NDArray[np.bool_]

# Blur of textures by the optics (standard deviation, pixels): nothing in an image is sharper than its sensor.
OPTICS_SIGMA = 0.7


def power_law_field(
    rng: np.random.Generator,
    height: int,
    width: int,
    slope: float,
    outer: float = 64.0,
    stretch: float = 1.0,
    angle: float = 0.0,
) -> Image:
    """Return a random texture whose power spectrum falls as frequency to the power of ``-slope``.

    Cloud radiance has a slope near 8/3 in two dimensions (turbulence), terrain and waves are rougher. The texture is
    seen through optics that blur it by :data:`OPTICS_SIGMA`.

    Args:
        rng: source of randomness.
        height: rows.
        width: columns.
        slope: exponent of the power spectrum.
        outer: structures larger than this many pixels are not amplified further.
        stretch: structures are this many times longer along ``angle`` than across it.
        angle: radians, 0 = along the rows.

    Returns:
        (height, width) with mean 0 and standard deviation 1; opposite borders join.
    """
    noise = np.fft.rfft2(rng.standard_normal((height, width), dtype=np.float32))
    fy = np.fft.fftfreq(height).astype(np.float32)[:, None]
    fx = np.fft.rfftfreq(width).astype(np.float32)[None]
    along = (np.cos(angle) * fx + np.sin(angle) * fy) * stretch
    across = np.cos(angle) * fy - np.sin(angle) * fx
    noise *= (along**2 + across**2 + np.float32(outer) ** -2) ** np.float32(-slope / 4)
    noise *= np.exp(-2 * (np.pi * OPTICS_SIGMA) ** 2 * (fx**2 + fy**2))
    noise[0, 0] = 0
    field = np.fft.irfft2(noise, s=(height, width))
    return (field / field.std()).astype(np.float32)


def power_law_line(rng: np.random.Generator, length: int, slope: float) -> Image:
    """Return a random curve of ``length`` values, mean 0 and standard deviation 1: a skyline of hills at slope 3."""
    noise = np.fft.rfft(rng.standard_normal(2 * length))
    noise[1:] *= np.fft.rfftfreq(2 * length)[1:] ** (-slope / 2)
    noise[0] = 0
    line = np.fft.irfft(noise)[:length]
    return ((line - line.mean()) / line.std()).astype(np.float32)


def smooth_step(x: Image) -> Image:
    """Rise smoothly from 0 at x <= 0 to 1 at x >= 1."""
    x = np.clip(x, 0, 1)
    return x * x * (3 - 2 * x)


def grid(height: int, width: int) -> tuple[Image, Image]:
    """Return the row (height, 1) and the column (1, width) of each pixel's centre."""
    return np.arange(height, dtype=np.float32)[:, None], np.arange(width, dtype=np.float32)[None]


def plane(rng: np.random.Generator, height: int, width: int) -> Image:
    """Return a linear ramp in a random direction, from about -1 to 1 over the image."""
    y, x = grid(height, width)
    angle = rng.uniform(0, 2 * np.pi)
    ramp = np.cos(angle) * (2 * x / width - 1) + np.sin(angle) * (2 * y / height - 1)
    return ramp.astype(np.float32)


def perspective_rows(texture: Image, depth: Image, eye_height: float) -> Image:
    """Lay a texture on the ground: the farther from the viewer, the denser its rows.

    Args:
        texture: (H, W).
        depth: (H, W), rows below the horizon line, at least 0.
        eye_height: of the viewer; larger = steeper view, less crowding at the horizon. Pixels.

    Returns:
        (H, W).
    """
    height = texture.shape[0]
    row = np.float32(0.9 * height) * eye_height / (depth + eye_height)
    upper = row.astype(np.intp)
    weight = row - upper
    columns = np.arange(texture.shape[1])[None]
    return texture[upper, columns] * (1 - weight) + texture[upper + 1, columns] * weight


def window_fits(mask: Mask, height: int, width: int) -> Mask:
    """Tell where a window of ones fits.

    Args:
        mask: (H, W).
        height: rows of the window.
        width: columns of the window.

    Returns:
        (H - height + 1, W - width + 1): True where the window with this upper left corner lies wholly inside the mask.
    """
    total = np.zeros((mask.shape[0] + 1, mask.shape[1] + 1), np.int32)
    np.cumsum(mask, axis=0, out=total[1:, 1:], dtype=np.int32)
    np.cumsum(total[1:, 1:], axis=1, out=total[1:, 1:])
    inside = total[height:, width:] - total[:-height, width:] - total[height:, :-width] + total[:-height, :-width]
    return inside == height * width


def scatter(rng: np.random.Generator, allowed: Mask, count: int, separation: int) -> NDArray[np.intp]:
    """Draw pixels that keep a distance from each other, in random order.

    Args:
        rng: source of randomness.
        allowed: (H, W), where pixels may be drawn.
        count: how many are wanted; fewer come back when there is no room.
        separation: least distance between two, the larger of that in rows and that in columns.

    Returns:
        (n, 2) rows and columns, n <= count.
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


__all__ = [
    "Image",
    "Mask",
    "grid",
    "perspective_rows",
    "plane",
    "power_law_field",
    "power_law_line",
    "scatter",
    "smooth_step",
    "window_fits",
]
