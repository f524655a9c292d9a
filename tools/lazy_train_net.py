#!/usr/bin/env python3
"""Train or evaluate a Python configuration (detectron2's LazyConfig).

python tools/lazy_train_net.py --config-file configs/lazy/bafe_r18_fpn.py [--num-gpus N] [--resume] [key=value ...]
python tools/lazy_train_net.py --config-file ... --eval-only train.init_checkpoint=output/model_final.pth

For training with exact resume, the best checkpoint and all evaluators, see tools/train_net.py.
"""

from __future__ import annotations

import argparse
import logging
import sys
from pathlib import Path
from typing import Any

import torch
from detectron2.config import LazyConfig, instantiate
from detectron2.engine import (
    AMPTrainer,
    SimpleTrainer,
    create_ddp_model,
    default_argument_parser,
    default_setup,
    default_writers,
    hooks,
    launch,
)
from detectron2.evaluation import inference_on_dataset
from detectron2.utils import comm
from omegaconf import DictConfig
from torch import nn

from irstd_d2.engine import IRSTDCheckpointer
from irstd_d2.errors import ConfigError, DatasetError
from irstd_d2.evaluation import format_results
from irstd_d2.memory import keep_freed_memory

logger = logging.getLogger("detectron2")


def evaluate(cfg: DictConfig, model: nn.Module) -> dict[str, Any]:
    loader = instantiate(cfg.dataloader.test)
    results = inference_on_dataset(model, loader, instantiate(cfg.dataloader.evaluator))
    if comm.is_main_process():
        logger.info("Results on %s:\n%s", cfg.dataloader.test.dataset.names, format_results(results))
    return results


def train(cfg: DictConfig, model: nn.Module, resume: bool) -> None:
    options = cfg.train
    cfg.optimizer.params.model = model
    optimizer = instantiate(cfg.optimizer)
    loop = AMPTrainer if options.amp.enabled else SimpleTrainer
    ddp = {**options.ddp, **({} if options.device.startswith("cuda") else {"device_ids": None})}
    trainer = loop(create_ddp_model(model, **ddp), instantiate(cfg.dataloader.train), optimizer)
    checkpointer = IRSTDCheckpointer(model, options.output_dir, trainer=trainer)
    steps = [hooks.IterationTimer(), hooks.LRScheduler(scheduler=instantiate(cfg.lr_multiplier))]
    if comm.is_main_process():
        steps.append(hooks.PeriodicCheckpointer(checkpointer, **options.checkpointer))
    steps.append(hooks.EvalHook(options.eval_period, lambda: evaluate(cfg, trainer.model)))
    if comm.is_main_process():
        writers = default_writers(options.output_dir, options.max_iter)
        steps.append(hooks.PeriodicWriter(writers, period=options.log_period))
    trainer.register_hooks(steps)
    checkpointer.resume_or_load(options.init_checkpoint, resume=resume)
    resumed = resume and checkpointer.has_checkpoint()
    trainer.train(trainer.iter + 1 if resumed else 0, options.max_iter)


def main(args: argparse.Namespace) -> dict[str, Any] | None:
    if Path(args.config_file).suffix != ".py" or not Path(args.config_file).is_file():
        raise ConfigError(f"--config-file is {args.config_file!r}; give a file such as configs/lazy/bafe_r18_fpn.py")
    cfg = LazyConfig.apply_overrides(LazyConfig.load(args.config_file), args.opts)
    no_cuda = cfg.train.device.startswith("cuda") and not torch.cuda.is_available()
    if no_cuda:
        cfg.train.device = "cpu"
    if cfg.train.device == "cpu":
        keep_freed_memory()
    default_setup(cfg, args)
    if no_cuda:
        logger.info("no CUDA device here: running on the CPU (train.device=cpu)")
    model = instantiate(cfg.model).to(cfg.train.device)
    if args.eval_only:
        IRSTDCheckpointer(model).load(cfg.train.init_checkpoint)
        return evaluate(cfg, model)
    train(cfg, model, args.resume)
    return None


if __name__ == "__main__":
    arguments = default_argument_parser(__doc__).parse_args()
    try:
        launch(
            main,
            arguments.num_gpus,
            num_machines=arguments.num_machines,
            machine_rank=arguments.machine_rank,
            dist_url=arguments.dist_url,
            args=(arguments,),
        )
    except (ConfigError, DatasetError) as error:
        sys.exit(f"error: {error}")
