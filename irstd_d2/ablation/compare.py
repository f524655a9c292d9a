"""Our figures over seeds, and whether they point where the paper's do."""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Mapping
from dataclasses import dataclass

from .tables import Claim, Table

Figures = Mapping[str, Mapping[str, Mapping[int, float]]]
"""row -> metric -> seed -> percent"""


@dataclass(frozen=True)
class Summary:
    """Mean and sample standard deviation over seeds; the deviation is NaN for fewer than two."""

    mean: float
    std: float
    count: int


def summarize(values: Mapping[int, float]) -> Summary:
    """Summarize the figures of one cell, seed -> percent."""
    numbers = list(values.values())
    mean = statistics.fmean(numbers) if numbers else math.nan
    return Summary(mean, statistics.stdev(numbers) if len(numbers) > 1 else math.nan, len(numbers))


@dataclass(frozen=True)
class Difference:
    """Our difference of two rows, over the seeds that both have.

    Attributes:
        mean: of ``a - b``; NaN without a common seed.
        spread: the standard deviation of such a difference between single trainings, sqrt(std_a^2 + std_b^2); NaN for
            fewer than two common seeds.
        count: common seeds.
    """

    mean: float
    spread: float
    count: int

    def verdict(self, published: float) -> str:
        """Compare with the paper's difference, NaN where it prints none.

        Returns:
            Without a published difference ``better`` or ``worse`` when ours exceeds the spread, ``within the spread``
            when it does not, ``one seed`` when the spread is unknown, ``not run`` without figures. Else
            ``holds`` or ``contradicted`` when the difference exceeds the spread, ``within the spread`` when it does
            not, ``same sign``, ``opposite sign`` or ``no difference`` when one seed leaves the spread unknown, ``not
            run`` without figures, ``a tie in the paper`` where there is no direction.
        """
        if not self.count:
            return "not run"
        if math.isnan(published):
            if self.count == 1:
                return "one seed"
            return "within the spread" if abs(self.mean) <= self.spread else "better" if self.mean > 0 else "worse"
        if not published:
            return "a tie in the paper"
        agrees = self.mean * published > 0
        if self.count == 1:
            return "no difference" if not self.mean else "same sign" if agrees else "opposite sign"
        if abs(self.mean) <= self.spread:
            return "within the spread"
        return "holds" if agrees else "contradicted"


def difference(a: Mapping[int, float], b: Mapping[int, float]) -> Difference:
    """Subtract two cells, seed -> percent, seed by seed."""
    seeds = sorted(set(a) & set(b))
    if not seeds:
        return Difference(math.nan, math.nan, 0)
    mean = statistics.fmean(a[seed] - b[seed] for seed in seeds)
    if len(seeds) == 1:
        return Difference(mean, math.nan, 1)
    spread = math.hypot(*(statistics.stdev([cell[seed] for seed in seeds]) for cell in (a, b)))
    return Difference(mean, spread, len(seeds))


@dataclass(frozen=True)
class Judgement:
    """A claim of the paper beside our figures."""

    claim: Claim
    metric: str
    published: float
    ours: Difference
    verdict: str


def judge(table: Table, figures: Figures) -> list[Judgement]:
    """Judge all claims of a table; those about rows without published figures by our figures alone."""
    judgements = []
    for claim in table.claims:
        metric = claim.metric or table.metrics[0].name
        better, worse = (table.row(name).published.get(metric, math.nan) for name in (claim.better, claim.worse))
        published = better - worse
        cells = (figures.get(name, {}).get(metric, {}) for name in (claim.better, claim.worse))
        ours = difference(*cells)
        judgements.append(Judgement(claim, metric, published, ours, ours.verdict(published)))
    return judgements


@dataclass(frozen=True)
class SignAgreement:
    """Over all pairs of rows that differ in the paper and were run: ours with the paper's sign, with the other sign.

    Attributes:
        pairs: number of pairs.
        same, opposite: of them, with the sign of the paper and with the other.
        repeated: of them, with two common seeds or more, and so with a known spread.
        clear: of the repeated ones, with a difference beyond the spread.
        clear_same: of the clear ones, with the sign of the paper.
    """

    pairs: int
    same: int
    opposite: int
    repeated: int
    clear: int
    clear_same: int


def sign_agreement(table: Table, figures: Figures) -> SignAgreement:
    """Compare the signs of all differences between two rows, in the table's first metric."""
    metric = table.metrics[0].name
    verdicts, signs, repeated = [], [], 0
    for first, second in itertools.combinations([row for row in table.rows if row.published], 2):
        published = first.published[metric] - second.published[metric]
        ours = difference(*(figures.get(row.name, {}).get(metric, {}) for row in (first, second)))
        if ours.count and published:
            verdicts.append(ours.verdict(published))
            signs.append(ours.mean * published)
            repeated += ours.count > 1
    return SignAgreement(
        pairs=len(signs),
        same=sum(sign > 0 for sign in signs),
        opposite=sum(sign < 0 for sign in signs),
        repeated=repeated,
        clear=sum(verdict in ("holds", "contradicted") for verdict in verdicts),
        clear_same=verdicts.count("holds"),
    )
