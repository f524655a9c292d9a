"""Train the rows of tables one after the other: resume what was interrupted, skip what is done, bear failures.

A training's folder bears the fingerprint of its configuration, so a row that two tables share is trained once, and a
changed configuration never goes on with another one's checkpoint. A folder from before a key was added is the training
that has the key's default.
"""

from __future__ import annotations

import functools
import hashlib
import json
import logging
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path

import yaml
from detectron2.config import CfgNode

from ..config import get_config
from ..errors import DatasetError
from ..files import write_atomically
from .tables import Row, Table

logger = logging.getLogger(__name__)

CONFIG = "ablation.yaml"
RESULT = "result.json"
OUTPUT = "stdout.txt"
_DATA = "# data: "

_EVALUATIONS = ("bbox", "voc_paper", "voc_exact", "pd_fa", "sky")

# What may differ between two runs of one training, as (parents..., key).
_INCIDENTAL = (("OUTPUT_DIR",), ("MODEL", "DEVICE"), ("DATALOADER", "NUM_WORKERS"), ("SOLVER", "CHECKPOINT_KEEP"))


class NotFinishedError(Exception):
    """A training did not come to its end, for a reason (the message) that is no fault of its own."""


def fingerprint(cfg: CfgNode, data: str = "") -> str:
    """Return twelve hexadecimal digits that identify a training.

    Args:
        cfg: its configuration; the output folder, the device and the number of loading processes do not count.
        data: describes data that the names of its sets do not identify.
    """
    content = yaml.safe_load(cfg.dump())
    for *parents, key in _INCIDENTAL:
        node = content
        for parent in parents:
            node = node[parent]
        node.pop(key)
    text = json.dumps([content, data], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def _find_folder(runs: Path, identity: str) -> Path | None:
    """Return the folder of a training, if there is one: by its name, else by its file read with today's keys."""
    named = sorted(runs.glob(f"*-{identity}"))
    if named:
        return named[0]
    files = sorted(runs.glob(f"*/{CONFIG}"))
    return next((path.parent for path in files if _identity_today(path, path.stat().st_mtime_ns) == identity), None)


@functools.cache
def _identity_today(path: Path, _changed: int) -> str:
    """The fingerprint of a training's file with the keys of today; empty if it has one that is no more."""
    first = path.read_text(encoding="utf-8").partition("\n")[0]
    try:
        cfg = get_config(path)
    except (KeyError, ValueError):
        return ""
    return fingerprint(cfg, first.removeprefix(_DATA) if first.startswith(_DATA) else "")


@dataclass(frozen=True)
class Job:
    """One training of one row.

    Attributes:
        table, row, seed: what it is.
        cfg: its configuration, whose ``OUTPUT_DIR`` is ``folder``.
        folder: of its files.
        identity: the fingerprint of the configuration and the data.
        data: describes data that the names of its sets do not identify.
    """

    table: Table
    row: Row
    seed: int
    cfg: CfgNode
    folder: Path
    identity: str
    data: str = ""

    @property
    def title(self) -> str:
        return f"{self.table.name} {self.row.name}, seed {self.seed}"


@dataclass(frozen=True)
class Outcome:
    """What became of a job.

    Attributes:
        state: ``finished``, ``failed`` or ``pending`` (interrupted, or not begun).
        metrics: of the last evaluation, key -> percent; empty unless finished.
        seconds: that all its trainings took together.
        reason: of a failure.
    """

    state: str
    metrics: dict[str, float]
    seconds: float = 0.0
    reason: str = ""


Execute = Callable[[Job, float], int]
"""Train a job, going on from its checkpoint, for so many seconds at most; returns the exit status.

Raises ``NotFinishedError`` when the seconds are over or another process trains the same job.
"""


def make_job(table: Table, row: Row, seed: int, cfg: CfgNode, output: str | PathLike, data: str = "") -> Job:
    """Return the job of a configuration, with its folder below ``output/runs``, or the folder that it already has."""
    identity = fingerprint(cfg, data)
    runs = Path(output) / "runs"
    folder = _find_folder(runs, identity) or runs / f"{table.name}-{row.name}-{seed}-{identity}"
    cfg = cfg.clone()
    cfg.OUTPUT_DIR = str(folder)
    return Job(table, row, seed, cfg, folder, identity, data)


def finished(job: Job) -> Outcome | None:
    """Return the outcome of a job that an earlier run finished, else ``None``.

    Raises:
        DatasetError: if the record of its result is broken.
    """
    path = job.folder / RESULT
    if not path.exists():
        return None
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        return Outcome("finished", dict(record["metrics"]), float(record["seconds"]))
    except (ValueError, KeyError, TypeError) as error:
        raise DatasetError(
            path, "file", f"is not a result: {error!r}", "remove it; the training is not lost"
        ) from error


def run_jobs(
    jobs: Sequence[Job],
    execute: Execute,
    *,
    time_limit: float = float("inf"),
    clock: Callable[[], float] = time.monotonic,
) -> list[Outcome]:
    """Train every job that is not finished.

    Args:
        jobs: in the order of training; several may be one training (equal fingerprints), which then runs once.
        execute: trains one.
        time_limit: seconds for all together; what does not fit stays pending and goes on with the next call.
        clock: seconds.

    Returns:
        One outcome per job. A failed job does not stop the others.
    """
    begin = clock()
    outcomes: dict[str, Outcome] = {}
    todo = {job.identity for job in jobs if finished(job) is None}
    took: list[float] = []
    for number, job in enumerate(jobs, 1):
        if job.identity in outcomes:
            continue
        done = finished(job)
        if done is not None:
            logger.info("[%d/%d] %s: done before", number, len(jobs), job.title)
            outcomes[job.identity] = done
            continue
        remaining = time_limit - (clock() - begin)
        if remaining <= 0:
            outcomes[job.identity] = Outcome("pending", {}, reason="no time left")
            continue
        logger.info("[%d/%d] %s: training in %s", number, len(jobs), job.title, job.folder)
        start = clock()
        outcomes[job.identity] = outcome = _run(job, execute, remaining, clock)
        todo.discard(job.identity)
        took.append(clock() - start)
        left = sum(took) / len(took) * len(todo)
        text = ", ".join(f"{m.name} {outcome.metrics[m.key]:.1f}" for m in job.table.metrics if outcome.metrics)
        logger.info(
            "[%d/%d] %s: %s after %.0f s%s; about %.0f min left",
            number, len(jobs), job.title, outcome.state, took[-1], f" ({text or outcome.reason})", left / 60,
        )  # fmt: skip
    return [outcomes[job.identity] for job in jobs]


def _run(job: Job, execute: Execute, seconds: float, clock: Callable[[], float]) -> Outcome:
    config, spent = f"{_DATA}{job.data}\n{job.cfg.dump()}", _SpentTime(job.folder)
    write_atomically(job.folder / CONFIG, lambda file: file.write(config.encode()))
    start = clock()
    try:
        status = execute(job, seconds)
    except NotFinishedError as error:
        return Outcome("pending", {}, spent.total + clock() - start, str(error))
    finally:
        spent.add(clock() - start)
    if status:
        return Outcome("failed", {}, spent.total, f"exit status {status}: {_last_line(job.folder / OUTPUT)}")
    metrics = last_evaluation(job.folder, [metric.key for metric in job.table.metrics])
    if metrics is None:
        return Outcome("failed", {}, spent.total, f"{job.folder / 'metrics.json'} holds no evaluation")
    record = json.dumps({"fingerprint": job.identity, "metrics": metrics, "seconds": spent.total}, indent=1)
    write_atomically(job.folder / RESULT, lambda file: file.write(record.encode()))
    return Outcome("finished", metrics, spent.total)


class _SpentTime:
    """Seconds that the trainings in a folder took, over interruptions."""

    def __init__(self, folder: Path):
        self._path = folder / "seconds.txt"
        self.total = float(self._path.read_text()) if self._path.exists() else 0.0

    def add(self, seconds: float) -> None:
        self.total += seconds
        write_atomically(self._path, lambda file: file.write(f"{self.total:.1f}".encode()))


def last_evaluation(folder: Path, keys: Iterable[str]) -> dict[str, float] | None:
    """Return the metrics (``EVALUATOR/METRIC``) of a run folder's last evaluation that has all ``keys``."""
    path = folder / "metrics.json"
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    for row in map(json.loads, reversed(lines)):
        if all(key in row for key in keys):
            return {key: value for key, value in row.items() if key.partition("/")[0] in _EVALUATIONS}
    return None


def _last_line(path: Path) -> str:
    lines = path.read_text(encoding="utf-8", errors="replace").split("\n") if path.exists() else []
    return next((line.strip() for line in reversed(lines) if line.strip()), "no output")
