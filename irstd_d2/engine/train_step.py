"""One training step: autocast, scaling, and a stop with names when the loss is not finite."""

from __future__ import annotations

import time
from collections.abc import Iterable
from typing import Any

import torch
import torch.distributed as dist
from detectron2.engine import SimpleTrainer
from detectron2.utils import comm
from torch import Tensor, nn
from torch.optim import Optimizer

from .sampling import seed_everything


class NonFiniteLossError(FloatingPointError):
    """The loss became NaN or infinite; the message names the losses and the images of the batch."""


class TrainStep(SimpleTrainer):
    """detectron2's ``SimpleTrainer`` with mixed precision and reproducible randomness.

    Args:
        model: gives a dict of losses for a list of samples.
        data_loader: iterable of such lists.
        optimizer: of the model's parameters.
        seed: every step seeds this process from it and the iteration; negative leaves the generators alone.
        amp_dtype: ``torch.bfloat16`` or ``torch.float16`` for autocast, ``None`` for none.
        device: of the model, for autocast.
    """

    def __init__(
        self,
        model: nn.Module,
        data_loader: Iterable[list[dict[str, Any]]],
        optimizer: Optimizer,
        *,
        seed: int = -1,
        amp_dtype: torch.dtype | None = None,
        device: str = "cpu",
    ):
        super().__init__(model, data_loader, optimizer)
        self.seed, self.amp_dtype, self.device_type = seed, amp_dtype, torch.device(device).type
        # bfloat16 has float32's range, so only float16 needs its gradients scaled.
        self.scaler = torch.amp.GradScaler(self.device_type, enabled=amp_dtype == torch.float16)

    def _next_batch(self) -> list[dict[str, Any]]:
        try:
            return next(self._data_loader_iter)
        except (EOFError, ConnectionError) as error:
            # Of a worker that dies while it hands over a batch the connection is closed before PyTorch sees its end.
            # What reading a sample raised in a worker begins with "Caught".
            if not getattr(self.data_loader, "num_workers", 0) or str(error).startswith("Caught "):
                raise
            raise RuntimeError("DataLoader worker (pid unknown) ended while it handed over a batch") from error

    def run_step(self) -> None:
        start = time.perf_counter()
        batch = self._next_batch()
        data_time = time.perf_counter() - start
        if self.seed >= 0:
            seed_everything(self.seed, self.iter, 1)
        with torch.autocast(self.device_type, dtype=self.amp_dtype, enabled=self.amp_dtype is not None):
            losses = self._losses(batch)
        total = torch.stack([loss.float() for loss in losses.values()]).sum()
        self.optimizer.zero_grad(set_to_none=True)
        self.scaler.scale(total).backward()
        self.after_backward()
        self._check_finite(total.detach(), losses, batch)
        self._write_metrics({name: loss.float() for name, loss in losses.items()}, data_time)
        self.scaler.unscale_(self.optimizer)
        self.scaler.step(self.optimizer)
        self.scaler.update()

    def _losses(self, batch: list[dict[str, Any]]) -> dict[str, Tensor]:
        try:
            return self.model(batch)
        except FloatingPointError as error:  # detectron2's proposal generators judge their boxes themselves
            images = _file_names(batch)
            raise NonFiniteLossError(
                f"iteration {self.iter} is not finite\nprocess {comm.get_rank()}: {error}, images {images}"
            ) from error

    def _check_finite(self, total: Tensor, losses: dict[str, Tensor], batch: list[dict[str, Any]]) -> None:
        """Stop all processes together when the loss of any of them is not finite."""
        finite = torch.isfinite(total).to(torch.uint8)
        if comm.get_world_size() > 1:
            dist.all_reduce(finite, op=dist.ReduceOp.MIN)
        if finite:
            return
        mine = {"losses": {name: loss.item() for name, loss in losses.items()}, "images": _file_names(batch)}
        parts = comm.all_gather(mine)
        lines = [f"process {rank}: losses {part['losses']}, images {part['images']}" for rank, part in enumerate(parts)]
        raise NonFiniteLossError("\n".join([f"the loss of iteration {self.iter} is not finite", *lines]))

    def state_dict(self) -> dict[str, Any]:
        state = super().state_dict()
        state["scaler"] = self.scaler.state_dict()
        return state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        self.scaler.load_state_dict(state["scaler"])


def _file_names(batch: list[dict[str, Any]]) -> list[str]:
    return [str(sample.get("file_name", "?")) for sample in batch]
