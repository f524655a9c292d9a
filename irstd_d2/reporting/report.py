"""One static HTML file that shows one or several runs, without a network and without scripts."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from itertools import pairwise
from os import PathLike
from pathlib import Path

import numpy as np
from detectron2.data import DatasetCatalog, MetadataCatalog
from jinja2 import Environment

from ..evaluation.average_precision import EXACT, PrecisionRecall, precision_recall, voc_verdicts
from ..evaluation.average_precision import PAPER as PAPER_PROTOCOL
from ..evaluation.bootstrap import average_precision_interval, compare_runs
from ..evaluation.detection_probability import match_by_centre, operating_curve
from ..evaluation.ground_truth import GroundTruth
from ..evaluation.matching import DetectionTable
from ..evaluation.table_evaluation import (
    DetectionProbabilityEvaluator,
    TableEvaluator,
    VOCDetectionEvaluator,
    select_images,
)
from . import charts
from .gallery import Case, worst_cases
from .run import Run, load_detections, load_run

logger = logging.getLogger(__name__)

GROUP_KEYS = ("platform", "band", "resolution")


@dataclass(frozen=True)
class Section:
    """What the report says of one data set; the template reads the fields by name."""

    data_set: str
    num_images: int
    num_targets: int
    runs: tuple[str, ...]
    metrics: tuple[tuple[str, tuple[str, ...]], ...]
    comparisons: tuple[str, ...]
    charts: tuple[str, ...]
    galleries: tuple[tuple[str, list[Case]], ...]


def write_report(
    folders: Sequence[str | PathLike],
    output: str | PathLike,
    *,
    title: str = "Infrared small-target detection",
    gallery: int = 12,
    draws: int = 1000,
) -> Path:
    """Write one self-contained HTML file about one or several runs.

    Args:
        folders: run folders, as ``tools/train_net.py`` leaves them; the first is the one others are compared with.
        output: file to write; replaced at once when complete.
        title: of the page.
        gallery: pictures of each kind per run and data set; 0 for none.
        draws: bootstrap draws.

    Returns:
        The file written.

    Raises:
        DatasetError: for a folder that is no run.
        KeyError: for a data set that is not registered; the message of detectron2's catalog lists the known ones.
    """
    runs = _with_unique_names([load_run(folder) for folder in folders])
    names = dict.fromkeys(name for run in runs for name in run.predictions)
    sections = [
        _section(name, [run for run in runs if name in run.predictions], gallery=gallery, draws=draws) for name in names
    ]
    template = resources.files(__package__).joinpath("report.html.j2").read_text(encoding="utf-8")
    text = (
        Environment(autoescape=True)
        .from_string(template)
        .render(title=title, runs=runs, sections=sections, history_charts=_history_charts(runs))
    )
    output = Path(output)
    output.parent.mkdir(parents=True, exist_ok=True)
    partial = output.with_name(f".{output.name}.partial")
    partial.write_text(text, encoding="utf-8")
    partial.replace(output)
    return output


def _with_unique_names(runs: Sequence[Run]) -> list[Run]:
    names = [run.name for run in runs]
    return [
        run if names.count(run.name) == 1 else Run(**{**vars(run), "name": f"{run.name} ({i})"})
        for i, run in enumerate(runs, 1)
    ]


def _section(data_set: str, runs: Sequence[Run], *, gallery: int, draws: int) -> Section:
    dicts = DatasetCatalog.get(data_set)
    truth = GroundTruth.from_dicts(dicts, MetadataCatalog.get(data_set).thing_classes)
    tables = {run.name: load_detections(run, data_set, truth) for run in runs}
    logger.info("%s: %d runs on %d images", data_set, len(runs), len(dicts))
    return Section(
        data_set=data_set,
        num_images=len(dicts),
        num_targets=int((~truth.targets.ignored).sum()),
        runs=tuple(tables),
        metrics=tuple(_metric_rows(truth, tables, draws)),
        comparisons=tuple(_comparisons(truth, tables, draws)),
        charts=tuple(_charts(truth, tables)),
        galleries=tuple(
            (name, worst_cases(dicts, truth, table, count=gallery)) for name, table in tables.items() if gallery
        ),
    )


def _evaluators(truth: GroundTruth) -> list[TableEvaluator]:
    return [
        VOCDetectionEvaluator(truth, iou_thresholds=(0.25, 0.5, 0.75), protocol=EXACT, distributed=False),
        VOCDetectionEvaluator(truth, iou_thresholds=(0.5,), protocol=PAPER_PROTOCOL, distributed=False),
        DetectionProbabilityEvaluator(truth, distributed=False),
    ]


def _metric_rows(
    truth: GroundTruth, tables: Mapping[str, DetectionTable], draws: int
) -> Iterable[tuple[str, tuple[str, ...]]]:
    for evaluator in _evaluators(truth):
        columns = [evaluator.compute(table, truth.targets, truth.pixels) for table in tables.values()]
        for metric in columns[0]:
            yield f"{evaluator.name} {metric}", tuple(_number(column[metric]) for column in columns)
    if draws and len(truth.class_names) == 1 and len(truth.image_ids):
        cells = []
        for table in tables.values():
            interval = average_precision_interval(table, truth.targets, len(truth.image_ids), draws=draws)
            cells.append(f"{100 * interval.low:.1f} to {100 * interval.high:.1f}")
        yield "voc_exact AP50_area, 95 % interval over images", tuple(cells)


def _comparisons(truth: GroundTruth, tables: Mapping[str, DetectionTable], draws: int) -> Iterable[str]:
    if not draws or len(truth.class_names) != 1:
        return
    (first, base), *others = tables.items()
    for name, table in others:
        result = compare_runs(base, table, truth.targets, len(truth.image_ids), draws=draws)
        d = result.difference
        yield (
            f"{name} against {first}: {100 * d.value:+.1f} AP50 (95 % interval {100 * d.low:+.1f} to "
            f"{100 * d.high:+.1f}, paired permutation test p = {result.p_value:.3f})"
        )


def _charts(truth: GroundTruth, tables: Mapping[str, DetectionTable]) -> Iterable[str]:
    curves = {name: _curve(table, truth) for name, table in tables.items()}
    yield charts.precision_recall_chart(curves, "Precision and recall, IoU 0.5, exact boxes")
    yield charts.detection_probability_chart(
        {name: operating_curve(table, truth.targets, truth.pixels) for name, table in tables.items()}
    )
    evaluator = VOCDetectionEvaluator(truth, distributed=False)
    for key in GROUP_KEYS:
        groups = truth.image_groups(key)
        if len(groups) < 2:
            continue
        bars = {
            f"{group}\n{int(images.sum())} images": {
                name: evaluator.compute(*select_images(table, truth.targets, images), truth.pixels[images])["AP50_area"]
                for name, table in tables.items()
            }
            for group, images in groups.items()
        }
        yield charts.group_chart(bars, f"AP50 by {key}, exact boxes", "AP50")
    yield charts.group_chart(_recall_by_size(truth, tables), "Recall by target size, centres within 3 pixels", "recall")


def _curve(table: DetectionTable, truth: GroundTruth) -> PrecisionRecall:
    verdicts = voc_verdicts(table, truth.targets)
    return precision_recall(verdicts, table.scores, int((~truth.targets.ignored).sum()))


def _recall_by_size(truth: GroundTruth, tables: Mapping[str, DetectionTable]) -> dict[str, dict[str, float]]:
    area = (truth.targets.boxes[:, 2:] - truth.targets.boxes[:, :2]).prod(1)
    rows: dict[str, dict[str, float]] = {}
    edges = (0, 9, 25, 81, 1024, math.inf)
    for name, table in tables.items():
        matched, _ = match_by_centre(table, truth.targets)
        found = np.zeros(len(area), bool)
        found[matched[matched >= 0]] = True
        for low, high in pairwise(edges):
            inside = (area >= low) & (area < high) & ~truth.targets.ignored
            if inside.any():
                label = f"{low} to {high}" if high < math.inf else f"from {low}"
                rows.setdefault(f"{label} px\u00b2\n{int(inside.sum())} targets", {})[name] = 100 * found[inside].mean()
    return rows


def _history_charts(runs: Sequence[Run]) -> list[str]:
    keys = dict.fromkeys(key for run in runs for row in run.history for key in row)
    wanted = [key for key in keys if "loss" in key and "val" not in key] + [key for key in keys if key == "lr"]
    wanted += [key for key in keys if key.endswith("AP50") and "/" in key and key.count("/") <= 2]
    pictures = []
    for key in wanted:
        series = {run.name: run.series(key) for run in runs}
        series = {name: points for name, points in series.items() if points[0]}
        if series:
            pictures.append(charts.series_chart(series, key, key))
    return pictures


def _number(value: float) -> str:
    if math.isnan(value):
        return "–"
    return "∞" if math.isinf(value) else f"{value:.2f}"
