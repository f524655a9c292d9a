"""Write one self-contained HTML report about one or several runs.

    irstd report output/fcos output/bafe --output report.html
    irstd report output/fcos output/bafe --features 4     # runs the models: feature maps, predicted skies
    irstd report --weights fcos_dense bafe_dense --dataset densesirst_v2_test

The data sets are found as in training, by $DETECTRON2_DATASETS. What a run lacks is said on the page.
"""

from __future__ import annotations

import argparse
import logging
from pathlib import Path

from ..errors import ConfigError
from .options import add_models_to_run, new_parser, run_models, whole_number


def get_parser() -> argparse.ArgumentParser:
    parser = new_parser(__doc__)
    parser.add_argument("runs", nargs="*", help="run folders (OUTPUT_DIR of a training); a set's first is its baseline")
    add_models_to_run(parser)
    parser.add_argument(
        "--dataset", nargs="+", default=[], metavar="NAME", help="registered sets that they run on, the only ones shown"
    )
    parser.add_argument(
        "--config-file", metavar="FILE", help="of --weights that are files; default: config.yaml beside"
    )
    parser.add_argument("--output", default="report.html", help="file to write (default: %(default)s)")
    parser.add_argument("--title", default="Infrared small-target detection")
    parser.add_argument(
        "--gallery", type=whole_number(0), default=12, help="worst misses and false alarms of each run, 0 for none"
    )
    parser.add_argument(
        "--examples", type=whole_number(0), default=4, help="images with all runs side by side, 0 for none"
    )
    parser.add_argument(
        "--features", type=whole_number(0), default=0, help="of these, images to run the models on (default: 0)"
    )
    parser.add_argument("--draws", type=whole_number(0), default=1000, help="bootstrap draws, 0 for none")
    parser.add_argument("--baseline", default="", metavar="RUN", help="compare with this run, where it was evaluated")
    parser.add_argument("--figures", type=Path, metavar="FOLDER", help="write all charts as PDF too")
    return parser


def run(args: argparse.Namespace) -> int:
    from ..reporting import Options, write_report
    from ..systems import registered_systems

    if bool(args.weights) != bool(args.dataset):
        raise ConfigError("--weights and --dataset go together: models, and the sets to run them on")
    if not (args.runs or args.weights):
        raise ConfigError("give folders of runs, or models to run: --weights NAME --dataset SET")
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    args.runs += run_models(args)
    logging.getLogger("faster_coco_eval").setLevel(logging.WARNING)
    taps = [tap for system in registered_systems() for tap in system.feature_taps]
    options = Options(
        args.gallery, args.examples, args.features, args.draws, tuple(taps), args.baseline, args.figures,
        tuple(args.dataset),
    )  # fmt: skip
    logging.info("%s", write_report(args.runs, args.output, title=args.title, options=options))
    return 0
