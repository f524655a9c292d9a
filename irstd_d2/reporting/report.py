"""One static HTML file that shows one or several runs, without a network and without scripts."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from importlib import resources
from os import PathLike
from pathlib import Path
from typing import Any

from detectron2.data import DatasetCatalog
from jinja2 import Environment
from markupsafe import Markup, escape

from ..data.datasets import register_own_sets
from ..errors import ConfigError, DatasetError
from ..evaluation.average_precision import precision_recall, voc_verdicts
from ..evaluation.ground_truth import GroundTruth
from ..evaluation.rescoring import unique_names
from ..evaluation.results import format_number
from ..files import write_atomically
from . import charts
from .charts import Chart
from .examples import make_example, spread_over_targets
from .features import BACKBONE, Lens, Tap
from .gallery import worst_cases
from .metrics import (
    GROUP_KEYS,
    RunOnSet,
    group_tables,
    image_rows,
    interval_rows,
    mask_evaluators,
    metric_tables,
    predictions_notes,
    protocol_config,
    protocol_note,
    resample_runs,
    rescore_run,
    setting_differences,
)
from .run import Run, load_run

logger = logging.getLogger(__name__)

# Rows of the table of images.
IMAGES = 100

# Metrics of a breakdown that get a chart, with its title.
_CHARTED = {"voc_exact AP50_area": "AP50 by {}, percent (exact boxes)", "pd_fa F1": "Best F1 by {}, percent"}


@dataclass(frozen=True)
class Options:
    """How much a report shows.

    Attributes:
        gallery: pictures of each kind per run and data set; 0 for none.
        examples: images that show all runs side by side; 0 for none.
        features: images on which the models are run, for feature maps and sky masks; 0 for none.
        draws: bootstrap draws; 0 for no intervals.
        taps: feature maps beside the backbone's.
        baseline: name of the run that others are compared with, where it was evaluated; by default a set's first.
        figures: folder for all charts as PDF; ``None`` for none.
        data_sets: those to show; all where none is named.
    """

    gallery: int = 12
    examples: int = 4
    features: int = 0
    draws: int = 1000
    taps: tuple[Tap, ...] = ()
    baseline: str = ""
    figures: Path | None = None
    data_sets: tuple[str, ...] = ()


def write_report(
    folders: Sequence[str | PathLike],
    output: str | PathLike,
    *,
    title: str = "Infrared small-target detection",
    options: Options | None = None,
) -> Path:
    """Write one self-contained HTML file about one or several runs.

    What is missing or broken in a run becomes a note on the page.

    Args:
        folders: run folders, as ``tools/train_net.py`` leaves them; the first is the one others are compared with.
        output: file to write; replaced at once when complete.
        options: how much to show.

    Returns:
        The file written.

    Raises:
        DatasetError: for a run folder that does not exist.
        OSError: the file cannot be written.
    """
    options = options or Options()
    runs = [load_run(folder) for folder in folders]
    runs = [replace(run, name=name) for run, name in zip(runs, unique_names([run.name for run in runs]))]
    numbered = dict(enumerate(runs))
    lenses, notes = _lenses(numbered, options)
    notes = [(run.name, note) for run in runs for note in (*run.notes, *_register_own_sets(run))] + notes
    sections = [
        _section(name, _baseline_first(numbered, name, options.baseline), lenses, options)
        for name in dict.fromkeys(name for run in runs for name in run.predictions)
        if name in (options.data_sets or [name])
    ]
    history = _history_charts(runs)
    if options.figures is not None:
        names = {i: run.name for i, run in numbered.items()}
        for section in sections:
            shown = [chart for part in ("charts", "group_charts", "error_charts") for chart in section.get(part, ())]
            _write_figures(options.figures / section["data_set"], shown, names)
        _write_figures(options.figures / "training", history, names)
    different, partial = setting_differences(runs)
    template = resources.files(__package__).joinpath("report.html.j2").read_text(encoding="utf-8")
    environment = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    environment.filters["number"] = format_number
    environment.filters["breakable"] = _breakable
    environment.filters["zip"] = zip
    text = environment.from_string(template).render(
        title=title,
        runs=runs,
        facts=[_facts(run) for run in runs],
        notes=notes,
        sections=sections,
        swatch=charts.swatch,
        features=options.features,
        history_charts=history,
        setting_differences=different,
        partial_settings=partial,
    )
    output = Path(output)
    write_atomically(output, text.encode("utf-8", errors="replace"))
    return output


def _baseline_first(runs: Mapping[int, Run], data_set: str, baseline: str) -> dict[int, Run]:
    """The runs on a data set, the one that the others are compared with first."""
    evaluated = {i: run for i, run in runs.items() if data_set in run.predictions}
    return dict(sorted(evaluated.items(), key=lambda item: item[1].name != baseline))


def _write_figures(folder: Path, shown: Sequence[Chart], names: Mapping[int, str]) -> None:
    for number, chart in enumerate(shown, 1):
        words = re.sub(r"[^a-z0-9]+", "_", chart.title.lower()).strip("_")
        charts.write_pdf(chart, folder / f"{number:02d}_{words[:60]}.pdf", names)


def _breakable(name: str) -> Markup:
    """A name that may be broken after underscores and hyphens, so that it does not widen its column."""
    return Markup(re.sub("([_-])", r"\1<wbr>", str(escape(name))))  # noqa: S704  escaped before


def _register_own_sets(run: Run) -> list[str]:
    """Register the sets of the run's ``DATASETS.OWN``; return a note if that fails."""
    try:
        register_own_sets(run.setting("DATASETS.OWN", ()))
    except (ConfigError, TypeError) as error:
        return [f"Its own data sets are not registered: {error}."]
    return []


def _lenses(runs: Mapping[int, Run], options: Options) -> tuple[dict[int, Lens], list[tuple[str, str]]]:
    lenses, notes = {}, []
    for i, run in runs.items() if options.features else ():
        try:
            lenses[i] = Lens(run, (*options.taps, BACKBONE))
        except (OSError, KeyError, RuntimeError, ValueError) as error:
            reason = error.problem if isinstance(error, DatasetError) else error
            notes.append((run.name, f"No feature maps and sky masks: {reason}."))
    return lenses, notes


def _section(data_set: str, runs: Mapping[int, Run], lenses: Mapping[int, Lens], options: Options) -> dict[str, Any]:
    """What the report says of one data set, by the names that the template has for it."""
    try:
        dicts = DatasetCatalog.get(data_set)
    except (KeyError, OSError, ValueError) as error:
        # A KeyError is about the registered name and quotes its own message.
        reason = error.args[0] if isinstance(error, KeyError) and error.args else error
        notes = [f"The data set cannot be loaded, so nothing is evaluated: {reason}"]
        return {"data_set": data_set, "notes": notes, "runs": []}
    truth = GroundTruth.from_dataset(data_set)
    keys, notes = _group_keys(dicts)
    judged: list[RunOnSet] = []
    cfg = protocol_config(next(iter(runs.values())))
    masks, mask_notes = mask_evaluators(runs.values(), data_set, truth, cfg)
    notes += mask_notes
    for i, run in runs.items():
        try:
            judged.append(rescore_run(i, run, data_set, truth, cfg, group_by=keys, more_evaluators=masks))
            notes += [*protocol_note(run, cfg), *predictions_notes(judged[-1])]
        except (KeyError, OSError, ValueError) as error:
            notes.append(f"{run.name} is left out: {error}")
    text = f"{len(dicts)} images, {int((~truth.targets.ignored).sum())} targets"
    section = {"data_set": data_set, "text": text, "notes": notes, "runs": judged}
    logger.info("%s: %d runs on %d images", data_set, len(judged), len(dicts))
    if not judged:
        return section
    parts = group_tables(judged)
    resampled = resample_runs(judged, cfg, options.draws)
    chosen = spread_over_targets(truth, max(options.examples, options.features))
    return section | {
        "tables": metric_tables(judged, resampled),
        "intervals": interval_rows(judged, resampled),
        "charts": _curves(judged, truth),
        "group_tables": parts,
        "group_charts": [
            charts.group_chart(part[metric], heading.format(key))
            for key, part in parts.items()
            for metric, heading in _CHARTED.items()
            if metric in part
        ],
        "error_charts": _error_charts(judged),
        "images": image_rows(judged)[:IMAGES],
        "num_images": len(truth.image_ids),
        "examples": [
            make_example(index, dicts, truth, judged, lenses if i < options.features else {})
            for i, index in enumerate(chosen)
        ],
        "galleries": [
            worst_cases(run, dicts, truth, count=options.gallery) for run in (judged if options.gallery else ())
        ],
    }


def _error_charts(runs: Sequence[RunOnSet]) -> list[Chart]:
    """What mending each class of errors would give, the costliest of all runs first."""
    gains: dict[str, dict[int, float]] = {}
    for run in runs:
        for row in run.rescored.errors.rows:
            gains.setdefault(row.name, {})[run.number] = row.ap_gain
    ordered = dict(sorted(gains.items(), key=lambda item: -max(item[1].values())))
    return [charts.group_chart(ordered, "AP50 that mending each class of errors would add")] if ordered else []


def _group_keys(dicts: Sequence[dict[str, Any]]) -> tuple[list[str], list[str]]:
    """The keys that metrics can be broken down by, and a note on those that need files which are gone."""
    keys, notes = list(GROUP_KEYS), []
    for key, file in (("contrast", "file_name"), ("sky", "sem_seg_file_name")):
        files = [record[file] for record in dicts if record.get(file)]
        absent = [path for path in files if not Path(path).is_file()]
        if not files or absent:
            keys.remove(key)
        if absent:
            notes.append(f"Not broken down by {key}: {len(absent)} files are missing, such as {absent[0]}.")
    return keys, notes


def _curves(runs: Sequence[RunOnSet], truth: GroundTruth) -> list[Chart]:
    num_targets = int((~truth.targets.ignored).sum())
    precision = {
        run.number: precision_recall(
            voc_verdicts(run.rescored.detections, truth.targets), run.rescored.detections.scores, num_targets
        )
        for run in runs
    }
    operating = {run.number: run.rescored.curve for run in runs}
    scores = {}
    for run in runs:
        found, verdicts = run.rescored.detections.scores, run.rescored.verdicts
        scores[run.number] = found[verdicts.true], found[verdicts.false]
    pixels = {run.number: run.rescored.masks.curves() for run in runs if run.rescored.masks is not None}
    return [
        charts.precision_recall_chart(precision),
        *charts.operating_charts(operating),
        charts.score_chart(scores),
        *(charts.pixel_charts(pixels) if pixels else ()),
    ]


def _history_charts(runs: Sequence[Run]) -> list[Chart]:
    keys = dict.fromkeys(key for run in runs for row in run.history for key in row)
    losses = sorted((key for key in keys if "loss" in key), key=lambda key: (key != "total_loss", key))
    curves = losses + [key for key in keys if key == "lr"]
    metrics = [key for key in keys if key.endswith(("AP50", "AP50_area", "/F1", "/IoU")) and key.count("/") == 1]
    pictures = []
    for key in curves + metrics:
        series = {i: points for i, run in enumerate(runs) if (points := run.series(key))[0]}
        # One evaluation, at the end, is no curve.
        if series and (key in curves or max(len(x) for x, _ in series.values()) > 1):
            pictures.append(charts.series_chart(series, key))
    return pictures


def _facts(run: Run) -> dict[str, str]:
    """What a reader wants to know of a run first."""
    depth = run.setting("MODEL.RESNETS.DEPTH")
    backbone = f"{run.setting('MODEL.BACKBONE.NAME', '')} {depth if depth is not None else ''}".strip()
    planned = run.setting("SOLVER.MAX_ITER")
    return {
        "model": str(run.setting("MODEL.META_ARCHITECTURE", "–")),
        "backbone": backbone or "–",
        "iterations": (f"{run.iterations} of {planned}" if planned else str(run.iterations)) if run.iterations else "–",
        "seed": str(run.setting("SEED", "–")),
        "evaluated on": ", ".join(run.predictions) or "–",
    }
