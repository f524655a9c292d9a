"""Errors that tell a user which file, which field and what to do."""

from __future__ import annotations

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
