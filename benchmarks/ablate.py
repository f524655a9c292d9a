#!/usr/bin/env python3
"""Train the rows of a paper's table and set the figures beside the published ones.

    python benchmarks/ablate.py auxdet-5 --seeds 3                      # synthetic scenes, on a CPU
    python benchmarks/ablate.py bafe-4 --scale dense                    # real DenseSIRST as published, with a GPU
    python benchmarks/ablate.py auxdet-5 --scale wide --weights 'weights/resnet{depth}.pth'
    python benchmarks/ablate.py auxdet-5 --rows m2dm --scale wide --write-configs my_configs   # train nothing
    python benchmarks/ablate.py --list

The same command goes on where it was stopped; rows that are done are not trained again, also when another table has
the same row. Commands with the same output folder can run side by side, for instance one per GPU.
Writes OUTPUT/ablation_TABLE_SCALE.md and .png, and the trainings below OUTPUT/runs.
"""

from __future__ import annotations

import argparse
import logging
import math
import platform
import shlex
import signal
import subprocess
import sys
from collections.abc import Sequence
from datetime import date
from pathlib import Path

import torch
from detectron2.modeling import build_model

sys.path.insert(0, str(Path(__file__).resolve().parent))
from ablation.report import draw, markdown
from ablation.runner import Job, Outcome, Trainer, make_job, run_jobs
from ablation.tables import Row, Scale, Table, load_tables, resolve

import auxdet_d2  # noqa: F401  registers
import bafe_d2  # noqa: F401  registers
from irstd_d2.data.datasets import datasets_root
from irstd_d2.errors import ConfigError, DatasetError
from irstd_d2.files import write_atomically
from irstd_d2.synthetic import SceneConfig, dense_config, write_densesirst, write_wideirstd

ROOT = Path(__file__).resolve().parents[1]
logger = logging.getLogger("ablate")

# Data of the synthetic scale; in only one of ten of its scenes does the background betray the imaging domain.
TRAIN, VAL = 600, 200
OMNI = SceneConfig(size=(128, 128), balance="uniform", domain_conflict=0.9)
DENSE = dense_config(size=(128, 128))


def get_parser(tables: Sequence[Table]) -> argparse.ArgumentParser:
    scales = sorted({name for table in tables for name in table.scales})
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tables", nargs="*", metavar="TABLE", help=", ".join(table.name for table in tables))
    parser.add_argument("--list", action="store_true", help="show all tables and their rows")
    parser.add_argument("--scale", default="synthetic", choices=scales)
    parser.add_argument("--seeds", type=int, default=1, help="trainings of each row, seeds 0 to N-1 (%(default)s)")
    parser.add_argument("--iterations", type=int, default=0, help="of each training, in place of the scale's")
    parser.add_argument("--minutes", type=float, default=math.inf, help="for all trainings together")
    parser.add_argument("--rows", nargs="+", default=[], help="train these rows only")
    parser.add_argument("--weights", default="", help="ImageNet backbone; {depth} becomes 18, 34, 50 or 101")
    parser.add_argument("--report", action="store_true", help="train nothing; report what is finished")
    parser.add_argument("--write-configs", type=Path, metavar="FOLDER", help="write the rows as YAML; train nothing")
    parser.add_argument("--output", type=Path, default=ROOT / "output" / "ablation")
    parser.add_argument("--num-gpus", type=int, default=1, help="processes of one training on as many GPUs")
    parser.add_argument("--opts", nargs="+", default=[], metavar="KEY VALUE", help="for every row, as for train_net.py")
    return parser


def prepare_data(scale: Scale, output: Path) -> Path:
    """Make the synthetic set if it is missing, or check that the real one is there; returns the root of all sets.

    Raises:
        DatasetError: the real set is missing.
    """
    if scale.folder:
        root = datasets_root()
        if not (root / scale.folder).is_dir():
            fix = "set DETECTRON2_DATASETS to the folder that holds it (datasets/README.md), or use --scale synthetic"
            raise DatasetError(root / scale.folder, "folder", "is missing", fix)
        return root
    root = output / "data"
    if scale.data[0].startswith("synthetic_omni"):
        write_wideirstd(root / "synthetic_omni", OMNI, TRAIN, VAL, progress=False)
    else:
        write_densesirst(root / "synthetic_dense", DENSE, TRAIN, VAL, progress=False)
    return root


def count_parameters(table: Table) -> dict[str, int]:
    """Parameters of the published configurations, for the rows that have a printed number."""
    published = next(name for name, scale in table.scales.items() if scale.models == "published")
    counts = {}
    for row in table.trainable(published):
        if not math.isnan(row.parameters):
            with torch.device("meta"):  # without memory
                model = build_model(resolve(table, row, published, options=["MODEL.DEVICE", "meta"]))
            counts[row.name] = sum(parameter.numel() for parameter in model.parameters())
    return counts


def facts(scale: Scale, jobs: Sequence[Job], outcomes: Sequence[Outcome]) -> list[str]:
    """How the figures were made."""
    seconds = [outcome.seconds for outcome in outcomes if outcome.state == "finished"]
    solver = jobs[0].cfg.SOLVER
    length = f"{solver.MAX_EPOCHS} epochs" if solver.MAX_EPOCHS else f"{solver.MAX_ITER} iterations"
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else f"{platform.machine()} CPU"
    command = ["git", "rev-parse", "--short", "HEAD"]
    commit = subprocess.run(command, cwd=ROOT, capture_output=True, text=True).stdout.strip() or "unknown"
    return [
        "    " + shlex.join(["python", "benchmarks/ablate.py", *sys.argv[1:]]),
        f"{date.today()}, {device}, torch {torch.__version__.partition('+')[0]}, commit {commit}. {len(seconds)} "
        f"trainings of {length} of {solver.IMS_PER_BATCH} images, {sum(seconds) / 60:.0f} minutes together (a row that "
        "another table shares is trained once and counted in both).",
        f"Data and models: {scale.about}. {' '.join(scale.limits)}",
    ]


def choose_rows(tables: Sequence[Table], scale: str, names: Sequence[str]) -> list[tuple[Table, Row]]:
    """Rows of the tables that can be trained at a scale; with names only those.

    Raises:
        ConfigError: a table or a named row cannot be trained at the scale.
    """
    for table in tables:
        if scale not in table.scales or not table.trainable(scale):
            fitting = [name for name in table.scales if table.trainable(name)]
            raise ConfigError(f"table {table.name} cannot be trained at scale {scale!r}; use one of {fitting}")
    rows = [(table, row) for table in tables for row in table.trainable(scale)]
    if unknown := set(names) - {row.name for _, row in rows}:
        known = ", ".join(dict.fromkeys(row.name for _, row in rows))
        raise ConfigError(f"rows {sorted(unknown)} are in none of the tables at scale {scale!r}; known are {known}")
    return [(table, row) for table, row in rows if not names or row.name in names]


def run(args: argparse.Namespace, known: dict[str, Table]) -> int:
    """Train, compare and report; 1 if a training failed or is still to be done."""
    if unknown := set(args.tables) - set(known) or not args.tables:
        raise ConfigError(f"tables {unknown if args.tables else ''} unknown or missing; known are {', '.join(known)}")
    if args.seeds < 1:
        raise ConfigError(f"--seeds is {args.seeds}; at least one is needed")
    tables = [known[name] for name in dict.fromkeys(args.tables)]
    rows = choose_rows(tables, args.scale, args.rows)
    scale = tables[0].scales[args.scale]
    options = [*(["MODEL.WEIGHTS", args.weights] if args.weights else []), *args.opts]
    if scale.models == "published" and not args.weights:
        logger.warning("without --weights the backbones start from random weights; the papers start from ImageNet's")
    data = "" if scale.folder else repr((TRAIN, VAL, OMNI, DENSE))
    jobs = [  # first every row from seed 0, then from seed 1, so that a stopped run can be compared
        make_job(
            table, row, seed,
            resolve(table, row, args.scale, seed=seed, iterations=args.iterations, options=options), args.output, data,
        )
        for seed in range(args.seeds)
        for table, row in rows
    ]  # fmt: skip
    if args.write_configs:
        for job in jobs:
            path = args.write_configs / f"{job.table.name}_{job.row.name}_{job.seed}.yaml"
            job.cfg.OUTPUT_DIR = f"./output/{path.stem}"
            write_atomically(path, job.cfg.dump())
            logger.info("%s", path)
        return 0
    root, *_ = [prepare_data(table.scales[args.scale], args.output) for table in tables]  # the same for all
    gpus = ["--num-gpus", str(args.num_gpus)] if torch.cuda.is_available() else []
    outcomes = run_jobs(jobs, Trainer(root, gpus), 0 if args.report else 60 * args.minutes)
    for table in tables:
        report(table, args, [pair for pair in zip(jobs, outcomes) if pair[0].table is table])
    return int(any(outcome.state != "finished" for outcome in outcomes))


def report(table: Table, args: argparse.Namespace, results: Sequence[tuple[Job, Outcome]]) -> None:
    """Write the page and the figure of one table."""
    if not results:
        return
    figures: dict[str, dict[str, dict[int, float]]] = {}
    for job, outcome in results:
        for metric, key in table.metrics.items():
            if outcome.state == "finished":
                figures.setdefault(job.row.name, {}).setdefault(metric, {})[job.seed] = outcome.metrics[key]
    unfinished = [
        f"{job.row.name}, seed {job.seed}: {outcome.state}; {outcome.reason}"
        for job, outcome in results
        if outcome.state != "finished"
    ]
    name = f"ablation_{table.name.replace('-', '_')}_{args.scale}"
    jobs, outcomes = zip(*results)
    about = facts(table.scales[args.scale], jobs, outcomes)
    text = markdown(table, figures, facts=about, parameters=count_parameters(table), unfinished=unfinished)
    draw(table, figures, args.output / f"{name}.png")
    write_atomically(args.output / f"{name}.md", text)
    logger.info("%s\n%s", args.output / f"{name}.md", text)


def main(argv: Sequence[str] | None = None) -> int:
    known = load_tables()
    args = get_parser(list(known.values())).parse_args(argv)
    if args.list:
        for table in known.values():
            print(f"{table.name}: {table.title}")
            for row in table.rows.values():
                print(f"    {row.name:24} {row.label}" + ("" if row.system else " (not in this project)"))
        return 0
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    args.output = args.output.resolve()
    try:
        return run(args, known)
    except (ConfigError, DatasetError) as error:
        logger.error("error: %s", error)
        return 2
    except KeyboardInterrupt:
        logger.error("stopped; the same command goes on from here")
        return 130


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # also ends the training in progress
    sys.exit(main())
