"""What a resumed training may change: a run's facts are in its checkpoints, and compared with those of the resume."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from os import PathLike
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from detectron2.config import CfgNode
from detectron2.utils import comm

from ..errors import ConfigError

logger = logging.getLogger(__name__)

# Keys that take effect from the resumed iteration on; any other belongs to what is being trained and must stay. Keys of
# test time end in _TEST or begin with TEST.
_TAKE_EFFECT = (
    "SOLVER.BASE_LR",
    "SOLVER.BASE_LR_END",
    "SOLVER.BIAS_LR_FACTOR",
    "SOLVER.WEIGHT_DECAY*",
    "SOLVER.MOMENTUM",
    "SOLVER.NESTEROV",
    "SOLVER.BETAS",
    "SOLVER.LR_SCHEDULER_NAME",
    "SOLVER.GAMMA",
    "SOLVER.STEPS",
    "SOLVER.STEP_EPOCHS",
    "SOLVER.NUM_DECAYS",
    "SOLVER.RESCALE_INTERVAL",
    "SOLVER.WARMUP_*",
    "SOLVER.MAX_ITER",
    "SOLVER.MAX_EPOCHS",
    "SOLVER.CLIP_GRADIENTS.*",
    "SOLVER.EMA.DECAY",
    "SOLVER.CHECKPOINT_*",
    "DATALOADER.NUM_WORKERS",
    "DATASETS.TEST",
    "DATASETS.OWN",  # folders may move; the images are compared by themselves
    "DATASETS.SKIP_BAD",
    "MODEL.DEVICE",
    "MODEL.WEIGHTS_MATCH",
    "OUTPUT_DIR",
    "CUDNN_BENCHMARK",
    "VIS_PERIOD",
    "VERSION",
    "TEST.*",
    "*_TEST",
)
# Values in the groups of an optimiser that the configuration decides; the others are its state.
_OF_CONFIGURATION = ("initial_lr", "weight_decay", "momentum", "nesterov", "betas")


class Change(NamedTuple):
    """A key whose value differs from that of the run so far."""

    key: str
    before: Any
    now: Any

    def __str__(self) -> str:
        return f"{self.key} {self.before!r} -> {self.now!r}"


def training_facts(cfg: CfgNode, dicts: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """What a checkpoint says of its run, as plain data.

    ``cfg`` is that of the user, before epochs became iterations, ``dicts`` are of the training sets.
    """
    targets = [annotation for record in dicts for annotation in record.get("annotations", ())]
    digest = hashlib.sha256()
    for record in dicts:
        boxes = [[*map(float, a["bbox"]), a["category_id"]] for a in record.get("annotations", ())]
        digest.update(json.dumps([Path(str(record.get("file_name"))).name, boxes]).encode())
    return {
        "config": cfg.dump(),
        "processes": comm.get_world_size(),
        "data": {"images": len(dicts), "targets": len(targets), "digest": digest.hexdigest()},
    }


def changes(before: str, now: str) -> list[Change]:
    """Compare two configurations, as ``CfgNode.dump`` writes them: keys with other values, in the order of their names.

    Keys that only one of the two has are those of another version.
    """
    old, new = (_flat(yaml.safe_load(text)) for text in (before, now))
    return [Change(key, old[key], new[key]) for key in sorted(old.keys() & new.keys()) if old[key] != new[key]]


def _flat(node: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in node.items():
        name = f"{prefix}{key}"
        found |= _flat(value, f"{name}.") if isinstance(value, Mapping) and value else {name: value}
    return found


def takes_effect(change: Change) -> bool:
    """Whether a resumed training follows a change."""
    if change.key == "SOLVER.EMA.ENABLED":  # averages can begin at any time; without them, the weights would jump
        return bool(change.now)
    return any(fnmatchcase(change.key, pattern) for pattern in _TAKE_EFFECT)


def check_config(before: str, now: str, source: str | PathLike) -> list[Change]:
    """Refuse a resume with a configuration that does not go on with the same training; return changes that take effect.

    ``before`` and ``now`` are as ``CfgNode.dump`` writes them; ``source`` of ``before`` is for the message.

    Raises:
        ConfigError: naming each key that must stay, with both values.
    """
    found = changes(before, now)
    refused = [change for change in found if not takes_effect(change)]
    if refused:
        raise ConfigError(
            f"--resume goes on with the training of {source}, which had other values: "
            + "; ".join(f"{c.key} was {c.before!r} and is {c.now!r} now" for c in refused)
            + f". Give the old {'values' if len(refused) > 1 else 'value'}, or start a new run in another OUTPUT_DIR "
            "with MODEL.WEIGHTS set to that checkpoint"
        )
    return found


def check_facts(before: Mapping[str, Any], now: Mapping[str, Any], source: str | PathLike) -> None:
    """Refuse a resume on other images, and say when the number of processes changed.

    Raises:
        ConfigError: the training sets hold other images or targets than those of the run so far.
    """
    old, new = before["data"], now["data"]
    if old != new:
        kinds = [f"{old[kind]} {kind} and now {new[kind]}" for kind in ("images", "targets") if old[kind] != new[kind]]
        raise ConfigError(
            f"--resume goes on with the training of {source}, but DATASETS.TRAIN changed since: "
            f"{' and '.join(kinds) or 'as many images and targets as before, but others'}. Restore the data, or start "
            "a new run in another OUTPUT_DIR with MODEL.WEIGHTS set to that checkpoint"
        )
    if before["processes"] != now["processes"]:
        logger.warning(
            "resumed with %d processes, where %d trained before: the images of each step stay the same; rounding, "
            "dropout and the statistics of batch norms differ, as they are of each process",
            now["processes"],
            before["processes"],
        )


def solver_values(groups: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The values in the groups of a new optimiser that :func:`restore_solver_values` gives to one that was loaded."""
    return [{key: group[key] for key in _OF_CONFIGURATION if key in group} for group in groups]


def restore_solver_values(
    groups: Sequence[dict[str, Any]], values: Sequence[Mapping[str, Any]], scheduler: Any
) -> None:
    """Let the configuration decide rate, decay and momentum where a checkpoint has brought those of before.

    ``values`` are of :func:`solver_values`, ``scheduler`` detectron2's ``LRMultiplier`` at the checkpoint's iteration.
    """
    for group, value in zip(groups, values, strict=True):
        group.update(value)
    scheduler.base_lrs = [group["initial_lr"] for group in groups]
    for group, rate in zip(groups, scheduler.get_lr()):
        group["lr"] = rate
