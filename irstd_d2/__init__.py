"""What AuxDet and BAFE-Net share: data, training, evaluation and baseline detectors for infrared small targets.

The names below are imported at their first use, so that the command line answers before PyTorch is loaded.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .config import add_irstd_config, get_config
    from .inference import Predictor
    from .systems import System, Tap, load_systems, register_system

__version__ = "0.6.0"
__all__ = ["Predictor", "System", "Tap", "add_irstd_config", "get_config", "load_systems", "register_system"]
_MODULES = (
    {"Predictor": "inference"}
    | dict.fromkeys(("add_irstd_config", "get_config"), "config")
    | dict.fromkeys(("System", "Tap", "load_systems", "register_system"), "systems")
)


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_MODULES[name]}", __name__), name)
