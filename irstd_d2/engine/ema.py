"""Exponential moving average of the weights, evaluated and saved in place of the raw ones."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from detectron2.engine import HookBase
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel


def ema_update(decay: float) -> Callable[[list[Tensor], list[Tensor], Tensor | int], None]:
    """Return torch's multi-tensor averaging function with a warm-up: early averages follow the weights closely.

    At update t the average keeps ``min(decay, (1 + t) / (10 + t))`` of itself.
    """

    @torch.no_grad()
    def update(averages: list[Tensor], weights: list[Tensor], updates: Tensor | int) -> None:
        t = float(updates)
        keep = min(decay, (1 + t) / (10 + t))
        for average, weight in zip(averages, weights):
            if average.is_floating_point():
                average.lerp_(weight.to(average.dtype), 1 - keep)
            else:  # counters such as num_batches_tracked
                average.copy_(weight)

    return update


class EMAHook(HookBase):
    """Average the weights after every step.

    Args:
        model: the trained model, not wrapped for distribution.
        decay: share of the average that is kept per step.
    """

    def __init__(self, model: nn.Module, decay: float):
        self.model, self.decay = model, decay
        self.average = self._start()

    def _start(self) -> AveragedModel:
        return AveragedModel(self.model, multi_avg_fn=ema_update(self.decay), use_buffers=True)

    def restart(self) -> None:
        """Take the model's present weights as the average, after they were loaded."""
        self.average.load_state_dict(self._start().state_dict())

    def after_step(self) -> None:
        self.average.update_parameters(self.model)

    def state_dict(self) -> dict[str, Tensor]:
        return self.average.state_dict()

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        self.average.load_state_dict(state)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Run with the averaged weights in the model, and put the trained ones back."""
        trained = {key: value.clone() for key, value in self.model.state_dict().items()}
        self.model.load_state_dict(self.average.module.state_dict())
        try:
            yield
        finally:
            self.model.load_state_dict(trained)
