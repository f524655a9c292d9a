"""Training: a resumable trainer, checkpoints, averaged weights."""

from .checkpoint import IRSTDCheckpointer
from .ema import EMAHook
from .sampling import ResumableTrainingSampler, SeededMapDataset, seed_everything
from .setup import setup
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
    "seed_everything",
    "setup",
]
