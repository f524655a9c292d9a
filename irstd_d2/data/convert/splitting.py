"""Random splits that keep the shares of platforms and bands, and keep sequences together."""

from __future__ import annotations

import random
import re
from collections import Counter
from collections.abc import Hashable, Mapping, Sequence
from typing import NamedTuple

from ...errors import ConfigError
from .detection_set import ImageRecord

UNKNOWN = "unknown"
STRATA = ("platform", "band", "resolution", "empty")


class Group(NamedTuple):
    """Images that stay together: their names, and how many of them are in each stratum."""

    names: tuple[str, ...]
    counts: Counter[Hashable]


def stratum_of(record: ImageRecord, keys: Sequence[str]) -> tuple[str, ...]:
    """The stratum of an image by ``keys`` of ``STRATA``: resolution is of the original image, empty without target."""
    width, height = record.original_size or record.size
    values = {
        "platform": record.platform or UNKNOWN,
        "band": record.band or UNKNOWN,
        "resolution": f"{width}x{height}",
        "empty": "without target" if not record.objects else "with targets",
    }
    unknown = [key for key in keys if key not in values]
    if unknown:
        raise ConfigError(f"splits cannot be stratified by {', '.join(unknown)}; use some of {', '.join(STRATA)}")
    return tuple(values[key] for key in keys)


def groups_by_pattern(names: Sequence[str], pattern: str) -> dict[str, str]:
    """Group of each name: the first group of a regular expression, or its whole match; other names stay alone.

    Raises:
        ConfigError: the expression cannot be read, or fits no name.
    """
    try:
        expression = re.compile(pattern)
    except re.error as error:
        raise ConfigError(f"the group pattern {pattern!r} cannot be read: {error}") from None
    matches = {name: expression.search(name) for name in names}
    groups = {name: match[1] if expression.groups else match[0] for name, match in matches.items() if match}
    groups = {name: group for name, group in groups.items() if group}
    if not groups:
        raise ConfigError(f"the group pattern {pattern!r} fits none of {len(names)} names, e.g. {names[0]!r}")
    return groups


def make_splits(
    strata: Mapping[str, Hashable],
    ratios: Mapping[str, float],
    *,
    groups: Mapping[str, str] | None = None,
    seed: int = 0,
) -> dict[str, list[str]]:
    """Distribute images over splits.

    Groups are drawn in random order, the large ones first, and each goes where the strata of its images are most
    lacking. Without groups, every split is within one image of its share in every stratum.

    Args:
        strata: stratum of each image, by name.
        ratios: share of each split; they are divided by their sum.
        groups: group of images that must stay together, by name; others stay alone.
        seed: the same names, strata and seed give the same splits, in whatever order they come.

    Returns:
        Sorted names by split.

    Raises:
        ConfigError: no image, or ratios that are not positive.
    """
    if not strata:
        raise ConfigError("there is no image to split")
    if not ratios or min(ratios.values()) <= 0:
        raise ConfigError(f"the shares are {dict(ratios)}; give a positive number for every split")
    total = sum(ratios.values())
    shares = {split: ratio / total for split, ratio in ratios.items()}
    sizes = Counter(strata.values())
    # How many images of each stratum, and of all (None), each split still lacks.
    lacking = {split: {key: share * count for key, count in sizes.items()} for split, share in shares.items()}
    overall = {split: share * len(strata) for split, share in shares.items()}
    splits: dict[str, list[str]] = {split: [] for split in shares}
    for group in _draw_groups(strata, groups or {}, seed):

        def gain(split: str, group: Group = group) -> tuple[float, float]:
            wanted = sum(count * (2 * lacking[split][key] - count) for key, count in group.counts.items())
            return round(wanted, 9), overall[split]

        best = max(splits, key=gain)
        splits[best] += group.names
        overall[best] -= len(group.names)
        for key, count in group.counts.items():
            lacking[best][key] -= count
    return {split: sorted(names) for split, names in splits.items()}


def _draw_groups(strata: Mapping[str, Hashable], groups: Mapping[str, str], seed: int) -> list[Group]:
    members: dict[tuple[bool, str], list[str]] = {}
    for name in sorted(strata):
        members.setdefault((name in groups, groups.get(name, name)), []).append(name)
    drawn = [Group(tuple(names), Counter(strata[name] for name in names)) for _, names in sorted(members.items())]
    random.Random(seed).shuffle(drawn)  # noqa: S311  no secret
    return sorted(drawn, key=lambda group: -len(group.names))
