"""Imaging domains: which platform, band and resolution occur how often, and how to draw one for image number i."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass
from typing import Literal

import numpy as np

from ..errors import ConfigError
from .formats import FORMAT_COUNTS

Balance = Literal["real", "uniform"]
Size = Literal["small", "real"] | tuple[int, int]

SMALL_MAIN_SIDE = 128
SMALL_RANGE = (96, 192)
MIN_SIDE = 64

# Additive recurrence with the powers of the plastic number (x^3 = x + 1): the two-dimensional sequence whose first n
# points fill the square most evenly for every n.
_PLASTIC = 1.3247179572447460
_STEPS = np.array([1 / _PLASTIC, 1 / _PLASTIC**2])


@dataclass(frozen=True)
class ImagingDomain:
    """How an image was taken: what the metadata of one image says.

    Args:
        platform: ``"Air"``, ``"Space"`` or ``"Land"``.
        band: ``"LWIR"``, ``"NIR"`` or ``"SWIR"``.
        width: of the image, pixels.
        height: of the image, pixels.
    """

    platform: str
    band: str
    width: int
    height: int

    @property
    def frame(self) -> Literal["square", "window"]:
        """``"window"`` where the read-out is not square, which is all that the rules use of the resolution."""
        return "square" if self.width == self.height else "window"

    def as_metadata(self) -> dict[str, str | int]:
        """The ``metadata`` dict of a sample."""
        return {"platform": self.platform, "band": self.band, "width": self.width, "height": self.height}


def real_formats() -> dict[ImagingDomain, int]:
    """Return how many images of WideIRSTD-Full's metadata table have each platform, band, width and height."""
    counts = {}
    for (platform, band), formats in FORMAT_COUNTS.items():
        for item in formats.split():
            size, _, count = item.partition("*")
            width, _, height = size.partition("x")
            counts[ImagingDomain(platform, band, int(width), int(height))] = int(count or 1)
    return counts


def small_size(width: int, height: int, main_side: int) -> tuple[int, int]:
    """Scale a real image format to the small sets, keeping its aspect ratio to 8 pixels.

    Args:
        width: real width, pixels.
        height: real height, pixels.
        main_side: longer side of the domain's most common format; it becomes 128 pixels.

    Returns:
        Width and height, multiples of 8 from 96 to 192.
    """
    low, high = SMALL_RANGE
    scale = SMALL_MAIN_SIDE / main_side
    scale = max(scale, low / min(width, height))
    scale = min(scale, high / max(width, height))
    return tuple(int(np.clip(8 * round(side * scale / 8), low, high)) for side in (width, height))  # type: ignore[return-value]


def domain_table(
    size: Size, balance: Balance, pairs: Collection[tuple[str, str]] | None = None
) -> tuple[tuple[ImagingDomain, float], ...]:
    """Return all imaging domains with their probabilities.

    Args:
        size: ``"real"`` keeps the formats of WideIRSTD-Full; ``"small"`` scales those of each platform and band so that
            the most common one is 128 pixels wide, with sides from 96 to 192; ``(width, height)`` is one size for all.
        balance: ``"real"`` keeps the frequencies of WideIRSTD-Full; ``"uniform"`` gives every pair of platform and band
            that occurs the same probability, with the frequencies of the formats inside a pair kept.
        pairs: platforms and bands to keep; ``None`` = all four of the real table.

    Raises:
        ConfigError: for another size or balance, or a pair that the real table lacks.
    """
    if balance not in ("real", "uniform"):
        raise ConfigError(f"balance is {balance!r}; accepted are 'real' and 'uniform'")
    if isinstance(size, str) and size not in ("small", "real"):
        raise ConfigError(f"size is {size!r}; accepted are 'small', 'real' and a pair (width, height)")
    if not isinstance(size, str) and (len(size) != 2 or min(size) < MIN_SIDE):
        raise ConfigError(f"size is {size!r}; a pair (width, height) of at least {MIN_SIDE} pixels each is needed")
    if pairs is not None and not 0 < len(set(pairs) & set(FORMAT_COUNTS)) == len(set(pairs)):
        raise ConfigError(f"platforms and bands are {sorted(pairs)}; some of {sorted(FORMAT_COUNTS)} are needed")

    counts = {
        domain: count
        for domain, count in real_formats().items()
        if pairs is None or (domain.platform, domain.band) in pairs
    }
    totals: Counter[tuple[str, str]] = Counter()
    main: dict[tuple[str, str], ImagingDomain] = {}
    for domain, count in counts.items():
        pair = domain.platform, domain.band
        totals[pair] += count
        if pair not in main or count > counts[main[pair]]:
            main[pair] = domain

    table: Counter[ImagingDomain] = Counter()
    for domain, count in counts.items():
        pair = domain.platform, domain.band
        weight = 1 / sum(totals.values()) if balance == "real" else 1 / len(totals) / totals[pair]
        if size == "small":
            width, height = small_size(domain.width, domain.height, max(main[pair].width, main[pair].height))
        elif size == "real":
            width, height = domain.width, domain.height
        else:
            width, height = size
        table[ImagingDomain(*pair, width, height)] += count * weight  # type: ignore[assignment]
    return tuple(table.items())


class DomainSequence:
    """Draws the domain of image i, so that any number of images keeps the proportions of the table.

    Independent draws leave the share of a domain uncertain by several percent in a set of some hundred images. An
    evenly filling sequence keeps it within about one image, and image i still depends on nothing but the seed and i.

    Args:
        size: see :func:`domain_table`.
        balance: see :func:`domain_table`.
        seed: of the set.
        pairs: see :func:`domain_table`.
    """

    def __init__(self, size: Size, balance: Balance, seed: int, pairs: Collection[tuple[str, str]] | None = None):
        self.domains, probabilities = zip(*domain_table(size, balance, pairs))
        self._upper = np.cumsum(probabilities)
        self._start = np.random.default_rng(np.random.SeedSequence([seed])).random(2)

    def __call__(self, index: int) -> tuple[ImagingDomain, float]:
        """Return the domain of an image and a second evenly spread number in [0, 1), for the kind of its scene."""
        first, second = (self._start + (index + 1) * _STEPS) % 1.0
        place = min(int(np.searchsorted(self._upper, first, side="right")), len(self.domains) - 1)
        return self.domains[place], float(second)


__all__ = ["Balance", "DomainSequence", "ImagingDomain", "Size", "domain_table", "real_formats", "small_size"]
