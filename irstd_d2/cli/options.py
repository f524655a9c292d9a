"""What the arguments of several commands share. Nothing heavy is imported here."""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import ConfigError

if TYPE_CHECKING:
    from detectron2.config import CfgNode

# Names of the library, here again so that --help need not import it.
LAYOUTS = ("densesirst", "sirstv2", "wideirstd", "voc", "voc_png")
HIGH_BIT_DEPTH_MODES = ("auto", "full_range", "minmax", "percentile")
DATASET_FORMATS = ("voc", "coco", "mask", "yolo")
STRATA = ("platform", "band", "resolution", "empty")
BOX_CONVENTIONS = ("half_open", "one_based", "inclusive", "paper")
MASK_VALUES = ("auto", "labels", "levels")
RESULT_FORMATS = ("picture", "json", "csv", "voc", "yolo")
EXPORT_FORMATS = ("torchscript", "onnx")


def new_parser(description: str | None) -> argparse.ArgumentParser:
    """A parser that shows a module's docstring as it is written."""
    return argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)


def whole_number(low: int) -> Callable[[str], int]:
    """Argument type: a whole number of at least ``low``."""
    return partial(_number, int, "a whole number", low, math.inf)


def real_number(low: float, high: float = math.inf) -> Callable[[str], float]:
    """Argument type: a finite number from ``low`` to ``high``."""
    return partial(_number, float, "a number", low, high)


def _number(kind: type, name: str, low: float, high: float, text: str) -> Any:
    try:
        if low <= (number := kind(text)) <= high and math.isfinite(number):
            return number
    except ValueError:
        pass
    span = f"from {low:g} to {high:g}" if math.isfinite(high) else f"of at least {low:g}"
    raise argparse.ArgumentTypeError(f"{text!r} is not {name} {span}")


def add_config_options(parser: argparse.ArgumentParser, weights: str | None = None) -> None:
    """``--weights`` and ``--config-file`` of commands that run a model; :func:`read_config` reads them."""
    default = f" ({weights})" if weights else ""
    parser.add_argument(
        "--weights", default=weights, required=weights is None, metavar="FILE|NAME",
        help=f"checkpoint, or model of the zoo{default}",
    )  # fmt: skip
    parser.add_argument(
        "--config-file", metavar="FILE", help="of the weights; default: the zoo's, or config.yaml beside"
    )
    add_opts(parser)


def add_opts(parser: argparse.ArgumentParser) -> None:
    """``--opts``, the last option."""
    parser.add_argument("--opts", nargs=argparse.REMAINDER, default=[], help="configuration: KEY VALUE ...")


def add_set_options(parser: argparse.ArgumentParser) -> None:
    """How a data set's annotations are read."""
    parser.add_argument("--layout", choices=LAYOUTS, help="of a VOC folder; found out by default")
    parser.add_argument("--classes", nargs="+", metavar="NAME", help="to take; others are left out and counted")
    parser.add_argument(
        "--box-convention",
        choices=BOX_CONVENTIONS,
        help="of a VOC folder. half_open: pixels from 0, xmax and ymax are the last ones plus one (default of most "
        "layouts); inclusive: from 1, the last ones themselves (Pascal VOC, MATLAB); one_based: from 1, the last ones "
        "plus one (SIRST-V2)",
    )
    parser.add_argument("--sidecar", metavar="FILE", help="metadata table (CSV or TSV); by default that of the folder")
    parser.add_argument("--image-root", metavar="DIR", help="images of a COCO file; by default the folder it is in")


@contextmanager
def named_faults() -> Iterator[None]:
    """Turn errors that name a file, an image or a tensor and what to do into what a user is told."""
    try:
        yield
    except (KeyError, ValueError) as error:
        raise ConfigError(error.args[0] if isinstance(error, KeyError) else str(error)) from error


def add_score_thresh(
    parser: argparse.ArgumentParser,
    text: str,
    default: float | None = None,
    nargs: str | None = None,
    highest: float = 1,
) -> None:
    """``--score-thresh``, which older versions called by other names."""
    names = ("--score-thresh", "--threshold", "--score-threshold")
    parser.add_argument(*names, type=real_number(0, highest), default=default, nargs=nargs, metavar="SCORE", help=text)


def add_models_to_run(parser: argparse.ArgumentParser) -> None:
    """``--weights``, ``--runs-dir`` and ``--opts`` of commands that judge models; :func:`run_models` runs them."""
    parser.add_argument(
        "--weights", nargs="+", default=[], metavar="FILE|NAME",
        help="checkpoints, or models of the zoo, to run on --dataset first, without a training's folder",
    )  # fmt: skip
    parser.add_argument(
        "--runs-dir", type=Path, default=Path("evaluation"), metavar="FOLDER",
        help="where their detections go, FOLDER/NAME being the folder of a run (%(default)s)",
    )  # fmt: skip
    add_opts(parser)


def run_models(args: argparse.Namespace) -> list[str]:
    """Run the models of ``--weights`` on the sets of ``--dataset``; return the folders with their detections."""
    if not args.weights:
        return []
    from .. import model_zoo
    from ..config import get_config
    from ..engine.evaluating import model_names, save_detections

    if args.config_file:
        get_config(model_zoo.find_config(args.config_file))  # registers its sets
    folders = []
    for weights, name in zip(args.weights, model_names(args.weights)):
        own = args.config_file if Path(weights).is_file() else None  # a model of the zoo has its own
        given = argparse.Namespace(weights=weights, config_file=own, opts=args.opts)
        save_detections(read_config(given), args.dataset, args.runs_dir / name)
        folders.append(str(args.runs_dir / name))
    return folders


def read_config(args: argparse.Namespace) -> CfgNode:
    """The configuration of ``--weights``, ``--config-file`` and ``--opts``."""
    from ..inference.predictor import read_config

    return read_config(args.weights, args.config_file, args.opts)
