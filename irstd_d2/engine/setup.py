"""From the command line to a frozen configuration."""

from __future__ import annotations

import argparse
import logging

import torch
from detectron2.config import CfgNode
from detectron2.engine import default_setup
from detectron2.utils import comm
from detectron2.utils.logger import setup_logger

from ..config import get_config
from ..data import set_skip_bad
from ..data.datasets import check_registered
from ..evaluation.build import check_evaluators
from ..memory import keep_freed_memory
from ..systems import registered_systems


def setup(args: argparse.Namespace) -> CfgNode:
    """Merge file and command line into a configuration, choose the device and start the logs.

    On a CPU the process keeps the memory that it frees (:func:`irstd_d2.memory.keep_freed_memory`).

    Args:
        args: of ``detectron2.engine.default_argument_parser``.

    Raises:
        ConfigError: a key, a data set or an evaluator is unknown; better now than after the training.
    """
    cfg = get_config(args.config_file or None, args.opts)
    for key in ("TEST",) if args.eval_only else ("TRAIN", "TEST"):
        check_registered(f"DATASETS.{key}", cfg.DATASETS[key])
    check_evaluators(cfg.TEST.EVALUATORS)
    no_cuda = cfg.MODEL.DEVICE.startswith("cuda") and not torch.cuda.is_available()
    if no_cuda:
        cfg.MODEL.DEVICE = "cpu"
    cfg.freeze()
    if cfg.MODEL.DEVICE == "cpu":
        keep_freed_memory()
    set_skip_bad(cfg.DATASETS.SKIP_BAD)
    default_setup(cfg, args)
    for package in ("irstd_d2", *(system.name for system in registered_systems())):
        setup_logger(output=cfg.OUTPUT_DIR, distributed_rank=comm.get_rank(), name=package)
    if no_cuda:
        logging.getLogger(__name__).info("no CUDA device here: training on the CPU (MODEL.DEVICE cpu)")
    return cfg
