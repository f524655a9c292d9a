"""The trainer behind ``tools/train_net.py``."""

from __future__ import annotations

import contextlib
import logging
import weakref
from collections import OrderedDict
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.data import (
    build_detection_test_loader,
    get_detection_dataset_dicts,
)
from detectron2.data.common import DatasetFromList
from detectron2.engine import DefaultTrainer, create_ddp_model, hooks
from detectron2.engine.train_loop import TrainerBase
from detectron2.evaluation import DatasetEvaluator
from detectron2.utils import comm
from detectron2.utils.env import seed_all_rng
from torch import nn
from torch.optim import Optimizer
from torch.utils.data import DataLoader

from ..data import build_mapper
from ..errors import ConfigError
from ..evaluation import build_evaluator
from ..solver import build_optimizer, with_iteration_schedule
from .checkpoint import IRSTDCheckpointer
from .ema import EMAHook
from .sampling import ResumableTrainingSampler, SeededMapDataset
from .train_step import NonFiniteLossError, TrainStep

logger = logging.getLogger(__name__)

# detectron2's RetinaNet and FCOS keep a running mean of positives in this plain attribute, outside their state dict.
_RUNNING_NORMALIZER = "loss_normalizer"

AMP_DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16}


class BestCheckpointer(hooks.BestCheckpointer):
    """detectron2's hook that also remembers the best metric over a resume."""

    def state_dict(self) -> dict[str, Any]:
        return {"best_metric": self.best_metric, "best_iter": self.best_iter}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.best_metric, self.best_iter = state["best_metric"], state["best_iter"]


class IRSTDTrainer(DefaultTrainer):
    """detectron2's ``DefaultTrainer`` with this project's data, solver, evaluators and exact resume.

    With ``SEED`` >= 0 the samples, their augmentations and every random draw of the model depend only on the seed and
    the iteration, so a training that was killed and resumed gives the weights of one that was not (bit for bit on a
    CPU with the same number of threads).
    """

    def __init__(self, cfg: CfgNode):
        TrainerBase.__init__(self)
        cfg = DefaultTrainer.auto_scale_workers(cfg, comm.get_world_size())
        cfg = with_iteration_schedule(cfg, len(self._train_dicts(cfg)))
        if cfg.SEED >= 0:
            # The weights start alike on every process and in every run.
            seed_all_rng(cfg.SEED)
            # TorchScript functions (focal loss) would be fused after their first calls and then round differently, so
            # a resumed training, whose first calls come later, would drift from an uninterrupted one.
            torch.jit.set_fusion_strategy([("STATIC", 0), ("DYNAMIC", 0)])
        model = self.build_model(cfg)
        optimizer = self.build_optimizer(cfg, model)
        self.ema = EMAHook(model, cfg.SOLVER.EMA.DECAY) if cfg.SOLVER.EMA.ENABLED else None
        loader = self.build_train_loader(cfg)
        amp = cfg.SOLVER.AMP
        if amp.ENABLED and amp.DTYPE not in AMP_DTYPES:
            raise ConfigError(f"SOLVER.AMP.DTYPE is {amp.DTYPE!r}; known are {sorted(AMP_DTYPES)}")
        self._trainer = TrainStep(
            create_ddp_model(model, broadcast_buffers=False),
            loader,
            optimizer,
            seed=cfg.SEED + comm.get_rank() if cfg.SEED >= 0 else -1,
            amp_dtype=AMP_DTYPES[amp.DTYPE] if amp.ENABLED else None,
            device=cfg.MODEL.DEVICE,
        )
        self.scheduler = self.build_lr_scheduler(cfg, optimizer)
        self.checkpointer = IRSTDCheckpointer(model, cfg.OUTPUT_DIR, trainer=weakref.proxy(self))
        if self.ema:
            self.checkpointer.add_checkpointable("ema", self.ema)
        self.start_iter, self.max_iter, self.cfg = 0, cfg.SOLVER.MAX_ITER, cfg
        self.register_hooks(self.build_hooks())

    @staticmethod
    def _train_dicts(cfg: CfgNode) -> list[dict[str, Any]]:
        return get_detection_dataset_dicts(
            cfg.DATASETS.TRAIN, filter_empty=cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS, check_consistency=False
        )

    def resume_or_load(self, resume: bool = True) -> None:
        """Go on from the last checkpoint of ``OUTPUT_DIR``, or load ``MODEL.WEIGHTS`` and start at iteration 0."""
        super().resume_or_load(resume)
        if self.ema and self.start_iter == 0:
            self.ema.restart()
        sampler = self._trainer.data_loader.sampler
        if isinstance(sampler, ResumableTrainingSampler):
            sampler.start = self.start_iter * self.cfg.SOLVER.IMS_PER_BATCH

    def state_dict(self) -> dict[str, Any]:
        state = super().state_dict()
        state["loss_normalizer"] = getattr(self.checkpointer.model, _RUNNING_NORMALIZER, None)
        return state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        if state["loss_normalizer"] is not None:
            setattr(self.checkpointer.model, _RUNNING_NORMALIZER, state["loss_normalizer"])

    @classmethod
    def build_optimizer(cls, cfg: CfgNode, model: nn.Module) -> Optimizer:
        return build_optimizer(cfg, model)

    @classmethod
    def build_train_loader(cls, cfg: CfgNode) -> DataLoader:
        """Build the loader of the training stream (``sampling``); batches are split evenly over the processes."""
        world_size = comm.get_world_size()
        if cfg.SOLVER.IMS_PER_BATCH % world_size:
            raise ConfigError(
                f"SOLVER.IMS_PER_BATCH is {cfg.SOLVER.IMS_PER_BATCH}, not a multiple of {world_size} processes"
            )
        seed = cfg.SEED if cfg.SEED >= 0 else comm.shared_random_seed()
        dicts = DatasetFromList(cls._train_dicts(cfg), copy=False)
        workers = cfg.DATALOADER.NUM_WORKERS
        return DataLoader(
            SeededMapDataset(dicts, build_mapper(cfg, is_train=True), seed),
            batch_size=cfg.SOLVER.IMS_PER_BATCH // world_size,
            sampler=ResumableTrainingSampler(len(dicts), seed=seed),
            num_workers=workers,
            drop_last=True,
            collate_fn=_as_list,
            persistent_workers=workers > 0,
            pin_memory=cfg.MODEL.DEVICE.startswith("cuda"),
        )

    @classmethod
    def build_test_loader(cls, cfg: CfgNode, dataset_name: str) -> DataLoader:
        return build_detection_test_loader(cfg, dataset_name, mapper=build_mapper(cfg, is_train=False))

    @classmethod
    def build_evaluator(cls, cfg: CfgNode, dataset_name: str, output_folder: str | None = None) -> DatasetEvaluator:
        return build_evaluator(cfg, dataset_name, output_folder)

    def build_hooks(self) -> list[hooks.HookBase]:
        cfg, built = self.cfg, [hook for hook in super().build_hooks() if hook is not None]
        result: list[hooks.HookBase] = []
        for hook in built:
            if isinstance(hook, hooks.PeriodicCheckpointer):
                hook = hooks.PeriodicCheckpointer(
                    self.checkpointer, cfg.SOLVER.CHECKPOINT_PERIOD, max_to_keep=cfg.SOLVER.CHECKPOINT_KEEP or None
                )
            if isinstance(hook, hooks.EvalHook):
                hook = hooks.EvalHook(cfg.TEST.EVAL_PERIOD, self._evaluate)
            result.append(hook)
            if isinstance(hook, hooks.EvalHook) and cfg.TEST.BEST_METRIC and comm.is_main_process():
                result.append(BestCheckpointer(cfg.TEST.EVAL_PERIOD, self.checkpointer, cfg.TEST.BEST_METRIC))
        if self.ema:
            result.insert(0, self.ema)  # averages before anything saves or evaluates
        return result

    def _evaluate(self) -> OrderedDict[str, Any]:
        with self.ema.applied() if self.ema else contextlib.nullcontext():
            self._last_eval_results = self.test(self.cfg, self.model)
        return self._last_eval_results

    def train(self) -> Any:
        """Train to the end; a loss that is not finite first saves the state from before the step."""
        try:
            return super().train()
        except NonFiniteLossError:
            self.checkpointer.save(f"model_{self.iter:07d}_nonfinite", iteration=self.iter)
            raise


def _as_list(batch: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return batch
