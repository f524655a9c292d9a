"""Judge models and saved predictions of any tool: every protocol, boxes and masks, with intervals, side by side.

PREDICTIONS is the folder of a run, COCO results, a CSV file, or a folder of YOLO text files, VOC XML files with scores,
or masks and probability maps (PNG, TIFF, NPY). They are matched with the images by name, classes by name. What numbers
depend on (TEST.SCORE_THRESHOLD and the like) comes from --config-file, else from the first run's config.yaml. Models of
--weights are run first; the folders that they leave are PREDICTIONS from then on.

    irstd evaluate --weights fcos_dense bafe_dense --dataset densesirst_v2_test wideirstd_matched_val --bootstrap 1000
    irstd evaluate --weights output/mine/model_best.pth --dataset mine_val --config-file output/mine/config.yaml
    irstd evaluate output/bafe --dataset densesirst_v2_test --group-by size contrast sky
    irstd evaluate output/fcos output/bafe --dataset densesirst_v2_test --compare --output comparison
    irstd evaluate output/fcos unet/maps --dataset nudtsirst_test --score-thresh 0.3 0.5 --bootstrap 1000
    irstd evaluate output/fcos output/bafe --dataset densesirst_v2_test sirstv2_test --bootstrap 1000
    irstd evaluate output/bafe --dataset densesirst_v2_test --errors
    irstd evaluate runs/detect/labels --dataset mine_val --config-file mine.yaml --rename drone=target
"""

from __future__ import annotations

import argparse
import contextlib
import json
import logging
import math
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import ConfigError, DatasetError
from .options import add_models_to_run, add_score_thresh, named_faults, new_parser, run_models, whole_number

if TYPE_CHECKING:
    from detectron2.config import CfgNode

    from ..evaluation.rescoring import Resampled, Rescored

logger = logging.getLogger(__name__)
EVALUATORS = ("coco", "voc", "voc_paper", "pd_fa", "centre")


def get_parser() -> argparse.ArgumentParser:
    parser = new_parser(__doc__)
    parser.add_argument("predictions", nargs="*", metavar="PREDICTIONS", help="files or run folders")
    add_models_to_run(parser)
    parser.add_argument(
        "--dataset", required=True, nargs="+", metavar="NAME", help="registered data sets; several give a matrix"
    )
    parser.add_argument(
        "--config-file",
        metavar="FILE",
        help="protocol, sets of its DATASETS.OWN; of --weights that are files, the model",
    )
    parser.add_argument(
        "--evaluators", nargs="+", metavar="NAME", help=f"default: {' '.join(EVALUATORS)}; mask with masks"
    )
    parser.add_argument("--group-by", nargs="+", metavar="KEY", help="platform, band, resolution, size, contrast, sky")
    parser.add_argument("--masks", metavar="FOLDER", help="true masks; default: where the set's layout has them")
    parser.add_argument(
        "--rename", nargs="+", default=(), metavar="OLD=NEW", help="class names of the tool and of the data set"
    )
    add_score_thresh(
        parser, "for Pd, Fa and masks, of all or of each in turn; default: the configuration's", nargs="+",
        highest=math.inf,  # another tool's scores may be percent
    )  # fmt: skip
    parser.add_argument(
        "--max-detections", type=whole_number(1), help="per image, for COCO's metrics; default: the configuration's"
    )
    parser.add_argument(
        "--bootstrap", type=whole_number(0), default=0, metavar="N", help="intervals from N draws of images"
    )
    parser.add_argument(
        "--compare", action="store_true", help="test the others against the first; N is 1000 if not given"
    )
    parser.add_argument("--errors", action="store_true", help="classes of false alarms and misses, and what they cost")
    parser.add_argument("--output", type=Path, metavar="STEM", help="write STEM.json and STEM.md")
    return parser


def evaluation_config(args: argparse.Namespace) -> CfgNode:
    """The configuration of the file, else of the first run; options of the command line go above it."""
    from ..config import get_config
    from ..evaluation.rescoring import find_run_config, protocol_differences, protocol_of

    path = args.config_file or find_run_config(args.predictions[0])
    cfg = get_config(path, args.opts)
    evaluators = args.evaluators or list(EVALUATORS)
    if not args.evaluators and (args.masks or any_masks(args)):
        evaluators.append("mask")
    given = {
        "EVALUATORS": tuple(evaluators),
        "GROUP_BY": None if args.group_by is None else tuple(args.group_by),
        "SCORE_THRESHOLD": args.score_thresh[0] if args.score_thresh else None,
        "DETECTIONS_PER_IMAGE": args.max_detections,
        "TARGET_MASKS": args.masks,
    }
    for key, value in given.items():
        if value is not None:
            setattr(cfg.TEST, key, value)
    for run in args.predictions:
        own = find_run_config(run)
        changed = protocol_differences(protocol_of(cfg), protocol_of(get_config(own))) if own else ""
        if changed:
            logger.warning("%s is judged by %s", run, changed)
    return cfg


def any_masks(args: argparse.Namespace) -> bool:
    """Whether one of the predictions is a folder of masks."""
    from ..evaluation.predictions import holds_masks
    from ..evaluation.rescoring import find_predictions

    for path in args.predictions:
        for name in args.dataset:
            with contextlib.suppress(DatasetError):  # said, or left out, where it is judged
                if holds_masks(find_predictions(path, name)):
                    return True
    return False


def judge_set(args: argparse.Namespace, cfg: CfgNode, name: str) -> tuple[list[Rescored], Resampled | None]:
    """All runs on one data set, with intervals where they are asked for."""
    from ..data.datasets import prepare_classes
    from ..evaluation.rescoring import find_predictions, resample, rescore, run_name, unique_names

    if cfg.DATASETS.CLASSES:
        cfg.DATASETS.TEST = (name,)
        prepare_classes(cfg, train=False)
    files: list[Path | None] = []
    for path in args.predictions:
        try:
            files.append(find_predictions(path, name))
        except DatasetError as error:
            if len(args.dataset) == 1:
                raise
            logger.warning("left out on %s: %s", name, error)
            files.append(None)
    given = args.score_thresh or [cfg.TEST.SCORE_THRESHOLD]
    given = given * len(files) if len(given) == 1 else given
    # Those without predictions here are named too: a run has the same number on every set.
    names = unique_names([run_name(file or Path(path), name) for file, path in zip(files, args.predictions)])
    judged = [row for row in zip(files, given, names) if row[0]]
    if not judged:
        raise ConfigError(f"no run has predictions on {name}; run irstd train --eval-only on it first")
    aliases = dict(pair.split("=", 1) for pair in args.rename)
    paths, thresholds, names = map(list, zip(*judged))
    runs = rescore(paths, name, cfg, aliases=aliases, score_thresh=thresholds, names=names)
    if not (args.compare or args.bootstrap):
        return runs, None
    return runs, resample(
        runs, draws=args.bootstrap or 1000, compare=args.compare, max_detections=cfg.TEST.DETECTIONS_PER_IMAGE
    )


def run(args: argparse.Namespace) -> int:
    from ..data.datasets import check_registered
    from ..evaluation.rescoring import errors_to_markdown, matrix_to_markdown, to_json, to_markdown
    from ..files import write_atomically

    if not (args.predictions or args.weights):
        raise ConfigError("give PREDICTIONS, or models to run: --weights NAME")
    if args.compare and len(args.predictions) + len(args.weights) < 2:
        raise ConfigError("--compare needs at least two PREDICTIONS or --weights")
    if args.score_thresh and len(args.score_thresh) not in (1, len(args.predictions) + len(args.weights)):
        raise ConfigError("--score-thresh: give one for all PREDICTIONS and --weights, or one for each, in this order")
    if any("=" not in pair for pair in args.rename):
        raise ConfigError("--rename: write OLD=NEW")
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    args.predictions += run_models(args)
    with named_faults():
        cfg = evaluation_config(args)
        check_registered("--dataset", args.dataset)
        results = {name: judge_set(args, cfg, name) for name in args.dataset}
    parts = [] if len(results) == 1 else [matrix_to_markdown(results)]
    for name, (runs, resampled) in results.items():
        parts += [f"## {name}"] if len(results) > 1 else []
        parts.append(to_markdown(runs, resampled))
        parts += [errors_to_markdown(runs)] if args.errors else []
    text = "\n\n".join(parts)
    print(text)
    documents = {name: to_json(name, *result) for name, result in results.items()}
    if args.output:
        whole = documents if len(documents) > 1 else documents[args.dataset[0]]
        document = json.dumps(whole, indent=1, allow_nan=False)
        for suffix, content in ((".json", document), (".md", text)):
            path = args.output.with_name(args.output.name + suffix)
            write_atomically(path, f"{content}\n")
            print(f"Wrote {path}")
    return 0
