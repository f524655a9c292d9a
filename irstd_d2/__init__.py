"""What AuxDet and BAFE-Net share: data, training, evaluation and baseline detectors for infrared small targets."""

from . import data, modeling  # noqa: F401  registers
from .config import add_irstd_config, get_config
from .systems import System, Tap, load_systems, register_system

__version__ = "0.3.0"
__all__ = ["System", "Tap", "add_irstd_config", "get_config", "load_systems", "register_system"]
