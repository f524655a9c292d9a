"""An entry of the zoo from the folder of a finished training."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from detectron2.config import CfgNode, get_cfg
from detectron2.modeling import build_model
from torch import nn

from .. import model_zoo
from ..checkpoint import load_plain
from ..checkpoint.safe import write_safetensors
from ..config import add_irstd_config, get_config
from ..data.classes import ClassTable, check_num_classes
from ..data.datasets import configured_classes
from ..errors import ConfigError, DatasetError
from ..evaluation.results import format_number, format_table
from ..files import write_atomically
from ..systems import registered_systems
from . import Entry
from .cards import facts as card_facts
from .cards import write_index

logger = logging.getLogger(__name__)

# The wheel stays small: what is larger does not belong in it.
MAX_BYTES = 6_000_000
CHECKPOINTS = ("model_best.pth", "model_final.pth")


def add_run(
    run: Path,
    name: str,
    *,
    license: str,
    commit: str,
    description: str = "",
    weights: Path | None = None,
    data: Sequence[str] = (),
    score_thresh: float | None = None,
    command: str = "",
    processor_minutes: float = 0.0,
    opts: Sequence[str] = (),
) -> Entry:
    """Make or replace an entry.

    Args:
        run: folder of the training, with ``config.yaml`` and ``metrics.json``.
        name: of the model, in lower case with underscores.
        license: of the weights, with that of the data.
        commit: of the project that trained it.
        description: one line.
        weights: its checkpoint; by default the best, else the last.
        data: names of the data as a reader knows them; by default ``DATASETS.TRAIN``.
        score_thresh: default of the commands; ``None``: that of one false alarm per image, else of the best F1, on the
            validation set (of several, the highest); :func:`.cards.write_cards` chooses it anew.
        command: arguments of the training, for the card.
        processor_minutes: that it took, of one processor.
        opts: keys and values of the configuration that differ from the training's, e.g. ``INPUT.HIGH_BIT_DEPTH auto``.

    Raises:
        ConfigError: the name is none, the run is not finished, or the weights are too large or of another model.
        DatasetError: a file cannot be read.
    """
    if not name.isidentifier() or name != name.lower():
        raise ConfigError(f"--name {name!r}: use lower-case letters, digits and underscores")
    cfg = get_config(_existing(run / "config.yaml"), opts)
    cfg.MODEL.DEVICE, cfg.MODEL.WEIGHTS, cfg.OUTPUT_DIR = "cpu", "", "./output"
    path = weights or next((run / file for file in CHECKPOINTS if (run / file).is_file()), run / CHECKPOINTS[-1])
    content = load_plain(_existing(path))
    model = build_model(cfg)
    try:
        model.load_state_dict(content["model"], strict=False)
    except RuntimeError as error:
        raise ConfigError(
            f"{path} holds the weights of another model: {str(error).splitlines()[-1].strip()}"
        ) from error
    kept = {key: content["model"][key] for key in model.state_dict() if key in content["model"]}
    missing = [key for key in model.state_dict() if key not in kept and not key.endswith("num_batches_tracked")]
    if missing:
        raise ConfigError(f"{path} lacks {len(missing)} tensors of the model, the first {missing[0]}")
    classes = ClassTable.from_json(content["classes"]) if content.get("classes") else configured_classes(cfg)
    if classes is None:
        raise ConfigError(f"{path} names no classes, and no data set of {run} is at hand; set DATASETS.CLASSES")
    check_num_classes(model, classes, str(path))
    metrics = read_metrics(run / "metrics.json")
    requires = required_systems(model, cfg)
    plain = prune(cfg, requires)
    plain.DATASETS.CLASSES = classes.names
    facts = {
        "classes": classes.to_json(),
        "metadata": _vocabulary(cfg, requires),
        "input": _input_of(cfg),
        "license": license,
        "commit": commit,
        "iteration": int(content.get("iteration", -1)) + 1,
        "metrics": metrics,
        "train": list(data or cfg.DATASETS.TRAIN),
    }
    blank = Entry(name, "")
    write_safetensors(blank.weights_file, kept, facts)
    packed = blank.weights_file.read_bytes()
    if len(packed) > MAX_BYTES:
        blank.weights_file.unlink()
        raise ConfigError(
            f"{name} has {len(packed) / 1e6:.1f} MB of weights; at most {MAX_BYTES / 1e6:.0f} are packaged"
        )
    entry = Entry(
        name,
        hashlib.sha256(packed).hexdigest(),
        requires,
        description,
        tuple(data or cfg.DATASETS.TRAIN),
        license,
        commit,
        default_threshold(metrics, cfg.DATASETS.TEST) if score_thresh is None else score_thresh,
        headlines(metrics),
        tuple(cfg.DATASETS.TEST),
        command,
        processor_minutes,
    )
    write_atomically(entry.config_file, plain.dump())
    rows = [[key, format_number(value, decimals=1)] for key, value in sorted(entry.metrics.items())]
    results = f"\n## Validation of its training\n\n{format_table(rows, ['metric', 'value'])}\n"
    write_atomically(entry.card, card_facts(entry, cfg) + results)  # write_cards replaces it
    write_index([*model_zoo.read_index().values(), entry])
    return entry


def required_systems(model: nn.Module, cfg: CfgNode) -> tuple[str, ...]:
    """Packages of the systems that a model's modules, or its mapper, come from."""
    from ..data import MAPPER_REGISTRY

    origins = {type(module).__module__.partition(".")[0] for module in model.modules()}
    if cfg.INPUT.MAPPER in MAPPER_REGISTRY:
        origins.add(MAPPER_REGISTRY.get(cfg.INPUT.MAPPER).__module__.partition(".")[0])
    return tuple(system.name for system in registered_systems() if system.name in origins)


def prune(cfg: CfgNode, systems: Sequence[str]) -> CfgNode:
    """The configuration without the keys of other systems, which need not be installed where it is read."""
    known = get_cfg()
    add_irstd_config(known)
    for system in registered_systems():
        if system.name in systems:
            system.add_config(known)

    def cut(node: CfgNode, template: CfgNode) -> CfgNode:
        kept = {key: value for key, value in node.items() if key in template}
        return CfgNode({k: cut(v, template[k]) if isinstance(v, CfgNode) else v for k, v in kept.items()})

    return cut(cfg, known)


_EVALUATORS = ("bbox", "voc_exact", "voc_paper", "pd_fa", "centre", "sky")


def read_metrics(path: Path) -> dict[str, float]:
    """The best evaluation of a training: that with the highest mean of ``bbox/AP50`` over its data sets.

    With several data sets the keys begin with their names.
    """
    lines = _existing(path).read_text(encoding="utf-8").splitlines()
    rows = [{key: value for key, value in json.loads(line).items() if _is_metric(key)} for line in lines]
    if not any(rows):
        raise ConfigError(f"{path} holds no evaluation; evaluate the run first")

    def quality(row: dict[str, float]) -> float:
        values = [value for key, value in row.items() if key.endswith("bbox/AP50")]
        return sum(values) / max(1, len(values))

    best = max((row for row in reversed(rows) if row), key=quality)
    return {
        key: round(float(value), 4)
        for key, value in best.items()
        if isinstance(value, int | float) and abs(value) < float("inf")
    }


def _is_metric(key: str) -> bool:
    return any(part in _EVALUATORS for part in key.split("/")[:2])


def headlines(metrics: dict[str, float]) -> dict[str, float]:
    """Without the parts that metrics are broken down into: ``EVALUATOR/METRIC`` or ``SET/EVALUATOR/METRIC``."""
    return {key: value for key, value in metrics.items() if key.rpartition("/")[0].rpartition("/")[2] in _EVALUATORS}


def default_threshold(metrics: dict[str, float], data_sets: Sequence[str] = ()) -> float:
    """The score of one false alarm per image, else that of the best F1; of several data sets the highest."""
    for key in ("pd_fa/threshold@FAPI1", "pd_fa/F1_threshold"):
        values = [metrics.get(name, 0) for name in (key, *(f"{data_set}/{key}" for data_set in data_sets))]
        if known := [value for value in values if 0 < value < 1]:
            return round(max(known), 3)
    return 0.3


def _existing(path: Path) -> Path:
    if not path.is_file():
        raise DatasetError(path, "file", "does not exist", "name the folder of a finished training")
    return path


def _vocabulary(cfg: CfgNode, requires: Sequence[str]) -> dict[str, Any]:
    """Platforms and bands that the model was told of, where it takes any."""
    return json.loads(json.dumps(cfg.MODEL.METADATA)) if requires and "METADATA" in cfg.MODEL else {}


def _input_of(cfg: CfgNode) -> dict[str, Any]:
    """How images become the network's input."""
    keys = ("FORMAT", "HIGH_BIT_DEPTH", "RESIZE_MODE", "FIXED_SIZE", "MIN_SIZE_TEST", "MAX_SIZE_TEST", "SCALE")
    found = {key.lower(): cfg.INPUT[key] for key in keys if key in cfg.INPUT}
    return json.loads(json.dumps(found | {"mean": cfg.MODEL.PIXEL_MEAN, "std": cfg.MODEL.PIXEL_STD}))
