"""BAFE-Net: detection of infrared small targets with background semantics. Importing registers its parts."""

from . import data, modeling
from .config import add_bafe_config

__all__ = ["add_bafe_config", "data", "modeling"]
