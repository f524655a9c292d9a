"""The paired comparison of trainings over seeds and images."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))

from compare_trainings import METRICS, compare, draw, parse_rows, values_of

from irstd_d2.evaluation.bootstrap import Outcome, ResampledMetric

# One target an image; the metric is the share of images whose detection is true.
SHARE = ResampledMetric(lambda *_: [], lambda outcome, weights: weights @ outcome.true / weights.sum(1))


def run(found: np.ndarray) -> list[Outcome]:
    count = len(found)
    ones = np.ones(count)
    return [Outcome(ones, np.arange(count), found, ~found, ones, ones.astype(int), ones)]


def seeds(rate: float, count: int, start: int) -> list[list[Outcome]]:
    return [run(np.random.default_rng(start + i).random(400) < rate) for i in range(count)]


def test_a_clear_difference_has_an_interval_above_zero():
    d = compare(SHARE, seeds(0.5, 3, 0), seeds(0.8, 3, 10))
    assert 0.2 < d.low < d.value < d.high < 0.4
    assert d.p_value <= 0.002


def test_equal_runs_do_not_differ():
    same = seeds(0.5, 3, 0)
    d = compare(SHARE, same, same)
    assert (d.value, d.low, d.high, d.p_value) == (0, 0, 0, 1)


def test_seeds_that_disagree_widen_the_interval():
    first = [run(np.arange(400) < 200)] * 3
    second = [run(np.arange(400) < n) for n in (120, 240, 300)]
    d = compare(SHARE, first, second)
    assert d.value == pytest.approx(0.05)
    assert d.low < -0.1
    assert d.high > 0.15
    assert d.p_value > 0.05


def test_two_seeds_are_too_few():
    d = compare(SHARE, seeds(0.5, 2, 0), seeds(0.8, 2, 10))
    assert np.isnan([d.low, d.high, d.p_value]).all()


def test_rows_and_options_of_the_command_line():
    args, rows, common = parse_rows(
        ["--dataset", "a", "--output", "o", "--row", "A", "a.yaml", "--row", "B", "b.yaml", "X", "1", "--", "Y", "2"]
    )
    assert (args.dataset, args.seeds, common) == (["a"], 3, ["Y", "2"])
    assert [(row.name, row.config, row.options) for row in rows] == [("A", "a.yaml", ()), ("B", "b.yaml", ("X", "1"))]


@pytest.mark.parametrize("wrong", [["Paper"], ["Paper", "mAP12"], ["Paper", "mAP99", "3"]])
def test_wrong_published_rows_are_named(wrong, capsys):
    with pytest.raises(SystemExit):
        parse_rows(["--dataset", "a", "--output", "o", "--row", "A", "a.yaml", "--published", *wrong])
    assert "give a name, then pairs of metric and value" in capsys.readouterr().err


@pytest.mark.parametrize("prefix", ["", "a/"])
def test_values_of_the_evaluated_metrics(prefix, tmp_path):
    run = {prefix + METRICS["mAP12"]: 3.0, prefix + METRICS["recall"]: 5.0, "other": 1.0}
    found = values_of({"A": [run, {**run, prefix + METRICS["mAP12"]: 4.0}], "B": [run]}, "a")
    assert found == {"A": {"mAP12": [3.0, 4.0], "recall": [5.0, 5.0]}, "B": {"mAP12": [3.0], "recall": [5.0]}}
    draw({**found, "published": {"mAP12": [2.0]}}, tmp_path / "bars.png")
    assert (tmp_path / "bars.png").stat().st_size > 1000
