"""Files that are complete at every moment, and lists of those that a user put into a folder."""

from __future__ import annotations

import contextlib
import itertools
import os
import shutil
from collections.abc import Callable, Collection, Iterator
from os import PathLike, fspath
from pathlib import Path
from typing import IO

# What systems leave in folders and archives of data, in lower case; names with a dot at the front are hidden anyway.
_LEFTOVERS = frozenset({"thumbs.db", "ehthumbs.db", "desktop.ini", "__macosx", "$recycle.bin"})


def is_leftover(name: str) -> bool:
    """Whether a file or folder is hidden (``._a.png``, ``.DS_Store``) or something that systems leave behind."""
    return name.startswith(".") or name.lower() in _LEFTOVERS


def list_files(
    folder: str | PathLike, suffixes: Collection[str] | None = None, *, recursive: bool = False
) -> list[Path]:
    """List the files of a folder, sorted, without those that :func:`is_leftover` names; no folder holds none.

    ``suffixes`` are lower case with the dot, ``None`` takes all; ``recursive`` follows no symbolic links to folders.
    """
    found = []
    for parent, folders, names in os.walk(fspath(folder)):
        folders[:] = [name for name in folders if recursive and not is_leftover(name)]
        found += [Path(parent, name) for name in names if not is_leftover(name)]
    return sorted(path for path in found if suffixes is None or path.suffix.lower() in suffixes)


def free_name(base: str, is_taken: Callable[[str], bool]) -> str:
    """The first of ``base``, ``base_2`` and so on that is not taken."""
    names = itertools.chain([base], (f"{base}_{number}" for number in itertools.count(2)))
    return next(name for name in names if not is_taken(name))


def write_atomically(
    path: str | PathLike, content: bytes | str | Callable[[IO[bytes]], object], *, flush: bool = True
) -> None:
    """Write a file so that a reader, or a run after a crash, finds the old or the new one, never a part of it.

    Missing folders are made. What an interrupted write leaves behind is one hidden file beside the target, which the
    next write replaces.

    Args:
        content: of the file, text as UTF-8; or what writes it, called with the open binary file.
        flush: wait until the disk has it, so that it also survives a power failure. Off for thousands of small files
            that can be made again.

    Raises:
        OSError: the disk is full, the folder is read-only or the like; names the file, whose old content remains.
    """
    path = Path(path)
    partial = path.with_name(f".{path.name}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with partial.open("wb") as file:
            if callable(content):
                content(file)
            else:
                file.write(content.encode() if isinstance(content, str) else content)
            if flush:
                file.flush()
                os.fsync(file.fileno())
        partial.replace(path)
        if flush:
            _sync_folder(path.parent)
    except (OSError, RuntimeError) as error:  # torch.save turns a failed write into a RuntimeError
        with contextlib.suppress(OSError):
            partial.unlink()
        raise _named(path, error) from error


@contextlib.contextmanager
def staged_folder(path: str | PathLike, *, overwrite: bool = False) -> Iterator[Path]:
    """Give a folder to write into that becomes ``path`` at the end, and only when the block ends without an error.

    A killed process leaves one hidden folder beside ``path``, which the next call replaces. ``overwrite`` replaces a
    folder that exists already, with all that it holds.

    Raises:
        FileExistsError: ``path`` holds something and ``overwrite`` is off.
        OSError: the disk is full, the folder is read-only or the like; names the folder, whose old content remains.
    """
    path = Path(path).absolute()
    staged, old = (path.with_name(f".{path.name}.{state}") for state in ("partial", "old"))
    occupied = path.exists() and (not path.is_dir() or any(path.iterdir()))
    if occupied and not overwrite:
        raise FileExistsError(f"{path} exists. Choose another folder, or overwrite it")
    for leftover in (staged, old):
        shutil.rmtree(leftover, ignore_errors=True)
    try:
        staged.mkdir(parents=True)
        yield staged
        if path.exists():
            path.rename(old)
        staged.rename(path)
    except OSError as error:
        raise _named(path, error) from error
    finally:
        for leftover in (staged, old):
            shutil.rmtree(leftover, ignore_errors=True)


def _named(path: Path, error: BaseException) -> OSError:
    """The error of a write that failed, with the path, the reason and what to do."""
    return OSError(
        f"{path} could not be written: {_root_cause(error)}. Free space or make {path.parent} writable and start "
        "again; what was written before is untouched"
    )


def _sync_folder(folder: Path) -> None:
    """Make the renaming itself survive a power failure, where the system can."""
    if hasattr(os, "O_DIRECTORY"):
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _root_cause(error: BaseException) -> BaseException:
    while isinstance(error.__context__, OSError):
        error = error.__context__
    return error
