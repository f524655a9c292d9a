"""BAFE-Net: detection of infrared small targets with background semantics."""

from . import modeling  # noqa: F401  registers
from .config import add_bafe_config

__all__ = ["add_bafe_config"]
