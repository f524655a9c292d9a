"""Judging saved predictions again, without the model: all metrics, intervals over images, comparison of runs."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
from detectron2.config import CfgNode
from tqdm import tqdm

from ..errors import ConfigError, DatasetError
from .average_precision import Verdicts
from .bootstrap import Comparison, Interval, compare_metric, metric_interval, resampled_metrics
from .build import EVALUATOR_REGISTRY, check_evaluators
from .collection import DetectionCollector, add_predictions
from .detection_probability import OperatingCurve, centre_verdicts, operating_curve
from .error_analysis import ErrorAnalysis, analyse_errors
from .ground_truth import GroundTruth
from .mask_evaluation import MaskEvaluator, MaskTable, compare_masks, mask_intervals
from .masks_and_boxes import MASK_THRESHOLD, mask_to_boxes
from .matching import DetectionTable
from .predictions import PREDICTIONS_FILE, Predictions, folder_content, read_any_predictions
from .results import format_number, format_range, format_results, format_runs, format_table
from .table_evaluation import DetectionProbabilityEvaluator, TableEvaluator

logger = logging.getLogger(__name__)

# What numbers depend on, beside the predictions: runs that are compared are judged by the same values.
PROTOCOL_KEYS = (
    "TEST.SCORE_THRESHOLD",
    "TEST.DETECTIONS_PER_IMAGE",
    "TEST.VOC_IOU_THRESHOLDS",
    "TEST.CENTRE_DISTANCES",
)


@dataclass(frozen=True)
class Rescored:
    """Saved predictions, judged again.

    Attributes:
        predictions: as they were read.
        truth: of the data set.
        results: evaluator -> metric -> value.
        masks: counts of masks, where masks were judged.
        score_thresh: of Pd, Fa and masks.
    """

    name: str
    predictions: Predictions
    truth: GroundTruth
    detections: DetectionTable
    results: Mapping[str, Mapping[str, float]]
    masks: MaskTable | None = None
    score_thresh: float = 0.5

    @property
    def notes(self) -> list[str]:
        """What a reader of the numbers must know of the predictions."""
        notes = []
        if self.predictions.masks:
            notes.append("boxes are the bounds of its masks' components above 0.5, scored by their highest probability")
        elif self.masks is not None:
            notes.append("masks are made from its boxes: what stands out by a tenth of the peak")
        return [*notes, *([self.predictions.coverage] if self.predictions.coverage else [])]

    @cached_property
    def curve(self) -> OperatingCurve:
        """Pd, false alarms and F1 at every score threshold, centres within 3 pixels."""
        return operating_curve(self.detections, self.truth.targets, self.truth.pixels)

    @cached_property
    def verdicts(self) -> Verdicts:
        """What became of each detection by the distance of centres; a cut at any score changes none above it."""
        return centre_verdicts(self.detections, self.truth.targets)

    @property
    def threshold(self) -> float:
        """The score threshold of the best F1; 0, which keeps all, where nothing was found at any."""
        f1, score = self.curve.best_f1()
        return score if f1 else 0.0

    @cached_property
    def errors(self) -> ErrorAnalysis:
        """Classes of false alarms and misses, counted from ``threshold`` on."""
        return analyse_errors(self.detections, self.truth, threshold=self.threshold)


def find_predictions(path: str | PathLike, dataset_name: str) -> Path:
    """Return the predictions that a path stands for: itself, or the file of a data set in a run's folder.

    Raises:
        DatasetError: for what is not there, a run's folder without such a file, or an empty folder.
    """
    path = Path(path)
    if not path.exists():
        fix = "give the OUTPUT_DIR of a run, or a file or folder of predictions"
        raise DatasetError(path, "predictions", "no such file or folder", fix)
    if not path.is_dir():
        return path
    folders = (path / "inference" / dataset_name, path / dataset_name, path)
    for folder in folders:
        if (folder / PREDICTIONS_FILE).is_file():
            return folder / PREDICTIONS_FILE
    for folder in folders:
        if not (folder / "config.yaml").is_file() and folder_content(folder)[0]:
            return folder
    raise DatasetError(
        path,
        "run folder",
        f"holds no inference/{dataset_name}/{PREDICTIONS_FILE}, nor YOLO text files, VOC XML files or masks",
        "give the OUTPUT_DIR of a run that was evaluated on this data set, or the predictions themselves",
    )


def find_run_config(path: str | PathLike) -> Path | None:
    """The ``config.yaml`` of the run that a path stands for, as in ``find_predictions``; ``None`` without one."""
    path = Path(path).resolve()
    is_saved = path.name == PREDICTIONS_FILE and path.parent.parent.name.startswith("inference")
    folder = path.parents[2] if is_saved else path.parent if path.name.startswith("inference") else path
    return next((file for file in [folder / "config.yaml"] if file.is_file()), None)


def protocol_of(cfg: CfgNode) -> dict[str, Any]:
    """The values of ``PROTOCOL_KEYS`` in a configuration."""
    return {key: getattr(cfg.TEST, key.removeprefix("TEST.")) for key in PROTOCOL_KEYS}


def protocol_differences(used: Mapping[str, Any], own: Mapping[str, Any]) -> str:
    """How a run is judged differently from its own configuration, for people; empty where it is not."""

    def plain(value: Any) -> Any:
        return tuple(value) if isinstance(value, list) else value

    changed = [key for key in own if key in used and plain(used[key]) != plain(own[key])]
    return ", ".join(f"{key} {used[key]} in place of its own {own[key]}" for key in changed)


def saved_evaluators(cfg: CfgNode, dataset_name: str) -> list[TableEvaluator | MaskEvaluator]:
    """The evaluators of a configuration, for saved boxes and masks.

    Raises:
        ConfigError: for an evaluator that is unknown or needs a model.
    """
    check_evaluators(cfg.TEST.EVALUATORS)
    evaluators = [EVALUATOR_REGISTRY.get(name)(cfg, dataset_name, None) for name in cfg.TEST.EVALUATORS]
    refused = [
        key for key, e in zip(cfg.TEST.EVALUATORS, evaluators) if not isinstance(e, (TableEvaluator, MaskEvaluator))
    ]
    if refused:
        raise ConfigError(f"TEST.EVALUATORS: {', '.join(refused)} cannot judge saved predictions; leave it out")
    return evaluators


def score_predictions(
    name: str,
    predictions: Predictions,
    truth: GroundTruth,
    evaluators: Iterable[TableEvaluator | MaskEvaluator],
    *,
    score_thresh: float | None = None,
) -> Rescored:
    """Judge predictions on a data set; evaluators of the same name add to one result.

    Masks become boxes for the evaluators of boxes, and boxes masks for those of masks (``masks_and_boxes``).
    ``score_thresh`` is of Pd and Fa where they are resampled; by default that of the evaluators, else 0.5.

    Raises:
        DatasetError: masks of a data set with several classes.
        ValueError: for predictions that do not belong to the data set.
    """
    evaluators = list(evaluators)
    collector = DetectionCollector(truth, distributed=False)
    if predictions.masks:
        _add_masks(predictions, truth, [collector, *evaluators])
    else:
        add_predictions([collector, *evaluators], predictions.boxes)
    detections = collector.detections()
    if detections is None:
        raise RuntimeError("saved predictions are judged by the main process alone")
    results: dict[str, dict[str, float]] = {}
    masks = None
    for evaluator in evaluators:
        for key, metrics in (evaluator.evaluate() or {}).items():
            results.setdefault(key, {}).update(metrics)
        if isinstance(evaluator, MaskEvaluator):
            masks = evaluator.table()
    if score_thresh is None:
        own = (e.score_thresh for e in evaluators if isinstance(e, DetectionProbabilityEvaluator))
        score_thresh = next(own, 0.5)
    return Rescored(name, predictions, truth, detections, results, masks, score_thresh)


def _add_masks(
    predictions: Predictions, truth: GroundTruth, evaluators: Sequence[DetectionCollector | MaskEvaluator]
) -> None:
    if len(truth.class_names) > 1:
        problem = f"have no class, the data set has {len(truth.class_names)}: {', '.join(truth.class_names)}"
        fix = "give one class's predictions as boxes, or a data set of one class"
        raise DatasetError(predictions.source, "masks", problem, fix)
    size = {image_id: (files.height, files.width) for image_id, files in zip(truth.image_ids, truth.files)}
    highest = 0.0
    for image_id in tqdm(truth.image_ids, desc="masks", leave=False):
        path, shape = predictions.masks.get(image_id), size[image_id]
        probability = predictions.read_mask(path, shape) if path else np.zeros(shape, np.uint8)
        highest = max(highest, float(probability.max(initial=0)) / (255 if probability.dtype == np.uint8 else 1))
        boxes, scores = mask_to_boxes(probability)
        for evaluator in evaluators:
            if isinstance(evaluator, MaskEvaluator):
                evaluator.add_map(image_id, probability)
            else:
                evaluator.add(image_id, boxes, scores, np.zeros(len(boxes), int))
    if highest <= MASK_THRESHOLD:
        text = "%s: no pixel of any mask is above %g, the highest is %.3g; are they masks of another kind?"
        logger.warning(text, predictions.source, MASK_THRESHOLD, highest)


def rescore(
    paths: Sequence[str | PathLike],
    dataset_name: str,
    cfg: CfgNode,
    *,
    aliases: Mapping[str, str] | None = None,
    score_thresh: Sequence[float] = (),
    names: Sequence[str] = (),
) -> list[Rescored]:
    """Judge saved predictions by the evaluators of a configuration.

    Args:
        paths: run folders, or predictions in any format of ``predictions.read_any_predictions``.
        cfg: its ``TEST.EVALUATORS``, ``TEST.GROUP_BY`` and the evaluators' own keys count.
        aliases: a tool's class name -> the data set's.
        score_thresh: one for each path, in place of the configuration's.
        names: one for each path, in place of those of their folders or files.

    Raises:
        ConfigError: for an evaluator that is unknown or needs a model, or another number of thresholds than of paths.
        DatasetError: for a file that cannot be read.
        ValueError: for predictions that do not belong to the data set.
    """
    if score_thresh and len(score_thresh) != len(paths):
        raise ConfigError(f"{len(score_thresh)} score thresholds for {len(paths)} runs; give one for each, or none")
    check_evaluators(cfg.TEST.EVALUATORS)
    files = [find_predictions(path, dataset_name) for path in paths]
    truth = GroundTruth.from_dataset(dataset_name)
    runs = []
    names = names or unique_names([run_name(file, dataset_name) for file in files])
    for name, file, threshold in zip(names, files, score_thresh or [cfg.TEST.SCORE_THRESHOLD] * len(files)):
        predictions = read_any_predictions(file, truth, aliases=aliases)
        if predictions.surplus:
            logger.warning("%s: %s", name, predictions.coverage)
        own = cfg.clone()
        own.TEST.SCORE_THRESHOLD = threshold
        evaluators = saved_evaluators(own, dataset_name)
        runs.append(score_predictions(name, predictions, truth, evaluators, score_thresh=threshold))
    return runs


def run_name(file: Path, dataset_name: str) -> str:
    """A short name of what ``find_predictions`` found: that of the run's folder, else of the file or folder."""
    file = file.resolve()
    if file.name != PREDICTIONS_FILE and not file.is_dir():
        return file.stem
    folder = file if file.is_dir() else file.parent
    above = folder.parent.name
    if above == "inference" or (above.startswith("inference") and folder.name == dataset_name):  # as inference_TTA
        return folder.parent.parent.name + above.removeprefix("inference")
    return folder.parent.name if folder.name == dataset_name else folder.name


def unique_names(names: Sequence[str]) -> list[str]:
    """Number the names that occur more than once."""
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
    runs: Sequence[Rescored], *, draws: int = 1000, compare: bool = True, max_detections: int = 100, seed: int = 0
) -> Resampled:
    """Bootstrap over images (``bootstrap``) of runs on the same data set, of which the first is the baseline.

    ``compare`` says whether the others are compared with it; ``max_detections`` per image and class is for COCO's
    metrics, ``seed`` of the draws. Pd and Fa are those at each run's ``score_thresh``.
    """
    truth = runs[0].truth
    intervals: dict[str, dict[str, Interval]] = {run.name: {} for run in runs}
    comparisons: dict[str, dict[str, Comparison]] = {run.name: {} for run in runs[1:]} if compare else {}
    metrics = [resampled_metrics(run.score_thresh, max_detections) for run in runs]
    for name, metric in metrics[0].items():
        judged = [
            own[name].outcomes(run.detections, truth.targets, truth.pixels, len(truth.class_names))
            for own, run in zip(metrics, runs)
        ]
        scale = 1e6 if name.endswith("/Fa") else 100.0
        for run, outcomes in zip(runs, judged):
            intervals[run.name][name] = _scaled(metric_interval(metric, outcomes, draws=draws, seed=seed), scale)
            if run.name in comparisons:
                found = compare_metric(metric, judged[0], outcomes, draws=draws, seed=seed)
                comparisons[run.name][name] = Comparison(_scaled(found.difference, scale), found.p_value)
    for run in runs:
        if run.masks is not None:
            intervals[run.name] |= mask_intervals(run.masks, draws=draws, seed=seed)
            if run.name in comparisons and runs[0].masks is not None:
                comparisons[run.name] |= compare_masks(runs[0].masks, run.masks, draws=draws, seed=seed)
    return Resampled(draws, intervals, comparisons)


def _scaled(interval: Interval, scale: float) -> Interval:
    return Interval(scale * interval.value, scale * interval.low, scale * interval.high)


def to_markdown(runs: Sequence[Rescored], resampled: Resampled | None = None) -> str:
    """Lay out everything as tables for people, in Markdown."""
    results = {run.name: run.results for run in runs}
    parts = [format_results(runs[0].results) if len(runs) == 1 else format_runs(results)]
    notes = [f"- {run.name}: {note}." for run in runs for note in run.notes]
    if len({run.score_thresh for run in runs}) > 1:
        notes += [f"- {run.name}: Pd, Fa and masks from score {run.score_thresh:g} on." for run in runs]
    if notes:
        parts.append("\n".join(notes))
    if resampled is None:
        return "\n\n".join(parts)
    rows = [
        [metric, run, format_number(metrics[metric].value), _range(metrics[metric])]
        for metric in dict.fromkeys(name for metrics in resampled.intervals.values() for name in metrics)
        for run, metrics in resampled.intervals.items()
        if metric in metrics
    ]
    parts.append(format_table(rows, ["metric", "run", "value", f"95 % interval ({resampled.draws} draws of images)"]))
    rows = [
        [
            metric,
            f"{run} - {runs[0].name}",
            format_number(metrics[metric].difference.value, signed=True),
            _range(metrics[metric].difference, signed=True),
            format_number(metrics[metric].p_value, decimals=4),
        ]
        for metric in dict.fromkeys(name for metrics in resampled.comparisons.values() for name in metrics)
        for run, metrics in resampled.comparisons.items()
        if metric in metrics
    ]
    if rows:
        parts.append(format_table(rows, ["metric", "runs", "difference", "95 % interval, paired", "p, permutation"]))
    return "\n\n".join(parts)


def errors_to_markdown(runs: Sequence[Rescored]) -> str:
    """What went wrong in each run (``error_analysis``), one table per run."""
    parts = []
    for run in runs:
        ap = format_number(run.errors.average_precision)
        title = f"{run.name}: AP50 {ap}, errors from score {run.threshold:.2f} on"
        parts.append(f"{title}\n\n{error_table(run)}")
    return "\n\n".join(parts)


def error_table(run: Rescored, *, most: int | None = None, decimals: int = 2) -> str:
    """The classes of errors of a run as Markdown, the ``most`` costly ones first."""
    rows = [
        [row.name, str(row.false_alarms), str(row.misses), format_number(row.ap_gain, signed=True, decimals=decimals)]
        for row in run.errors.rows[:most]
    ]
    return format_table(rows, ["error", "false alarms", "misses", "AP50 if mended"])


# What a matrix of models and data sets shows unless told otherwise.
MATRIX_METRICS = ("voc_exact/AP50_area", "centre/AP@3px", "pd_fa/F1", "pd_fa/Pd@FAPI1", "mask/IoU")


def matrix_to_markdown(
    results: Mapping[str, tuple[Sequence[Rescored], Resampled | None]], metrics: Sequence[str] = MATRIX_METRICS
) -> str:
    """Models by data sets (set -> its runs, and their intervals), a table for each ``EVALUATOR/METRIC`` of any run."""
    names = list(dict.fromkeys(run.name for runs, _ in results.values() for run in runs))
    parts = []
    for metric in metrics:
        rows = [[name, *(_matrix_cell(name, metric, *result) for result in results.values())] for name in names]
        if any(cell != "-" for row in rows for cell in row[1:]):
            parts.append(format_table(rows, [metric, *results]))
    return "\n\n".join(parts)


def _matrix_cell(name: str, metric: str, runs: Sequence[Rescored], resampled: Resampled | None) -> str:
    evaluator, _, key = metric.partition("/")
    values = [run.results.get(evaluator, {}).get(key, math.nan) for run in runs if run.name == name]
    if not values:
        return "-"
    intervals = {} if resampled is None else resampled.intervals.get(name, {})
    return format_number(values[0]) + (f" ({_range(intervals[metric])})" if metric in intervals else "")


def _range(interval: Interval, *, signed: bool = False) -> str:
    return format_range(interval.low, interval.high, signed=signed)


def to_json(dataset_name: str, runs: Sequence[Rescored], resampled: Resampled | None = None) -> dict[str, Any]:
    """The same as ``to_markdown`` for programs: JSON's types only, ``null`` for nothing to measure, ``"inf"``."""
    document: dict[str, Any] = {
        "dataset": dataset_name,
        "runs": {
            run.name: {
                "file": str(run.predictions.source),
                "format": run.predictions.format,
                "missing_images": run.predictions.missing,
                "surplus_images": len(run.predictions.surplus),
                "score_threshold": run.score_thresh,
                "results": run.results,
            }
            for run in runs
        },
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
