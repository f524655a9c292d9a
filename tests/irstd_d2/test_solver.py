"""Optimisers and schedules: exact values, groups, refusals."""

import numpy as np
import pytest
import torch
from detectron2.solver import build_lr_scheduler
from loops import for_every
from torch import nn

from irstd_d2 import get_config
from irstd_d2.errors import ConfigError
from irstd_d2.solver import build_optimizer, with_iteration_schedule


def config(**options):
    return get_config(None, [item for key, value in options.items() for item in (f"SOLVER.{key}", value)])


def rates(cfg, count):
    """Learning rate of each iteration, relative to the base rate."""
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], cfg.SOLVER.BASE_LR)
    scheduler = build_lr_scheduler(cfg, optimizer)
    result = []
    for _ in range(count):
        result.append(optimizer.param_groups[0]["lr"] / cfg.SOLVER.BASE_LR)
        optimizer.step()
        scheduler.step()
    return np.array(result)


def test_epochs_become_iterations():
    cfg = config(MAX_EPOCHS=20, STEP_EPOCHS=(8, 16), REPEAT_DATASET=3, IMS_PER_BATCH=2)
    done = with_iteration_schedule(cfg, 768)  # BAFE-Net on DenseSIRST: 1,152 iterations per epoch
    assert (done.SOLVER.MAX_ITER, done.SOLVER.STEPS) == (23040, (9216, 18432))
    assert done.is_frozen()
    assert with_iteration_schedule(cfg, 767).SOLVER.MAX_ITER == 20 * 1151
    plain = get_config()
    assert with_iteration_schedule(plain, 5) is plain
    with pytest.raises(ConfigError, match="MAX_EPOCHS is 0"):
        with_iteration_schedule(config(STEP_EPOCHS=(1,)), 5)


def test_schedule_of_bafe_net(repo_root):
    """A third for 500 iterations, a tenth from epochs 8 and 16 of 20."""
    cfg = with_iteration_schedule(get_config(repo_root / "configs/bafe/bafe_r18_fpn.yaml"), 768)
    values = rates(cfg, cfg.SOLVER.MAX_ITER)
    expected = np.ones(20 * 1152)
    expected[:500] = 1 / 3
    expected[8 * 1152 :] = 0.1
    expected[16 * 1152 :] = 0.01
    np.testing.assert_allclose(values, expected, rtol=1e-12)
    assert cfg.SOLVER.BASE_LR == 1.0


def test_schedule_of_auxdet(repo_root):
    """Linear from a thousandth over 500 iterations, a tenth from epochs 8 and 11 of 12."""
    cfg = with_iteration_schedule(get_config(repo_root / "configs/auxdet/auxdet_r50_fpn.yaml"), 7000)
    values = rates(cfg, cfg.SOLVER.MAX_ITER)
    expected = np.ones(12 * 1750)
    expected[:500] = 0.001 + (1 - 0.001) * np.arange(500) / 500
    expected[8 * 1750 :] = 0.1
    expected[11 * 1750 :] = 0.01
    np.testing.assert_allclose(values, expected, rtol=1e-9)
    assert cfg.SOLVER.BASE_LR == 0.005


def test_cosine_with_linear_warm_up():
    cfg = config(
        LR_SCHEDULER_NAME="WarmupCosineLR", MAX_ITER=100, WARMUP_ITERS=10, WARMUP_FACTOR=0.1, WARMUP_METHOD="linear"
    )
    values = rates(cfg, 100)
    np.testing.assert_allclose(values[10:], 0.5 * (1 + np.cos(np.pi * np.arange(10, 100) / 100)), rtol=1e-9)
    start, end = 0.1, 0.5 * (1 + np.cos(np.pi * 0.1))
    np.testing.assert_allclose(values[:10], start + (end - start) * np.arange(10) / 10, rtol=1e-9)


@for_every("name", ["SGD", "ADAMW", "DADAPT_ADAM"])
def test_norms_and_biases_can_be_spared_from_weight_decay(name):
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.GroupNorm(2, 4))
    cfg = config(OPTIMIZER=name, BASE_LR=1.0, WEIGHT_DECAY=0.05, WEIGHT_DECAY_NORM=0.0, WEIGHT_DECAY_BIAS=0.0)
    decay = {p: g["weight_decay"] for g in build_optimizer(cfg, model).param_groups for p in g["params"]}
    assert decay[model[0].weight] == 0.05
    assert decay[model[0].bias] == decay[model[1].weight] == decay[model[1].bias] == 0


def test_frozen_parameters_are_left_out():
    model = nn.Linear(2, 2)
    model.bias.requires_grad_(False)
    params = [p for g in build_optimizer(config(), model).param_groups for p in g["params"]]
    assert [p is model.weight for p in params] == [True]


def test_d_adaptation_finds_a_rate_and_decays_apart_from_the_gradient(capsys):
    model = nn.Linear(4, 1)
    optimizer = build_optimizer(config(OPTIMIZER="DADAPT_ADAM", BASE_LR=1.0, WEIGHT_DECAY=0.05), model)
    assert capsys.readouterr().out == ""
    assert optimizer.param_groups[0]["decouple"]
    inputs = torch.randn(64, 4)
    first = None
    for _ in range(200):
        loss = (model(inputs) - inputs.sum(1, keepdim=True)).square().mean()
        first = first or loss.item()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.2 * first
    assert optimizer.param_groups[0]["d"] > 1e-3


def test_gradients_are_clipped():
    options = {"CLIP_GRADIENTS.ENABLED": True, "CLIP_GRADIENTS.CLIP_TYPE": "norm", "CLIP_GRADIENTS.CLIP_VALUE": 1.0}
    model = nn.Linear(3, 1, bias=False)
    optimizer = build_optimizer(config(BASE_LR=1.0, MOMENTUM=0.0, WEIGHT_DECAY=0.0, **options), model)
    before = model.weight.detach().clone()
    model.weight.grad = torch.tensor([[0.0, 30.0, 40.0]])
    optimizer.step()
    torch.testing.assert_close(before - model.weight.detach(), torch.tensor([[0.0, 0.6, 0.8]]))


@for_every(
    ("options", "message"),
    [
        ({"OPTIMIZER": "DADAPT_ADAM", "BIAS_LR_FACTOR": 2.0}, "BIAS_LR_FACTOR"),
        ({"OPTIMIZER": "LION"}, r"SOLVER\.OPTIMIZER is 'LION'"),
    ],
)
def test_what_cannot_work_is_refused(options, message):
    with pytest.raises(ConfigError, match=message):
        build_optimizer(config(**options), nn.Linear(2, 2))
