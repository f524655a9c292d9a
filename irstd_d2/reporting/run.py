"""What a finished run left behind, read for a report."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from os import PathLike
from pathlib import Path

import yaml
from detectron2.data import MetadataCatalog

from ..errors import DatasetError
from ..evaluation.ground_truth import GroundTruth
from ..evaluation.matching import DetectionTable
from ..evaluation.table_evaluation import TableEvaluator, add_predictions_file

PREDICTIONS = "coco_instances_results.json"


@dataclass(frozen=True)
class Run:
    """A run folder.

    Attributes:
        name: of the folder.
        folder: where it lies.
        config: text of its ``config.yaml``; empty if there is none.
        environment: the lines about versions and hardware at the head of its log; empty if there is none.
        history: logged scalars, one dict per line of ``metrics.json``, in order of iteration.
        predictions: data set name -> predictions file.
    """

    name: str
    folder: Path
    config: str
    environment: str
    history: tuple[dict[str, float], ...]
    predictions: dict[str, Path]

    def series(self, key: str) -> tuple[list[float], list[float]]:
        """Iterations and values of one logged scalar."""
        points = [(row["iteration"], row[key]) for row in self.history if key in row and "iteration" in row]
        return [p[0] for p in points], [p[1] for p in points]


def load_run(folder: str | PathLike) -> Run:
    """Read a run folder as ``tools/train_net.py`` leaves it.

    Raises:
        DatasetError: if it has neither a log of metrics nor predictions, or a file in it is broken.
    """
    folder = Path(folder)
    config = _text(folder / "config.yaml")
    history = _history(folder / "metrics.json")
    found = sorted(folder.rglob(PREDICTIONS))
    if not found and not history:
        raise DatasetError(
            folder, "run folder", f"holds neither metrics.json nor {PREDICTIONS}", "give the OUTPUT_DIR of a training"
        )
    default = _test_set(config, folder)
    predictions = {_data_set_of(path, folder) or default: path for path in found}
    return Run(folder.resolve().name, folder, config, _environment(_text(folder / "log.txt")), history, predictions)


def _text(path: Path) -> str:
    return path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""


def _history(path: Path) -> tuple[dict[str, float], ...]:
    rows = {}
    lines = _text(path).splitlines()
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as error:
            if number == len(lines):  # the run was stopped while writing
                break
            raise DatasetError(path, f"line {number}", f"is not JSON: {error}", "remove the line") from error
        # A resumed run logs some iterations twice; the later line is the one that counts.
        rows[row.get("iteration", -number)] = row
    return tuple(rows[key] for key in sorted(rows))


def _test_set(config: str, folder: Path) -> str:
    try:
        names = (yaml.safe_load(config) or {}).get("DATASETS", {}).get("TEST", ())
    except yaml.YAMLError as error:
        raise DatasetError(folder / "config.yaml", "file", f"is not YAML: {error}", "restore it") from error
    return str(names[0]) if names else ""


def _data_set_of(path: Path, folder: Path) -> str | None:
    """The data set of ``inference/NAME/coco_instances_results.json``; ``None`` directly under ``inference``."""
    parts = path.parent.relative_to(folder).parts
    return parts[-1] if len(parts) > 1 else None


def _environment(log: str) -> str:
    block = re.search(r"Environment info:\s*\n(.*?)\n\[\d\d/\d\d ", log, re.DOTALL)
    return block.group(1).strip() if block else ""


def load_detections(run: Run, data_set: str, truth: GroundTruth) -> DetectionTable:
    """Read a run's detections on a data set, with the data set's own category ids where it has them."""
    collector = TableEvaluator(truth, distributed=False)
    category_ids = MetadataCatalog.get(data_set).get("thing_dataset_id_to_contiguous_id")
    add_predictions_file(collector, run.predictions[data_set], category_ids)
    table = collector.detections()
    if table is None:
        raise RuntimeError("a report is made by one process")
    return table
