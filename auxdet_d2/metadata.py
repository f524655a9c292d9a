"""Imaging metadata: what a camera knows about an image, from plain words to one batch of tensors.

N images, V entries of a vocabulary.
"""

from __future__ import annotations

import logging
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from detectron2.config import CfgNode
from detectron2.utils.logger import log_first_n
from torch import Tensor

from irstd_d2.errors import ConfigError

UNKNOWN_INDEX = -1
# Ways in which tables and tags say that a value is missing.
_MISSING = frozenset({"", "unknown", "none", "null", "na", "nan", "unspecified", "other"})


def _key(name: str) -> str:
    """Reduce a name to what is compared: lower case, letters and digits only."""
    return re.sub(r"[^a-z0-9]", "", name.lower())


@dataclass(frozen=True)
class ImagingMetadata:
    """Metadata of one ORIGINAL image, before any resizing; ``None`` means unknown.

    Args:
        platform: what carried the camera, e.g. "Air", "Space", "Land".
        band: spectral band, e.g. "LWIR", "NIR", "SWIR".
        width, height: size of the original image in pixels.
    """

    platform: str | None = None
    band: str | None = None
    width: float | None = None
    height: float | None = None

    @classmethod
    def from_dict(cls, values: Mapping[str, object] | None) -> ImagingMetadata:
        """Read the ``metadata`` entry of a data set dictionary; missing keys and ``None`` are unknown.

        Args:
            values: any of the keys ``platform``, ``band``, ``width``, ``height``; others are ignored. Words such as
                "Unknown" and the empty string count as missing.

        Raises:
            ValueError: for a name that is not a string, or a size that is not a positive number.
        """
        values = values or {}
        return cls(
            platform=_parse_name(values.get("platform"), "platform"),
            band=_parse_name(values.get("band"), "band"),
            width=_parse_length(values.get("width"), "width"),
            height=_parse_length(values.get("height"), "height"),
        )


def _parse_name(value: object, name: str) -> str | None:
    if value is None:
        return None
    if not isinstance(value, str):
        raise ValueError(f"metadata {name} is {value!r}; give a name such as 'Air' or 'LWIR', or None for unknown")
    return None if _key(value) in _MISSING else value.strip()


def _parse_length(value: object, name: str) -> float | None:
    if value is None or (isinstance(value, str) and _key(value) in _MISSING):
        return None
    try:
        length = float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        length = math.nan
    if not (math.isfinite(length) and length > 0):
        raise ValueError(f"metadata {name} is {value!r}; give a positive number of pixels, or None for unknown")
    return length


@dataclass(frozen=True)
class Vocabulary:
    """The names of one field that a model tells apart, compared without case, spaces and punctuation.

    Args:
        field_name: "platform" or "band", for messages.
        names: the names in the order of the one-hot code; V of them.
        aliases: other spellings -> a name of ``names``. Aliases of names that are not in ``names`` are ignored, so
            that one list of aliases serves every vocabulary.

    Raises:
        ConfigError: for an empty vocabulary, or two names that cannot be told apart.
    """

    field_name: str
    names: tuple[str, ...]
    aliases: Mapping[str, str] = field(default_factory=dict)
    _index: dict[str, int] = field(init=False, repr=False, compare=False)

    def __post_init__(self):
        index = {_key(name): i for i, name in enumerate(self.names)}
        if not self.names or len(index) != len(self.names) or "" in index:
            raise ConfigError(f"the {self.field_name} vocabulary is {self.names}; give one or more different names")
        for alias, name in self.aliases.items():
            if _key(name) in index:
                index.setdefault(_key(alias), index[_key(name)])
        object.__setattr__(self, "_index", index)

    def __len__(self) -> int:
        return len(self.names)

    def index(self, name: str | None) -> int:
        """Return the position of a name; ``UNKNOWN_INDEX`` for ``None`` and, with a warning, for a foreign name."""
        if name is None:
            return UNKNOWN_INDEX
        position = self._index.get(_key(name), UNKNOWN_INDEX)
        if position == UNKNOWN_INDEX and _key(name) not in _MISSING:
            message = f"{self.field_name} {name!r} is not among {self.names} and is treated as unknown"
            log_first_n(logging.WARNING, message, key="message", name=__name__)
        return position


@dataclass(frozen=True)
class MetadataVocabulary:
    """The platforms and bands that a model tells apart; by default those of WideIRSTD."""

    platforms: Vocabulary = Vocabulary("platform", ("Air", "Space", "Land"))
    bands: Vocabulary = Vocabulary("band", ("LWIR", "NIR", "SWIR"))

    @classmethod
    def from_names(
        cls, platforms: Iterable[str], bands: Iterable[str], aliases: Mapping[str, str] | None = None
    ) -> MetadataVocabulary:
        """Build both vocabularies from plain names; ``aliases`` serves both."""
        aliases = aliases or {}
        return cls(Vocabulary("platform", tuple(platforms), aliases), Vocabulary("band", tuple(bands), aliases))

    @classmethod
    def from_config(cls, cfg: CfgNode) -> MetadataVocabulary:
        """Build the vocabularies from the keys ``MODEL.METADATA``."""
        keys = cfg.MODEL.METADATA
        aliases = {}
        for entry in keys.ALIASES:
            alias, separator, name = entry.partition("=")
            if not (separator and _key(alias) and _key(name)):
                raise ConfigError(f"MODEL.METADATA.ALIASES has {entry!r}; write 'alias=name', e.g. 'airborne=Air'")
            aliases[alias] = name
        return cls.from_names(keys.PLATFORMS, keys.BANDS, aliases)


class MetadataBatch(NamedTuple):
    """Metadata of N images as tensors.

    Attributes:
        platform: (N,) int64, position in the vocabulary, -1 unknown.
        band: (N,) int64, likewise.
        size: (N, 2) float32, width and height of the original images in pixels, (0, 0) unknown.
    """

    platform: Tensor
    band: Tensor
    size: Tensor

    @classmethod
    def unknown(cls, num_images: int, device: torch.device | str | None = None) -> MetadataBatch:
        """Return the metadata of ``num_images`` images of which nothing is known."""
        index = torch.full((num_images,), UNKNOWN_INDEX, dtype=torch.int64, device=device)
        return cls(index, index, torch.zeros(num_images, 2, device=device))

    @property
    def num_images(self) -> int:
        return self.platform.shape[0]

    def to(self, device: torch.device | str) -> MetadataBatch:
        """Return the batch on another device."""
        return MetadataBatch(*(tensor.to(device, non_blocking=True) for tensor in self))


def collate_metadata(
    metadata: Sequence[Mapping[str, object] | ImagingMetadata | None],
    vocabulary: MetadataVocabulary,
    device: torch.device | str | None = None,
) -> MetadataBatch:
    """Turn the metadata of a list of images into one batch of tensors.

    Args:
        metadata: one entry per image: the ``metadata`` dictionary of the image, or ``None`` if nothing is known.
        vocabulary: gives the positions of platform and band; a foreign name is unknown.
        device: where the tensors are put, with one copy each.

    Raises:
        ValueError: see ``ImagingMetadata.from_dict``.
    """
    images = [m if isinstance(m, ImagingMetadata) else ImagingMetadata.from_dict(m) for m in metadata]
    sizes = [(m.width, m.height) if m.width and m.height else (0.0, 0.0) for m in images]
    batch = MetadataBatch(
        platform=torch.tensor([vocabulary.platforms.index(m.platform) for m in images], dtype=torch.int64),
        band=torch.tensor([vocabulary.bands.index(m.band) for m in images], dtype=torch.int64),
        size=torch.tensor(sizes, dtype=torch.float32).reshape(-1, 2),
    )
    return batch if device is None else batch.to(device)


__all__ = ["UNKNOWN_INDEX", "ImagingMetadata", "MetadataBatch", "MetadataVocabulary", "Vocabulary", "collate_metadata"]
