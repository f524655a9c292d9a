#!/usr/bin/env python3
"""Train or evaluate any configuration of the project.

python tools/train_net.py --config-file configs/bafe/fcos_r18_fpn.yaml [--num-gpus N] [--resume] [KEY VALUE ...]
python tools/train_net.py --config-file ... --eval-only MODEL.WEIGHTS output/model_final.pth
torchrun --nproc-per-node 2 tools/train_net.py --config-file ...

With TEST.AUG.ENABLED True the model is also evaluated with test-time augmentation: ..._TTA beside the plain results.
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
from collections import OrderedDict
from pathlib import Path
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.engine import default_argument_parser, hooks, launch
from detectron2.evaluation import verify_results
from detectron2.utils import comm
from torch import nn

import auxdet_d2  # noqa: F401  registers
import bafe_d2  # noqa: F401  registers
from irstd_d2.engine import IRSTDCheckpointer, IRSTDTrainer, setup
from irstd_d2.errors import ConfigError, DatasetError
from irstd_d2.inference import DetectorWithTTA

logger = logging.getLogger("irstd_d2.train_net")


def main(args: argparse.Namespace) -> OrderedDict[str, Any] | None:
    cfg = setup(args)
    if args.eval_only:
        model = IRSTDTrainer.build_model(cfg)
        IRSTDCheckpointer(model, cfg.OUTPUT_DIR).resume_or_load(cfg.MODEL.WEIGHTS, resume=args.resume)
        results = IRSTDTrainer.test(cfg, model)
        if cfg.TEST.AUG.ENABLED:
            results.update(test_with_tta(cfg, model))
        if comm.is_main_process():
            verify_results(cfg, results)
        return results
    trainer = IRSTDTrainer(cfg)
    trainer.resume_or_load(resume=args.resume)
    if cfg.TEST.AUG.ENABLED:
        trainer.register_hooks([hooks.EvalHook(0, lambda: test_trained_with_tta(trainer))])
    return trainer.train()


def test_with_tta(cfg: CfgNode, model: nn.Module) -> OrderedDict[str, Any]:
    """Evaluate with test-time augmentation; detections go to ``OUTPUT_DIR/inference_TTA``.

    Returns:
        As ``IRSTDTrainer.test``, with ``_TTA`` behind every name.
    """
    logger.info("Evaluating with test-time augmentation")
    folder = Path(cfg.OUTPUT_DIR) / "inference_TTA"
    evaluators = [IRSTDTrainer.build_evaluator(cfg, name, str(folder / name)) for name in cfg.DATASETS.TEST]
    results = IRSTDTrainer.test(cfg, DetectorWithTTA(cfg, model), evaluators)
    return OrderedDict((f"{name}_TTA", metrics) for name, metrics in results.items())


def test_trained_with_tta(trainer: IRSTDTrainer) -> OrderedDict[str, Any]:
    """The same at the end of a training, with its averaged weights where it has some."""
    with trainer.evaluated_weights():
        return test_with_tta(trainer.cfg, trainer.model)


def main_under_torchrun(args: argparse.Namespace) -> None:
    """Run in the process group that torchrun's environment describes."""
    backend = "nccl" if torch.cuda.is_available() else "gloo"
    if backend == "nccl":
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    torch.distributed.init_process_group(backend)
    comm.create_local_process_group(int(os.environ["LOCAL_WORLD_SIZE"]))
    try:
        main(args)
    finally:
        torch.distributed.destroy_process_group()


if __name__ == "__main__":
    arguments = default_argument_parser(__doc__).parse_args()
    try:
        if "TORCHELASTIC_RUN_ID" in os.environ:
            main_under_torchrun(arguments)
        else:
            launch(
                main,
                arguments.num_gpus,
                num_machines=arguments.num_machines,
                machine_rank=arguments.machine_rank,
                dist_url=arguments.dist_url,
                args=(arguments,),
            )
    except (ConfigError, DatasetError) as error:  # they say what to do; where they were raised helps nobody
        sys.exit("\n".join([f"error: {error}", *getattr(error, "__notes__", [])]))
