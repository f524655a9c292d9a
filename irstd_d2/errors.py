"""Errors that tell a user which file, which field and what to do."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from os import PathLike, fspath


class DatasetError(ValueError):
    """A fault in a data file, reported as file, field and fix.

    Args:
        file: the file at fault.
        field: the element, column or line inside it, e.g. ``object[2].bndbox.xmax``.
        problem: what is wrong, with the offending value.
        fix: what the user can do about it.
    """

    def __init__(self, file: str | PathLike, field: str, problem: str, fix: str):
        self.file, self.field, self.problem, self.fix = fspath(file), field, problem, fix
        super().__init__(f"{self.file}: {field}: {problem}. Fix: {fix}")

    def __reduce__(self):  # survives the trip out of a data-loader worker
        return type(self), (self.file, self.field, self.problem, self.fix)


class ConfigError(ValueError):
    """A configuration value that cannot work, with the key and the accepted values in the message."""


def check_known(key: str, given: object, known: Iterable[str]) -> None:
    """Refuse a name, or several in an iterable, that are not among the known ones, or what is no name.

    Raises:
        ConfigError: with the key, what is unknown and what is known.
    """
    known = list(known)
    verb, names = "is", [given]
    if isinstance(given, Iterable) and not isinstance(given, str):
        verb, names = "has", sorted(set(given))
    if unknown := [name for name in names if name not in known]:
        raise ConfigError(f"{key} {verb} {', '.join(map(repr, unknown))}; known are {', '.join(map(repr, known))}")


def check_number(key: str, given: float, low: float, high: float = math.inf, *, open_ends: bool = False) -> None:
    """Refuse a number outside ``low`` to ``high``, or with ``open_ends`` at one of them too.

    Raises:
        ConfigError: with the key, the number and the range.
    """
    if not (low < given < high if open_ends else low <= given <= high):
        lower, upper = ("above", "below") if open_ends else ("at least", "at most")
        limit = "" if high == math.inf else f" and {upper} {high:g}"
        raise ConfigError(f"{key} is {given}; it must be {lower} {low:g}{limit}")


def first_of(names: Sequence[str], limit: int = 5) -> str:
    """The first of a list of names, for a line of text."""
    return ", ".join(names[:limit]) + (", ..." if len(names) > limit else "")
