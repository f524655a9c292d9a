"""What a synthetic set consists of: domain rules, object sizes, counts and contrast."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from ..errors import ConfigError
from .backgrounds import PAINTERS
from .blobs import BlobKind, BlobShape
from .domains import Balance, ImagingDomain, Size, domain_table


@dataclass(frozen=True)
class BackgroundChoice:
    """A background that a domain shows.

    Args:
        name: of a painter in :data:`irstd_d2.synthetic.backgrounds.PAINTERS`.
        weight: how often, relative to the domain's other backgrounds.
        cold_share: fraction of the targets that are darker than this background.
    """

    name: str
    weight: float = 1.0
    cold_share: float = 0.0

    def __post_init__(self):
        if self.name not in PAINTERS:
            raise ConfigError(f"BackgroundChoice.name is {self.name!r}; accepted are {sorted(PAINTERS)}")
        if self.weight <= 0 or not 0 <= self.cold_share <= 1:
            raise ConfigError(f"{self}: a weight above 0 and a cold_share from 0 to 1 are needed")


@dataclass(frozen=True)
class DomainRule:
    """What counts as a target in one domain; the other kinds of objects are clutter there.

    Args:
        platform: of the images the rule holds for.
        band: of the images the rule holds for.
        frame: ``"square"`` or ``"window"`` (width and height differ) restricts the rule to such resolutions.
        target: kind of the targets.
        backgrounds: of the scenes that show the domain's own background.
    """

    platform: str
    band: str
    target: BlobKind
    backgrounds: tuple[BackgroundChoice, ...]
    frame: Literal["any", "square", "window"] = "any"

    def holds_for(self, domain: ImagingDomain) -> bool:
        """Tell whether the rule is about images of this domain."""
        return (self.platform, self.band) == (domain.platform, domain.band) and self.frame in ("any", domain.frame)


@dataclass(frozen=True)
class ClusterRule:
    """Dense areas of 20 x 20 pixels, as section III-B of the DenseSIRST paper defines them.

    Args:
        areas: least and largest number of areas of targets in the sky of an image.
        objects: least and largest number of objects in an area, at least 1 pixel apart; fewer where there is no room.
        lookalike_areas: the same number of areas of clutter below the horizon.
    """

    areas: tuple[int, int] = (1, 3)
    objects: tuple[int, int] = (8, 12)
    lookalike_areas: tuple[int, int] = (0, 1)

    def __post_init__(self):
        _check_counts(self, "areas", "objects", "lookalike_areas")


_HORIZONS = (BackgroundChoice("land_horizon"), BackgroundChoice("sea_horizon", 0.6))

OMNI_RULES = (
    # The telescope follows the stars, which stay points; whatever crosses the field, or a ship with its wake, is long.
    DomainRule(
        "Space",
        "NIR",
        target="streak",
        frame="square",
        backgrounds=(
            BackgroundChoice("stars", 2),
            BackgroundChoice("sea_surface"),
            BackgroundChoice("limb", 0.5),
            BackgroundChoice("cloud_tops", 0.5),
        ),
    ),
    # The windowed read-out follows a moving object: now the object is a point and the stars are long.
    DomainRule("Space", "NIR", target="point", frame="window", backgrounds=(BackgroundChoice("star_trails"),)),
    # An exhaust plume glows where the Earth is dark: unresolved and hot. Long features are lit cloud edges.
    DomainRule(
        "Space", "SWIR", target="point", backgrounds=(BackgroundChoice("cloud_tops"), BackgroundChoice("limb", 0.5))
    ),
    # From the ground a distant aircraft is an unresolved hot point; birds and insects nearby are spots and streaks.
    DomainRule(
        "Land", "LWIR", target="point", backgrounds=(BackgroundChoice("clouds", 1.5, cold_share=0.05), *_HORIZONS)
    ),
    # From the air another aircraft is resolved, and colder than sunlit ground; hot stones and bad pixels are points.
    DomainRule(
        "Air",
        "LWIR",
        target="spot",
        backgrounds=(BackgroundChoice("clouds", 1.5), BackgroundChoice("terrain", cold_share=0.4), *_HORIZONS),
    ),
)

OMNI_SHAPES = (
    BlobShape("point"),
    BlobShape("spot", length=(0.0, 2.5), radius=(2.0, 2.8)),
    BlobShape("streak", length=(8.0, 11.0)),
)


@dataclass(frozen=True)
class SceneConfig:
    """Everything that decides what scene number i looks like.

    Args:
        seed: of the set.
        size: ``"small"`` (sides from 96 to 192), ``"real"`` (the formats of WideIRSTD-Full, up to 1024) or one size for
            all images as (width, height).
        balance: ``"real"`` or ``"uniform"`` frequencies of platform and band.
        domain_conflict: fraction, 0 to 1, of scenes that show objects of every kind before a featureless background.
            The distribution of their pixels does not depend on the domain, so nothing but the metadata tells which
            kind is the target. In the other scenes the background belongs to the domain, and objects of another kind
            do not occur besides the stars, glints and stones that are part of it.
        bits: 8 or 16 per pixel.
        rules: target kind and backgrounds of each domain; only platforms and bands with a rule occur.
        shapes: sizes of each kind of object.
        conflict_count: least and largest number of objects of each kind in a conflict scene.
        target_count: least and largest number of targets in another scene.
        lookalike_count: least and largest number of objects below the horizon that look like the domain's targets and
            are clutter.
        empty_share: fraction of scenes with the domain's own background that have no target.
        contrast: peak of an object before a smooth background, as a fraction of the full range; a textured background
            adds to it.
        noise: standard deviation of the sensor noise, as a fraction of the full range.
        clusters: dense areas of targets, or ``None``.

    Raises:
        ConfigError: for a value that cannot work.
    """

    seed: int = 0
    size: Size = "small"
    balance: Balance = "real"
    domain_conflict: float = 0.6
    bits: Literal[8, 16] = 8
    rules: tuple[DomainRule, ...] = OMNI_RULES
    shapes: tuple[BlobShape, ...] = OMNI_SHAPES
    conflict_count: tuple[int, int] = (1, 2)
    target_count: tuple[int, int] = (1, 3)
    lookalike_count: tuple[int, int] = (1, 3)
    empty_share: float = 0.03
    contrast: tuple[float, float] = (0.1, 0.35)
    noise: tuple[float, float] = (0.005, 0.015)
    clusters: ClusterRule | None = None

    def __post_init__(self):
        _check_counts(self, "conflict_count", "target_count", "lookalike_count", "contrast", "noise")
        for name in ("domain_conflict", "empty_share"):
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError(f"SceneConfig.{name} is {getattr(self, name)}; a number from 0 to 1 is needed")
        if self.bits not in (8, 16):
            raise ConfigError(f"SceneConfig.bits is {self.bits}; accepted are 8 and 16")
        kinds = [shape.kind for shape in self.shapes]
        if len(set(kinds)) != len(kinds):
            raise ConfigError(f"SceneConfig.shapes names a kind twice: {kinds}")
        for rule in self.rules:
            if rule.target not in kinds:
                raise ConfigError(f"{rule.platform}/{rule.band}: target kind {rule.target!r} is not among {kinds}")
        for domain, _ in self.domain_table():
            self.rule_for(domain)

    def domain_table(self) -> tuple[tuple[ImagingDomain, float], ...]:
        """Return the imaging domains of the set with their probabilities."""
        return domain_table(self.size, self.balance, self.pairs)

    @property
    def pairs(self) -> tuple[tuple[str, str], ...]:
        """Platforms and bands that occur."""
        return tuple(dict.fromkeys((rule.platform, rule.band) for rule in self.rules))

    def rule_for(self, domain: ImagingDomain) -> DomainRule:
        """Return the first rule that holds for a domain; a ConfigError if there is none."""
        for rule in self.rules:
            if rule.holds_for(domain):
                return rule
        raise ConfigError(f"SceneConfig.rules has no rule for {domain}; add one with frame='any'")


def dense_rules() -> tuple[DomainRule, ...]:
    """Rules of a set like DenseSIRST: seen from the ground, often with a horizon."""
    backgrounds = (BackgroundChoice("clouds"), BackgroundChoice("land_horizon", 2), BackgroundChoice("sea_horizon", 1))
    return (DomainRule("Land", "LWIR", target="point", backgrounds=backgrounds),)


def dense_config(
    seed: int = 0, size: Size = "small", bits: Literal[8, 16] = 8, clusters: ClusterRule | None = None
) -> SceneConfig:
    """Return the configuration of a set like DenseSIRST, in which the background decides.

    Clusters of tiny points in the sky are targets; the same points, single or clustered, below the horizon are clutter.

    Args:
        seed: of the set.
        size: see :class:`SceneConfig`.
        bits: per pixel, 8 or 16.
        clusters: the dense areas; ``None`` = those of the paper.
    """
    return SceneConfig(
        seed=seed,
        size=size,
        bits=bits,
        domain_conflict=0.0,
        rules=dense_rules(),
        shapes=(BlobShape("point", psf=(0.6, 0.75)),),
        target_count=(0, 2),
        lookalike_count=(2, 6),
        clusters=clusters or ClusterRule(),
    )


def _check_counts(config: object, *names: str) -> None:
    for name in names:
        low, high = getattr(config, name)
        if not 0 <= low <= high:
            raise ConfigError(f"{type(config).__name__}.{name} is {(low, high)}; 0 <= low <= high is needed")


__all__ = [
    "OMNI_RULES",
    "OMNI_SHAPES",
    "BackgroundChoice",
    "ClusterRule",
    "DomainRule",
    "SceneConfig",
    "dense_config",
]
