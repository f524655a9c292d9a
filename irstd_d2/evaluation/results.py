"""Results of all evaluators as one table for people."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from tabulate import tabulate


def format_results(results: Mapping[str, Mapping[str, float]]) -> str:
    """Lay out results with one row per metric and one column per group.

    Args:
        results: evaluator -> metric -> value; a metric of a group is named ``KEY/GROUP/METRIC``.

    Returns:
        A Markdown table; ``-`` where there was nothing to measure. Results that are broken down by several keys give
        one block per key, below each other, so that no row is too long to read; metrics that are not broken down come
        first.
    """
    rows: dict[tuple[str, str], dict[str, float]] = {}
    keys: dict[str, dict[str, None]] = {}
    for evaluator, metrics in results.items():
        for name, value in metrics.items():
            group, _, metric = name.rpartition("/")
            if group:
                keys.setdefault(group.partition("/")[0], {})[group] = None
            rows.setdefault((evaluator, metric), {})[group or "all"] = value
    if len(keys) <= 1:
        return _block(rows, [group for groups in keys.values() for group in groups])
    blocks = [{name: values for name, values in rows.items() if set(values) == {"all"}}]
    blocks += [{name: values for name, values in rows.items() if set(groups) & set(values)} for groups in keys.values()]
    return "\n\n".join(_block(block, list(groups)) for block, groups in zip(blocks, [(), *keys.values()]) if block)


def format_runs(results: Mapping[str, Mapping[str, Mapping[str, float]]]) -> str:
    """Lay out the results of several runs side by side, with one row per metric and group and one block per key.

    Args:
        results: run -> evaluator -> metric -> value.

    Returns:
        A Markdown table; ``-`` where a run has no such metric or nothing to measure.
    """
    blocks: dict[str, dict[tuple[str, str, str], None]] = {"": {}}
    for run in results.values():
        for evaluator, metrics in run.items():
            for name in metrics:
                group, _, metric = name.rpartition("/")
                blocks.setdefault(group.partition("/")[0], {})[group, evaluator, metric] = None
    return "\n\n".join(_runs_block(results, list(rows)) for rows in blocks.values() if rows)


def _runs_block(results: Mapping[str, Mapping[str, Mapping[str, float]]], rows: Sequence[tuple[str, str, str]]) -> str:
    table = []
    for group, evaluator, metric in rows:
        name = f"{group}/{metric}" if group else metric
        values = [run.get(evaluator, {}).get(name, math.nan) for run in results.values()]
        table.append([group or "all", evaluator, metric, *map(_cell, values)])
    headers = ["group", "evaluator", "metric", *results]
    return tabulate(table, headers=headers, tablefmt="pipe", disable_numparse=True)


def _block(rows: Mapping[tuple[str, str], Mapping[str, float]], groups: list[str]) -> str:
    columns = ["all", *groups]
    table = [[*name, *(_cell(values.get(column, math.nan)) for column in columns)] for name, values in rows.items()]
    return tabulate(table, headers=["evaluator", "metric", *columns], tablefmt="pipe", disable_numparse=True)


def _cell(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:.2f}"
