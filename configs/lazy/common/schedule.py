"""Step schedules of the two papers over a number of iterations per epoch."""

from detectron2.config import LazyCall as L
from detectron2.solver import WarmupParamScheduler
from fvcore.common.param_scheduler import MultiStepParamScheduler


def steps(epoch, epochs, drops, warmup_factor, warmup_method, warmup_iterations=500):
    """Multiply the learning rate by 0.1 at the ends of the epochs ``drops``, after a warm-up.

    Args:
        epoch: iterations of one epoch.
        epochs: length of the training.
    """
    return L(WarmupParamScheduler)(
        scheduler=L(MultiStepParamScheduler)(
            values=[0.1**i for i in range(len(drops) + 1)], milestones=[epoch * n for n in (*drops, epochs)]
        ),
        warmup_factor=warmup_factor,
        warmup_length=warmup_iterations / (epoch * epochs),
        warmup_method=warmup_method,
    )
