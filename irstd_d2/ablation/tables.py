"""What an ablation table is: rows with configurations and published figures, and what the paper concludes from them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from ..errors import ConfigError


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
            does not have.
        published: name of a metric -> printed figure in percent; empty for a row that is not in the paper.
        parameters: printed number of parameters in millions; NaN if none is printed.
    """

    name: str
    label: str
    config: str
    published: Mapping[str, float] = field(default_factory=dict)
    parameters: float = math.nan


@dataclass(frozen=True)
class Claim:
    """A conclusion that the paper draws: one row is better than another.

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
        name: ``PAPER-NUMBER``, e.g. ``auxdet-5``.
        title: what it varies.
        metrics: columns, the leading one first.
        rows: in the paper's order; rows that are not in the paper last.
        reference: name of the row that differences are taken to.
        claims: what the paper concludes.
        varies_depth: the rows differ in the depth of the backbone, so that smaller scales keep it.
        note: what a reader must know about our reading of the table.
    """

    name: str
    title: str
    metrics: tuple[Metric, ...]
    rows: tuple[Row, ...]
    reference: str
    claims: tuple[Claim, ...]
    varies_depth: bool = False
    note: str = ""

    def __post_init__(self):
        names = {row.name for row in self.rows}
        used = {self.reference, *(c.better for c in self.claims), *(c.worse for c in self.claims)}
        if len(names) != len(self.rows) or not used <= names:
            raise ConfigError(f"table {self.name}: rows {sorted(names)} must be distinct and hold {sorted(used)}")

    @property
    def paper(self) -> str:
        """``auxdet`` or ``bafe``."""
        return self.name.partition("-")[0]

    @property
    def heading(self) -> str:
        """Paper and number as the paper prints them, e.g. ``BAFE-Net, Table IV``."""
        number = int(self.name.partition("-")[2])
        if self.paper == "auxdet":
            return f"AuxDet, Table {number}"
        return f"BAFE-Net, Table {('I', 'II', 'III', 'IV', 'V', 'VI', 'VII', 'VIII', 'IX')[number - 1]}"

    @property
    def trainable(self) -> tuple[Row, ...]:
        """Rows with a configuration."""
        return tuple(row for row in self.rows if row.config)

    def row(self, name: str) -> Row:
        """Return a row by its name."""
        return next(row for row in self.rows if row.name == name)


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
