"""Small bright or dark objects: unresolved points, spots of a few pixels, streaks."""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil, floor, log, sqrt

import numpy as np

from .textures import Image

# A pixel counts as part of an object where its light is at least this fraction of the object's peak.
COUNTED_FRACTION = 0.15
_COUNTED_SIGMAS = sqrt(-2 * log(COUNTED_FRACTION))


@dataclass(frozen=True)
class ObjectShape:
    """Sizes of one kind of object, each drawn evenly between two bounds (pixels).

    The object is a line segment of ``length``, widened to a disc of ``radius`` around every point of it, seen through
    optics with a Gaussian point spread function of standard deviation ``psf``.
    """

    psf: tuple[float, float] = (1.1, 1.5)
    length: tuple[float, float] = (0.0, 0.0)
    radius: tuple[float, float] = (0.0, 0.0)

    @property
    def reach(self) -> int:
        """Largest distance from the centre's pixel to a counted pixel, in rows or columns."""
        return ceil(self._radius + 0.5)

    @property
    def extent(self) -> int:
        """Largest number of rows or columns that the counted pixels take."""
        return floor(2 * self._radius) + 1

    @property
    def _radius(self) -> float:
        return self.length[1] / 2 + self.radius[1] + _COUNTED_SIGMAS * self.psf[1]


SHAPES = {
    "point": ObjectShape(),
    "spot": ObjectShape(length=(0.0, 2.5), radius=(2.0, 2.8)),
    "streak": ObjectShape(length=(8.0, 11.0)),
}


@dataclass(frozen=True)
class Patch:
    """What one object looks like in an image: the rows and columns that it covers, and its light there, from 0 to 1.

    1 is the peak, which may lie between pixels.
    """

    rows: slice
    columns: slice
    light: Image

    @property
    def counted(self) -> np.ndarray:
        """(rows, columns), True on the pixels that belong to the object."""
        return self.light >= COUNTED_FRACTION

    @property
    def box(self) -> tuple[int, int, int, int]:
        """Tight box x1, y1, x2, y2 of the counted pixels, 0-based and half-open."""
        rows, columns = np.nonzero(self.counted)
        x, y = self.columns.start, self.rows.start
        return x + columns.min(), y + rows.min(), x + columns.max() + 1, y + rows.max() + 1

    def add_to(self, image: Image, peak: float) -> None:
        """Add the object with this peak amplitude to an image (H, W), in place."""
        image[self.rows, self.columns] += np.float32(peak) * self.light


def render_object(
    size: tuple[int, int], row: float, column: float, psf: float, length: float, radius: float, angle: float
) -> Patch:
    """Draw one object into an image of ``size`` (height, width).

    The light at a distance d from the object's straight part is exp(-max(d - radius, 0)^2 / (2 psf^2)): exact for a
    point, and within a few percent of the convolution with the point spread function for discs and segments. The angle
    is in radians, 0 = along the rows.
    """
    half = ceil(length / 2 + radius + 3 * psf + 0.5)
    rows, columns = (
        slice(max(round(center) - half, 0), min(round(center) + half + 1, side))
        for center, side in zip((row, column), size)
    )
    dy = np.arange(rows.start, rows.stop, dtype=np.float32)[:, None] - np.float32(row)
    dx = np.arange(columns.start, columns.stop, dtype=np.float32)[None] - np.float32(column)
    cos, sin = np.float32(np.cos(angle)), np.float32(np.sin(angle))
    along = np.maximum(np.abs(cos * dx + sin * dy) - np.float32(length / 2), 0)
    outside = np.maximum(np.hypot(along, cos * dy - sin * dx) - np.float32(radius), 0)
    return Patch(rows, columns, np.exp(-0.5 * (outside / np.float32(psf)) ** 2))


def draw_object(
    rng: np.random.Generator, size: tuple[int, int], shape: ObjectShape, pixel: np.ndarray, angle: float | None = None
) -> Patch:
    """Draw an object of random size and direction (or this ``angle``) whose centre lies in ``pixel`` (row, column)."""
    psf, length, radius = (rng.uniform(*bounds) for bounds in (shape.psf, shape.length, shape.radius))
    row, column = pixel + rng.uniform(-0.5, 0.5, size=2)
    direction = rng.uniform(0, np.pi)
    return render_object(size, row, column, psf, length, radius, direction if angle is None else angle)
