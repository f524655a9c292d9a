"""Train what is not trained yet: each training in a process of its own, resumed where it was stopped.

The folder of a training is named after the fingerprint of its configuration: a row that two tables share is trained
once, and a changed option starts a training of its own.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import logging
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml
from detectron2.config import CfgNode
from tqdm import tqdm

from irstd_d2.errors import DatasetError
from irstd_d2.files import write_atomically

from .tables import Row, Table

ROOT = Path(__file__).resolve().parents[2]
RESULT, CONFIG, LOG = "result.json", "ablation.yaml", "stdout.txt"
logger = logging.getLogger("ablate")


class NotFinishedError(Exception):
    """A training did not come to its end, for a reason (the message) that is no fault of its own."""


@dataclass(frozen=True)
class Job:
    """One training of one row; ``cfg.OUTPUT_DIR`` is its folder."""

    table: Table
    row: Row
    seed: int
    cfg: CfgNode

    @property
    def folder(self) -> Path:
        return Path(self.cfg.OUTPUT_DIR)

    @property
    def identity(self) -> str:
        """The fingerprint, equal for equal trainings."""
        return self.folder.name.rpartition("-")[2]


@dataclass
class Outcome:
    """``state`` is finished, failed or pending; ``metrics`` in percent, empty unless finished."""

    state: str
    metrics: dict[str, float]
    seconds: float = 0.0
    reason: str = ""


def make_job(table: Table, row: Row, seed: int, cfg: CfgNode, output: Path, data: str = "") -> Job:
    """Give a training its folder; ``data`` describes sets that their names do not identify."""
    content = yaml.safe_load(cfg.dump())
    for parent, key in (("MODEL", "DEVICE"), ("DATALOADER", "NUM_WORKERS"), ("SOLVER", "CHECKPOINT_KEEP")):
        content[parent].pop(key)
    del content["OUTPUT_DIR"]
    identity = hashlib.sha256(json.dumps([content, data], sort_keys=True).encode()).hexdigest()[:12]
    cfg = cfg.clone()
    named = sorted((output / "runs").glob(f"*-{identity}"))
    cfg.OUTPUT_DIR = str(named[0] if named else output / "runs" / f"{table.name}-{row.name}-{seed}-{identity}")
    return Job(table, row, seed, cfg)


def finished(job: Job) -> Outcome | None:
    """The outcome of a training that an earlier run finished.

    Raises:
        DatasetError: the record of its result is broken.
    """
    path = job.folder / RESULT
    if not path.exists():
        return None
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        return Outcome("finished", dict(record["metrics"]), float(record["seconds"]))
    except (ValueError, KeyError, TypeError) as error:
        raise DatasetError(path, "file", f"is not a result: {error!r}", "remove it; the training stays") from error


def run_jobs(jobs: Sequence[Job], train: Callable[[Job, float], None], limit: float = float("inf")) -> list[Outcome]:
    """Train every job that is not finished.

    Args:
        jobs: in the order of training; several may share one training.
        train: trains one for so many seconds at most; see :class:`Trainer`.
        limit: seconds for all together; what does not fit stays pending and goes on with the next call.

    Returns:
        One outcome per job. A failed job does not stop the others.
    """
    end = time.monotonic() + limit
    outcomes: dict[str, Outcome] = {}
    for job in tqdm(jobs, desc="trainings", disable=None):
        if job.identity in outcomes:
            continue
        outcome = finished(job)
        if outcome is None and time.monotonic() >= end:
            outcome = Outcome("pending", {}, reason="no time left")
        outcomes[job.identity] = outcome or _run(job, train, end - time.monotonic())
        state = outcomes[job.identity]
        logger.info("%s %s, seed %d: %s %s", job.table.name, job.row.name, job.seed, state.state, state.reason)
    return [outcomes[job.identity] for job in jobs]


def _run(job: Job, train: Callable[[Job, float], None], seconds: float) -> Outcome:
    job.folder.mkdir(parents=True, exist_ok=True)
    write_atomically(job.folder / CONFIG, job.cfg.dump())
    clock = job.folder / "seconds.txt"
    before, start = float(clock.read_text()) if clock.exists() else 0.0, time.monotonic()
    try:
        train(job, seconds)
    except NotFinishedError as error:
        return Outcome("pending", {}, reason=str(error))
    except subprocess.CalledProcessError as error:
        lines = (job.folder / LOG).read_text(encoding="utf-8", errors="replace").split("\n")
        last = next((line.strip() for line in reversed(lines) if line.strip()), "no output")
        return Outcome("failed", {}, reason=f"exit status {error.returncode}: {last}; see {job.folder / LOG}")
    finally:
        spent = before + time.monotonic() - start
        write_atomically(clock, f"{spent:.1f}")
    metrics = last_evaluation(job)
    if metrics is None:
        return Outcome("failed", {}, reason=f"{job.folder / 'metrics.json'} holds no evaluation")
    write_atomically(job.folder / RESULT, json.dumps({"metrics": metrics, "seconds": spent}, indent=1))
    return Outcome("finished", metrics, spent)


def last_evaluation(job: Job) -> dict[str, float] | None:
    """The figures of the last evaluation in a training's ``metrics.json``; ``None`` without one."""
    path, keys = job.folder / "metrics.json", list(job.table.metrics.values())
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    for row in map(json.loads, reversed(lines)):
        if all(key in row for key in keys):
            return {key: row[key] for key in keys}
    return None


class Trainer:
    """Trains a job with ``tools/train_net.py --resume``.

    Args:
        data: root of the data sets.
        options: more arguments, e.g. ``--num-gpus 2``.
    """

    def __init__(self, data: Path, options: Sequence[str] = ()):
        threads = os.environ.get("OMP_NUM_THREADS", str(os.cpu_count() or 1))
        self.environment = os.environ | {"DETECTRON2_DATASETS": str(data.resolve()), "OMP_NUM_THREADS": threads}
        self.options = options

    def __call__(self, job: Job, seconds: float) -> None:
        """Train a job, going on from its checkpoint.

        Raises:
            NotFinishedError: the seconds are over, or a process of another command trains this job.
            CalledProcessError: the training failed.
        """
        folder = job.folder.resolve()
        command = [sys.executable, str(ROOT / "tools" / "train_net.py"), *self.options]
        command += ["--resume"] if list(folder.glob("model_*.pth")) else []
        command += ["--config-file", str(folder / CONFIG), "OUTPUT_DIR", str(folder)]
        with (folder / "lock").open("w") as lock, (folder / LOG).open("ab") as log:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                # The training inherits the lock, and so holds it even if this process is killed.
                _wait(
                    subprocess.Popen(
                        command, cwd=ROOT, env=self.environment, stdout=log, stderr=log, pass_fds=[lock.fileno()]
                    ),
                    None if seconds == float("inf") else seconds,
                )  # fmt: skip
            except BlockingIOError as error:
                raise NotFinishedError("another process is training it") from error
            except subprocess.TimeoutExpired as error:
                raise NotFinishedError("interrupted: no time left") from error


def _wait(process: subprocess.Popen, timeout: float | None) -> None:
    """Wait for a process; whatever ends the wait also ends the process, before it goes on."""
    try:
        status = process.wait(timeout)
    except BaseException:
        process.kill()
        process.wait()
        raise
    if status:
        raise subprocess.CalledProcessError(status, process.args)
