"""The runs of a report on one data set: metric tables, differences, breakdowns."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from detectron2.config import CfgNode

from ..config import get_config
from ..errors import DatasetError
from ..evaluation.ground_truth import GroundTruth
from ..evaluation.mask_evaluation import TargetMasks
from ..evaluation.predictions import holds_masks, read_any_predictions
from ..evaluation.rescoring import (
    PROTOCOL_KEYS,
    Resampled,
    Rescored,
    protocol_differences,
    protocol_of,
    resample,
    saved_evaluators,
    score_predictions,
)
from ..evaluation.results import format_number, format_range, split_metric_name
from .run import Run

GROUP_KEYS = ("platform", "band", "resolution", "size", "contrast", "sky")
# Evaluators whose metrics are broken down.
_BROKEN_DOWN, _WHOLE_ONLY = ("voc", "pd_fa"), ("voc_paper", "centre", "coco")
_VOC_IOU_THRESHOLDS = (0.25, 0.5, 0.75)

_EVALUATORS = {
    "voc_exact": "Pascal VOC, boxes measured as x2 - x1, percent",
    "voc_paper": "Pascal VOC as both papers compute it: boxes measured as x2 - x1 + 1, percent",
    "pd_fa": "Detection probability and false alarms, centres within 3 pixels",
    "centre": "Average precision by centre distance, percent",
    "bbox": "COCO, percent",
    "mask": "Pixels, targets by centroid and hierarchical IoU of masks; of detectors, masks made from their boxes",
    "sky": "Sky against everything else, percent of pixels",
}


@dataclass(frozen=True)
class RunOnSet:
    """One run on one data set.

    Attributes:
        number: of the run in the report, from 0.
        rescored: its detections, judged again, with the results that only the training could compute.
        logged_at: evaluator -> iteration, for those results.
    """

    number: int
    run: Run
    rescored: Rescored
    logged_at: dict[str, int]

    @property
    def name(self) -> str:
        return self.run.name

    @property
    def threshold(self) -> float:
        """The score threshold of the best F1, see ``Rescored``."""
        return self.rescored.threshold


def protocol_config(run: Run) -> CfgNode:
    """A configuration with the protocol of a run's own, by which all runs beside it are judged.

    Raises:
        ConfigError: for values of another type.
    """
    values = {key: run.setting(key) for key in (*PROTOCOL_KEYS, "TEST.TARGET_MASKS")}
    return get_config(opts=[part for key, value in values.items() if value is not None for part in (key, value)])


def predictions_notes(run: RunOnSet) -> list[str]:
    """What a reader must know of predictions; images without an entry are ordinary in a run's own boxes."""
    predictions = run.rescored.predictions
    plain = "" if predictions.masks or predictions.surplus else predictions.coverage
    return [f"{run.name}: {note}." for note in run.rescored.notes if note != plain]


def protocol_note(run: Run, cfg: CfgNode) -> list[str]:
    """A note on a run that is judged by other values than its own configuration's."""
    own = {key: run.setting(key) for key in PROTOCOL_KEYS if run.setting(key) is not None}
    changed = protocol_differences(protocol_of(cfg), own)
    return [f"{run.name} is judged like the first run of this set, by {changed}."] if changed else []


def mask_evaluators(
    runs: Iterable[Run], data_set: str, truth: GroundTruth, cfg: CfgNode
) -> tuple[tuple[str, ...], list[str]]:
    """``("mask",)`` where a run of a set is masks or was judged by them; a note where true masks are missing."""
    wanted = [
        run for run in runs
        if holds_masks(run.predictions[data_set]) or "mask" in run.setting("TEST.EVALUATORS", ())
    ]  # fmt: skip
    if not wanted:
        return (), []
    try:
        TargetMasks.of(data_set, truth, cfg.TEST.TARGET_MASKS or None)
    except DatasetError as error:
        return (), [f"Masks are not judged: {error}"]
    return ("mask",), []


def rescore_run(
    number: int,
    run: Run,
    data_set: str,
    truth: GroundTruth,
    cfg: CfgNode,
    *,
    group_by: Sequence[str] = GROUP_KEYS,
    more_evaluators: tuple[str, ...] = (),
) -> RunOnSet:
    """Evaluate the saved detections of a run on a registered set by the protocol of ``cfg``.

    Args:
        number: of the run in the report.
        group_by: what metrics are broken down by, see ``TableEvaluator``.
        more_evaluators: whose metrics are not broken down.

    Raises:
        ValueError: for predictions that cannot be read or do not belong to the data set.
    """
    evaluators = []
    for names, keys in ((_BROKEN_DOWN, group_by), ((*_WHOLE_ONLY, *more_evaluators), ())):
        part = cfg.clone()
        part.TEST.EVALUATORS, part.TEST.GROUP_BY = names, tuple(keys)
        part.TEST.VOC_IOU_THRESHOLDS = tuple(sorted({*cfg.TEST.VOC_IOU_THRESHOLDS, *_VOC_IOU_THRESHOLDS}))
        evaluators += saved_evaluators(part, data_set)
    predictions = read_any_predictions(run.predictions[data_set], truth)
    rescored = score_predictions(run.name, predictions, truth, evaluators, score_thresh=cfg.TEST.SCORE_THRESHOLD)
    results, logged_at = dict(rescored.results), {}
    if logged := run.logged_results(data_set):
        for name, metrics in logged[1].items():
            if name not in results:
                results[name], logged_at[name] = metrics, logged[0]
    return RunOnSet(number, run, replace(rescored, results=results), logged_at)


@dataclass(frozen=True)
class Cell:
    """A value and its difference from the baseline's.

    Attributes:
        text: the value.
        difference: with its sign; empty for the baseline.
        verdict: ``better`` or ``worse`` where the interval of the difference excludes zero, else nothing.
    """

    text: str
    difference: str = ""
    verdict: str = ""


# Name of an evaluator, what its metrics are, and metric -> a cell per run.
MetricTable = tuple[str, str, dict[str, tuple[Cell, ...]]]


def metric_tables(runs: Sequence[RunOnSet], resampled: Resampled | None = None) -> list[MetricTable]:
    """The metrics of runs on one data set over all images, by evaluator; the first run is the baseline.

    ``resampled`` is from ``resample_runs``; without it nothing is called better or worse.
    """
    tables = []
    for evaluator in dict.fromkeys(name for run in runs for name in run.rescored.results):
        metrics = dict.fromkeys(
            metric for run in runs for metric in run.rescored.results.get(evaluator, {}) if "/" not in metric
        )
        rows = {}
        for metric in metrics:
            values = [run.rescored.results.get(evaluator, {}).get(metric, math.nan) for run in runs]
            verdicts = [_verdict(f"{evaluator}/{metric}", run, resampled) for run in runs]
            rows[metric] = difference_cells(values, verdicts)
        text = _EVALUATORS.get(evaluator, "")
        if logged := [
            f"{run.name} at iteration {run.logged_at[evaluator]}" for run in runs if evaluator in run.logged_at
        ]:
            text += f"{'; ' if text else ''}as logged by the training: {', '.join(logged)}"
        tables.append((evaluator, text, rows))
    return tables


def difference_cells(values: Sequence[float], verdicts: Sequence[str]) -> tuple[Cell, ...]:
    """Lay out one metric of all runs, the first of which is what the others are compared with."""
    cells = [Cell(format_number(values[0]))]
    for value, verdict in zip(values[1:], verdicts[1:]):
        difference = value - values[0]
        if math.isfinite(difference):
            cells.append(Cell(format_number(value), format_number(difference, signed=True), verdict))
        else:
            cells.append(Cell(format_number(value), "-"))
    return tuple(cells)


def _verdict(metric: str, run: RunOnSet, resampled: Resampled | None) -> str:
    """``better`` or ``worse`` than the baseline where the paired interval excludes zero."""
    comparisons = {} if resampled is None else resampled.comparisons.get(str(run.number), {})
    if metric not in comparisons:
        return ""
    low, high = comparisons[metric].difference.low, comparisons[metric].difference.high
    if not (low > 0 or high < 0):
        return ""
    return "better" if (low > 0) != metric.endswith("/Fa") else "worse"


# ``EVALUATOR METRIC`` -> group -> run number -> value.
GroupTable = dict[str, dict[str, dict[int, float]]]


def group_tables(runs: Sequence[RunOnSet]) -> dict[str, GroupTable]:
    """All metrics of groups, by the key that makes the groups; groups in which nothing is measured are left out.

    A key that puts everything into one group says nothing and is left out too.
    """
    by_key: dict[str, GroupTable] = {}
    for run in runs:
        for evaluator, metrics in run.rescored.results.items():
            for name, value in metrics.items():
                key, group, metric = split_metric_name(name)
                if key and math.isfinite(value):
                    rows = by_key.setdefault(key, {}).setdefault(f"{evaluator} {metric}", {})
                    rows.setdefault(group, {})[run.number] = value
    return {key: table for key, table in by_key.items() if len({g for rows in table.values() for g in rows}) > 1}


def resample_runs(runs: Sequence[RunOnSet], cfg: CfgNode, draws: int) -> Resampled | None:
    """Intervals of all runs, by their numbers, and comparison with the first; ``None`` without draws."""
    if not draws:
        return None
    numbered = [replace(run.rescored, name=str(run.number)) for run in runs]
    return resample(numbered, draws=draws, max_detections=cfg.TEST.DETECTIONS_PER_IMAGE)


def interval_rows(runs: Sequence[RunOnSet], resampled: Resampled | None) -> dict[str, list[tuple[str, str, str, str]]]:
    """The table of intervals and paired differences.

    Returns:
        ``EVALUATOR METRIC`` -> per run the value with its interval; for all but the first run also the difference, p
        and the verdict.
    """
    if resampled is None:
        return {}
    rows = {}
    for metric in resampled.intervals[str(runs[0].number)]:
        cells = []
        for run in runs:
            interval = resampled.intervals[str(run.number)][metric]
            value = f"{format_number(interval.value)} ({format_range(interval.low, interval.high)})"
            difference = p_value = ""
            if run is not runs[0]:
                comparison = resampled.comparisons[str(run.number)][metric]
                found = comparison.difference
                difference = (
                    f"{format_number(found.value, signed=True)} ({format_range(found.low, found.high, signed=True)})"
                )
                p_value = format_number(comparison.p_value, decimals=3)
            cells.append((value, difference, p_value, _verdict(metric, run, resampled)))
        rows[metric.replace("/", " ")] = cells
    return rows


# Name of an image's file, its targets that count, and per run found, missed and false at its threshold of best F1.
ImageRow = tuple[str, int, list[tuple[int, int, int]]]


def image_rows(runs: Sequence[RunOnSet]) -> list[ImageRow]:
    """All images, those with the most errors of all runs together first."""
    truth = runs[0].rescored.truth
    count = len(truth.image_ids)
    wanted = np.bincount(truth.targets.image[~truth.targets.ignored], minlength=count)
    columns = []
    for run in runs:
        detections, verdicts = run.rescored.detections, run.rescored.verdicts
        kept = detections.scores >= run.threshold
        found, false = (
            np.bincount(detections.image[kept & flags], minlength=count) for flags in (verdicts.true, verdicts.false)
        )
        columns.append((found, wanted - found, false))
    errors = sum(missed + false for _, missed, false in columns)
    return [
        (
            Path(str(truth.files[i].image or truth.image_ids[i])).name,
            int(wanted[i]),
            [(int(found[i]), int(missed[i]), int(false[i])) for found, missed, false in columns],
        )
        for i in np.argsort(-errors, kind="stable")
    ]


def setting_differences(runs: Sequence[Run]) -> tuple[list[tuple[str, tuple[str, ...]]], list[str]]:
    """Keys that differ in the runs' configurations, with each run's value; and keys that only some of them have."""
    flat = [dict(_flatten(run.settings)) for run in runs]
    known = [values for values in flat if values]
    everywhere = set.intersection(*map(set, known)) if known else set()
    different = sorted(
        key for key in everywhere - {"OUTPUT_DIR"} if any(values[key] != known[0][key] for values in known)
    )
    rows = [(key, tuple(_short(values.get(key)) for values in flat)) for key in different]
    return rows, sorted({key for values in known for key in values} - everywhere)


def _flatten(settings: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    rows: list[tuple[str, Any]] = []
    for key, value in settings.items():
        rows += _flatten(value, f"{prefix}{key}.") if isinstance(value, Mapping) else [(f"{prefix}{key}", value)]
    return rows


def _short(value: Any) -> str:
    text = "–" if value is None else str(value)
    return text if len(text) <= 80 else text[:79] + "…"
