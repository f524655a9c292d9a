"""Imaging metadata: what a camera knows about an image, from plain words to one batch of tensors.

N images, V entries of a vocabulary, K further fields.
"""

from __future__ import annotations

import logging
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import NamedTuple

import torch
from detectron2.config import CfgNode
from detectron2.utils.logger import log_first_n
from torch import Tensor

from irstd_d2 import get_config
from irstd_d2.errors import ConfigError

UNKNOWN_INDEX = -1
FIELDS = ("platform", "band", "size")  # those of the paper; a configuration may declare more
# Ways in which tables and tags say that a value is missing.
_MISSING = frozenset({"", "unknown", "none", "null", "na", "nan", "unspecified", "other"})


def _key(name: str) -> str:
    """Reduce a name to what is compared: lower case, letters and digits only."""
    return re.sub(r"[^a-z0-9]", "", name.lower())


_OWN = ("platform", "band", "width", "height")
# Spellings of a band that the published models do not know; they serve vocabularies that have it.
_FURTHER_ALIASES = {"midwave": "MWIR", "midwave infrared": "MWIR", "medium wave infrared": "MWIR"}


@dataclass(frozen=True)
class ImagingMetadata:
    """Metadata of one ORIGINAL image, before any resizing; ``None`` means unknown.

    Args:
        platform: what carried the camera, e.g. "Air", "Space", "Land".
        band: spectral band, e.g. "LWIR", "NIR", "SWIR".
        width, height: size of the original image in pixels.
        extra: further fields by name, e.g. ``{"view_angle": 30}``, as given; see ``MetadataVocabulary``.
    """

    platform: str | None = None
    band: str | None = None
    width: float | None = None
    height: float | None = None
    extra: Mapping[str, object] = field(default_factory=dict)

    @classmethod
    def from_dict(cls, values: Mapping[str, object] | None) -> ImagingMetadata:
        """Read the ``metadata`` entry of a data set dictionary; missing keys and ``None`` are unknown.

        Keys beside ``platform``, ``band``, ``width`` and ``height`` are further fields. Words such as "Unknown" and the
        empty string count as missing.

        Raises:
            ValueError: for a name that is not a string, or a size that is not a positive number.
        """
        values = values or {}
        return cls(
            platform=_parse_name(values.get("platform"), "platform"),
            band=_parse_name(values.get("band"), "band"),
            width=_parse_length(values.get("width"), "width"),
            height=_parse_length(values.get("height"), "height"),
            extra={name: value for name, value in values.items() if name not in _OWN},
        )


def _parse_name(value: object, name: str) -> str | None:
    if value is None:
        return None
    if not isinstance(value, str):
        raise ValueError(f"metadata {name} is {value!r}; give a name such as 'Air' or 'LWIR', or None for unknown")
    return None if _key(value) in _MISSING else value.strip()


def _parse_length(value: object, name: str) -> float | None:
    if _is_missing(value):
        return None
    length = _parse_number(value)
    if not length > 0:
        raise ValueError(f"metadata {name} is {value!r}; give a positive number of pixels, or None for unknown")
    return length


def _is_missing(value: object) -> bool:
    # A minus sign makes "-" a mark of missing values and "-5" a number.
    return value is None or (isinstance(value, str) and _key(value) in _MISSING)


def _parse_number(value: object) -> float:
    """Return a finite number, otherwise NaN."""
    try:
        number = float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError, OverflowError):
        return math.nan
    return number if math.isfinite(number) else math.nan


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

    def __post_init__(self):
        object.__setattr__(self, "names", tuple(self.names))  # a lazy configuration gives a list
        keys = {_key(name) for name in self.names}
        if not self.names or len(keys) != len(self.names) or "" in keys:
            raise ConfigError(f"the {self.field_name} vocabulary is {self.names}; give one or more different names")

    @cached_property
    def _index(self) -> dict[str, int]:
        index = {_key(name): i for i, name in enumerate(self.names)}
        for alias, name in self.aliases.items():
            if _key(name) in index:
                index.setdefault(_key(alias), index[_key(name)])
        return index

    def __len__(self) -> int:
        return len(self.names)

    def index(self, name: str | None) -> int:
        """Return the position of a name; ``UNKNOWN_INDEX`` for ``None`` and, with a warning, for a foreign name."""
        if name is None:
            return UNKNOWN_INDEX
        remark = self.remark(name)
        if remark is not None:
            message = f"{self.field_name} {name!r} {remark}"
            log_first_n(logging.WARNING, message, key="message", name=__name__)
        return self._index.get(_key(name), UNKNOWN_INDEX)

    def remark(self, name: str) -> str | None:
        """What to know about a foreign name, with the key that admits it; ``None`` about a known or a missing one."""
        if _key(name) in self._index or _key(name) in _MISSING:
            return None
        canonical = {_key(alias): target for alias, target in self.aliases.items()}.get(_key(name), name)
        wider = ", ".join(f'"{known}"' for known in (*self.names, canonical))
        return (
            f"is not among {self.names} and is treated as unknown; a model that is trained with "
            f"MODEL.METADATA.{self.field_name.upper()}S '({wider})' tells it apart"
        )


@dataclass(frozen=True)
class NumericField:
    """A further field that is a number, e.g. a view angle in degrees or a ground sampling distance in metres.

    Args:
        field_name: its name in the metadata.
        low, high: range; a value outside counts as the nearer end.
        log: whether the range is divided by ratio and not by difference, for values of several magnitudes.

    Raises:
        ConfigError: for an invalid range.
    """

    field_name: str
    low: float
    high: float
    log: bool = False

    def __post_init__(self):
        if not (math.isfinite(self.low) and math.isfinite(self.high) and self.low < self.high):
            raise ConfigError(f"the range of {self.field_name} is {self.low}..{self.high}; give a lower, a higher end")
        if self.log and self.low <= 0:
            raise ConfigError(f"the range of {self.field_name} starts at {self.low}; a logarithm needs more than 0")

    def position(self, value: object) -> float:
        """Return the place of a value in the range, 0..1; NaN for unknown.

        Raises:
            ValueError: for what is not a number.
        """
        if _is_missing(value):
            return math.nan
        number = _parse_number(value)
        if math.isnan(number):
            raise ValueError(f"metadata {self.field_name} is {value!r}; give a number, or None for unknown")
        clipped = min(max(number, self.low), self.high)
        if clipped != number:
            message = f"{self.field_name} {number:g} is outside {self.low:g}..{self.high:g} and counts as {clipped:g}"
            log_first_n(logging.WARNING, message, key="message", name=__name__)
        scale = math.log if self.log else float
        return (scale(clipped) - scale(self.low)) / (scale(self.high) - scale(self.low))


@dataclass(frozen=True)
class MetadataVocabulary:
    """What a model knows of metadata: platforms and bands, by default those of WideIRSTD, and further fields.

    Args:
        platforms, bands: names that are told apart.
        numeric: K1 further fields that are numbers.
        categorical: K2 further fields that are names; K = K1 + K2.

    Raises:
        ConfigError: for two fields of one name.
    """

    platforms: Vocabulary = Vocabulary("platform", ("Air", "Space", "Land"))
    bands: Vocabulary = Vocabulary("band", ("LWIR", "NIR", "SWIR"))
    numeric: tuple[NumericField, ...] = ()
    categorical: tuple[Vocabulary, ...] = ()

    def __post_init__(self):
        for name in ("numeric", "categorical"):
            object.__setattr__(self, name, tuple(getattr(self, name)))  # a lazy configuration gives a list
        names = [extra.field_name for extra in (*self.numeric, *self.categorical)]
        for name in names:
            if not re.fullmatch(r"[A-Za-z][A-Za-z0-9_]*", name):
                raise ConfigError(f"{name!r} cannot name a metadata field; use letters, digits and underscores")
            if name in (*FIELDS, *_OWN) or names.count(name) > 1:
                raise ConfigError(f"there are two metadata fields {name!r}; give each further field a name of its own")

    @property
    def extra_sizes(self) -> dict[str, int]:
        """The K further fields in their order: name -> number of names, 0 for a number."""
        numbers = {numeric.field_name: 0 for numeric in self.numeric}
        return numbers | {names.field_name: len(names) for names in self.categorical}

    def extra_positions(self, values: Mapping[str, object]) -> list[float]:
        """Return the K further fields of one image as ``MetadataBatch.extra`` holds them.

        Raises:
            ValueError: for a value that is not what the field declares.
        """
        positions = [numeric.position(values.get(numeric.field_name)) for numeric in self.numeric]
        for names in self.categorical:
            index = names.index(_parse_name(values.get(names.field_name), names.field_name))
            positions.append(math.nan if index == UNKNOWN_INDEX else float(index))
        return positions

    @classmethod
    def from_config(cls, cfg: CfgNode) -> MetadataVocabulary:
        """Build the vocabularies from the keys ``MODEL.METADATA``."""
        keys = cfg.MODEL.METADATA
        aliases = dict(_FURTHER_ALIASES)
        for entry in keys.ALIASES:
            alias, separator, name = entry.partition("=")
            if not (separator and _key(alias) and _key(name)):
                raise ConfigError(f"MODEL.METADATA.ALIASES has {entry!r}; write 'alias=name', e.g. 'airborne=Air'")
            aliases[alias] = name
        return cls(
            Vocabulary("platform", tuple(keys.PLATFORMS), aliases),
            Vocabulary("band", tuple(keys.BANDS), aliases),
            tuple(_parse_numeric_field(entry) for entry in keys.EXTRA_NUMERIC),
            tuple(_parse_categorical_field(entry, aliases) for entry in keys.EXTRA_CATEGORICAL),
        )


def _parse_numeric_field(entry: str) -> NumericField:
    match = re.fullmatch(r"([^=]+)=([^:]+):([^:]+?)(:log)?", entry)
    if match is None or any(math.isnan(_parse_number(end)) for end in match.group(2, 3)):
        raise ConfigError(
            f"MODEL.METADATA.EXTRA_NUMERIC has {entry!r}; write 'name=lowest:highest', e.g. 'view_angle=0:90', "
            "or 'name=lowest:highest:log'"
        )
    return NumericField(match[1].strip(), float(match[2]), float(match[3]), log=match[4] is not None)


def _parse_categorical_field(entry: str, aliases: Mapping[str, str]) -> Vocabulary:
    name, separator, names = entry.partition("=")
    if not separator:
        raise ConfigError(
            f"MODEL.METADATA.EXTRA_CATEGORICAL has {entry!r}; write 'name=first,second', e.g. 'season=summer,winter'"
        )
    return Vocabulary(name.strip(), tuple(part.strip() for part in names.split(",")), aliases)


def remark_on_metadata(field_name: str, name: str) -> str | None:
    """What the default configuration makes of a ``platform`` or ``band`` of a data set; see ``Vocabulary.remark``."""
    vocabulary = MetadataVocabulary.from_config(get_config())
    return (vocabulary.platforms if field_name == "platform" else vocabulary.bands).remark(name)


class MetadataBatch(NamedTuple):
    """Metadata of N images as tensors.

    Attributes:
        platform: (N,) int64, position in the vocabulary, -1 unknown.
        band: (N,) int64, likewise.
        size: (N, 2) float32, width and height of the original images in pixels, (0, 0) unknown.
        extra: (N, K) float32, the further fields in the order of ``MetadataVocabulary.extra_sizes``: the place in the
            range, 0..1, of a number, the position in its vocabulary of a name, NaN unknown. Without columns
            all are unknown.
    """

    platform: Tensor
    band: Tensor
    size: Tensor
    extra: Tensor = torch.empty(0, 0)

    @classmethod
    def unknown(cls, num_images: int, device: torch.device | str | None = None) -> MetadataBatch:
        """Return the metadata of ``num_images`` images of which nothing is known."""
        index = torch.full((num_images,), UNKNOWN_INDEX, dtype=torch.int64, device=device)
        size, extra = (torch.zeros(num_images, columns, device=device) for columns in (2, 0))
        return cls(index, index, size, extra)

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
    files: Sequence[str] | None = None,
) -> MetadataBatch:
    """Turn the metadata of a list of images into one batch of tensors, on ``device`` with one copy each.

    Args:
        metadata: per image its ``metadata`` dictionary, or ``None`` if nothing is known.
        vocabulary: gives the positions of platform and band; a foreign name is unknown.
        files: what the images are called in messages.

    Raises:
        ValueError: see ``ImagingMetadata.from_dict`` and ``MetadataVocabulary.extra_positions``.
    """
    images, extra = [], []
    for number, entry in enumerate(metadata):
        try:
            image = entry if isinstance(entry, ImagingMetadata) else ImagingMetadata.from_dict(entry)
            extra.append(vocabulary.extra_positions(image.extra))
        except ValueError as error:
            raise ValueError(f"{files[number] if files else f'image {number} of the batch'}: {error}") from None
        images.append(image)
    sizes = [(m.width, m.height) if m.width and m.height else (0.0, 0.0) for m in images]
    batch = MetadataBatch(
        platform=torch.tensor([vocabulary.platforms.index(m.platform) for m in images], dtype=torch.int64),
        band=torch.tensor([vocabulary.bands.index(m.band) for m in images], dtype=torch.int64),
        size=torch.tensor(sizes, dtype=torch.float32).reshape(-1, 2),
        extra=torch.tensor(extra, dtype=torch.float32).reshape(len(images), len(vocabulary.extra_sizes)),
    )
    return batch if device is None else batch.to(device)
