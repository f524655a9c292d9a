"""What a reader found: images, and faults, which are counted and listed, and then refused or skipped."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from os import PathLike, fspath
from typing import Any

from detectron2.utils.logger import log_first_n

from ..errors import DatasetError
from .classes import ClassTable

_logger = logging.getLogger(__name__)
_skip_bad = False
_MAX_LISTED = 20


class FaultKind(StrEnum):
    """What is wrong; the values appear in summaries."""

    MISSING_XML = "missing XML"
    BAD_XML = "unreadable XML"
    MISSING_FIELD = "missing or non-numeric field"
    BAD_BOX = "box of zero size"
    BOX_OUTSIDE = "box outside the image"
    UNKNOWN_CLASS = "unknown class"
    UNSAFE_NAME = "unsafe file name"
    MISSING_IMAGE = "missing image"
    AMBIGUOUS_IMAGE = "several images of one name"
    BAD_IMAGE = "unreadable image"
    BAD_MASK = "unreadable sky mask"
    SIZE_MISMATCH = "size differs from the annotation"
    BAD_SPLIT = "unreadable split file"
    EMPTY_LINE = "empty split line"
    DUPLICATE_LINE = "duplicate split line"
    BAD_RECORD = "malformed record"
    BAD_PAIR = "image and mask that do not fit"


@dataclass(frozen=True)
class Fault:
    """One fault: its kind, the file, the field in it, the problem and the fix (as in :class:`DatasetError`)."""

    kind: FaultKind
    file: str
    field: str
    problem: str
    fix: str

    @classmethod
    def of(cls, kind: FaultKind, file: str | PathLike, field: str, problem: str, fix: str) -> Fault:
        return cls(kind, fspath(file), field, problem, fix)

    @classmethod
    def from_error(cls, kind: FaultKind, error: DatasetError) -> Fault:
        return cls(kind, error.file, error.field, error.problem, error.fix)

    @classmethod
    def of_file(cls, kind: FaultKind, error: DatasetError) -> Fault:
        """The fault of a file that should have the annotated size; ``kind`` if it is another than that."""
        return cls.from_error(FaultKind.SIZE_MISMATCH if error.field == "size" else kind, error)

    def __str__(self) -> str:
        return f"{self.file}: {self.field}: {self.problem}. Fix: {self.fix}"


def set_skip_bad(enabled: bool) -> None:
    """Choose for this process whether registered data sets skip faulty images (``cfg.DATASETS.SKIP_BAD``).

    ``DatasetCatalog`` calls its functions without arguments, so the choice cannot reach them another way.
    """
    global _skip_bad
    _skip_bad = enabled


def get_skip_bad() -> bool:
    """Return what :func:`set_skip_bad` chose; ``False`` at first."""
    return _skip_bad


def count_by_kind(faults: Iterable[Fault]) -> dict[str, int]:
    """Number of faults per kind, most frequent first."""
    return {str(kind): count for kind, count in Counter(fault.kind for fault in faults).most_common()}


def refuse_or_skip(faults: list[Fault], skip_bad: bool, source: str) -> None:
    """List the faults in the log and raise the first, or with ``skip_bad`` log one summary of what is left out.

    Args:
        faults: all faults found; nothing happens when empty.
        skip_bad: log in place of raising.
        source: what was read, for the summary.

    Raises:
        DatasetError: there are faults and ``skip_bad`` is off.
    """
    if not faults:
        return
    if skip_bad:
        counts = ", ".join(f"{count} x {kind}" for kind, count in count_by_kind(faults).items())
        _logger.warning("%s: left out what is faulty: %s. First: %s", source, counts, faults[0])
        return
    first = faults[0]
    others = len(faults) - 1
    for fault in faults[:_MAX_LISTED] if others else ():
        _logger.error("%s", fault)
    if others >= _MAX_LISTED:
        _logger.error("and %d more", len(faults) - _MAX_LISTED)
    more = f"; {others} more fault{'s' if others > 1 else ''} listed above" if others else ""
    raise DatasetError(first.file, first.field, first.problem + more, first.fix)


def refuse_fractions(source: str | PathLike, boxes: Iterable[Sequence[float]]) -> None:
    """Refuse XYXY boxes that are fractions of their images: all of a ``source`` lie within the first pixel.

    Raises:
        DatasetError: it is so.
    """
    boxes = list(boxes)
    if boxes and all(max(box) <= 1 for box in boxes) and any(value % 1 for box in boxes for value in box):
        problem = f"all {len(boxes)} lie within the first pixel: they seem to be fractions of the image"
        raise DatasetError(source, "boxes", problem, "write them in pixels")


@dataclass(frozen=True)
class Scan:
    """Images, classes and faults of a set.

    Args:
        dicts: detectron2's dataset dicts of all sound images.
        faults: of the other images.
        left_out: number of objects of other classes, by their names; their images are kept.
        notes: remarks on what is sound but worth knowing.
    """

    dicts: list[dict[str, Any]]
    classes: ClassTable
    faults: list[Fault]
    left_out: Mapping[str, int] = field(default_factory=Counter)
    notes: tuple[str, ...] = ()

    def accept(self, source: str, *, skip_bad: bool) -> list[dict[str, Any]]:
        """Return the dicts, or refuse the set; ``source`` is for messages.

        With ``skip_bad`` faulty images are left out, with one logged summary.

        Raises:
            DatasetError: there are faults and ``skip_bad`` is off.
        """
        refuse_or_skip(self.faults, skip_bad, source)
        for remark in self.remarks():
            log_first_n(logging.INFO, f"{source}: {remark}", key="message")  # a set is read for every evaluator
        log_first_n(logging.INFO, f"Loaded {len(self.dicts)} images from {source}", key="message")
        return self.dicts

    def remarks(self) -> list[str]:
        """The notes, and one line on the objects of other classes if there are any."""
        if not self.left_out:
            return list(self.notes)
        counts = ", ".join(f"{count} x {name}" for name, count in Counter(self.left_out).most_common())
        return [*self.notes, f"left out {sum(self.left_out.values())} objects of other classes: {counts}"]
