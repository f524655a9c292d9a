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
    seen through optics that blur it by :data:`OPTICS_SIGMA`. Structures larger than ``outer`` pixels are not amplified
    further; they are ``stretch`` times longer along ``angle`` (radians, 0 = along the rows) than across it.

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
    line = power_law_field(rng, 1, 2 * length, slope, outer=1e4)[0, :length]
    return (line - line.mean()) / line.std()


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
    """Lay a texture (H, W) on the ground: the farther from the viewer, the denser its rows.

    ``depth`` (H, W) are rows below the horizon line, at least 0. The larger ``eye_height`` (pixels) of the viewer, the
    steeper the view and the less crowding at the horizon.
    """
    height = texture.shape[0]
    row = np.float32(0.9 * height) * eye_height / (depth + eye_height)
    upper = row.astype(np.intp)
    weight = row - upper
    columns = np.arange(texture.shape[1])[None]
    return texture[upper, columns] * (1 - weight) + texture[upper + 1, columns] * weight
