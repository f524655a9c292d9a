"""Means, spreads and verdicts against values worked out by hand."""

import math

import pytest

from irstd_d2.ablation import Claim, Metric, Row, Table, judge, sign_agreement
from irstd_d2.ablation.compare import Difference, difference, summarize


def test_summary():
    assert summarize({0: 1.0, 1: 3.0}) == type(summarize({}))(2.0, math.sqrt(2), 2)
    one = summarize({4: 7.0})
    assert (one.mean, one.count) == (7.0, 1)
    assert math.isnan(one.std)
    assert math.isnan(summarize({}).mean)


def test_difference_uses_common_seeds_only():
    found = difference({0: 5.0, 1: 7.0, 2: 100.0}, {0: 1.0, 1: 2.0, 9: -50.0})
    assert (found.mean, found.count) == (4.5, 2)
    assert found.spread == pytest.approx(math.sqrt(2 + 0.5))
    assert difference({0: 1.0}, {1: 1.0}).count == 0
    assert math.isnan(difference({0: 1.0}, {0: 3.0}).spread)


@pytest.mark.parametrize(
    ("mean", "spread", "count", "published", "verdict"),
    [
        (2.0, 1.0, 3, 0.5, "holds"),
        (-2.0, 1.0, 3, -0.5, "holds"),
        (-2.0, 1.0, 3, 0.5, "contradicted"),
        (1.0, 1.0, 3, 0.5, "within the spread"),
        (-0.5, 1.0, 2, 0.5, "within the spread"),
        (0.1, math.nan, 1, 0.5, "same sign"),
        (-0.1, math.nan, 1, 0.5, "opposite sign"),
        (0.0, math.nan, 1, 0.5, "no difference"),
        (0.0, 0.0, 2, 0.5, "within the spread"),
        (math.nan, math.nan, 0, 0.5, "not run"),
        (9.0, 1.0, 3, 0.0, "a tie in the paper"),
        (2.0, 1.0, 3, math.nan, "better"),
        (-2.0, 1.0, 3, math.nan, "worse"),
        (1.0, 1.0, 3, math.nan, "within the spread"),
        (9.0, math.nan, 1, math.nan, "one seed"),
        (math.nan, math.nan, 0, math.nan, "not run"),
    ],
)
def test_verdict(mean, spread, count, published, verdict):
    assert Difference(mean, spread, count).verdict(published) == verdict


TABLE = Table(
    "auxdet-5",
    "title",
    (Metric("AP", "x/AP"), Metric("R", "x/R")),
    (
        Row("a", "A", "a.yaml", {"AP": 10.0, "R": 1.0}),
        Row("b", "B", "b.yaml", {"AP": 12.0, "R": 0.0}),
        Row("c", "C", "c.yaml", {"AP": 12.0, "R": 2.0}),
        Row("extra", "E", "e.yaml"),
    ),
    "a",
    (Claim("b", "a"), Claim("c", "a", "R"), Claim("c", "a")),
)


def test_claims_are_judged_in_their_metric():
    figures = {
        "a": {"AP": {0: 50.0, 1: 52.0}, "R": {0: 10.0, 1: 10.0}},
        "b": {"AP": {0: 60.0, 1: 61.0}, "R": {0: 0.0, 1: 0.0}},
        "c": {"R": {0: 9.0, 1: 9.0}},
    }
    verdicts = [(j.claim.better, j.metric, j.published, j.verdict) for j in judge(TABLE, figures)]
    assert verdicts == [("b", "AP", 2.0, "holds"), ("c", "R", 1.0, "contradicted"), ("c", "AP", 2.0, "not run")]


def test_a_row_without_published_figures_is_judged_by_ours():
    table = Table(
        "beyond-auxdet", "t", TABLE.metrics, tuple(map(TABLE.row, ("a", "extra"))), "a", (Claim("extra", "a"),)
    )
    figures = {"a": {"AP": {0: 50.0, 1: 52.0}}, "extra": {"AP": {0: 60.0, 1: 61.0}}}
    (judgement,) = judge(table, figures)
    assert math.isnan(judgement.published)
    assert (judgement.ours.mean, judgement.verdict) == (9.5, "better")


def test_sign_agreement_counts_pairs_that_differ_in_the_paper():
    figures = {
        "a": {"AP": {0: 50.0, 1: 52.0}},
        "b": {"AP": {0: 60.0, 1: 61.0}},
        "c": {"AP": {0: 50.0, 1: 51.0}},
        "extra": {"AP": {0: 0.0, 1: 0.0}},
    }
    found = sign_agreement(TABLE, figures)  # (a, b) and (a, c); b and c tie in the paper
    assert (found.pairs, found.same, found.opposite) == (2, 1, 1)
    assert (found.repeated, found.clear, found.clear_same) == (2, 1, 1)
    assert sign_agreement(TABLE, {}).pairs == 0
