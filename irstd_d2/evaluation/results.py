"""Results of all evaluators as one table for people."""

from __future__ import annotations

import math
from collections.abc import Mapping

from tabulate import tabulate


def format_results(results: Mapping[str, Mapping[str, float]]) -> str:
    """Lay out results with one row per metric and one column per group of images.

    Args:
        results: evaluator -> metric -> value; a metric of a group is named ``KEY/GROUP/METRIC``.

    Returns:
        A Markdown table; ``-`` where there was nothing to measure.
    """
    rows: dict[tuple[str, str], dict[str, float]] = {}
    columns = {"all": None}
    for evaluator, metrics in results.items():
        for name, value in metrics.items():
            group, _, metric = name.rpartition("/")
            columns[group or "all"] = None
            rows.setdefault((evaluator, metric), {})[group or "all"] = value
    table = [[*key, *(_cell(values.get(column, math.nan)) for column in columns)] for key, values in rows.items()]
    return tabulate(table, headers=["evaluator", "metric", *columns], tablefmt="pipe", disable_numparse=True)


def _cell(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:.2f}"
