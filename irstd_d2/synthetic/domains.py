"""Imaging domains: which platform, band and resolution occur how often, and what is a target in each."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

Balance = Literal["real", "uniform"]
Size = Literal["small", "real"] | tuple[int, int]

# Images of WideIRSTD-Full by (width, height), 8,851 in all. From the ground and the air there are hundreds of formats
# that occur once or twice; their mean stands for them.
FORMATS: dict[tuple[str, str], dict[tuple[int, int], int]] = {
    ("Space", "NIR"): {(1024, 1024): 4800, (1024, 740): 457, (740, 1024): 457, (740, 740): 46, (512, 512): 27},
    ("Land", "LWIR"): {(512, 512): 1002, (640, 512): 78, (720, 480): 77, (328, 244): 410, (256, 256): 32},
    ("Air", "LWIR"): {(256, 256): 1327, (304, 216): 117},
    ("Space", "SWIR"): {(512, 512): 21},
}
SMALL_MAIN_SIDE = 128
SMALL_RANGE = (96, 192)

# Additive recurrence with the powers of the plastic number (x^3 = x + 1): the two-dimensional sequence whose first n
# points fill the square most evenly for every n.
_PLASTIC = 1.3247179572447460
_STEPS = np.array([1 / _PLASTIC, 1 / _PLASTIC**2])


@dataclass(frozen=True)
class ImagingDomain:
    """How an image was taken: the ``metadata`` of a sample (sizes in pixels)."""

    platform: str
    band: str
    width: int
    height: int


@dataclass(frozen=True)
class DomainRule:
    """What counts as a target in one domain; the other kinds of objects are clutter there.

    Args:
        target: kind of the targets.
        backgrounds: painters of :mod:`.backgrounds`, and how often each is used relative to the others.
        cold: fraction of the targets before each background that are darker than it.
    """

    target: str
    backgrounds: dict[str, float]
    cold: dict[str, float] = field(default_factory=dict)


_HORIZONS = {"land_horizon": 1.0, "sea_horizon": 0.6}
RULES = {
    # The telescope follows the stars, which stay points; whatever crosses the field, or a ship with its wake, is long.
    ("Space", "NIR"): DomainRule("streak", {"stars": 1, "cloud_tops": 1}),
    # An exhaust plume glows where the Earth is dark: unresolved and hot. Long features are lit cloud edges.
    ("Space", "SWIR"): DomainRule("point", {"cloud_tops": 1}),
    # From the ground a distant aircraft is an unresolved hot point; birds and insects nearby are spots and streaks.
    ("Land", "LWIR"): DomainRule("point", {"clouds": 1.5, **_HORIZONS}, cold={"clouds": 0.05}),
    # From the air another aircraft is resolved, and colder than sunlit ground; hot stones and bad pixels are points.
    ("Air", "LWIR"): DomainRule("spot", {"clouds": 1.5, "terrain": 1, **_HORIZONS}, cold={"terrain": 0.4}),
}
# The windowed read-out (width and height differ) follows a moving object: now the object is a point and the stars long.
WINDOW_RULE = DomainRule("point", {"star_trails": 1})
# The sets like DenseSIRST: seen from the ground, often with a horizon.
DENSE_RULE = DomainRule("point", {"clouds": 1, "land_horizon": 2, "sea_horizon": 1})


def rule_for(domain: ImagingDomain) -> DomainRule:
    """Return what is a target in a domain."""
    if (domain.platform, domain.band) == ("Space", "NIR") and domain.width != domain.height:
        return WINDOW_RULE
    return RULES[domain.platform, domain.band]


def small_size(width: int, height: int, main_side: int) -> tuple[int, int]:
    """Scale a real format so that ``main_side`` becomes 128 pixels, to multiples of 8 from 96 to 192."""
    low, high = SMALL_RANGE
    scale = max(SMALL_MAIN_SIDE / main_side, low / min(width, height))
    scale = min(scale, high / max(width, height))
    width, height = (int(np.clip(8 * round(side * scale / 8), low, high)) for side in (width, height))
    return width, height


def domain_table(size: Size, balance: Balance, dense: bool = False) -> dict[ImagingDomain, float]:
    """Return all imaging domains with their probabilities; arguments as of :class:`.scene.SceneConfig`."""
    pairs = {("Land", "LWIR"): FORMATS["Land", "LWIR"]} if dense else FORMATS
    total = sum(sum(formats.values()) for formats in pairs.values())
    table: Counter[ImagingDomain] = Counter()
    for pair, formats in pairs.items():
        _, main_side = max((count, max(item)) for item, count in formats.items())
        for (width, height), count in formats.items():
            share = count / total if balance == "real" else count / sum(formats.values()) / len(pairs)
            if size == "small":
                width, height = small_size(width, height, main_side)
            elif size != "real":
                width, height = size
            table[ImagingDomain(*pair, width, height)] += share  # type: ignore[assignment]
    return dict(table)


class DomainSequence:
    """Draws the domain of image i, so that any number of images keeps the proportions of the table.

    Independent draws leave the share of a domain uncertain by several percent in a set of some hundred images. An
    evenly filling sequence keeps it within five images, and image i still depends on nothing but the seed and i.
    """

    def __init__(self, table: dict[ImagingDomain, float], seed: int):
        self.domains, probabilities = zip(*table.items())
        self._upper = np.cumsum(probabilities)
        self._start = np.random.default_rng(np.random.SeedSequence([seed])).random(2)

    def __call__(self, index: int) -> tuple[ImagingDomain, float]:
        """Return the domain of an image and a second evenly spread number in [0, 1), for the kind of its scene."""
        first, second = (self._start + (index + 1) * _STEPS) % 1.0
        place = min(int(np.searchsorted(self._upper, first, side="right")), len(self.domains) - 1)
        return self.domains[place], float(second)
