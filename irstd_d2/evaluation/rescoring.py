"""Judging saved predictions again, without the model: all metrics, intervals over images, comparison of runs."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

from detectron2.config import CfgNode
from tabulate import tabulate

from ..errors import ConfigError, DatasetError
from .bootstrap import Comparison, Interval, compare_metric, metric_interval, resampled_metrics
from .build import EVALUATOR_REGISTRY, check_evaluators
from .collection import DetectionCollector, add_predictions, read_predictions
from .ground_truth import GroundTruth
from .matching import DetectionTable
from .results import format_results, format_runs
from .table_evaluation import TableEvaluator

PREDICTIONS = "coco_instances_results.json"


@dataclass(frozen=True)
class Rescored:
    """A run judged again.

    Attributes:
        name: for the tables.
        file: where its predictions lie.
        detections: all of them.
        results: evaluator -> metric -> value.
    """

    name: str
    file: Path
    detections: DetectionTable
    results: Mapping[str, Mapping[str, float]]


def find_predictions(path: str | PathLike, dataset_name: str) -> Path:
    """Return the predictions file that a path stands for: itself, or the one of a data set in a run's folder.

    Raises:
        DatasetError: for a folder without such a file.
    """
    path = Path(path)
    if not path.is_dir():
        return path
    for candidate in (path / "inference" / dataset_name, path / dataset_name, path):
        if (candidate / PREDICTIONS).is_file():
            return candidate / PREDICTIONS
    raise DatasetError(
        path,
        "run folder",
        f"holds no inference/{dataset_name}/{PREDICTIONS}",
        "give the OUTPUT_DIR of a run that was evaluated on this data set, or the file itself",
    )


def rescore(paths: Sequence[str | PathLike], dataset_name: str, cfg: CfgNode) -> list[Rescored]:
    """Judge saved predictions by the evaluators of a configuration.

    Args:
        paths: predictions files or run folders.
        dataset_name: registered name.
        cfg: its ``TEST.EVALUATORS``, ``TEST.GROUP_BY`` and the evaluators' own keys count.

    Raises:
        ConfigError: for an evaluator that is unknown or needs more than boxes.
        DatasetError: for a file that cannot be read.
        ValueError: for predictions that do not belong to the data set.
    """
    check_evaluators(cfg.TEST.EVALUATORS)
    files = [find_predictions(path, dataset_name) for path in paths]
    runs = []
    for name, file in zip(_names(files), files):
        predictions = read_predictions(file, GroundTruth.category_ids(dataset_name))
        evaluators = [EVALUATOR_REGISTRY.get(key)(cfg, dataset_name, None) for key in cfg.TEST.EVALUATORS]
        refused = [key for key, e in zip(cfg.TEST.EVALUATORS, evaluators) if not isinstance(e, TableEvaluator)]
        if refused:
            raise ConfigError(f"TEST.EVALUATORS: {', '.join(refused)} cannot judge saved boxes; leave it out")
        collector = DetectionCollector(GroundTruth.from_dataset(dataset_name), distributed=False)
        add_predictions([collector, *evaluators], predictions)
        detections = collector.detections()
        if detections is None:
            raise RuntimeError("saved predictions are judged by the main process alone")
        results: dict[str, Mapping[str, float]] = {}
        for evaluator in evaluators:
            results.update(evaluator.evaluate() or {})
        runs.append(Rescored(name, file, detections, results))
    return runs


def _names(files: Sequence[Path]) -> list[str]:
    """A short name per file: that of the run's folder, else of the file; numbered where it is not unique."""
    names = []
    for file in files:
        folder = file.resolve().parent
        if file.name != PREDICTIONS:
            names.append(file.stem)
        else:
            names.append(folder.parent.parent.name if folder.parent.name == "inference" else folder.name)
    return [name if names.count(name) == 1 else f"{name} ({i})" for i, name in enumerate(names, 1)]


@dataclass(frozen=True)
class Resampled:
    """Intervals of every run, and the differences of all others from the first.

    Attributes:
        draws: number of resamplings.
        intervals: run -> metric -> interval; in percent, Fa per million pixels.
        comparisons: run -> metric -> comparison with the first run, in the same units.
    """

    draws: int
    intervals: Mapping[str, Mapping[str, Interval]]
    comparisons: Mapping[str, Mapping[str, Comparison]]


def resample(
    runs: Sequence[Rescored],
    dataset_name: str,
    *,
    draws: int = 1000,
    compare: bool = True,
    score_threshold: float = 0.5,
    max_detections: int = 100,
    seed: int = 0,
) -> Resampled:
    """Bootstrap over images (``bootstrap``).

    Args:
        runs: on the same data set; the first is the baseline.
        dataset_name: registered name.
        draws: number of resamplings.
        compare: whether to compare the others with the first.
        score_threshold: for Pd and Fa.
        max_detections: per image and class, for COCO's metrics.
        seed: of the draws.
    """
    truth = GroundTruth.from_dataset(dataset_name)
    intervals: dict[str, dict[str, Interval]] = {run.name: {} for run in runs}
    comparisons: dict[str, dict[str, Comparison]] = {run.name: {} for run in runs[1:]} if compare else {}
    for name, metric in resampled_metrics(score_threshold, max_detections).items():
        judged = [metric.judge(run.detections, truth.targets, truth.pixels, len(truth.class_names)) for run in runs]
        scale = 1e6 if name.endswith("/Fa") else 100.0
        for run, outcomes in zip(runs, judged):
            intervals[run.name][name] = _scaled(metric_interval(metric, outcomes, draws=draws, seed=seed), scale)
            if run.name in comparisons:
                found = compare_metric(metric, judged[0], outcomes, draws=draws, seed=seed)
                comparisons[run.name][name] = Comparison(_scaled(found.difference, scale), found.p_value)
    return Resampled(draws, intervals, comparisons)


def _scaled(interval: Interval, scale: float) -> Interval:
    return Interval(scale * interval.value, scale * interval.low, scale * interval.high)


def to_markdown(runs: Sequence[Rescored], resampled: Resampled | None = None) -> str:
    """Lay out everything as tables for people, in Markdown."""
    results = {run.name: run.results for run in runs}
    parts = [format_results(runs[0].results) if len(runs) == 1 else format_runs(results)]
    if resampled is None:
        return parts[0]
    rows = [
        [metric, run, _number(metrics[metric].value), _range(metrics[metric])]
        for metric in resampled_metrics()
        for run, metrics in resampled.intervals.items()
    ]
    parts.append(_table(rows, ["metric", "run", "value", f"95 % interval ({resampled.draws} draws of images)"]))
    rows = [
        [
            metric,
            f"{run} - {runs[0].name}",
            _number(metrics[metric].difference.value, "+.2f"),
            _range(metrics[metric].difference, "+.2f"),
            _number(metrics[metric].p_value, ".4f"),
        ]
        for metric in resampled_metrics()
        for run, metrics in resampled.comparisons.items()
    ]
    if rows:
        parts.append(_table(rows, ["metric", "runs", "difference", "95 % interval, paired", "p, permutation"]))
    return "\n\n".join(parts)


def _number(value: float, form: str = ".2f") -> str:
    return "-" if math.isnan(value) else f"{value:{form}}"


def _range(interval: Interval, form: str = ".2f") -> str:
    return "-" if math.isnan(interval.low) else f"{interval.low:{form}} to {interval.high:{form}}"


def _table(rows: Sequence[Sequence[str]], headers: Sequence[str]) -> str:
    return tabulate(rows, headers=headers, tablefmt="pipe", disable_numparse=True)


def to_json(dataset_name: str, runs: Sequence[Rescored], resampled: Resampled | None = None) -> dict[str, Any]:
    """The same as ``to_markdown`` for programs: JSON's types only, ``null`` for nothing to measure, ``"inf"``."""
    document: dict[str, Any] = {
        "dataset": dataset_name,
        "runs": {run.name: {"file": str(run.file), "results": run.results} for run in runs},
    }
    if resampled is not None:
        document["draws"] = resampled.draws
        for name, metrics in resampled.intervals.items():
            document["runs"][name]["intervals"] = {metric: vars(interval) for metric, interval in metrics.items()}
        document["comparisons"] = {
            name: {metric: {**vars(c.difference), "p_value": c.p_value} for metric, c in metrics.items()}
            for name, metrics in resampled.comparisons.items()
        }
    return _plain(document)


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, float) and not math.isfinite(value):
        return None if math.isnan(value) else str(value)
    return value
