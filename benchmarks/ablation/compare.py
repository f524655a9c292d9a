"""Differences of two rows over common seeds, and what may be concluded from them."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping
from dataclasses import dataclass

from .tables import Table

Figures = Mapping[str, Mapping[str, Mapping[int, float]]]
"""row -> metric -> seed -> percent"""

MIN_SEEDS = 3
# 97.5 % quantile of Student's t for 2, 3, ... degrees of freedom; beyond ten seeds that of nine is used, a wider one.
_QUANTILES = (4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262)


@dataclass(frozen=True)
class Difference:
    """Mean of ``a - b`` over the seeds that both rows have, with its paired 95 % interval.

    A row trained from one seed starts from the same weights and sees the same data as another row from that seed, so
    what the two share leaves the difference: its spread, not that of the rows, decides.

    Attributes:
        mean: NaN without a common seed.
        half: half of the interval's width; infinite with fewer than three common seeds.
        count: common seeds.
    """

    mean: float
    half: float
    count: int

    def verdict(self, published: float = math.nan) -> str:
        """What is known of the sign, beside the paper's difference (NaN where it prints none)."""
        if not self.count:
            return "not run"
        if self.count < MIN_SEEDS:
            return "too few seeds"
        if abs(self.mean) <= self.half:
            return "not decided"
        if math.isnan(published):
            return "better" if self.mean > 0 else "worse"
        if not published:
            return "a tie in the paper"
        return "holds" if self.mean * published > 0 else "contradicted"


def difference(a: Mapping[int, float], b: Mapping[int, float]) -> Difference:
    """Subtract two cells, seed -> percent, seed by seed (paired t interval)."""
    pairs = [a[seed] - b[seed] for seed in sorted(set(a) & set(b))]
    mean = statistics.fmean(pairs) if pairs else math.nan
    if len(pairs) < MIN_SEEDS:
        return Difference(mean, math.inf, len(pairs))
    quantile = _QUANTILES[min(len(pairs) - MIN_SEEDS, len(_QUANTILES) - 1)]
    return Difference(mean, quantile * statistics.stdev(pairs) / math.sqrt(len(pairs)), len(pairs))


@dataclass(frozen=True)
class Judgement:
    """A claim of the paper, or a question of ours, beside our figures."""

    better: str
    worse: str
    metric: str
    published: float
    ours: Difference
    verdict: str


def judge_claims(table: Table, figures: Figures) -> list[Judgement]:
    """Judge all claims of a table."""
    judgements = []
    for better, worse, metric in table.claims:
        printed = [table.rows[name].figures.get(metric, math.nan) for name in (better, worse)]
        ours = difference(*(figures.get(name, {}).get(metric, {}) for name in (better, worse)))
        published = printed[0] - printed[1]
        judgements.append(Judgement(better, worse, metric, published, ours, ours.verdict(published)))
    return judgements
