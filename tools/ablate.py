#!/usr/bin/env python3
"""Train the rows of a paper's table and set the figures beside the published ones.

    python tools/ablate.py auxdet-5 bafe-4 --seeds 2                     # synthetic scenes, minutes on a CPU
    python tools/ablate.py bafe-4 --scale dense                          # real DenseSIRST; as published with a GPU
    python tools/ablate.py auxdet-5 --scale wide --preset gpu --weights 'weights/resnet{depth}.pth'
    python tools/ablate.py --list

The same command goes on where it was stopped; rows that are done are not trained again, also when another table has
the same row. Commands with the same output folder can run side by side, for instance one per GPU.
Writes OUTPUT/ablation_TABLE_SCALE.md and .png, and the trainings below OUTPUT/runs.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import logging
import os
import platform
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from datetime import date
from pathlib import Path

import torch
from detectron2.modeling import build_model

import auxdet_d2  # noqa: F401  registers
import bafe_d2  # noqa: F401  registers
from irstd_d2 import get_config
from irstd_d2.ablation import (
    SCALES,
    TABLES,
    Job,
    NotFinishedError,
    Outcome,
    Table,
    collect,
    draw,
    get_scale,
    make_job,
    markdown,
    resolve,
    run_jobs,
    select_rows,
)
from irstd_d2.ablation.runner import CONFIG, OUTPUT
from irstd_d2.ablation.scales import Scale
from irstd_d2.data.datasets import datasets_root
from irstd_d2.errors import ConfigError, DatasetError
from irstd_d2.files import write_atomically
from irstd_d2.synthetic import SceneConfig, dense_config, write_densesirst, write_wideirstd

ROOT = Path(__file__).resolve().parents[1]
CONFIGS = ROOT / "configs"
STOPPING = (signal.SIGINT, signal.SIGTERM)
logger = logging.getLogger("ablate")

# Data of the synthetic scale; in only one of ten of its scenes does the background betray the imaging domain.
TRAIN, VAL = 600, 200
OMNI = SceneConfig(size=(128, 128), balance="uniform", domain_conflict=0.9)
DENSE = dense_config(size=(128, 128))


def parse_budget(text: str) -> tuple[int, float]:
    """Read ``300`` (iterations of each training) or ``20m``, ``1.5h`` (for all trainings together).

    Returns:
        (iterations, 0 for the scale's; seconds, infinite without a limit).
    """
    if text.isdecimal() and int(text) > 0:
        return int(text), float("inf")
    with contextlib.suppress(ValueError):
        seconds = float(text[:-1]) * {"m": 60, "h": 3600}.get(text[-1:], 0)
        if seconds > 0:
            return 0, seconds
    raise argparse.ArgumentTypeError(
        f"{text!r} is neither a number of iterations, for example 300, nor a time, for example 20m or 1.5h"
    )


def get_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "tables", nargs="*", metavar="TABLE", help="auxdet-1 to -9, bafe-2 to -9, beyond-auxdet, beyond-bafe"
    )
    parser.add_argument("--list", action="store_true", help="show all tables and their rows")
    parser.add_argument("--scale", default="synthetic", choices=sorted({scale.name for scale in SCALES}))
    parser.add_argument(
        "--preset", choices=("cpu", "gpu"), help="size of the models (by default gpu with a CUDA device)"
    )
    parser.add_argument("--seeds", type=int, default=1, help="trainings of each row, seeds 0 to N-1 (%(default)s)")
    parser.add_argument(
        "--budget",
        action="append",
        type=parse_budget,
        default=[],
        help="iterations of each training (300), or time for all of them (20m, 1.5h); may be given once for each",
    )
    parser.add_argument("--rows", nargs="+", default=[], help="train these rows only")
    parser.add_argument("--weights", default="", help="ImageNet backbone; {depth} becomes 18, 34, 50 or 101")
    parser.add_argument("--report", action="store_true", help="train nothing; report what is finished")
    parser.add_argument("--output", type=Path, default=ROOT / "output" / "ablation")
    parser.add_argument("--num-gpus", type=int, default=1, help="processes of one training on as many GPUs")
    parser.add_argument("--opts", nargs="+", default=[], metavar="KEY VALUE", help="for every row, as for train_net.py")
    return parser


def listing() -> str:
    """All tables and rows as text."""
    lines = []
    for table in TABLES.values():
        lines.append(f"{table.name}: {table.title}")
        lines += [f"    {row.name:24} {row.label}" for row in table.trainable]
    return "\n".join(lines)


def prepare_data(scale: Scale, papers: set[str], output: Path) -> Path:
    """Make the synthetic sets that are missing, or check that the real one is there; returns the root of all sets.

    Raises:
        DatasetError: if the real set is missing.
    """
    if scale.folder:
        root = datasets_root()
        if not (root / scale.folder).is_dir():
            raise DatasetError(
                root / scale.folder,
                "folder",
                "is missing",
                "set DETECTRON2_DATASETS to the folder that holds it (datasets/README.md), or use --scale synthetic",
            )
        return root
    root = output / "data"
    if "auxdet" in papers:
        write_wideirstd(root / "synthetic_omni", OMNI, TRAIN, VAL, progress=False)
    if "bafe" in papers:
        write_densesirst(root / "synthetic_dense", DENSE, TRAIN, VAL, progress=False)
    return root


class Trainer:
    """Trains a job with ``tools/train_net.py`` in a process of its own.

    Args:
        data: root of the data sets.
        num_gpus: processes of one training.
    """

    def __init__(self, data: Path, num_gpus: int):
        threads = os.environ.get("OMP_NUM_THREADS", str(os.cpu_count() or 1))
        self.environment = {**os.environ, "DETECTRON2_DATASETS": str(data.resolve()), "OMP_NUM_THREADS": threads}
        self.environment.setdefault("PYTHONWARNINGS", "ignore")
        self.options = ["--num-gpus", str(num_gpus)] if torch.cuda.is_available() else []

    def __call__(self, job: Job, seconds: float) -> int:
        """Train a job; returns the exit status.

        Raises:
            NotFinishedError: the seconds are over, or a process of another command trains this job.
        """
        folder = job.folder.resolve()
        command = [
            *(sys.executable, str(ROOT / "tools" / "train_net.py"), *self.options, "--resume"),
            *("--config-file", str(folder / CONFIG), "OUTPUT_DIR", str(folder)),
        ]
        limit = None if seconds == float("inf") else seconds
        with (folder / "lock").open("w") as lock, (folder / OUTPUT).open("ab") as log:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise NotFinishedError("another process is training it") from error
            process = None
            try:
                with signals_deferred():
                    # The training inherits the lock, and so holds it even if this process is killed.
                    process = subprocess.Popen(  # noqa: S603
                        command, cwd=ROOT, env=self.environment, stdout=log, stderr=log, pass_fds=[lock.fileno()]
                    )
                return process.wait(limit)
            except subprocess.TimeoutExpired as error:
                raise NotFinishedError("interrupted: no time left") from error
            finally:
                if process is not None:
                    process.kill()
                    process.wait()


@contextlib.contextmanager
def signals_deferred() -> Iterator[None]:
    """Handle the signals that stop this command after the block: none comes between a process and its name."""
    came: list[int] = []
    handlers = {number: signal.signal(number, lambda which, _: came.append(which)) for number in STOPPING}
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
        for number in came:
            signal.raise_signal(number)


def count_parameters(table: Table) -> dict[str, int]:
    """Row -> parameters of its published configuration, for the rows that have a printed number."""
    counts = {}
    for row in table.trainable:
        if row.parameters == row.parameters:
            model = build_model(get_config(CONFIGS / row.config, ["MODEL.DEVICE", "cpu", "MODEL.WEIGHTS", ""]))
            counts[row.name] = sum(parameter.numel() for parameter in model.parameters())
    return counts


def hardware() -> str:
    """Processor or GPU, threads and versions."""
    if torch.cuda.is_available():
        device = torch.cuda.get_device_name()
    else:
        threads = os.environ.get("OMP_NUM_THREADS", str(os.cpu_count() or 1))
        device = f"{platform.machine()}, {os.cpu_count()} CPU cores, threads per training: {threads}"
    return f"{device}, torch {torch.__version__.partition('+')[0]}"


def commit() -> str:
    """Short name of the checkout's commit; empty outside a checkout."""
    result = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True)  # noqa: S607
    return result.stdout.strip()


def facts(scale: Scale, jobs: Sequence[Job], outcomes: Sequence[Outcome]) -> list[str]:
    """How the figures were made."""
    finished = [outcome.seconds for outcome in outcomes if outcome.state == "finished"]
    solver = jobs[0].cfg.SOLVER
    length = f"{solver.MAX_EPOCHS} epochs" if solver.MAX_EPOCHS else f"{solver.MAX_ITER} iterations"
    where = f", commit {commit()}" if commit() else ""
    return [
        "    " + shlex.join(["python", "tools/ablate.py", *sys.argv[1:]]),
        f"{date.today()}, {hardware()}{where}. {len(finished)} trainings of {length} of {solver.IMS_PER_BATCH} images, "
        f"{sum(finished) / 60:.0f} minutes together (a row that another table shares is trained once and counted in "
        "both).",
        f"Data and models: {scale.description}. {scale.limits}",
    ]


def make_jobs(args: argparse.Namespace, scale: Scale, tables: Sequence[Table], iterations: int) -> list[Job]:
    """All trainings, first every row from seed 0, then from seed 1, so that a stopped run can be compared."""
    options = [*(["MODEL.WEIGHTS", args.weights] if args.weights else []), *args.opts]
    data = "" if scale.folder else repr((TRAIN, VAL, OMNI, DENSE))
    return [
        make_job(
            table,
            row,
            seed,
            resolve(row, table, scale, CONFIGS, seed=seed, iterations=iterations, options=options),
            args.output,
            data,
        )
        for seed in range(args.seeds)
        for table, row in select_rows(tables, args.rows)
        if row.config or scale.recipes  # the published scale leaves out rows that are made for small ones
    ]


def run(args: argparse.Namespace) -> int:
    """Train, compare and report; 1 if a training failed or is still to be done."""
    if unknown := set(args.tables) - set(TABLES) or not args.tables:
        raise ConfigError(f"tables {unknown if args.tables else ''} unknown or missing; known are {', '.join(TABLES)}")
    if args.seeds < 1:
        raise ConfigError(f"--seeds is {args.seeds}; at least one is needed")
    iterations = max((given for given, _ in args.budget), default=0)
    seconds = 0.0 if args.report else min((limit for _, limit in args.budget), default=float("inf"))
    tables = [TABLES[name] for name in dict.fromkeys(args.tables)]
    scale = get_scale(args.scale, args.preset or ("gpu" if torch.cuda.is_available() else "cpu"))
    jobs = make_jobs(args, scale, tables, iterations)
    if not jobs:
        raise ConfigError("these rows are made for small scales only; use --preset cpu")
    if not scale.recipes and not jobs[0].cfg.MODEL.WEIGHTS:
        logger.warning("without --weights the backbones start from random weights; the papers start from ImageNet's")
    data = prepare_data(scale, {table.paper for table in tables}, args.output)
    outcomes = run_jobs(jobs, Trainer(data, args.num_gpus), time_limit=seconds)
    for table in [table for table in tables if any(job.table is table for job in jobs)]:
        own = [(job, outcome) for job, outcome in zip(jobs, outcomes) if job.table is table]
        own_jobs, own_outcomes = [job for job, _ in own], [outcome for _, outcome in own]
        name = f"ablation_{table.name.replace('-', '_')}_{scale.name}"
        draw(table, collect(own_jobs, own_outcomes), args.output / f"{name}.png")
        text = markdown(
            table,
            own_jobs,
            own_outcomes,
            facts=facts(scale, own_jobs, own_outcomes),
            parameters=count_parameters(table),
            figure=f"{name}.png",
        )
        report = args.output / f"{name}.md"
        write_atomically(report, lambda file, text=text: file.write(text.encode()))  # type: ignore[misc]
        logger.info("%s\n%s", report, text)
    for job, outcome in zip(jobs, outcomes):
        if outcome.state == "failed":
            logger.error("%s failed: %s; see %s", job.title, outcome.reason, job.folder / OUTPUT)
    return int(any(outcome.state != "finished" for outcome in outcomes))


def main(argv: Sequence[str] | None = None) -> int:
    args = get_parser().parse_args(argv)
    if args.list:
        print(listing())
        return 0
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    args.output = args.output.resolve()
    try:
        return run(args)
    except (ConfigError, DatasetError) as error:
        logger.error("error: %s", error)
        return 2
    except KeyboardInterrupt:
        logger.error("stopped; the same command goes on from here")
        return 130


if __name__ == "__main__":
    for number in STOPPING:  # both also end the training in progress
        signal.signal(number, signal.default_int_handler)
    sys.exit(main())
