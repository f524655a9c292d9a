"""Numbers and tables for people: the one place where results become text."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from tabulate import tabulate


def format_number(value: float, *, signed: bool = False, decimals: int = 2) -> str:
    """A metric for people: ``-`` where nothing was measured, ``inf`` for infinity."""
    return "-" if math.isnan(value) else f"{value:{'+' if signed else ''}.{decimals}f}"


def format_range(low: float, high: float, *, signed: bool = False) -> str:
    """An interval for people."""
    return "-" if math.isnan(low) else f"{format_number(low, signed=signed)} to {format_number(high, signed=signed)}"


def format_table(rows: Sequence[Sequence[str]], headers: Sequence[str]) -> str:
    """A Markdown table."""
    return tabulate(rows, headers=headers, tablefmt="pipe", disable_numparse=True)


def split_metric_name(name: str) -> tuple[str, str, str]:
    """``KEY/GROUP/METRIC`` -> its parts; key and group are empty for a metric over everything."""
    key, _, rest = name.partition("/")
    group, _, metric = rest.rpartition("/")
    return (key, group, metric) if metric else ("", "", name)


def format_results(results: Mapping[str, Mapping[str, float]]) -> str:
    """Lay out results with one row per metric and one column per group.

    ``results`` lead from evaluator and metric to the value; a metric of a group is named ``KEY/GROUP/METRIC``.

    Returns:
        A Markdown table; ``-`` where there was nothing to measure. Results that are broken down by several keys give
        one block per key, below each other, so that no row is too long to read; metrics that are not broken down come
        first.
    """
    rows: dict[tuple[str, str], dict[str, float]] = {}
    keys: dict[str, dict[str, None]] = {}
    for evaluator, metrics in results.items():
        for name, value in metrics.items():
            key, group, metric = split_metric_name(name)
            column = f"{key}/{group}" if key else "all"
            if key:
                keys.setdefault(key, {})[column] = None
            rows.setdefault((evaluator, metric), {})[column] = value
    if len(keys) <= 1:
        return _block(rows, [group for groups in keys.values() for group in groups])
    blocks = [{name: values for name, values in rows.items() if set(values) == {"all"}}]
    blocks += [{name: values for name, values in rows.items() if set(groups) & set(values)} for groups in keys.values()]
    return "\n\n".join(_block(block, list(groups)) for block, groups in zip(blocks, [(), *keys.values()]) if block)


def format_runs(results: Mapping[str, Mapping[str, Mapping[str, float]]]) -> str:
    """Lay out run -> evaluator -> metric -> value side by side, one row per metric and group and one block per key.

    Returns:
        A Markdown table; ``-`` where a run has no such metric or nothing to measure.
    """
    blocks: dict[str, dict[tuple[str, str, str], None]] = {"": {}}
    for run in results.values():
        for evaluator, metrics in run.items():
            for name in metrics:
                key, group, metric = split_metric_name(name)
                blocks.setdefault(key, {})[f"{key}/{group}" if key else "", evaluator, metric] = None
    return "\n\n".join(_runs_block(results, list(rows)) for rows in blocks.values() if rows)


def _runs_block(results: Mapping[str, Mapping[str, Mapping[str, float]]], rows: Sequence[tuple[str, str, str]]) -> str:
    table = []
    for group, evaluator, metric in rows:
        name = f"{group}/{metric}" if group else metric
        values = [run.get(evaluator, {}).get(name, math.nan) for run in results.values()]
        table.append([group or "all", evaluator, metric, *map(format_number, values)])
    return format_table(table, ["group", "evaluator", "metric", *results])


def _block(rows: Mapping[tuple[str, str], Mapping[str, float]], groups: list[str]) -> str:
    columns = ["all", *groups]
    table = [
        [*name, *(format_number(values.get(column, math.nan)) for column in columns)] for name, values in rows.items()
    ]
    return format_table(table, ["evaluator", "metric", *columns])
