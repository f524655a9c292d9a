"""What a run prints: the screen gets what a person reads, the log file everything."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterable

from detectron2.utils.logger import setup_logger

# ``logger.info(..., extra=FILE_ONLY)``: pages that would push what matters off the screen.
FILE_ONLY = {"file_only": True}
# Of detectron2: tables of every set, byte counts and one line per loaded object. They go to the log file.
_QUIET = ("detectron2.data", "detectron2.checkpoint", "fvcore.common.checkpoint", "detectron2.solver")


class ScreenFilter(logging.Filter):
    """Passes what belongs on the screen."""

    def filter(self, record: logging.LogRecord) -> bool:
        quiet = record.levelno < logging.WARNING and record.name.startswith(_QUIET)
        return not (quiet or getattr(record, "file_only", False))


def start_logs(folder: str, rank: int, packages: Iterable[str]) -> None:
    """Log detectron2, fvcore and ``packages`` to ``folder/log.txt`` and, on the main process, to the screen.

    Other processes than that of ``rank`` 0 have a file of their own.
    """
    for package in ("fvcore", "detectron2", *packages):
        logger = setup_logger(folder or None, distributed_rank=rank, name=package)
        for handler in logger.handlers:
            if getattr(handler, "stream", None) is sys.stdout:
                handler.addFilter(ScreenFilter())
