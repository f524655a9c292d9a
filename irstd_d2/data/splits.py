"""Split files: one image name per line."""

from __future__ import annotations

import unicodedata
from os import PathLike
from pathlib import Path

from ..errors import DatasetError
from .coco import is_contained
from .faults import Fault, FaultKind
from .image_io import strip_image_suffix
from .voc_xml import MAX_NAME, is_plain_name

MAX_SPLIT_BYTES = 64 << 20


def read_split(path: str | PathLike) -> tuple[list[str], list[Fault]]:
    """Read the image names (stems) of a split, in order.

    UTF-8 with or without byte-order mark, Unix or Windows line ends; an image suffix is dropped, names are brought to
    Unicode form NFC.

    Returns:
        The usable names and the faults of all other lines (empty, repeated, or leading out of the folder).

    Raises:
        DatasetError: the file cannot be read as text, or holds no name at all.
    """
    path = Path(path)
    names: dict[str, int] = {}
    faults = []
    for number, line in enumerate(read_lines(path), start=1):
        field = f"line {number}"
        if len(line) > MAX_NAME:  # before anything that takes quadratic time
            problem, fix = f"{line[:40]!r}... of {len(line)} characters is no file name", "write the bare image name"
            faults.append(Fault.of(FaultKind.UNSAFE_NAME, path, field, problem, fix))
            continue
        name = strip_image_suffix(unicodedata.normalize("NFC", line.strip()))
        if not name:
            faults.append(Fault.of(FaultKind.EMPTY_LINE, path, field, "empty", "delete the line"))
        elif not is_plain_name(name):
            inside = is_contained(name.replace("\\", "/"))
            what = "names a folder, but images are found by bare names" if inside else "leads out of the image folder"
            fix = "write the bare image name"
            faults.append(Fault.of(FaultKind.UNSAFE_NAME, path, field, f"{name[:80]!r} {what}", fix))
        elif name in names:
            problem = f"{name[:80]!r} again, first on line {names[name]}"
            faults.append(Fault.of(FaultKind.DUPLICATE_LINE, path, field, problem, "delete one of the two"))
        else:
            names[name] = number
    if not names and not faults:
        raise DatasetError(path, "file", "no image name", "write one image name per line")
    return list(names), faults


def read_lines(path: Path) -> list[str]:
    """Read the lines of a text file of a data set; see :func:`read_text`."""
    fix = "check the data root (DETECTRON2_DATASETS) and the split"
    text = read_text(path, MAX_SPLIT_BYTES, "a text file of image names", fix)
    # Not str.splitlines, which also cuts at characters that may stand in a name.
    return text.replace("\r\n", "\n").removesuffix("\n").split("\n") if text else []


def read_text(path: Path, limit: int, kind: str, fix: str) -> str:
    """Read a text file, UTF-8 with or without byte-order mark, of at most ``limit`` bytes.

    ``kind`` is what the file should be, and ``fix`` what to do where it cannot be opened.

    Raises:
        DatasetError: it cannot be opened, is not UTF-8, or larger.
    """
    try:
        with path.open("rb") as file:
            data = file.read(limit + 1)
    except OSError as error:
        raise DatasetError(path, "file", f"cannot be opened ({error.strerror})", fix) from None
    if len(data) > limit:
        raise DatasetError(path, "file", f"larger than {limit >> 20} MiB", f"give {kind}")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DatasetError(path, f"byte {error.start}", "not UTF-8 text", "save the file as UTF-8") from None
