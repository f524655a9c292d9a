"""The trainer behind ``tools/train_net.py``."""

from __future__ import annotations

import contextlib
import logging
import weakref
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from detectron2.config import CfgNode
from detectron2.data import build_detection_test_loader, get_detection_dataset_dicts
from detectron2.data.common import DatasetFromList
from detectron2.engine import DefaultTrainer, create_ddp_model, hooks
from detectron2.engine.train_loop import TrainerBase
from detectron2.evaluation import DatasetEvaluator, inference_on_dataset
from detectron2.modeling import build_model
from detectron2.utils import comm
from detectron2.utils.env import seed_all_rng
from detectron2.utils.events import CommonMetricPrinter, EventWriter, JSONWriter, TensorboardXWriter
from fvcore.nn.precise_bn import get_bn_modules
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer
from torch.utils.data import DataLoader

from ..data import build_mapper
from ..data.classes import check_num_classes, require_same_names
from ..data.datasets import prepare_classes
from ..errors import ConfigError, check_known, check_number
from ..evaluation import build_evaluator, format_results
from ..modeling.region_pooling import pool_exactly
from ..solver import build_optimizer, with_iteration_schedule
from .checkpoint import IRSTDCheckpointer, classes_of, match_of, read_facts, refuse_frozen_random
from .ema import EMAHook
from .hooks import WINDOW, BestCheckpointer, PeriodicCheckpointer, RunLog, weights_are_finite
from .resume import check_config, check_facts, restore_solver_values, solver_values, training_facts
from .sampling import ResumableTrainingSampler, SeededMapDataset
from .screen import FILE_ONLY
from .train_step import NonFiniteLossError, TrainStep

logger = logging.getLogger(__name__)

# detectron2's RetinaNet and FCOS keep a running mean of positives in this plain attribute, outside their state dict.
_RUNNING_NORMALIZER = "loss_normalizer"

AMP_DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16}


class IRSTDTrainer(DefaultTrainer):
    """detectron2's ``DefaultTrainer`` with this project's data, solver, evaluators and exact resume.

    With ``SEED`` >= 0 the samples, their augmentations and every random draw of the model depend only on the seed and
    the iteration, so a training that was killed and resumed gives the weights, logs and best checkpoint of one that
    was not: bit for bit on a CPU with the same number of threads, for one process. Precise batch norm
    (``TEST.PRECISE_BN``) reads a stream of its own, which starts anew.
    """

    iter: int
    max_iter: int

    def __init__(self, cfg: CfgNode):
        TrainerBase.__init__(self)
        given, cfg = cfg, DefaultTrainer.auto_scale_workers(cfg, comm.get_world_size())
        _check_keys(cfg)
        classes = prepare_classes(cfg, train=True)
        dicts = self.train_dicts(cfg)
        facts = {"run": training_facts(given, dicts), "classes": classes.to_json()}
        cfg = with_iteration_schedule(cfg, len(dicts))
        if cfg.SOLVER.WARMUP_ITERS >= cfg.SOLVER.MAX_ITER:
            message = "SOLVER.WARMUP_ITERS %d is no less than MAX_ITER %d: the rate does not reach BASE_LR"
            logger.warning(message, cfg.SOLVER.WARMUP_ITERS, cfg.SOLVER.MAX_ITER)
        if cfg.SEED >= 0:
            # The weights start alike on every process and in every run.
            seed_all_rng(cfg.SEED)
            # TorchScript functions (focal loss) would be fused after their first calls and then round differently, so
            # a resumed training, whose first calls come later, would drift from an uninterrupted one.
            torch.jit.set_fusion_strategy([("STATIC", 0), ("DYNAMIC", 0)])
        model = self.build_model(cfg)
        check_num_classes(model, classes, f"DATASETS.TRAIN {tuple(cfg.DATASETS.TRAIN)}")
        if not IRSTDCheckpointer(model, cfg.OUTPUT_DIR).has_checkpoint():  # so this is no resume
            refuse_frozen_random(model, cfg)
        optimizer = self.build_optimizer(cfg, model)
        self.ema = EMAHook(model, cfg.SOLVER.EMA.DECAY) if cfg.SOLVER.EMA.ENABLED else None
        amp = cfg.SOLVER.AMP
        no_devices = {"device_ids": None} if cfg.MODEL.DEVICE == "cpu" else {}
        self._trainer = TrainStep(
            # Some published modules never run; a head may see no target on one process.
            create_ddp_model(model, broadcast_buffers=False, find_unused_parameters=True, **no_devices),
            self.build_train_loader(cfg, dicts),
            optimizer,
            seed=cfg.SEED + comm.get_rank() if cfg.SEED >= 0 else -1,
            amp_dtype=AMP_DTYPES[amp.DTYPE] if amp.ENABLED else None,
            device=cfg.MODEL.DEVICE,
        )
        self.scheduler = self.build_lr_scheduler(cfg, optimizer)
        self._solver_values = solver_values(optimizer.param_groups)
        self.checkpointer = IRSTDCheckpointer(
            model,
            cfg.OUTPUT_DIR,
            deployed=self.ema.average.module if self.ema else None,
            match=match_of(cfg, train=True),
            facts=facts,
            trainer=weakref.proxy(self),
        )
        self.start_iter, self.max_iter, self.cfg = 0, cfg.SOLVER.MAX_ITER, cfg
        self.register_hooks(self.build_hooks())

    def resume_or_load(self, resume: bool = True) -> None:
        """Go on from the last checkpoint of ``OUTPUT_DIR``, or load ``MODEL.WEIGHTS`` and start at iteration 0.

        Raises:
            ConfigError: the checkpoint is of a training with another model, data or schedule (``resume``); there are no
                weights, or those of another model.
        """
        newest = self.checkpointer.newest_readable() if resume else None
        if newest is None:
            refuse_frozen_random(self.checkpointer.model, self.cfg)
        else:
            self._check_facts(newest)
        super().resume_or_load(resume)
        if self.ema and not self.ema.updates:
            self.ema.restart()
        sampler = self._trainer.data_loader.sampler
        if isinstance(sampler, ResumableTrainingSampler):
            sampler.start = self.start_iter * self.cfg.SOLVER.IMS_PER_BATCH

    def _check_facts(self, checkpoint: Path) -> None:
        found, own = read_facts(checkpoint), self.checkpointer.facts
        if "run" in found:  # not in checkpoints of versions up to 0.3.0
            check_config(found["run"]["config"], own["run"]["config"], checkpoint)
            check_facts(found["run"], own["run"], checkpoint)
        if trained := classes_of(found):
            names = tuple(row["name"] for row in own["classes"])
            require_same_names((str(checkpoint), trained.names), ("DATASETS.TRAIN", names), same_order=True)

    def state_dict(self) -> dict[str, Any]:
        state = super().state_dict()
        state["loss_normalizer"] = getattr(self.checkpointer.model, _RUNNING_NORMALIZER, None)
        return state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        groups = state["_trainer"]["optimizer"]["param_groups"], self._trainer.optimizer.param_groups
        before, now = ([len(group["params"]) for group in part] for part in groups)
        if before != now:
            problem = "--resume: by SOLVER.WEIGHT_DECAY* and BIAS_LR_FACTOR groups of other weights are treated alike"
            raise ConfigError(f"{problem}: {now}, {before} in the checkpoint; keep those values equal that were equal")
        super().load_state_dict(state)
        restore_solver_values(self._trainer.optimizer.param_groups, self._solver_values, self.scheduler)
        if state["loss_normalizer"] is not None:
            setattr(self.checkpointer.model, _RUNNING_NORMALIZER, state["loss_normalizer"])

    @classmethod
    def build_model(cls, cfg: CfgNode) -> nn.Module:
        """Build the model, with ``MODEL.CHANNELS_LAST`` in that memory format, which its activations then follow."""
        model = build_model(cfg)
        pool_exactly(model)
        logger.info("model\n%s", model, extra=FILE_ONLY)
        parameters = list(model.parameters())
        counts = [sum(p.numel() for p in parameters if trained <= p.requires_grad) for trained in (False, True)]
        logger.info("%s with %s parameters, %s of them trained", type(model).__name__, *(f"{n:,}" for n in counts))
        return model.to(memory_format=torch.channels_last) if cfg.MODEL.CHANNELS_LAST else model

    @classmethod
    def build_optimizer(cls, cfg: CfgNode, model: nn.Module) -> Optimizer:
        return build_optimizer(cfg, model)

    @staticmethod
    def train_dicts(cfg: CfgNode) -> list[dict[str, Any]]:
        """Load the training sets."""
        return get_detection_dataset_dicts(
            cfg.DATASETS.TRAIN, filter_empty=cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS, check_consistency=False
        )

    @classmethod
    def build_train_loader(cls, cfg: CfgNode, dicts: list[dict[str, Any]] | None = None) -> DataLoader:
        """Build the loader of the training stream, which has no end; batches are split evenly over the processes.

        ``dicts`` of the training sets, when they are loaded already.
        """
        world_size = comm.get_world_size()
        if cfg.SOLVER.IMS_PER_BATCH % world_size:
            size = cfg.SOLVER.IMS_PER_BATCH
            raise ConfigError(f"SOLVER.IMS_PER_BATCH is {size}, not a multiple of {world_size} processes")
        seed = cfg.SEED if cfg.SEED >= 0 else comm.shared_random_seed()
        images = DatasetFromList(cls.train_dicts(cfg) if dicts is None else dicts, copy=False)
        workers = cfg.DATALOADER.NUM_WORKERS
        return DataLoader(
            SeededMapDataset(images, build_mapper(cfg, is_train=True), seed, workers),
            sampler=ResumableTrainingSampler(len(images), seed=seed),
            batch_size=cfg.SOLVER.IMS_PER_BATCH // world_size,
            num_workers=workers,
            collate_fn=list,
            pin_memory=cfg.MODEL.DEVICE.startswith("cuda"),
        )

    @classmethod
    def build_test_loader(cls, cfg: CfgNode, dataset_name: str) -> DataLoader:
        return build_detection_test_loader(cfg, dataset_name, mapper=build_mapper(cfg, is_train=False))

    @classmethod
    def build_evaluator(cls, cfg: CfgNode, dataset_name: str, output_folder: str | None = None) -> DatasetEvaluator:
        return build_evaluator(cfg, dataset_name, output_folder)

    @classmethod
    def test(
        cls, cfg: CfgNode, model: nn.Module, evaluators: DatasetEvaluator | Sequence[DatasetEvaluator] | None = None
    ) -> OrderedDict[str, Any]:
        """Evaluate on every set of ``DATASETS.TEST`` and log the results as one table per set.

        A fast copy of the model detects (:func:`irstd_d2.inference.optimize`). There is one evaluator per set, by
        default those of ``TEST.EVALUATORS``.

        Returns:
            evaluator -> metric -> value, below the data set's name if there are several sets; empty on all processes
            but the main one.
        """
        given = [evaluators] if isinstance(evaluators, DatasetEvaluator) else evaluators
        if given is not None and len(given) != len(cfg.DATASETS.TEST):
            raise ValueError(f"{len(given)} evaluators for the {len(cfg.DATASETS.TEST)} sets of DATASETS.TEST")
        from ..inference.optimization import optimize  # whose package imports this one

        fast = optimize(model.module if isinstance(model, DistributedDataParallel) else model)
        results: OrderedDict[str, Any] = OrderedDict()
        for index, name in enumerate(cfg.DATASETS.TEST):
            evaluator = cls.build_evaluator(cfg, name) if given is None else given[index]
            results[name] = inference_on_dataset(fast, cls.build_test_loader(cfg, name), evaluator)
            if comm.is_main_process():
                logger.info("Results on %s:\n%s", name, format_results(results[name]))
        return results.popitem()[1] if len(results) == 1 else results

    def build_hooks(self) -> list[hooks.HookBase]:
        cfg = self.cfg
        built: list[hooks.HookBase] = [self.ema] if self.ema else []  # averages before anything saves or evaluates
        built += [hooks.IterationTimer(), hooks.LRScheduler()]
        if cfg.TEST.PRECISE_BN.ENABLED and get_bn_modules(self.model):
            loader = self.build_train_loader(cfg)
            evaluated = self.ema.average.module.train() if self.ema else self.model
            built.append(hooks.PreciseBN(cfg.TEST.EVAL_PERIOD, evaluated, loader, cfg.TEST.PRECISE_BN.NUM_ITER))
        built.append(hooks.EvalHook(cfg.TEST.EVAL_PERIOD, self._evaluate))
        if comm.is_main_process():
            if cfg.TEST.BEST_METRIC:
                built.append(BestCheckpointer(cfg.TEST.EVAL_PERIOD, self.checkpointer, cfg.TEST.BEST_METRIC))
            built.append(RunLog(cfg.OUTPUT_DIR))
            built.append(
                PeriodicCheckpointer(self.checkpointer, cfg.SOLVER.CHECKPOINT_PERIOD, keep=cfg.SOLVER.CHECKPOINT_KEEP)
            )
        return built

    def build_writers(self) -> list[EventWriter]:
        """Build the console, JSON and TensorBoard writers; called when the first iteration is known."""
        folder = Path(self.cfg.OUTPUT_DIR)
        folder.mkdir(parents=True, exist_ok=True)
        return [
            CommonMetricPrinter(self.max_iter, window_size=WINDOW),
            JSONWriter(str(folder / "metrics.json"), WINDOW),
            TensorboardXWriter(str(folder), window_size=WINDOW, purge_step=self.start_iter),
        ]

    @contextlib.contextmanager
    def evaluated_weights(self) -> Iterator[None]:
        """Run with the weights that are evaluated and saved: averaged where there are averages, alike everywhere."""
        with self.ema.applied() if self.ema else contextlib.nullcontext():
            if comm.get_world_size() > 1:  # the main process's running statistics are the ones that are saved
                for buffer in self.checkpointer.model.buffers():
                    dist.broadcast(buffer, 0)
            yield

    def _evaluate(self) -> OrderedDict[str, Any]:
        """Evaluate during training; if that fails, the training until here is saved first."""
        try:
            with self.evaluated_weights():
                self._last_eval_results = self.test(self.cfg, self.model)
        except Exception:
            if self.iter < self.max_iter:
                self.checkpointer.save(f"model_{self.iter:07d}", iteration=self.iter)
            raise
        return self._last_eval_results

    def train(self) -> Any:
        """Train to the end.

        Raises:
            NonFiniteLossError: a loss is not finite; the state from before the step is saved, so that a resume starts
                with it.
            RuntimeError: a worker process died; a note names the samples that the workers read last.
        """
        try:
            return super().train()
        except NonFiniteLossError:
            self._save_before_step()
            raise
        except RuntimeError as error:
            # PyTorch raises this from a signal handler, so anywhere in a step: what is in memory is not worth saving.
            if str(error).startswith("DataLoader worker (pid"):
                error.add_note(self._last_samples())
            raise

    def _last_samples(self) -> str:
        samples: SeededMapDataset = self._trainer.data_loader.dataset
        return "\n".join(
            [
                *(f"worker {number} began {samples.last_begun(number)} last" for number in range(samples.num_workers)),
                "Killed on different images: memory is short, use fewer workers (DATALOADER.NUM_WORKERS). On the same "
                "one: look at that file. Go on with --resume; torchrun --max-restarts does so by itself",
            ]
        )

    def after_train(self) -> None:
        # A resume of a finished training counts one iteration too many.
        self.iter = min(self.iter, self.max_iter)
        super().after_train()

    def _save_before_step(self) -> None:
        self.iter -= 1
        if weights_are_finite(self.checkpointer) and self.iter >= 0:
            name = f"model_{self.iter:07d}"
        else:
            name = "model_nonfinite"  # worth a look, not a resume
        self.checkpointer.save(name, iteration=self.iter)


def _check_keys(cfg: CfgNode) -> None:
    """Refuse keys of detectron2 that this training would not follow, and values that cannot work."""
    if cfg.DATALOADER.SAMPLER_TRAIN != "TrainingSampler":
        raise ConfigError(
            f"DATALOADER.SAMPLER_TRAIN is {cfg.DATALOADER.SAMPLER_TRAIN!r}; only 'TrainingSampler' can be resumed "
            "exactly. To see images more often per epoch, set SOLVER.REPEAT_DATASET"
        )
    if cfg.DATALOADER.ASPECT_RATIO_GROUPING:
        raise ConfigError("DATALOADER.ASPECT_RATIO_GROUPING must be False: a grouped stream cannot be resumed exactly")
    check_number("SOLVER.MAX_EPOCHS", cfg.SOLVER.MAX_EPOCHS, 0)
    length = () if cfg.SOLVER.MAX_EPOCHS else ("MAX_ITER",)
    for key in (*length, "REPEAT_DATASET", "IMS_PER_BATCH", "CHECKPOINT_PERIOD"):
        check_number(f"SOLVER.{key}", cfg.SOLVER[key], 1)
    check_number("SOLVER.EMA.DECAY", cfg.SOLVER.EMA.DECAY, 0, 1)
    check_number("TEST.PRECISE_BN.NUM_ITER", cfg.TEST.PRECISE_BN.NUM_ITER, 1)
    if cfg.TEST.BEST_METRIC.rpartition("/")[2].startswith(("Fa", "FAPI")):
        raise ConfigError(f"TEST.BEST_METRIC is {cfg.TEST.BEST_METRIC}, but the highest is kept; use pd_fa/F1")
    if cfg.SOLVER.AMP.ENABLED:
        check_known("SOLVER.AMP.DTYPE", cfg.SOLVER.AMP.DTYPE, AMP_DTYPES)
