"""What a run left behind, finished or not, read for a report."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from numbers import Real
from os import PathLike
from pathlib import Path
from typing import Any

import yaml

from ..errors import DatasetError
from ..evaluation.predictions import PREDICTIONS_FILE, holds_masks

# What detectron2's own modules log during training under names with a slash; all other such names are metrics.
_TRAINING_PREFIXES = frozenset({"fast_rcnn", "keypoint_head", "mask_rcnn", "roi_head", "rpn"})

Results = dict[str, dict[str, float]]


@dataclass(frozen=True)
class Run:
    """A run folder.

    Attributes:
        name: of the folder.
        folder: where it lies.
        config: text of its ``config.yaml``; empty if there is none.
        settings: the same, parsed; empty if there is none or it cannot be read.
        environment: the lines about versions and hardware at the head of its log; empty if there is none.
        history: logged scalars, one dict per iteration of ``metrics.json``, in order.
        predictions: data set name -> predictions file, or folder of masks.
        notes: what is missing or broken, for people.
    """

    name: str
    folder: Path
    config: str
    settings: dict[str, Any]
    environment: str
    history: tuple[dict[str, Any], ...]
    predictions: dict[str, Path]
    notes: tuple[str, ...]

    def series(self, key: str) -> tuple[list[float], list[float]]:
        """Iterations and values of one logged scalar."""
        points = [(row["iteration"], row[key]) for row in self.history if isinstance(row.get(key), Real)]
        return [p[0] for p in points], [p[1] for p in points]

    @property
    def iterations(self) -> int:
        """How many iterations of training were logged."""
        return max((row["iteration"] + 1 for row in self.history if "total_loss" in row), default=0)

    def setting(self, key: str, default: Any = None) -> Any:
        """A value of the configuration by its dotted key."""
        value: Any = self.settings
        for part in key.split("."):
            if not isinstance(value, Mapping) or part not in value:
                return default
            value = value[part]
        return value

    def logged_results(self, data_set: str) -> tuple[int, Results] | None:
        """Metrics that the training logged last: the iteration, and evaluator -> metric -> value.

        Args:
            data_set: with several test sets, detectron2 puts its name before each metric.
        """
        for row in reversed(self.history):
            results: Results = {}
            for key, value in row.items():
                evaluator, _, metric = key.removeprefix(f"{data_set}/").partition("/")
                if metric and evaluator not in _TRAINING_PREFIXES and isinstance(value, Real):
                    results.setdefault(evaluator, {})[metric] = float(value)
            if results:
                return row["iteration"], results
        return None


def load_run(folder: str | PathLike) -> Run:
    """Read a run folder as ``tools/train_net.py`` leaves it; what is missing or broken becomes a note.

    Raises:
        DatasetError: if there is no such folder.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise DatasetError(folder, "run", "is not a folder", "give the OUTPUT_DIR of a training or an evaluation")
    notes: list[str] = []
    config = _text(folder / "config.yaml")
    settings = _settings(config, notes)
    history = _history(folder / "metrics.json", notes)
    # rglob does not enter folders that are links.
    found = sorted({*folder.rglob(PREDICTIONS_FILE), *folder.glob(f"inference*/*/{PREDICTIONS_FILE}")})
    masks = {path.name: path for path in sorted((folder / "inference").glob("*")) if holds_masks(path)}
    if not (found or masks):
        notes.append(f"No {PREDICTIONS_FILE}, so nothing is evaluated here: run tools/train_net.py --eval-only first.")
    predictions = masks
    for path in found:
        name = _data_set_of(path, folder) or _test_set(settings)
        if name and predictions.get(name) in found:
            notes.append(
                f"{path.relative_to(folder)} is left out, as {predictions[name].relative_to(folder)} is of the same "
                "data set: give its folder as a run of its own."
            )
        elif name:
            predictions[name] = path
        else:
            notes.append(
                f"{path.relative_to(folder)} is left out, as its data set is unknown: "
                "put it into inference/NAME-OF-THE-SET/."
            )
    run = Run(
        folder.resolve().name,
        folder,
        config,
        settings,
        _environment(_text(folder / "log.txt")),
        history,
        predictions,
        tuple(notes),
    )
    return replace(run, notes=(*notes, *_unfinished(run)))


def _text(path: Path) -> str:
    return path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""


def _settings(config: str, notes: list[str]) -> dict[str, Any]:
    if not config:
        notes.append("No config.yaml, so the configuration is not shown.")
        return {}
    try:
        settings = yaml.safe_load(config)
    except yaml.YAMLError as error:
        notes.append(f"config.yaml is not YAML ({str(error).splitlines()[0]}); it is shown as text only.")
        return {}
    return settings if isinstance(settings, dict) else {}


def _history(path: Path, notes: list[str]) -> tuple[dict[str, Any], ...]:
    if not path.is_file():
        notes.append("No metrics.json, so there are no training curves: the run was only evaluated, or never logged.")
        return ()
    rows: dict[int, dict[str, Any]] = {}
    lines = [(number, line) for number, line in enumerate(_text(path).splitlines(), 1) if line.strip()]
    broken = []
    for number, line in lines:
        try:
            row = json.loads(line)
        except ValueError:
            row = None
        if isinstance(row, dict) and isinstance(row.get("iteration"), int):
            # A resumed run logs some iterations twice; the later line is the one that counts.
            rows[row["iteration"]] = row
        else:
            broken.append(number)
    if broken and broken[-1] == lines[-1][0]:
        notes.append("metrics.json ends within a line: the run was stopped while writing it.")
        broken.pop()
    if broken:
        numbers = ", ".join(map(str, broken[:5])) + (", ..." if len(broken) > 5 else "")
        notes.append(f"Lines of metrics.json that are not log entries are left out: {numbers}.")
    return tuple(rows[key] for key in sorted(rows))


def _unfinished(run: Run) -> list[str]:
    """A note about a training that ended before its last iteration."""
    last = run.setting("SOLVER.MAX_ITER")
    finished = (run.folder / "model_final.pth").exists()
    if finished or not isinstance(last, int) or not 0 < run.iterations < last or run.setting("SOLVER.MAX_EPOCHS"):
        return []
    return [
        f"The training stopped after iteration {run.iterations} of {last}; tools/train_net.py --resume goes on with it."
    ]


def _test_set(settings: dict[str, Any]) -> str:
    data_sets = settings.get("DATASETS")
    names = data_sets.get("TEST") if isinstance(data_sets, dict) else ()
    return str(names[0]) if isinstance(names, list) and names else ""


def _data_set_of(path: Path, folder: Path) -> str | None:
    """The data set of ``NAME/coco_instances_results.json``; ``None`` directly under ``inference`` or the folder."""
    parts = path.parent.relative_to(folder).parts
    return parts[-1] if parts and not parts[-1].startswith("inference") else None


def _environment(log: str) -> str:
    block = re.search(r"Environment info:\s*\n(.*?)\n\[\d\d/\d\d ", log, re.DOTALL)
    return block.group(1).strip() if block else ""


def weights_of(run: Run) -> Path | None:
    """The checkpoint of a run: the best one, else the final one, else the last, else what it evaluated."""
    last = _text(run.folder / "last_checkpoint").strip()
    names = ["model_best.pth", "model_final.pth", *([Path(last).name] if last else [])]
    candidates = [run.folder / name for name in names]
    evaluated = run.setting("MODEL.WEIGHTS")
    if isinstance(evaluated, str) and evaluated and not run.history:
        candidates.append(Path(evaluated))
    return next((path for path in candidates if path.is_file()), None)
