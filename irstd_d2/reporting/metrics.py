"""The runs of a report, judged on one data set: metric tables, differences, breakdowns."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from numbers import Real
from typing import Any

import numpy as np

from ..evaluation.average_precision import EXACT, PAPER
from ..evaluation.bootstrap import Interval
from ..evaluation.coco_evaluation import IRSTDCOCOEvaluator
from ..evaluation.collection import add_predictions, read_predictions
from ..evaluation.detection_probability import OperatingCurve, match_by_centre, operating_curve
from ..evaluation.ground_truth import GroundTruth
from ..evaluation.matching import DetectionTable
from ..evaluation.rescoring import Rescored, resample
from ..evaluation.table_evaluation import (
    CentreDistanceEvaluator,
    DetectionProbabilityEvaluator,
    TableEvaluator,
    VOCDetectionEvaluator,
)
from .run import Results, Run

GROUP_KEYS = ("platform", "band", "resolution", "size", "contrast", "sky")

_EVALUATORS = {
    "voc_exact": "Pascal VOC, boxes measured as x2 - x1, percent",
    "voc_paper": "Pascal VOC as both papers compute it: boxes measured as x2 - x1 + 1, percent",
    "pd_fa": "Detection probability and false alarms, centres within 3 pixels",
    "centre": "Average precision by centre distance, percent",
    "bbox": "COCO, percent",
    "sky": "Sky against everything else, percent of pixels",
}


@dataclass(frozen=True)
class Judged:
    """One run on one data set.

    Attributes:
        number: of the run in the report, from 0.
        run: the run.
        detections: all of its detections.
        results: evaluator -> metric -> value; metrics of a group are named ``KEY/GROUP/METRIC``.
        logged_at: evaluator -> iteration, for results that the training logged and that are not computed anew.
        curve: Pd, false alarms and F1 at every score threshold, centres within 3 pixels.
        found, excused: (D,) of ``match_by_centre``.
    """

    number: int
    run: Run
    detections: DetectionTable
    results: Results
    logged_at: dict[str, int]
    curve: OperatingCurve
    found: np.ndarray
    excused: np.ndarray

    @property
    def name(self) -> str:
        return self.run.name

    @property
    def threshold(self) -> float:
        """The score threshold of the best F1; 0, which keeps all, where nothing was found at any."""
        f1, score = self.curve.best_f1()
        return score if f1 else 0.0


def score_threshold(run: Run) -> float:
    """From this score on, a detection of the run counts for Pd and Fa."""
    value = run.setting("TEST.SCORE_THRESHOLD", 0.5)
    return float(value) if isinstance(value, Real) else 0.5


def judge(
    number: int,
    run: Run,
    data_set: str,
    truth: GroundTruth,
    *,
    group_by: Sequence[str] = GROUP_KEYS,
) -> Judged:
    """Evaluate the saved detections of a run.

    Args:
        number: of the run in the report.
        run: it has predictions on ``data_set``.
        data_set: registered name.
        truth: its ground truth.
        group_by: what metrics are broken down by, see ``TableEvaluator``.

    Raises:
        ValueError: for predictions that cannot be read or do not belong to the data set.
    """
    threshold, max_detections = score_threshold(run), run.setting("TEST.DETECTIONS_PER_IMAGE", 100)
    options: dict[str, Any] = {"group_by": group_by, "distributed": False}
    evaluators: list[TableEvaluator] = [
        VOCDetectionEvaluator(truth, iou_thresholds=(0.25, 0.5, 0.75), protocol=EXACT, distributed=False),
        VOCDetectionEvaluator(truth, iou_thresholds=(0.5,), protocol=EXACT, **options),
        VOCDetectionEvaluator(truth, iou_thresholds=(0.5,), protocol=PAPER, distributed=False),
        DetectionProbabilityEvaluator(truth, score_threshold=threshold, **options),
        CentreDistanceEvaluator(truth, distributed=False),
        IRSTDCOCOEvaluator(data_set, max_detections=max_detections, distributed=False),
    ]
    add_predictions(evaluators, read_predictions(run.predictions[data_set]))
    detections = evaluators[0].detections()
    if detections is None:
        raise RuntimeError("a report is made by one process")
    results: Results = {}
    for evaluator in evaluators:
        for name, metrics in (evaluator.evaluate() or {}).items():
            results.setdefault(name, {}).update(metrics)
    logged_at = {}
    if logged := run.logged_results(data_set):
        for name, metrics in logged[1].items():
            if name not in results:
                results[name], logged_at[name] = metrics, logged[0]
    curve = operating_curve(detections, truth.targets, truth.pixels)
    found, excused = match_by_centre(detections, truth.targets)
    return Judged(number, run, detections, results, logged_at, curve, found, excused)


@dataclass(frozen=True)
class Cell:
    """A value and its difference from the first run's.

    Attributes:
        text: the value.
        difference: with its sign; empty for the first run.
        verdict: ``better``, ``worse`` or nothing.
    """

    text: str
    difference: str = ""
    verdict: str = ""


@dataclass(frozen=True)
class MetricTable:
    """One evaluator's metrics, one column per run."""

    name: str
    text: str
    rows: tuple[tuple[str, tuple[Cell, ...]], ...]


def metric_tables(runs: Sequence[Judged]) -> list[MetricTable]:
    """The metrics over all images, by evaluator."""
    tables = []
    for evaluator in dict.fromkeys(name for run in runs for name in run.results):
        metrics = dict.fromkeys(
            metric for run in runs for metric in run.results.get(evaluator, {}) if "/" not in metric
        )
        rows = tuple(
            (metric, compare(metric, [run.results.get(evaluator, {}).get(metric, math.nan) for run in runs]))
            for metric in metrics
        )
        text = _EVALUATORS.get(evaluator, "")
        if logged := [
            f"{run.name} at iteration {run.logged_at[evaluator]}" for run in runs if evaluator in run.logged_at
        ]:
            text += f"{'; ' if text else ''}as logged by the training: {', '.join(logged)}"
        tables.append(MetricTable(evaluator, text, rows))
    return tables


def compare(metric: str, values: Sequence[float]) -> tuple[Cell, ...]:
    """Lay out one metric of all runs, the first of which is what the others are compared with."""
    cells = [Cell(number(values[0]))]
    for value in values[1:]:
        difference = value - values[0]
        if not math.isfinite(difference):
            cells.append(Cell(number(value), "–"))
            continue
        sign = _direction(metric) * difference
        verdict = "better" if sign > 0.005 else "worse" if sign < -0.005 else ""
        cells.append(Cell(number(value), _signed(difference), verdict))
    return tuple(cells)


def _direction(metric: str) -> int:
    """1 where more is better, -1 where less is, 0 where neither is."""
    if metric.endswith("score"):
        return 0
    return -1 if metric.startswith(("Fa", "FAPI")) else 1


def number(value: float) -> str:
    """A metric for people."""
    if math.isnan(value):
        return "–"
    return "∞" if math.isinf(value) else f"{value:.2f}"


@dataclass(frozen=True)
class Breakdown:
    """Metrics by one key.

    Attributes:
        key: e.g. ``platform``.
        metrics: ``EVALUATOR METRIC`` -> group -> run number -> value.
    """

    key: str
    metrics: dict[str, dict[str, dict[int, float]]]


def breakdowns(runs: Sequence[Judged]) -> list[Breakdown]:
    """All metrics of groups, sorted by the key that makes the groups; groups in which nothing is measured are left out.

    A key that puts everything into one group says nothing and is left out too.
    """
    by_key: dict[str, Breakdown] = {}
    for run in runs:
        for evaluator, metrics in run.results.items():
            for name, value in metrics.items():
                key, _, rest = name.partition("/")
                group, _, metric = rest.rpartition("/")
                if group and math.isfinite(value):
                    rows = by_key.setdefault(key, Breakdown(key, {})).metrics.setdefault(f"{evaluator} {metric}", {})
                    rows.setdefault(group, {})[run.number] = value
    return [found for found in by_key.values() if len({g for rows in found.metrics.values() for g in rows}) > 1]


@dataclass(frozen=True)
class Significance:
    """A metric of every run with its interval over images.

    Attributes:
        metric: ``EVALUATOR METRIC``.
        cells: per run the value with its interval; for all but the first run also the difference and p.
    """

    metric: str
    cells: tuple[tuple[str, str, str], ...]


def significance(runs: Sequence[Judged], data_set: str, draws: int) -> list[Significance]:
    """Bootstrap over images: intervals, and paired comparison with the first run; nothing without draws."""
    if not draws:
        return []
    # Numbers as names, for they are unique.
    rescored = [Rescored(str(r.number), r.run.predictions[data_set], r.detections, r.results) for r in runs]
    found = resample(rescored, data_set, draws=draws, score_threshold=score_threshold(runs[0].run))
    rows = []
    for metric in found.intervals[rescored[0].name]:
        cells = []
        for run in rescored:
            interval = found.intervals[run.name][metric]
            value = f"{number(interval.value)} ({number(interval.low)} to {number(interval.high)})"
            if run.name in found.comparisons:
                comparison = found.comparisons[run.name][metric]
                cells.append((value, _signed_interval(comparison.difference), f"{comparison.p_value:.3f}"))
            else:
                cells.append((value, "", ""))
        rows.append(Significance(metric.replace("/", " "), tuple(cells)))
    return rows


def _signed(value: float) -> str:
    return f"{value:+.2f}".replace("-", "\u2212") if abs(value) >= 0.005 else "0.00"


def _signed_interval(interval: Interval) -> str:
    value, low, high = (_signed(v) for v in (interval.value, interval.low, interval.high))
    return f"{value} ({low} to {high})"


def setting_differences(runs: Sequence[Run]) -> tuple[list[tuple[str, tuple[str, ...]]], list[str]]:
    """Compare the configurations of the runs that have one.

    Returns:
        Keys with different values, with each run's value; and the keys that only some of the runs have, as with
        different versions.
    """
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
