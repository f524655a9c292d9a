"""Train or evaluate any configuration of the project.

irstd train --config-file configs/bafe/fcos_r18_fpn.yaml [--num-gpus N] [--resume] [KEY VALUE ...]
irstd train --config-file ... --eval-only MODEL.WEIGHTS output/model_final.pth
irstd train --weights fcos_dense DATASETS.OWN ... DATASETS.TRAIN ...       # go on from a trained model, on own data
torchrun --nproc-per-node 2 tools/train_net.py --config-file ...

With TEST.AUG.ENABLED True the model is also evaluated with test-time augmentation: ..._TTA beside the plain results.
"""

from __future__ import annotations

import argparse
import logging
import os
from collections import OrderedDict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import ConfigError
from .options import new_parser, whole_number

if TYPE_CHECKING:
    from detectron2.config import CfgNode
    from torch import nn

logger = logging.getLogger(__name__)
AFTER_INTERRUPT = "the same command with --resume goes on from the last checkpoint, if there is one"


def get_parser() -> argparse.ArgumentParser:
    """The arguments of ``detectron2.engine.default_argument_parser``, without importing it."""
    parser = new_parser(__doc__)
    parser.add_argument(
        "--config-file", default="", metavar="FILE",
        help="or a path below configs/, or a zoo's name; default: that of --weights",
    )  # fmt: skip
    parser.add_argument("--weights", metavar="FILE|NAME", help="MODEL.WEIGHTS: a file, or a model of the zoo")
    parser.add_argument("--resume", action="store_true", help="go on from the last checkpoint in OUTPUT_DIR")
    parser.add_argument("--eval-only", action="store_true", help="evaluate MODEL.WEIGHTS")
    parser.add_argument("--num-gpus", type=whole_number(1), default=1, help="per machine")
    parser.add_argument("--num-machines", type=whole_number(1), default=1)
    parser.add_argument("--machine-rank", type=whole_number(0), default=0, help="of this machine, from 0")
    parser.add_argument("--dist-url", default="auto", help="where the processes meet, e.g. tcp://127.0.0.1:29500")
    parser.add_argument("opts", nargs=argparse.REMAINDER, metavar="KEY VALUE", help="configuration, after all options")
    return parser


def train(args: argparse.Namespace) -> OrderedDict[str, Any] | None:
    """Train or evaluate in this process, which may be a child that has imported nothing."""
    from detectron2.engine import hooks
    from detectron2.evaluation import verify_results
    from detectron2.utils import comm

    from ..data.classes import check_num_classes
    from ..data.datasets import prepare_classes
    from ..engine import IRSTDTrainer, load_weights, setup
    from . import load_systems

    load_systems(args.systems)
    cfg = setup(args)
    if args.eval_only:
        model = IRSTDTrainer.build_model(cfg)
        classes = prepare_classes(cfg, train=False, trained=load_weights(model, cfg))
        check_num_classes(model, classes, f"DATASETS.TEST {tuple(cfg.DATASETS.TEST)}")
        results = IRSTDTrainer.test(cfg, model)
        if cfg.TEST.AUG.ENABLED:
            results.update(test_with_tta(cfg, model))
        if comm.is_main_process():
            verify_results(cfg, results)
        return results
    trainer = IRSTDTrainer(cfg)
    trainer.resume_or_load(resume=args.resume)
    if cfg.TEST.AUG.ENABLED:

        def test_trained_with_tta() -> OrderedDict[str, Any]:
            with trainer.evaluated_weights():
                return test_with_tta(trainer.cfg, trainer.model)

        trainer.register_hooks([hooks.EvalHook(0, test_trained_with_tta)])
    return trainer.train()


def test_with_tta(cfg: CfgNode, model: nn.Module) -> OrderedDict[str, Any]:
    """Evaluate with test-time augmentation; detections go to ``OUTPUT_DIR/inference_TTA``.

    Results are those of ``IRSTDTrainer.test``, with ``_TTA`` behind every name.
    """
    from ..engine import IRSTDTrainer
    from ..inference import DetectorWithTTA

    logger.info("Evaluating with test-time augmentation")
    folder = Path(cfg.OUTPUT_DIR) / "inference_TTA"
    evaluators = [IRSTDTrainer.build_evaluator(cfg, name, str(folder / name)) for name in cfg.DATASETS.TEST]
    results = IRSTDTrainer.test(cfg, DetectorWithTTA(cfg, model), evaluators)
    return OrderedDict((f"{name}_TTA", metrics) for name, metrics in results.items())


def run(args: argparse.Namespace) -> int:
    import torch
    from detectron2.engine import launch

    from .. import model_zoo
    from ..engine import check_gpus, process_group

    if args.config_file:
        args.config_file = model_zoo.find_config(args.config_file)
    elif args.weights:
        args.config_file = model_zoo.config_of(args.weights)
    elif "MODEL.META_ARCHITECTURE" not in args.opts[::2]:
        raise ConfigError("give --config-file, a path or one below configs/, or --weights, a model to go on from")
    if args.weights:
        args.opts = ["MODEL.WEIGHTS", model_zoo.resolve_weights(args.weights), *args.opts]

    if "TORCHELASTIC_RUN_ID" in os.environ:
        with process_group("nccl" if torch.cuda.is_available() else "gloo"):
            train(args)
        return 0
    check_gpus(args.num_gpus)
    launch(train, args.num_gpus, args.num_machines, args.machine_rank, args.dist_url, args=(args,))
    return 0
