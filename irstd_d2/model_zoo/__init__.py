"""Trained detectors that come with the package, in the manner of ``detectron2.model_zoo``.

    from irstd_d2 import model_zoo

    model_zoo.names()
    model = model_zoo.get("NAME")          # a torch.nn.Module with its weights
    cfg = model_zoo.get_config("NAME")     # its configuration, MODEL.WEIGHTS set

:class:`irstd_d2.Predictor` takes the names as they are; so do ``--weights`` and ``--config-file`` of the commands.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field
from os import PathLike, fspath
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import ConfigError, DatasetError

if TYPE_CHECKING:
    from detectron2.config import CfgNode
    from torch import nn

_PACKAGE = Path(__file__).resolve().parent
FOLDER = _PACKAGE  # of the index; tests set another


@dataclass(frozen=True)
class Entry:
    """One model of the zoo.

    Attributes:
        name: of the model.
        sha256: of its weights.
        requires: names of the detection systems that it is made of, as they register themselves.
        description: one line.
        data: that it was trained on.
        license: of the weights, with that of the data.
        commit: of the project that trained it.
        score_thresh: below which detections are left out by default.
        metrics: the main ones, as ``SET/EVALUATOR/METRIC``, in percent.
        test: data sets that the training was validated on.
        command: arguments of the training.
        processor_minutes: that the training took, of one processor; 0 unknown.
        notes: data set -> what a reader of results on it must know, e.g. images that the training has seen.
        fails: what it fails on, as somebody has seen it who looked.
    """

    name: str
    sha256: str
    requires: tuple[str, ...] = ()
    description: str = ""
    data: tuple[str, ...] = ()
    license: str = ""
    commit: str = ""
    score_thresh: float = 0.3
    metrics: dict[str, float] = field(default_factory=dict)
    test: tuple[str, ...] = ()
    command: str = ""
    processor_minutes: float = 0.0
    notes: dict[str, str] = field(default_factory=dict)
    fails: str = ""

    @property
    def config_file(self) -> Path:
        return FOLDER / "configs" / f"{self.name}.yaml"

    @property
    def weights_file(self) -> Path:
        return FOLDER / "weights" / f"{self.name}.safetensors"

    @property
    def card(self) -> Path:
        return FOLDER / "cards" / f"{self.name}.md"

    @property
    def picture(self) -> Path:
        """Of what it fails on; beside the card, where there is one."""
        return self.card.with_suffix(".jpg")


def read_index() -> dict[str, Entry]:
    """All entries by name."""
    path = FOLDER / "index.json"
    rows = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    return {name: _entry(name, row) for name, row in sorted(rows.items())}


def _entry(name: str, row: dict[str, Any]) -> Entry:
    fields: dict[str, Any] = {key: tuple(value) if isinstance(value, list) else value for key, value in row.items()}
    return Entry(name, **fields)


def names() -> list[str]:
    """The models of the zoo."""
    return list(read_index())


def entry(name: str) -> Entry:
    """The entry of a model.

    Raises:
        ConfigError: there is none of that name.
    """
    found = read_index()
    if name not in found:
        raise ConfigError(f"{name!r} is not a model of the zoo; it has {', '.join(found) or 'none yet'}")
    return found[name]


def get_config(name: str) -> CfgNode:
    """The configuration that a model was trained with, for inference: ``MODEL.WEIGHTS`` set.

    Args:
        name: one of :func:`names`.

    Raises:
        ConfigError: there is no such model, or a detection system that it needs is not installed.
        DatasetError: its weights are damaged.
    """
    from ..config import get_config as read_config

    chosen = entry(name)
    _load_systems(chosen)
    if hashlib.sha256(chosen.weights_file.read_bytes()).hexdigest() != chosen.sha256:
        raise DatasetError(chosen.weights_file, "sha256", "not that of the index", "install the package again")
    return read_config(chosen.config_file, ["MODEL.WEIGHTS", str(chosen.weights_file)])


def get(name: str, pretrained: bool = True, device: str | None = None) -> nn.Module:
    """Build a model of the zoo.

    Args:
        name: one of :func:`names`.
        pretrained: with its weights; without them it is random.
        device: to build on; ``None``: the GPU if there is one.

    Returns:
        The model in evaluation mode.

    Raises:
        ConfigError, DatasetError: see :func:`get_config`.
    """
    import torch
    from detectron2.modeling import build_model

    from ..engine import load_weights

    cfg = get_config(name)
    cfg.MODEL.DEVICE = device or ("cuda" if torch.cuda.is_available() else "cpu")
    model = build_model(cfg).eval()
    if pretrained:
        load_weights(model, cfg)
    return model


def resolve_weights(weights: str | PathLike) -> str:
    """The file of weights that are given as a file or as the name of a model of the zoo.

    Raises:
        ConfigError: it is neither.
    """
    if Path(weights).is_file():
        return fspath(weights)
    found = read_index()
    if fspath(weights) not in found:
        raise ConfigError(
            f"the weights {fspath(weights)} are neither a file nor a model of the zoo; the zoo has "
            f"{', '.join(found) or 'none yet'}"
        )
    return str(found[fspath(weights)].weights_file)


def config_of(weights: str | PathLike) -> str:
    """The configuration file that belongs to weights: that of the zoo, or the ``config.yaml`` of the training.

    Raises:
        ConfigError: none is known.
    """
    known = read_index().get(fspath(weights))
    if known is not None and not Path(weights).is_file():
        _load_systems(known)
        return str(known.config_file)
    beside = Path(weights).with_name("config.yaml")
    for chosen in read_index().values():
        if Path(weights).is_file() and chosen.weights_file == Path(weights).resolve():
            return str(chosen.config_file)
    if not beside.is_file():
        raise ConfigError(f"no {beside} says what {fspath(weights)} are the weights of; give --config-file")
    return str(beside)


def find_config(name: str | PathLike) -> str:
    """A configuration given as a file, as a path below ``configs/``, or as the name of a model of the zoo.

    Raises:
        ConfigError: it is none of them.
    """
    packaged = configs_folder()
    candidates = [Path(name), packaged / name, packaged.parent / name]
    for path in candidates:
        if path.is_file():
            return str(path)
    if fspath(name) in read_index():
        return str(entry(fspath(name)).config_file)
    raise ConfigError(f"--config-file {fspath(name)} is neither a file, nor one below {packaged}, nor of the zoo")


def configs_folder() -> Path:
    """The configurations that come with the package, or with the clone."""
    installed = _PACKAGE.parent / "configs"
    return installed if installed.is_dir() else _PACKAGE.parents[1] / "configs"


def _load_systems(chosen: Entry) -> None:
    """Import the installed systems unless those that a model is made of are registered already."""
    from ..systems import load_systems, registered_systems

    def missing() -> set[str]:
        return set(chosen.requires) - {system.name for system in registered_systems()}

    if missing():
        load_systems()
    if missing():
        raise ConfigError(
            f"{chosen.name} needs the detection system {', '.join(sorted(missing()))}, which is not installed; install "
            "the package that has it"
        )


__all__ = ["Entry", "config_of", "configs_folder", "entry", "find_config", "get", "get_config", "names", "read_index",
           "resolve_weights"]  # fmt: skip
