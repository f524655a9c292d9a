"""Parsed annotation files, kept between runs.

One JSON file per annotation folder, beside it where that can be written, else in the user's cache folder. A record is
used while its file has the same times of modification and status change and the same size; so every change to a file
is seen, and nothing but the changed files is read again. Faulty files are never kept.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from .faults import Fault
from .voc_xml import VocObject, VocRecord, parse_voc_xml

MAX_CACHE_BYTES = 512 << 20
_FORMAT = "irstd_d2 annotations, version 1"
# A file that changed this recently might change again without a new time stamp (file systems count in ticks).
_TICK_NS = 100_000_000

_logger = logging.getLogger(__name__)

Stamp = tuple[int, int, int]  # modification and status change in ns, size in bytes
Entries = dict[str, tuple[Stamp, VocRecord]]


def read_annotations(
    folder: Path, file_names: Iterable[str], use_cache: bool = True
) -> tuple[dict[str, VocRecord], list[Fault]]:
    """Read annotation files of one folder, from the cache where they did not change.

    Args:
        folder: of the XML files.
        file_names: names in it.
        use_cache: ``False`` reads every file and keeps nothing.

    Returns:
        Records by file name, and the faults of all files that have no record.
    """
    path = _cache_path(folder) if use_cache else None
    entries = _load(path) if path else {}
    records: dict[str, VocRecord] = {}
    faults: list[Fault] = []
    fresh: Entries = {}
    prefix = os.path.join(folder, "")  # noqa: PTH118  strings: a path object per file takes longer than the cache
    for name in file_names:
        stamp = _stamp(prefix + name) if use_cache else None
        known = entries.get(name)
        if known and known[0] == stamp:
            records[name] = known[1]
            continue
        record, file_faults = parse_voc_xml(prefix + name)
        faults += file_faults
        if record is not None:
            records[name] = record
            if stamp and time.time_ns() - max(stamp[:2]) > _TICK_NS:
                fresh[name] = stamp, record
    if path and fresh:
        present = {entry.name for entry in os.scandir(folder)}
        _store(path, {name: entry for name, entry in (entries | fresh).items() if name in present})
    return records, faults


def _stamp(path: str) -> Stamp | None:
    try:
        stat = os.stat(path)  # noqa: PTH116
    except OSError:
        return None
    return stat.st_mtime_ns, stat.st_ctime_ns, stat.st_size


def _cache_path(folder: Path) -> Path | None:
    """The file for one annotation folder, or ``None`` (logged) where nothing can be written."""
    parent = folder.parent
    if _is_writable(parent):
        return parent / f".{folder.name}.irstd_d2_cache.json"
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path("~/.cache").expanduser()) / "irstd_d2"
    try:
        home.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        _logger.info("No annotation cache: neither %s nor %s can be written (%s)", parent, home, error.strerror)
        return None
    key = hashlib.sha256(os.fsencode(folder.resolve())).hexdigest()[:32]
    _logger.info("%s cannot be written; the annotation cache is in %s", parent, home)
    return home / f"{key}.json"


def _is_writable(folder: Path) -> bool:
    """Whether files may be added; a folder without any write bit stays as it is, even for root."""
    return bool(folder.stat().st_mode & 0o222) and os.access(folder, os.W_OK | os.X_OK)


def _load(path: Path) -> Entries:
    """Read a cache file; an empty dict when there is none, or none that can be trusted."""
    try:
        if path.stat().st_size > MAX_CACHE_BYTES:
            raise ValueError(f"larger than {MAX_CACHE_BYTES >> 20} MiB")
        content = json.loads(path.read_bytes(), parse_constant=_refuse_constant)
        if content["format"] != _FORMAT:
            raise ValueError("another version")
        return {name: _unpack(row) for name, row in content["files"].items()}
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, TypeError, KeyError, AttributeError, OverflowError, RecursionError) as error:
        _logger.info("Ignored the annotation cache %s (%s)", path, error)
        return {}


def _store(path: Path, entries: Entries) -> None:
    """Write a cache file as a whole or not at all; several processes may do so at the same time."""
    content = {"format": _FORMAT, "files": {name: _pack(*entry) for name, entry in entries.items()}}
    partial = path.with_name(f"{path.name}.{os.getpid()}-{time.monotonic_ns()}.partial")
    try:
        with partial.open("xb") as file:
            file.write(json.dumps(content, separators=(",", ":")).encode())
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    except OSError as error:
        _logger.warning("The annotation cache %s could not be written (%s)", path, error)
        partial.unlink(missing_ok=True)


def _pack(stamp: Stamp, record: VocRecord) -> list[Any]:
    objects = [[obj.name, obj.difficult, *obj.box] for obj in record.objects]
    return [*stamp, record.width, record.height, record.platform, record.band, objects]


def _unpack(row: list[Any]) -> tuple[Stamp, VocRecord]:
    modified, changed, size, width, height, platform, band, objects = row
    unpacked = tuple(
        VocObject(name, difficult, (x1 + 0.0, y1 + 0.0, x2 + 0.0, y2 + 0.0))
        for name, difficult, x1, y1, x2, y2 in objects
    )
    if not (isinstance(width, int) and isinstance(height, int) and all(isinstance(obj.name, str) for obj in unpacked)):
        raise ValueError("a row of another form")
    if not all(tag is None or isinstance(tag, str) for tag in (platform, band)):
        raise ValueError("a row of another form")
    return (modified, changed, size), VocRecord(width, height, platform, band, unpacked)


def _refuse_constant(text: str) -> float:
    raise ValueError(f"{text} in place of a number")
