"""The trained models that come with the package.

irstd zoo                                     list them
irstd zoo show fcos_general                   what one was trained on, its license and results
irstd zoo add output/mine --name mine --license 'CC BY 4.0 (data: ...)'     make one from a finished training
irstd zoo cards --runs-dir evaluation --dataset mine_val other_val     write its results, after irstd evaluate --weights
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
from pathlib import Path

from .options import add_opts, add_score_thresh, new_parser, real_number, whole_number


def get_parser() -> argparse.ArgumentParser:
    parser = new_parser(__doc__)
    actions = parser.add_subparsers(dest="action", metavar="ACTION")
    show = actions.add_parser("show", help="what is known of a model")
    show.add_argument("name")
    add = actions.add_parser("add", help="make or replace an entry from a finished training")
    add.add_argument("run", type=Path, help="its folder: config.yaml, metrics.json, model_best.pth or model_final.pth")
    add.add_argument("--name", required=True, help="lower-case letters, digits and underscores")
    add.add_argument("--license", required=True, help="of the weights, with that of the data")
    add.add_argument("--weights", type=Path, metavar="FILE", help="default: model_best.pth, else model_final.pth")
    add.add_argument("--description", default="", help="one line")
    add.add_argument("--data", nargs="+", default=(), help="data as readers know it; default: DATASETS.TRAIN")
    add.add_argument("--commit", default="", help="of the project that trained it; default: this clone's")
    add.add_argument("--command", default="", help="arguments of the training, for the card")
    add.add_argument("--processor-minutes", type=real_number(0), default=0.0, help="that it took, of one processor")
    add_score_thresh(add, "default of the model; default: that of one false alarm per image on the validation set")
    add_opts(add)
    cards = actions.add_parser(
        "cards", help="write the cards with results, and default thresholds, of saved detections"
    )
    cards.add_argument("--runs-dir", type=Path, required=True, metavar="FOLDER", help="of irstd evaluate --weights")
    cards.add_argument("--dataset", nargs="+", required=True, metavar="NAME", help="registered data sets")
    cards.add_argument("--config-file", metavar="FILE", help="registers the sets of its DATASETS.OWN")
    cards.add_argument(
        "--bootstrap", type=whole_number(0), default=1000, metavar="N", help="intervals from N draws (%(default)s)"
    )
    return parser


def run(args: argparse.Namespace) -> int:
    from .. import model_zoo

    if args.action == "add":
        from ..model_zoo.adding import add_run

        entry = add_run(
            args.run,
            args.name,
            license=args.license,
            commit=args.commit or _commit(),
            description=args.description,
            weights=args.weights,
            data=args.data,
            score_thresh=args.score_thresh,
            command=args.command,
            processor_minutes=args.processor_minutes,
            opts=args.opts,
        )
        for path in (entry.weights_file, entry.config_file, entry.card):
            print(f"Wrote {path}: {path.stat().st_size / 1e6:.2f} MB")
        return 0
    if args.action == "cards":
        from ..config import get_config
        from ..data.datasets import check_registered
        from ..model_zoo.cards import write_cards

        get_config(args.config_file and model_zoo.find_config(args.config_file))
        check_registered("--dataset", args.dataset)
        for path in write_cards(args.runs_dir, args.dataset, draws=args.bootstrap):
            print(f"Wrote {path}")
        return 0
    if args.action == "show":
        print(model_zoo.entry(args.name).card.read_text(encoding="utf-8"), end="")
        return 0
    for entry in model_zoo.read_index().values():
        size = entry.weights_file.stat().st_size / 1e6
        print(f"{entry.name:20} {size:4.1f} MB  {entry.description or ', '.join(entry.data)}")
    if not model_zoo.names():
        print("no models yet: irstd zoo add RUN --name NAME --license LICENSE")
    return 0


def _commit() -> str:
    """The commit of the clone, empty outside of one."""
    git = shutil.which("git")
    if git is None:
        return ""
    command = [git, "rev-parse", "HEAD"]
    done = subprocess.run(command, cwd=Path(__file__).parent, capture_output=True, text=True, check=False)  # noqa: S603
    return done.stdout.strip()
