"""Training: a resumable trainer, checkpoints, averaged weights."""

from .checkpoint import IRSTDCheckpointer, load_weights
from .ema import EMAHook
from .sampling import ResumableTrainingSampler, SeededMapDataset, seed_everything
from .setup import check_gpus, process_group, setup
from .train_step import NonFiniteLossError, TrainStep
from .trainer import IRSTDTrainer

__all__ = [
    "EMAHook",
    "IRSTDCheckpointer",
    "IRSTDTrainer",
    "NonFiniteLossError",
    "ResumableTrainingSampler",
    "SeededMapDataset",
    "TrainStep",
    "check_gpus",
    "load_weights",
    "process_group",
    "seed_everything",
    "setup",
]
