"""What an ablation table is: rows with configurations and published figures, and what the paper concludes from them."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ..errors import ConfigError

Options = tuple[Any, ...]

PAPERS = {"auxdet": "AuxDet", "bafe": "BAFE-Net"}
_ROMAN = ("I", "II", "III", "IV", "V", "VI", "VII", "VIII", "IX")


@dataclass(frozen=True)
class Recipe:
    """A small configuration of a system.

    Attributes:
        config: file, relative to ``configs/``.
        options: keys and values on top of it.
    """

    config: str
    options: Options = ()


@dataclass(frozen=True)
class Metric:
    """A column of figures.

    Attributes:
        name: as the paper prints it.
        key: of our figure in ``metrics.json``, in percent.
    """

    name: str
    key: str


@dataclass(frozen=True)
class Row:
    """One training of a table.

    Attributes:
        name: short, unique within its table.
        label: as the paper prints it.
        config: configuration at the published scale, relative to ``configs/``; empty for a method that this project
            does not have, or has at small scales only.
        published: name of a metric -> printed figure in percent; empty for a row that is not in the paper.
        parameters: printed number of parameters in millions; NaN if none is printed.
        small: what is trained at small scales; by default the lines of ``config`` on top of the scale's recipe.
    """

    name: str
    label: str
    config: str
    published: Mapping[str, float] = field(default_factory=dict)
    parameters: float = math.nan
    small: Recipe | None = None


@dataclass(frozen=True)
class Claim:
    """A conclusion that the paper draws: one row is better than another; without published figures a question.

    Attributes:
        better, worse: names of rows.
        metric: name of the metric it is about; empty means the table's first.
    """

    better: str
    worse: str
    metric: str = ""


@dataclass(frozen=True)
class Table:
    """A table of a paper.

    Attributes:
        name: ``PAPER-NUMBER``, e.g. ``auxdet-5``, or ``beyond-PAPER``: this project's additions to its system.
        title: what it varies.
        metrics: columns, the leading one first.
        rows: in the paper's order; rows that are not in the paper last.
        reference: name of the row that differences are taken to.
        claims: what the paper concludes, or which rows of ours are to be compared.
        varies_depth: the rows differ in the depth of the backbone, so that smaller scales keep it.
        note: what a reader must know about our reading of the table.
        small_scales: names of the scales that the small configurations of its rows are made for; empty means all.
    """

    name: str
    title: str
    metrics: tuple[Metric, ...]
    rows: tuple[Row, ...]
    reference: str
    claims: tuple[Claim, ...]
    varies_depth: bool = False
    note: str = ""
    small_scales: tuple[str, ...] = ()

    def __post_init__(self):
        names = {row.name for row in self.rows}
        used = {self.reference, *(c.better for c in self.claims), *(c.worse for c in self.claims)}
        if len(names) != len(self.rows) or not used <= names:
            raise ConfigError(f"table {self.name}: rows {sorted(names)} must be distinct and hold {sorted(used)}")

    @property
    def paper(self) -> str:
        """``auxdet`` or ``bafe``."""
        first, _, second = self.name.partition("-")
        return second if first == "beyond" else first

    @property
    def printed(self) -> bool:
        """Whether it is a table of the paper, with figures to compare with."""
        return any(row.published for row in self.rows)

    @property
    def heading(self) -> str:
        """Paper and number as the paper prints them, e.g. ``BAFE-Net, Table IV``."""
        if not self.printed:
            return f"{PAPERS[self.paper]}, beyond the paper"
        number = int(self.name.partition("-")[2])
        return f"{PAPERS[self.paper]}, Table {number if self.paper == 'auxdet' else _ROMAN[number - 1]}"

    @property
    def trainable(self) -> tuple[Row, ...]:
        """Rows with a configuration."""
        return tuple(row for row in self.rows if row.config or row.small)

    def row(self, name: str) -> Row:
        """Return a row by its name."""
        return next(row for row in self.rows if row.name == name)


def better(best: str, *others: str) -> tuple[Claim, ...]:
    """One row is better than each of the others, in the table's first metric."""
    return tuple(Claim(best, other) for other in others)


def ascending(*names: str) -> tuple[Claim, ...]:
    """Each row is better than the one before, in the table's first metric."""
    return tuple(Claim(after, before) for before, after in itertools.pairwise(names))


def select_rows(tables: Sequence[Table], names: Sequence[str]) -> list[tuple[Table, Row]]:
    """Return the trainable rows of some tables, in their order; with names only the rows that bear them.

    Raises:
        ConfigError: for a name that is no trainable row of any of the tables.
    """
    rows = [(table, row) for table in tables for row in table.trainable]
    known = dict.fromkeys(row.name for _, row in rows)
    if unknown := set(names) - set(known):
        raise ConfigError(f"rows {sorted(unknown)} are in none of the tables; known are {', '.join(known)}")
    return [(table, row) for table, row in rows if not names or row.name in names]
