"""Side-car tables: imaging metadata beside the images, where the XML has no tags."""

from __future__ import annotations

import csv
import io
import unicodedata
from collections.abc import Collection, Iterable, Mapping
from difflib import get_close_matches
from os import PathLike
from pathlib import Path
from typing import NamedTuple

from ..errors import DatasetError
from .faults import Fault, FaultKind
from .image_io import MAX_SIDE, strip_image_suffix
from .splits import read_text
from .voc_xml import MAX_NAME

MAX_SIDECAR_BYTES = 256 << 20

_COLUMNS = {
    "id": ("id", "name", "image", "image_id", "file_name", "filename"),
    "platform": ("platform", "view"),
    "band": ("band", "band_type"),
    "width": ("width", "w"),
    "height": ("height", "h"),
}
_POSITIONS = {name: position for position, name in enumerate(_COLUMNS)}


class SidecarEntry(NamedTuple):
    """Metadata of one image; ``None`` means unknown. Width and height in pixels."""

    platform: str | None
    band: str | None
    width: int | None
    height: int | None


class SidecarTable(NamedTuple):
    """A metadata table.

    Args:
        entries: by image id.
        further: non-empty cells of all other columns of a table with a header, by image id and column.
        faults: of all lines that were left out.
    """

    entries: dict[str, SidecarEntry]
    further: dict[str, dict[str, str]]
    faults: list[Fault]


def read_sidecar(path: str | PathLike) -> tuple[dict[str, SidecarEntry], list[Fault]]:
    """Return the entries and the faults of :func:`read_table`."""
    table = read_table(path)
    return table.entries, table.faults


def read_table(path: str | PathLike) -> SidecarTable:
    """Read a metadata table.

    Tab-separated if its first line holds a tab, else by semicolons or commas, of which that line holds more. With a
    header, columns are found by name (``id``, ``platform`` or ``view``, ``band`` or ``band_type``, ``width``,
    ``height``; only ``id`` is required); without, they are the first five columns in this order, as in WideIRSTD's
    table, and others are ignored. Empty cells mean unknown.

    Raises:
        DatasetError: the file cannot be read as text, or its header names no column of ids.
    """
    path = Path(path)
    found = _open_table(path)
    if found.positions is not None:
        misspelt = find_misspelt(found.header)
        if misspelt is not None:
            problem = f"the column {misspelt[0]!r} is nearly {misspelt[1]!r}"
            raise DatasetError(path, "line 1", problem, "correct the name, or choose one that is clearly another")
    columns = found.further_columns()
    entries: dict[str, SidecarEntry] = {}
    further: dict[str, dict[str, str]] = {}
    faults = []
    reader = csv.reader(found.lines, delimiter=found.separator)
    above = 0 if found.positions is None else 1
    while True:
        try:
            cells = next(reader, None)
        except csv.Error as error:
            field = f"line {reader.line_num + above}"
            faults.append(Fault.of(FaultKind.BAD_RECORD, path, field, str(error), "correct the line"))
            continue
        if cells is None:
            return SidecarTable(entries, further, faults)
        if not any(cell.strip() for cell in cells):
            continue
        key, entry, problem = _parse_row(cells, found.positions or _POSITIONS)
        if not problem and key in entries:
            problem = f"id {key[:80]!r} again"
        if problem:
            field = f"line {reader.line_num + above}"
            faults.append(Fault.of(FaultKind.BAD_RECORD, path, field, problem, "correct or delete the line"))
        else:
            entries[key] = entry
            if columns:
                texts = {name: cells[at].strip() for name, at in columns.items() if at < len(cells)}
                further[key] = {name: text for name, text in texts.items() if text}


def check_ids(source: str | PathLike, ids: Collection[str], images: Collection[str]) -> None:
    """Refuse metadata of which nothing belongs to any image, as where their ids have a folder or lack leading zeros.

    Raises:
        DatasetError: there are ids and images, and none in both.
    """
    if ids and images and set(ids).isdisjoint(images):
        problem = f"none of {len(ids)}, such as {min(ids)[:80]!r}, is one of {len(images)} images"
        raise DatasetError(source, "ids", problem, f"write the names of images alone, such as {min(images)[:80]!r}")


def find_misspelt(names: Iterable[str]) -> tuple[str, str] | None:
    """The first name that is nearly, but not, a field of imaging metadata, with that field; ``None`` without any."""
    fields = [alias for field in ("platform", "band", "width", "height") for alias in _COLUMNS[field] if len(alias) > 3]
    known = {alias for aliases in _COLUMNS.values() for alias in aliases}
    for name in names:
        near = get_close_matches(name.lower(), fields, n=1, cutoff=0.75)
        alike = near and name[0].lower() == near[0][0] and abs(len(name) - len(near[0])) <= 1
        if alike and name.lower() not in known:
            return name, near[0]
    return None


def format_sidecar(entries: Mapping[str, SidecarEntry], separator: str = ",") -> bytes:
    """Write a table with a header line that :func:`read_sidecar` reads as the same entries."""
    text = io.StringIO()
    writer = csv.writer(text, delimiter=separator, lineterminator="\n")
    writer.writerow(_COLUMNS)
    for key, entry in entries.items():
        writer.writerow([key, *("" if value is None else value for value in entry)])
    return text.getvalue().encode()


def read_column(path: str | PathLike, column: str) -> dict[str, str]:
    """Read one more column of a table with a header line, e.g. ``scene``.

    Returns:
        The non-empty cells by image id.

    Raises:
        DatasetError: the file cannot be read, or has no such column or no ids.
    """
    found = _open_table(Path(path))
    header, positions = [cell.lower() for cell in found.header], found.positions
    if positions is None or column.lower() not in header:
        raise DatasetError(path, "line 1", f"no column {column!r} or no column of ids", f"it has {', '.join(header)}")
    rows = csv.reader(found.lines, delimiter=found.separator)
    at = header.index(column.lower())
    try:
        cells = {_key(row[positions["id"]]): row[at].strip() for row in rows if len(row) > max(at, positions["id"])}
    except csv.Error as error:
        raise DatasetError(path, f"line {rows.line_num + 1}", str(error), "correct the line") from None
    return {key: value for key, value in cells.items() if key and value}


def _key(cell: str) -> str:
    """Image id of a cell: Unicode form NFC, without the suffix of an image file; empty for what is no name."""
    if len(cell) > MAX_NAME:  # NFC takes quadratic time
        return ""
    return strip_image_suffix(unicodedata.normalize("NFC", cell.strip()))


def _parse_row(cells: list[str], positions: dict[str, int]) -> tuple[str, SidecarEntry, str]:
    """Return the id, the entry and the problem (empty when there is none)."""
    cell = {name: cells[at].strip() if at < len(cells) else "" for name, at in positions.items()}
    key = _key(cell["id"])
    problem = "" if key else f"{cell['id'][:40]!r}... is no image id" if cell["id"] else "no id"
    sizes: list[int | None] = []
    for name in ("width", "height"):
        text = cell.get(name, "")
        valid = text.isascii() and text.isdigit() and len(text) < 9 and 0 < int(text) <= MAX_SIDE
        if text and not valid:
            problem = f"{name} {text[:40]!r} is not a size in pixels"
        sizes.append(int(text) if valid else None)
    return key, SidecarEntry(cell.get("platform") or None, cell.get("band") or None, *sizes), problem


class _TextTable(NamedTuple):
    """``header``: cells of the first line; ``lines``: below it, or all where it is none (no ``positions``)."""

    separator: str
    header: list[str]
    positions: dict[str, int] | None
    lines: list[str]

    def further_columns(self) -> dict[str, int]:
        """Names and places of the columns that are no part of an entry; of equal names the first counts."""
        if self.positions is None:
            return {}
        known = {name for names in _COLUMNS.values() for name in names}
        places = reversed(list(enumerate(self.header)))
        return {name: at for at, name in places if name and name.lower() not in known}


def _open_table(path: Path) -> _TextTable:
    text = read_text(path, MAX_SIDECAR_BYTES, "a table of text", "check the path of the table")
    lines = text.replace("\r\n", "\n").replace("\r", "\n").split("\n")
    separator = "\t" if "\t" in lines[0] else max(",;", key=lines[0].count)
    try:
        first = next(csv.reader(lines[:1], delimiter=separator), [])
    except csv.Error:  # no header; as a row it is a fault
        first = []
    header = [cell.strip().strip('"') for cell in first]
    cells = [cell.lower() for cell in header]
    places = {name: [i for i, cell in enumerate(cells) if cell in aliases] for name, aliases in _COLUMNS.items()}
    positions = {name: found[0] for name, found in places.items() if found}
    if "id" not in positions:
        if not {"platform", "band"}.isdisjoint(positions):
            fix = f"call the column of image names one of {', '.join(_COLUMNS['id'])}"
            raise DatasetError(path, "line 1", f"names no column of ids: {', '.join(header)[:200]}", fix)
        return _TextTable(separator, header, None, lines)
    return _TextTable(separator, header, positions, lines[1:])
