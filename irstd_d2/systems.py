"""What detection systems add to this package: they register when they are imported, and are not known by name here.

A system's package describes itself in its ``__init__``:

    register_system(System("my_system", add_my_config, export_module="my_system.export"))

and lists itself in the entry-point group ``irstd_d2.systems``, so that the commands of the project find it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import entry_points
from typing import Literal

from detectron2.config import CfgNode
from torch import nn

from .checkpoint.naming import NameMap
from .errors import ConfigError

_GROUP = "irstd_d2.systems"


@dataclass(frozen=True)
class Tap:
    """Which feature maps a report shows: those that go into or come out of all modules of a class.

    Attributes:
        module: the class; ``None`` is the model's backbone.
        title: of the row of maps, e.g. ``after M2DM``.
        side: ``input`` or ``output``.
        index: which of several tensors.
    """

    module: type[nn.Module] | None
    title: str
    side: Literal["input", "output"] = "output"
    index: int = 0


@dataclass(frozen=True)
class System:
    """One detection system.

    Attributes:
        name: its package, whose logger a training writes down.
        add_config: adds its keys to a configuration, in place.
        checkpoint_names: names of published checkpoints' tensors and ours, by the name of a model.
        export_module: imported before a model is exported; registers its modules with ``irstd_d2.export.graphs``.
        equality_module: has ``compare(folder=None)``, which gives an ``irstd_d2.equality.Comparison`` with numbers of a
            published implementation; imported by ``irstd check-equality``.
        feature_taps: the feature maps that a report shows.
        metadata_remark: given ``platform`` or ``band`` and a name that a data set has there, what to know about a name
            that the system's default configuration does not tell apart; ``None`` about others.
    """

    name: str
    add_config: Callable[[CfgNode], None]
    checkpoint_names: Mapping[str, NameMap] = field(default_factory=dict)
    export_module: str | None = None
    equality_module: str | None = None
    feature_taps: Sequence[Tap] = ()
    metadata_remark: Callable[[str, str], str | None] | None = None


_systems: dict[str, System] = {}


def register_system(system: System) -> None:
    """Make a system known; one of the same name is replaced, as when its package is reloaded."""
    _systems[system.name] = system


def registered_systems() -> tuple[System, ...]:
    """The systems whose packages are imported, in the order of their names."""
    return tuple(_systems[name] for name in sorted(_systems))


def installed_systems() -> tuple[str, ...]:
    """Packages of the systems that are installed, imported or not."""
    return tuple(sorted({entry.module for entry in entry_points(group=_GROUP)}))


def load_systems() -> None:
    """Import all systems that are installed, as the commands of the project do.

    Raises:
        ConfigError: none is installed.
    """
    entries = entry_points(group=_GROUP)
    if not entries:
        raise ConfigError(f"no package is installed that lists a system in {_GROUP}; run pip install --no-deps -e .")
    for entry in entries:
        entry.load()
