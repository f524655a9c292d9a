"""Optimisers and schedules from the configuration."""

from __future__ import annotations

import contextlib
import io
import logging

import torch
from dadaptation import DAdaptAdam
from detectron2.config import CfgNode
from detectron2.solver.build import get_default_optimizer_params, maybe_add_gradient_clipping
from torch import nn
from torch.optim import Optimizer

from ..errors import ConfigError

logger = logging.getLogger(__name__)


def build_optimizer(cfg: CfgNode, model: nn.Module) -> Optimizer:
    """Build ``SOLVER.OPTIMIZER`` over the trainable parameters.

    ``WEIGHT_DECAY_NORM`` and ``WEIGHT_DECAY_BIAS`` replace the weight decay of norms and biases. Gradient clipping is
    detectron2's (``SOLVER.CLIP_GRADIENTS``).
    """
    solver = cfg.SOLVER
    params = get_default_optimizer_params(
        model,
        base_lr=solver.BASE_LR,
        weight_decay=solver.WEIGHT_DECAY,
        weight_decay_norm=solver.WEIGHT_DECAY_NORM,
        bias_lr_factor=solver.BIAS_LR_FACTOR,
        weight_decay_bias=solver.WEIGHT_DECAY_BIAS,
    )
    if solver.OPTIMIZER == "SGD":
        optimizer: Optimizer = torch.optim.SGD(
            params, solver.BASE_LR, momentum=solver.MOMENTUM, nesterov=solver.NESTEROV, foreach=True
        )
    elif solver.OPTIMIZER == "ADAMW":
        optimizer = torch.optim.AdamW(params, solver.BASE_LR, betas=solver.BETAS)
    elif solver.OPTIMIZER == "DADAPT_ADAM":
        if solver.BIAS_LR_FACTOR != 1.0:
            raise ConfigError("SOLVER.BIAS_LR_FACTOR must be 1.0 with DADAPT_ADAM: it adapts one rate for all")
        with contextlib.redirect_stdout(io.StringIO()):  # it reports by printing
            optimizer = DAdaptAdam(params, lr=solver.BASE_LR, betas=solver.BETAS, decouple=True)
    else:
        raise ConfigError(f"SOLVER.OPTIMIZER is {solver.OPTIMIZER!r}; known are 'SGD', 'ADAMW', 'DADAPT_ADAM'")
    return maybe_add_gradient_clipping(cfg, optimizer)


def with_iteration_schedule(cfg: CfgNode, num_images: int) -> CfgNode:
    """Return a frozen copy whose epochs are written as iterations; without ``SOLVER.MAX_EPOCHS`` (0), ``cfg`` as it is.

    An epoch is ``REPEAT_DATASET`` passes over ``num_images``; its last batch may be short of images, then it is filled
    from the next.
    """
    if not cfg.SOLVER.MAX_EPOCHS:
        if cfg.SOLVER.STEP_EPOCHS:
            raise ConfigError("SOLVER.STEP_EPOCHS is set but MAX_EPOCHS is 0; set both or use STEPS and MAX_ITER")
        return cfg
    cfg = cfg.clone()
    cfg.defrost()
    per_epoch = -(-num_images * cfg.SOLVER.REPEAT_DATASET // cfg.SOLVER.IMS_PER_BATCH)
    cfg.SOLVER.MAX_ITER = per_epoch * cfg.SOLVER.MAX_EPOCHS
    cfg.SOLVER.STEPS = tuple(per_epoch * epoch for epoch in cfg.SOLVER.STEP_EPOCHS)
    cfg.freeze()
    logger.info(
        "%d epochs of %d iterations: MAX_ITER %d, STEPS %s",
        cfg.SOLVER.MAX_EPOCHS, per_epoch, cfg.SOLVER.MAX_ITER, cfg.SOLVER.STEPS,
    )  # fmt: skip
    return cfg
