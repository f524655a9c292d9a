"""The papers' tables from ``auxdet.yaml`` and ``bafe.yaml``, and the configuration of each row."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from detectron2.config import CfgNode

from irstd_d2 import get_config
from irstd_d2.errors import ConfigError

HERE = Path(__file__).resolve().parent
CONFIGS = HERE.parents[1] / "configs"

# One evaluation at the end of a small training, in the papers' protocol; loading in the training's own process.
_SMALL = {
    **{"DATALOADER.NUM_WORKERS": 0, "TEST.EVAL_PERIOD": 0, "TEST.EVALUATORS": ("coco", "voc_paper")},
    **{"TEST.BEST_METRIC": "", "TEST.GROUP_BY": (), "SOLVER.CHECKPOINT_KEEP": 1},
}
# The released norms keep statistics of ImageNet; without its weights they have to be trained, and nothing is frozen.
_FROM_SCRATCH = {
    **{"MODEL.BACKBONE.FREEZE_AT": 0, "MODEL.RESNETS.NORM_EVAL": False, "MODEL.RESNETS.NORM_TRAINABLE": True},
}
# A narrow bottleneck, where the depth of the backbone is what a table varies.
_NARROW = {"MODEL.RESNETS.WIDTH_PER_GROUP": 16, "MODEL.RESNETS.RES2_OUT_CHANNELS": 64}


@dataclass(frozen=True)
class Row:
    """One training: a system with keys on top; without a system a method that this project does not have."""

    name: str
    label: str
    system: str = ""
    set: dict[str, Any] = field(default_factory=dict)
    depth: int = 0
    figures: dict[str, float] = field(default_factory=dict)
    parameters: float = math.nan


@dataclass(frozen=True)
class Scale:
    """Data, size of the models and length of the trainings."""

    models: str
    data: tuple[str, str]
    about: str
    limits: list[str]
    iterations: int = 0
    set: dict[str, Any] = field(default_factory=dict)
    folder: str = ""


@dataclass(frozen=True)
class Table:
    """A table of a paper, or this project's additions to it.

    Attributes:
        metrics: name as printed -> our key in ``metrics.json``, in percent; the leading one first.
        reference: the row that differences are taken to.
        claims: (better, worse, metric) as the paper concludes, or as we ask.
    """

    name: str
    paper: str
    title: str
    note: str
    metrics: dict[str, str]
    rows: dict[str, Row]
    reference: str
    claims: list[tuple[str, str, str]]
    scales: dict[str, Scale]
    systems: dict[str, dict[str, list]]

    @property
    def heading(self) -> str:
        number = self.name.partition("-")[2]
        if not number.isdecimal():
            return f"{self.paper}, beyond the paper"
        roman = ["I", "II", "III", "IV", "V", "VI", "VII", "VIII", "IX"]
        return f"{self.paper}, Table {number if self.name.startswith('auxdet') else roman[int(number) - 1]}"

    @property
    def printed(self) -> bool:
        return any(row.figures for row in self.rows.values())

    def trainable(self, scale: str) -> list[Row]:
        """Rows that have a model of the scale's size."""
        models = self.scales[scale].models
        return [row for row in self.rows.values() if models in self.systems.get(row.system, ())]


def load_tables(folder: Path = HERE) -> dict[str, Table]:
    """Read all tables.

    Raises:
        ConfigError: a claim, a reference or a row names what is not there.
    """
    tables = {}
    for path in sorted(folder.glob("*.yaml")):
        data = yaml.safe_load(path.read_text(encoding="utf-8"))
        scales = {name: Scale(**{**entry, "data": tuple(entry["data"])}) for name, entry in data["scales"].items()}
        for name, entry in data["tables"].items():
            metrics = {column: data["metrics"][column] for column in entry.get("columns", data["metrics"])}
            rows = {
                key: Row(key, **{**row, "figures": dict(zip(metrics, row.get("figures", ())))})
                for key, row in entry["rows"].items()
            }
            tables[name] = Table(
                name, data["paper"], entry["title"], entry.get("note", ""), metrics, rows,
                entry.get("reference", next(iter(rows))), _claims(entry["claims"], next(iter(metrics))),
                scales, data["systems"],
            )  # fmt: skip
            _check(tables[name], path)
    return tables


def _claims(lines: Sequence[str], leading: str) -> list[tuple[str, str, str]]:
    """Read ``a > b, c (METRIC)``."""
    claims = []
    for line in lines:
        better, _, rest = line.partition(" > ")
        others, _, metric = rest.rstrip(")").partition(" (")
        claims += [(better, worse, metric or leading) for worse in others.split(", ")]
    return claims


def _check(table: Table, path: Path) -> None:
    used = {table.reference, *(name for claim in table.claims for name in claim[:2])}
    if unknown := used - set(table.rows):
        raise ConfigError(f"{path}: table {table.name} has no rows {sorted(unknown)}")
    if unknown := {row.system for row in table.rows.values() if row.system} - set(table.systems):
        raise ConfigError(f"{path}: table {table.name} names unknown systems {sorted(unknown)}")


def resolve(
    table: Table, row: Row, scale: str, *, seed: int = 0, iterations: int = 0, options: Sequence[Any] = ()
) -> CfgNode:
    """Return the configuration of one training.

    Args:
        scale: a name of ``table.scales``.
        iterations: in place of the scale's; the steps of a schedule keep their places.
        options: keys and values on top of everything, as on the command line; ``{depth}`` becomes the backbone's.

    Raises:
        ConfigError: the row has no model of this size.
    """
    size = table.scales[scale]
    if row not in table.trainable(scale):
        fitting = [name for name in table.scales if row in table.trainable(name)]
        raise ConfigError(f"row {row.name} of {table.name} cannot be trained at scale {scale!r}; use one of {fitting}")
    file, *more = table.systems[row.system][size.models]
    keys = dict(more[0] if more else {}) | row.set
    if row.depth:
        keys |= {"MODEL.RESNETS.DEPTH": row.depth}
        keys |= _NARROW if size.models != "published" and row.depth >= 50 else {}
    if size.models != "published":
        keys |= _SMALL
    elif not dict(zip(options[::2], options[1::2])).get("MODEL.WEIGHTS"):
        keys |= _FROM_SCRATCH
    train, test = size.data
    keys |= size.set | {"DATASETS.TRAIN": (train,), "DATASETS.TEST": (test,), "SEED": seed}
    cfg = get_config(CONFIGS / file, [item for pair in keys.items() for item in pair])
    if length := iterations or size.iterations:
        _set_length(cfg, length)
    depth = str(cfg.MODEL.RESNETS.DEPTH)
    cfg.merge_from_list([value.replace("{depth}", depth) if isinstance(value, str) else value for value in options])
    return cfg


def _set_length(cfg: CfgNode, iterations: int) -> None:
    """Train for so many iterations; steps given in epochs keep their place in the schedule, warm-up stays short."""
    solver = cfg.SOLVER
    epochs = solver.MAX_EPOCHS
    solver.STEPS = tuple(round(iterations * epoch / epochs) for epoch in solver.STEP_EPOCHS) if epochs else ()
    solver.MAX_ITER, solver.MAX_EPOCHS, solver.STEP_EPOCHS = iterations, 0, ()
    solver.WARMUP_ITERS = min(solver.WARMUP_ITERS, iterations // 8)
    solver.CHECKPOINT_PERIOD = min(solver.CHECKPOINT_PERIOD, max(1, iterations // 3))
