"""Exponential moving average of the weights, evaluated and saved in place of the raw ones."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from detectron2.engine import HookBase
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

logger = logging.getLogger(__name__)

Tensors = tuple[Tensor, ...] | list[Tensor]


def ema_update(decay: float) -> Callable[[Tensors, Tensors, Tensor | int], None]:
    """Return torch's multi-tensor averaging function with a warm-up: early averages follow the weights closely.

    At update t the average keeps ``min(decay, (1 + t) / (10 + t))`` of itself. Counters, such as the number of batches
    a batch norm has seen, are copied.
    """

    @torch.no_grad()
    def update(averages: Tensors, weights: Tensors, updates: Tensor | int) -> None:
        t = float(updates)
        keep = min(decay, (1 + t) / (10 + t))
        for average, weight in zip(averages, weights):
            if average.is_floating_point():
                average.lerp_(weight.to(average.dtype), 1 - keep)
            else:
                average.copy_(weight)

    return update


class EMAHook(HookBase):
    """Average the weights after every step, ``decay`` of the average being kept.

    A checkpoint holds the average as the model, so that whoever loads it gets the weights that were evaluated; the
    weights in training are part of this hook's state. The ``model`` is not wrapped for distribution. In a trainer of
    your own ``IRSTDCheckpointer(..., deployed=hook.average.module)`` saves so; another one loses the average at a
    resume.
    """

    def __init__(self, model: nn.Module, decay: float):
        self.model = model
        self.average = AveragedModel(model, multi_avg_fn=ema_update(decay), use_buffers=True)

    @property
    def updates(self) -> int:
        """Steps averaged so far."""
        return int(self.average.n_averaged)

    def restart(self) -> None:
        """Take the model's present weights as the average, once they were loaded."""
        self.average.module.load_state_dict(self.model.state_dict())

    def after_step(self) -> None:
        self.average.update_parameters(self.model)

    def state_dict(self) -> dict[str, Any]:
        return {"trained": self.model.state_dict(), "updates": self.updates}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on; the model holds the average, as it comes out of a checkpoint, and gets its own weights back."""
        loaded = self.model.state_dict()
        if state["updates"] > 1 and all(torch.equal(v, state["trained"][k].to(v.device)) for k, v in loaded.items()):
            logger.warning(
                "the checkpoint holds the trained weights in place of their average, which starts anew from them; "
                "IRSTDCheckpointer(..., deployed=hook.average.module) saves the average"
            )
        self.restart()
        self.average.n_averaged.fill_(state["updates"])
        self.model.load_state_dict(state["trained"])

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Run with the averaged weights in the model, and put the trained ones back."""
        trained = {key: value.clone() for key, value in self.model.state_dict().items()}
        self.model.load_state_dict(self.average.module.state_dict())
        try:
            yield
        finally:
            self.model.load_state_dict(trained)
