"""Small bright or dark objects: unresolved points, spots of a few pixels, streaks."""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil, floor, log, sqrt
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from ..errors import ConfigError
from .fields import Image

BlobKind = Literal["point", "spot", "streak"]

# A pixel counts as part of an object where its light is at least this fraction of the object's peak.
COUNTED_FRACTION = 0.15
_COUNTED_SIGMAS = sqrt(-2 * log(COUNTED_FRACTION))


@dataclass(frozen=True)
class BlobShape:
    """Sizes of one kind of object, each drawn evenly between two bounds (pixels).

    The object is a line segment of ``length``, widened to a disc of ``radius`` around every point of it, seen through
    optics with a Gaussian point spread function of standard deviation ``psf``.

    Args:
        kind: name of the kind.
        psf: blur of the optics; 0.5 and more, so that the sampled peak is never lost between pixels.
        length: extent of the straight part: motion during the exposure, or a fuselage.
        radius: of the resolved body; 0 = unresolved.
    """

    kind: BlobKind
    psf: tuple[float, float] = (1.1, 1.5)
    length: tuple[float, float] = (0.0, 0.0)
    radius: tuple[float, float] = (0.0, 0.0)

    def __post_init__(self):
        for name, least in (("psf", 0.5), ("length", 0.0), ("radius", 0.0)):
            low, high = getattr(self, name)
            if not least <= low <= high:
                raise ConfigError(
                    f"BlobShape.{name} is {(low, high)}; (low, high) with {least} <= low <= high is needed"
                )

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


@dataclass(frozen=True)
class Blobs:
    """n objects, one value each.

    Args:
        centre: (n, 2) row and column, pixels, subpixel.
        psf: (n,) standard deviation of the blur.
        length: (n,) of the straight part.
        radius: (n,) of the resolved body.
        angle: (n,) of the straight part, radians, 0 = along the rows.
    """

    centre: Image
    psf: Image
    length: Image
    radius: Image
    angle: Image

    @classmethod
    def sample(cls, rng: np.random.Generator, shapes: list[BlobShape], pixels: NDArray[np.intp]) -> Blobs:
        """Draw one object for each shape at the pixel given for it ((n, 2) row and column)."""
        bounds = np.array([(shape.psf, shape.length, shape.radius) for shape in shapes], np.float32).reshape(-1, 3, 2)
        u = rng.random((len(shapes), 6), dtype=np.float32)
        psf, length, radius = (bounds[..., 0] + (bounds[..., 1] - bounds[..., 0]) * u[:, :3]).T
        return cls(pixels + u[:, 3:5] - np.float32(0.5), psf, length, radius, u[:, 5] * np.float32(np.pi))

    def __len__(self) -> int:
        return len(self.psf)


@dataclass(frozen=True)
class Patches:
    """What n objects look like, each on its own square of P x P pixels.

    Args:
        corner: (n, 2) row and column of each patch's first pixel in the image; may be negative.
        light: (n, P, P) from 0 to 1, where 1 is the peak, which may lie between pixels.
        counted: (n, P, P) where the light is at least :data:`COUNTED_FRACTION` of the peak.
    """

    corner: NDArray[np.intp]
    light: Image
    counted: NDArray[np.bool_]

    def windows(self, height: int, width: int):
        """Yield, for each object, its slices of an image (height, width) and of its patch."""
        size = self.light.shape[1]
        for top, left in self.corner.tolist():
            rows = slice(max(top, 0), min(top + size, height))
            columns = slice(max(left, 0), min(left + size, width))
            yield (
                (rows, columns),
                (slice(rows.start - top, rows.stop - top), slice(columns.start - left, columns.stop - left)),
            )

    def boxes(self) -> Image:
        """Return the tight boxes of the counted pixels, (n, 4) x1, y1, x2, y2, 0-based and half-open."""
        size = self.light.shape[1]
        rows: NDArray[np.bool_] = np.any(self.counted, axis=2)
        columns: NDArray[np.bool_] = np.any(self.counted, axis=1)
        first = np.stack([columns.argmax(axis=1), rows.argmax(axis=1)], axis=1)
        last = size - np.stack([columns[:, ::-1].argmax(axis=1), rows[:, ::-1].argmax(axis=1)], axis=1)
        corner = self.corner[:, ::-1]
        return np.concatenate([corner + first, corner + last], axis=1).astype(np.float32).reshape(-1, 4)


def render(blobs: Blobs) -> Patches:
    """Draw objects.

    The light at a distance d from the object's straight part is exp(-max(d - radius, 0)^2 / (2 psf^2)): exact for a
    point, and within a few percent of the convolution with the point spread function for discs and segments.
    """
    if len(blobs) == 0:
        empty = np.zeros((0, 1, 1), np.float32)
        return Patches(np.zeros((0, 2), np.intp), empty, np.zeros(empty.shape, bool))
    half = ceil(float((blobs.length / 2 + blobs.radius + 3 * blobs.psf).max()) + 0.5)
    pixel = np.rint(blobs.centre).astype(np.intp)
    offset = np.arange(-half, half + 1, dtype=np.float32)
    shift = (blobs.centre - pixel).astype(np.float32)
    dy = (offset[None] - shift[:, :1])[:, :, None]
    dx = (offset[None] - shift[:, 1:])[:, None, :]

    def per_blob(values: Image) -> Image:
        return values.astype(np.float32)[:, None, None]

    cos, sin = per_blob(np.cos(blobs.angle)), per_blob(np.sin(blobs.angle))
    along = np.maximum(np.abs(cos * dx + sin * dy) - per_blob(blobs.length) / 2, 0)
    across = cos * dy - sin * dx
    outside = np.maximum(np.sqrt(along**2 + across**2) - per_blob(blobs.radius), 0)
    light = np.exp(-0.5 * (outside / per_blob(blobs.psf)) ** 2)
    return Patches(pixel - half, light, np.asarray(light >= COUNTED_FRACTION))


def add_light(image: Image, patches: Patches, amplitude: Image) -> None:
    """Add n objects with their peak amplitudes (n,) to an image (H, W), in place."""
    for (place, part), light, peak in zip(patches.windows(*image.shape), patches.light, amplitude):
        image[place] += peak * light[part]


__all__ = ["COUNTED_FRACTION", "BlobKind", "BlobShape", "Blobs", "Patches", "add_light", "render"]
