"""Cards of the zoo's models, written from saved detections, so that every number of them can be had again."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
from detectron2.config import CfgNode

from .. import model_zoo
from ..checkpoint import load_plain
from ..config import get_config
from ..errors import ConfigError, DatasetError
from ..evaluation.bootstrap import Interval, Outcome, draws_with_data_set, resampled_metrics
from ..evaluation.detection_probability import points_within
from ..evaluation.ground_truth import UNKNOWN
from ..evaluation.matching import last_of_each_score
from ..evaluation.rescoring import Rescored, error_table, find_predictions, rescore
from ..evaluation.results import format_number, format_table
from ..files import write_atomically
from . import Entry

logger = logging.getLogger(__name__)

# Metric -> how a card calls it. Percent; intervals over images.
METRICS = {
    "voc_exact/AP50_area": "AP50, exact boxes",
    "voc_paper/AP50_area": "AP50, boxes as BAFE-Net's code reads them (mAP12)",
    "bbox/AP50": "AP50, COCO",
    "bbox/AP": "AP, COCO, IoU 0.5 to 0.95",
    "centre/AP@3px": "AP, centres within 3 pixels",
    "pd_fa/F1": "best F1, centres",
    "pd_fa/Pd@FAPI1": "Pd at one false alarm per image",
}
HEADLINES = ("voc_exact/AP50_area", "centre/AP@3px", "pd_fa/F1", "pd_fa/Pd@FAPI1")
MOST_ERRORS = 5
LEVEL = 0.95


@dataclass(frozen=True)
class OperatingPoint:
    """A score threshold on some images of a set.

    Attributes:
        pd: share of the targets that are found.
        false_alarms: per image.
    """

    pd: Interval
    false_alarms: Interval


@dataclass(frozen=True)
class Judged:
    """A model on a data set, with what is needed to judge it on a part of the images."""

    run: Rescored
    draws: int
    seed: int = 0

    @cached_property
    def weights(self) -> np.ndarray:
        """(1 + draws, I): how often each image counts; the first row is the set itself."""
        return draws_with_data_set(len(self.run.truth.image_ids), self.draws, self.seed)

    def groups(self, key: str = "platform") -> dict[str, np.ndarray]:
        """Images by a property, where the set has more than one value of it."""
        found = self.run.truth.image_groups(key)
        return found if len(set(found) - {UNKNOWN}) > 1 else {}

    def metrics(self, names: Sequence[str], images: np.ndarray | None = None) -> dict[str, Interval]:
        """Metrics in percent over some of the images, (I,) bool; by default over all."""
        weights = self.weights if images is None else self.weights * images
        truth, known = self.run.truth, resampled_metrics()
        found = {}
        for name in names:
            outcomes = known[name].outcomes(self.run.detections, truth.targets, truth.pixels, len(truth.class_names))
            found[name] = Interval.of(100 * known[name].values(outcomes, weights), LEVEL)
        return found

    @cached_property
    def outcome(self) -> Outcome:
        """What became of the detections, by the distance of centres."""
        truth = self.run.truth
        return Outcome.of(self.run.verdicts, self.run.detections, truth.targets, truth.pixels)

    def at(self, threshold: float, images: np.ndarray) -> OperatingPoint:
        """Pd (percent) and false alarms per image at a score threshold, on some of the images."""
        outcome, weights = self.outcome, self.weights * images
        kept = outcome.scores >= threshold
        found, false = (
            np.bincount(outcome.image, rows & kept, minlength=len(images)) for rows in (outcome.true, outcome.false)
        )
        with np.errstate(invalid="ignore", divide="ignore"):
            pd, rate = 100 * (weights @ found) / (weights @ outcome.targets), (weights @ false) / weights.sum(1)
        return OperatingPoint(Interval.of(pd, LEVEL), Interval.of(rate, LEVEL))


_CARD = """\
# {name}

{description}

| | |
|---|---|
| architecture | {architecture} |
| trained on | {data} |
| training | {iteration} iterations{minutes}, commit {commit} |
| license | {license} |
| classes | {classes} |
| weights | {size:.1f} MB, half precision, sha256 {sha256} |
| score threshold | {score_thresh:g} |

{train}    irstd detect IMAGES --weights {name} --output detections
"""
_RESULTS = """
## Results

    irstd evaluate --weights {name} --dataset {sets} --runs-dir evaluation
    irstd zoo cards --runs-dir evaluation --dataset {sets} --bootstrap {draws}

Percent; in brackets the 95 % interval over images ({draws} draws, seed 0). Its training was
validated on {tests}.

{table}
{notes}
## At the score threshold of {score_thresh:g}

It is the lowest of at most one false alarm per image on the first half of {tests} (every
second image). On the second half, and on sets that had no part in it:

{points}

## What it fails on

{errors}
"""


def half(count: int, second: bool) -> np.ndarray:
    """(count,) bool: every second image; thresholds are chosen on the first half, and judged on the second."""
    return (np.arange(count) % 2 == 1) == second


def choose_threshold(sets: Sequence[Judged], false_alarms: float = 1.0) -> float:
    """The lowest score, rounded up, of at most so many false alarms per image on the first halves of the sets."""
    scores, false, images = [np.zeros(0)], [np.zeros(0, bool)], 0
    for judged in sets:
        chosen = half(len(judged.run.truth.image_ids), second=False)
        rows = chosen[judged.outcome.image]
        scores.append(judged.outcome.scores[rows])
        false.append(judged.outcome.false[rows])
        images += int(chosen.sum())
    order = np.argsort(-np.concatenate(scores), kind="stable")
    ranked = np.concatenate(scores)[order]
    last = last_of_each_score(ranked)
    count = np.cumsum(np.concatenate(false)[order])[last]
    allowed = points_within(count, false_alarms, images)
    if not allowed:
        raise ConfigError("even the best detection brings more than one false alarm per image: no score threshold")
    return math.ceil(1000 * ranked[last[allowed - 1]]) / 1000


def write_cards(runs_dir: Path, data_sets: Sequence[str], *, draws: int = 1000) -> Iterator[Path]:
    """Write the cards of all models with saved detections, and their default thresholds and metrics into the index.

    Args:
        runs_dir: ``--runs-dir`` of ``irstd evaluate --weights``: a folder per model.
        data_sets: registered names; a model is judged on those that it has detections of.
        draws: of images, for the intervals.

    Yields:
        The cards.

    Raises:
        ConfigError: no model has detections, or one has none of a set that its training was validated on.
    """
    entries, done = model_zoo.read_index(), False
    for entry in list(entries.values()):
        cfg = get_config(entry.config_file)
        judged = dict(_judge(runs_dir / entry.name, data_sets, cfg, draws))
        if not judged:
            logger.warning("%s: no detections in %s", entry.name, runs_dir / entry.name)
            continue
        own = [name for name in entry.test if name in judged]
        if not own:
            raise ConfigError(f"{entry.name} has no detections of its own test sets, {', '.join(entry.test)}")
        metrics = {name: result.metrics(tuple(METRICS)) for name, result in judged.items()}
        headlines = {
            f"{name}/{key}": round(metrics[name][key].value, 1)
            for name in judged
            for key in HEADLINES
            if math.isfinite(metrics[name][key].value)
        }
        threshold = choose_threshold([judged[name] for name in own])
        entry = replace(entry, score_thresh=threshold, metrics=headlines)
        entries[entry.name] = entry
        write_atomically(entry.card, render(entry, cfg, own, judged, metrics))
        write_index(entries.values())
        done = True
        yield entry.card
    if not done:
        raise ConfigError(f"{runs_dir} has no folder of a model of the zoo; run irstd evaluate --weights NAME first")


def _judge(folder: Path, data_sets: Sequence[str], cfg: CfgNode, draws: int) -> Iterator[tuple[str, Judged]]:
    cfg = cfg.clone()
    cfg.TEST.EVALUATORS, cfg.TEST.GROUP_BY = (), ()
    for name in data_sets:
        if not folder.is_dir():
            continue
        try:
            find_predictions(folder, name)
        except DatasetError:
            continue  # it was not run on this set
        (run,) = rescore([folder], name, cfg)
        yield name, Judged(run, draws)


def write_index(entries: Iterable[Entry]) -> None:
    """Write the index."""
    rows = {entry.name: {k: v for k, v in asdict(entry).items() if k != "name"} for entry in entries}
    text = json.dumps(dict(sorted(rows.items())), indent=1, allow_nan=False) + "\n"
    write_atomically(model_zoo.FOLDER / "index.json", text)


def facts(entry: Entry, cfg: CfgNode) -> str:
    """The part of a card that needs no detections."""
    content = load_plain(entry.weights_file)
    return _CARD.format(
        **{**asdict(entry), "data": ", ".join(entry.data)},
        train=f"    irstd train {entry.command} OUTPUT_DIR output/{entry.name}\n" if entry.command else "",
        architecture=cfg.MODEL.META_ARCHITECTURE,
        iteration=content["iteration"],
        minutes=f", {entry.processor_minutes:g} minutes of one processor" if entry.processor_minutes else "",
        classes=", ".join(row["name"] for row in content["classes"]),
        size=entry.weights_file.stat().st_size / 1e6,
    )


def render(
    entry: Entry,
    cfg: CfgNode,
    own: Sequence[str],
    judged: Mapping[str, Judged],
    metrics: Mapping[str, Mapping[str, Interval]],
) -> str:
    """The whole card; ``own`` are the sets that its training was validated on, ``metrics`` in percent."""
    ordered = [*own, *(name for name in judged if name not in own)]
    columns = {name: metrics[name] for name in ordered}
    for name in own:
        for group, images in judged[name].groups().items():
            columns[f"{name}, {group}"] = judged[name].metrics(tuple(METRICS), images)
    rows = [[text, *(_cell(values[key]) for values in columns.values())] for key, text in METRICS.items()]
    seen = [entry.fails] if entry.fails else []
    if entry.picture.is_file():
        seen.append(f"![Green: targets; blue: found; red: false alarms]({entry.picture.name})")
    notes = "".join(f"\n- **{name}**: {entry.notes[name]}" for name in ordered if name in entry.notes)
    return facts(entry, cfg) + _RESULTS.format(
        name=entry.name,
        sets=" ".join(judged),
        draws=judged[own[0]].draws,
        tests=" and ".join(own),
        table=format_table(rows, ["", *columns]),
        notes=f"{notes}\n" if notes else "",
        score_thresh=entry.score_thresh,
        points=format_table(
            [_point_row(name, judged[name], entry.score_thresh, name in own) for name in ordered],
            ["", "images", "Pd", "false alarms per image"],
        ),
        errors="\n\n".join([*seen, *(_errors(name, judged[name].run) for name in own)]),
    )


def _cell(interval: Interval) -> str:
    if math.isnan(interval.value):
        return "-"
    low, high = (format_number(value, decimals=1) for value in (interval.low, interval.high))
    return f"{format_number(interval.value, decimals=1)} ({low} to {high})"


def _point_row(name: str, judged: Judged, threshold: float, chosen_on: bool) -> list[str]:
    count = len(judged.run.truth.image_ids)
    images = half(count, second=True) if chosen_on else np.ones(count, bool)
    point = judged.at(threshold, images)
    return [name, str(int(images.sum())), _cell(point.pd), _cell(point.false_alarms)]


def _errors(name: str, run: Rescored) -> str:
    table = error_table(run, most=MOST_ERRORS, decimals=1)
    targets = int((~run.truth.targets.ignored).sum())
    return f"{name}, {targets} targets, errors from score {run.threshold:.2f} (best F1) on:\n\n{table}"
