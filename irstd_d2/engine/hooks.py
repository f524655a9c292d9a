"""Hooks that a resumed training takes up where they were.

Order matters: evaluation, best checkpoint and logs of an iteration come before its checkpoint. So a run that was killed
anywhere has either not saved the iteration, then all of it is done again, or has done everything that belongs to it.
"""

from __future__ import annotations

import json
import logging
import math
from pathlib import Path
from typing import Any

import torch
from detectron2.engine import HookBase, hooks
from detectron2.utils.events import EventWriter

from ..files import write_atomically
from .checkpoint import IRSTDCheckpointer, iteration_of

logger = logging.getLogger(__name__)

# Iterations that the writers smooth their values over.
WINDOW = 20


class BestCheckpointer(hooks.BestCheckpointer):
    """detectron2's hook that also remembers the best metric over a resume, if it is the same of the same test sets."""

    @property
    def _measured(self) -> list[str]:
        return [self._val_metric, *self.trainer.cfg.DATASETS.TEST]

    def state_dict(self) -> dict[str, Any]:
        return {"best_metric": self.best_metric, "best_iter": self.best_iter, "measured": self._measured}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if (before := state.get("measured", self._measured)) != self._measured:
            logger.warning("the best of %s does not count for %s: the search starts anew", before, self._measured)
            return
        self.best_metric, self.best_iter = state["best_metric"], state["best_iter"]


class PeriodicCheckpointer(hooks.PeriodicCheckpointer):
    """detectron2's hook that counts checkpoints from before a resume among those it keeps.

    ``keep`` are kept beside the final one; 0 keeps all.
    """

    def __init__(self, checkpointer: IRSTDCheckpointer, period: int, *, keep: int = 0):
        super().__init__(checkpointer, period)
        self.keep = keep

    def step(self, iteration: int, **kwargs: Any) -> None:
        due = (iteration + 1) % self.period == 0 or iteration >= self.max_iter - 1
        if due and not weights_are_finite(self.checkpointer):
            logger.error("weights are not finite after iteration %d; the checkpoint before is kept instead", iteration)
            return
        super().step(iteration, **kwargs)
        if due and self.keep:
            numbered = [p for p in self.checkpointer.resume_candidates() if math.isfinite(iteration_of(p) or 0)]
            for path in numbered[self.keep :]:
                path.unlink(missing_ok=True)


def weights_are_finite(checkpointer: IRSTDCheckpointer) -> bool:
    """Whether weights and running statistics are worth saving."""
    values = [v for v in checkpointer.model.state_dict().values() if v.is_floating_point()]
    return bool(torch.stack([torch.isfinite(v).all() for v in values]).all()) if values else True


class RunLog(HookBase):
    """The writers of a run, whose files go on after a resume as if the run had not been interrupted.

    The checkpoint holds the values that smoothing looks back on and how far the files were written; lines of
    ``metrics.json`` that are written again are removed. The writers come from the trainer's ``build_writers`` and write
    every ``period`` iterations.
    """

    def __init__(self, folder: str, period: int = WINDOW):
        self.folder, self.period = Path(folder), period
        self._writers: list[EventWriter] = []
        self._restored: dict[str, Any] = {"scalars": {}, "written": -1}
        self._written = -1

    def before_train(self) -> None:
        storage, self._written = self.trainer.storage, self._restored["written"]
        for name, scalar in self._restored["scalars"].items():
            storage.smoothing_hints()[name] = scalar["smooth"]
            for value, iteration in scalar["values"]:
                if iteration > self._written:  # the writers take the latest value of each scalar
                    storage.put_scalar(name, value, smoothing_hint=scalar["smooth"], cur_iter=iteration)
                else:
                    storage.histories()[name].update(value, iteration)
        path = self.folder / "metrics.json"
        if self.trainer.start_iter:
            cut_metrics(path, self._written)
        elif path.exists():
            aside = path.with_name("metrics_before.json")
            logger.warning("%s is from an earlier run; it is put aside as %s", path, aside.name)
            path.replace(aside)
        self._writers = self.trainer.build_writers()

    def after_step(self) -> None:
        last = self.trainer.iter == self.trainer.max_iter - 1
        if last or (self.trainer.iter + 1) % self.period == 0:
            self._write()

    def after_train(self) -> None:
        self._write(close=True)  # what others measured at the end

    def _write(self, close: bool = False) -> None:
        try:
            for writer in self._writers:
                writer.write()
                if close:
                    writer.close()
            self._written = max((at for _, at in self.trainer.storage.latest().values()), default=self._written)
        except OSError as error:
            raise OSError(f"the logs in {self.folder} could not be written: {error}. Free space and resume") from error

    def state_dict(self) -> dict[str, Any]:
        storage = getattr(self.trainer, "storage", None)
        if storage is None:  # saved outside of a training
            return self._restored
        smooth = storage.smoothing_hints()
        scalars = {
            name: {
                "smooth": smooth[name],
                "values": [list(pair) for pair in history.values()[-WINDOW - 1 :] if pair[1] >= storage.iter - WINDOW],
            }
            for name, history in storage.histories().items()
        }
        return {"scalars": scalars, "written": self._written}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._restored = state


def cut_metrics(path: Path, last: int) -> None:
    """Cut a log of metrics back to the complete lines of iterations up to ``last``."""
    if not path.exists():
        return
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    kept = [line for line in lines if (at := _iteration_of_line(line)) is not None and at <= last]
    if kept != lines:
        write_atomically(path, "".join(kept))


def _iteration_of_line(line: str) -> int | None:
    """The iteration of a complete line of ``metrics.json``; ``None`` for a part of one."""
    try:
        return int(json.loads(line)["iteration"]) if line.endswith("\n") else None
    except (ValueError, KeyError, TypeError):
        return None
