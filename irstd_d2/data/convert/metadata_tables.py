"""One table of imaging metadata from many: side-car tables and the tags of XML files."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

from ...errors import DatasetError
from ..faults import Fault
from ..layout import FolderIndex
from ..sidecar import SidecarEntry, read_sidecar
from ..voc_xml import read_annotations

FIELDS = SidecarEntry._fields


@dataclass(frozen=True)
class Conflict:
    """Two sources that say different things of one image; the first one's word is kept."""

    image: str
    field: str
    kept: tuple[str, str]
    other: tuple[str, str]

    def __str__(self) -> str:
        return f"{self.image}: {self.field} is {self.kept[0]!r} in {self.kept[1]}, {self.other[0]!r} in {self.other[1]}"


@dataclass(frozen=True)
class MergedMetadata:
    """Result of :func:`merge_metadata`.

    Args:
        entries: by image id, sorted.
        conflicts: in the order of the ids.
        missing: ids that were asked for and are in no source.
        unknown: number of images without a value, by field.
    """

    entries: dict[str, SidecarEntry]
    conflicts: Sequence[Conflict]
    missing: Sequence[str]
    unknown: Counter[str]


def read_metadata(source: str | PathLike) -> tuple[dict[str, SidecarEntry], list[Fault]]:
    """Read a side-car table, or the tags ``<view>``, ``<band_type>`` and ``<size>`` of a folder of XML files.

    Raises:
        DatasetError: there is no such table, or the folder has no XML file.
    """
    path = Path(source)
    if not path.is_dir():
        return read_sidecar(path)
    index = FolderIndex(path, (".xml",))
    files = {stem: index[stem][0] for stem in index.stems()}
    if not files:
        raise DatasetError(path, "folder", "no XML file", "name the folder of the annotations, or a table")
    records, faults = read_annotations(path, files.values())
    found = {stem: records[file] for stem, file in files.items() if file in records}
    return {stem: SidecarEntry(r.platform, r.band, r.width, r.height) for stem, r in found.items()}, faults


def merge_metadata(
    sources: Mapping[str, Mapping[str, SidecarEntry]], wanted: Collection[str] | None = None
) -> MergedMetadata:
    """Merge tables, the first that knows a value deciding.

    ``sources`` are entries by image id, by the name of their source, the most trusted first. ``wanted`` are image ids
    that should be there; the result holds these only, all if it is ``None``.
    """
    ids = {key for entries in sources.values() for key in entries}
    merged, conflicts = {}, []
    for image in sorted(ids if wanted is None else ids & set(wanted)):
        kept: dict[str, tuple[Any, str]] = {}
        for source, entries in sources.items():
            for field, value in zip(FIELDS, entries.get(image, ())):
                if value is None:
                    continue
                known, origin = kept.setdefault(field, (value, source))
                if str(known).lower() != str(value).lower():
                    conflicts.append(Conflict(image, field, (str(known), origin), (str(value), source)))
        merged[image] = SidecarEntry(*(kept.get(field, (None, ""))[0] for field in FIELDS))
    unknown = Counter(field for entry in merged.values() for field, value in zip(FIELDS, entry) if value is None)
    missing = sorted(set(wanted or ()) - ids)
    return MergedMetadata(merged, conflicts, missing, unknown)
