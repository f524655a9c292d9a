"""What the arguments of several commands share. Nothing heavy is imported here."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

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


def add_score_thresh(parser: argparse.ArgumentParser, text: str, default: float | None = None) -> None:
    """``--score-thresh``, which older versions called by other names."""
    parser.add_argument("--score-thresh", "--threshold", "--score-threshold", type=float, default=default, help=text)


def read_config(args: argparse.Namespace) -> CfgNode:
    """The configuration of ``--weights``, ``--config-file`` and ``--opts``; on the CPU where there is no GPU.

    Raises:
        ConfigError: a file is missing, or no configuration belongs to the weights.
    """
    import torch

    from .. import model_zoo
    from ..config import get_config
    from ..memory import keep_freed_memory

    weights = model_zoo.resolve_weights(args.weights)
    path = model_zoo.find_config(args.config_file) if args.config_file else model_zoo.config_of(args.weights)
    cfg = get_config(path, ["MODEL.WEIGHTS", weights, *args.opts])
    if not torch.cuda.is_available():
        cfg.MODEL.DEVICE = "cpu"
        keep_freed_memory()
    return cfg
