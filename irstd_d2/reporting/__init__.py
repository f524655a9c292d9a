"""Reports of runs."""

from .features import Tap
from .report import Options, write_report

__all__ = ["Options", "Tap", "write_report"]
