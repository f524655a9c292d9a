"""Averages of the weights (EMA): their recurrence, their start, and where they are used."""

import copy
import itertools

import pytest
import torch
from torch import nn
from toy_training import FULL, assert_same_tensors, train

from irstd_d2.engine import (
    EMAHook,
    IRSTDCheckpointer,
    IRSTDTrainer,
)


def test_ema_equals_the_plain_recurrence():
    torch.manual_seed(0)
    model = nn.BatchNorm1d(3)
    hook = EMAHook(model, 0.9)
    average = {k: v.clone() for k, v in model.state_dict().items()}
    for t in range(1, 30):
        with torch.no_grad():
            model.weight.copy_(torch.randn(3))
            model.running_mean.copy_(torch.randn(3))
            model.num_batches_tracked.add_(1)
        hook.after_step()
        # torch copies the weights at the first update, and counts from there.
        keep = 0.0 if t == 1 else min(0.9, t / (9 + t))
        for key, value in model.state_dict().items():
            average[key] = value if not value.is_floating_point() else keep * average[key] + (1 - keep) * value
    for key, value in hook.average.module.state_dict().items():
        torch.testing.assert_close(value, average[key].to(value.dtype), rtol=1e-5, atol=1e-6)
    trained = model.weight.clone()
    with hook.applied():
        torch.testing.assert_close(model.weight.data, average["weight"], rtol=1e-5, atol=1e-6)
    assert torch.equal(model.weight, trained)


def test_a_checkpoint_holds_the_averaged_weights_as_its_model(toy_config, tmp_path):
    trainer = train(toy_config())
    plain = IRSTDTrainer.build_model(trainer.cfg)
    IRSTDCheckpointer(plain).load(str(tmp_path / "run" / "model_final.pth"))
    assert_same_tensors(plain.state_dict(), trainer.ema.average.module.state_dict())
    assert not torch.equal(plain.net[0].weight, trainer.model.net[0].weight)


def test_averaging_starts_from_loaded_weights(toy_config, tmp_path):
    first = train(toy_config("first", **{"SOLVER.EMA.ENABLED": False}))
    weights = str(tmp_path / "first" / "model_final.pth")
    second = IRSTDTrainer(toy_config("second", **{"MODEL.WEIGHTS": weights}))
    second.resume_or_load(False)
    assert_same_tensors(second.ema.average.module.state_dict(), first.model.state_dict())
    # Averaging that is switched on at a resume starts from the weights of the checkpoint, too.
    resumed = IRSTDTrainer(toy_config("first", **{"SOLVER.MAX_ITER": 20}))
    resumed.resume_or_load(True)
    assert resumed.start_iter == 12
    assert_same_tensors(resumed.ema.average.module.state_dict(), first.model.state_dict())


def test_evaluation_uses_the_averaged_weights(toy_config):
    trainer = IRSTDTrainer(toy_config(**FULL, **{"SOLVER.EMA.DECAY": 0.5}))
    trainer.resume_or_load(False)
    seen = []

    def test(cfg, model):
        seen.append({k: v.clone() for k, v in model.state_dict().items()})
        return {"pd_fa": {"F1": float(len(seen))}}

    trainer.test = test
    trainer.max_iter = 7
    trainer.train()
    assert_same_tensors(seen[-1], trainer.ema.average.module.state_dict())


@pytest.mark.parametrize("deployed", [True, False])
def test_a_checkpoint_without_the_average_is_warned_of(caplog, deployed):
    """A trainer of a user whose checkpointer knows nothing of the average."""
    model = nn.Linear(3, 2)
    hook = EMAHook(model, 0.5)
    for _ in range(3):
        with torch.no_grad():
            model.weight.add_(torch.randn(2, 3))
        hook.after_step()
    state = copy.deepcopy(hook.state_dict())
    saved = copy.deepcopy((hook.average.module if deployed else model).state_dict())
    resumed = nn.Linear(3, 2)
    again = EMAHook(resumed, 0.5)
    resumed.load_state_dict(saved)
    again.load_state_dict(state)
    assert_same_tensors(resumed.state_dict(), model.state_dict())
    assert ("holds the trained weights in place of their average" in caplog.text) != deployed
    assert_same_tensors(again.average.module.state_dict(), saved)


def test_precise_statistics_are_those_of_the_weights_that_are_evaluated(toy_config, tmp_path):
    """They were computed for the trained weights, while the average, with its own, was evaluated and saved."""
    cfg = toy_config(**{"TEST.PRECISE_BN.ENABLED": True, "TEST.PRECISE_BN.NUM_ITER": 3, "SOLVER.EMA.DECAY": 0.5})
    trainer = train(cfg)
    saved = torch.load(tmp_path / "run" / "model_final.pth", weights_only=True)["model"]
    first = nn.Conv2d(3, 4, 3, padding=1)
    first.load_state_dict({key: saved[f"net.0.{key}"] for key in ("weight", "bias")})
    batches = itertools.islice(iter(IRSTDTrainer.build_train_loader(trainer.cfg)), 3)
    values = [first(torch.stack([sample["image"] for sample in batch]) / 255) for batch in batches]
    values = torch.cat(values).detach().transpose(0, 1).flatten(1)
    torch.testing.assert_close(saved["net.1.running_mean"], values.mean(1), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(saved["net.1.running_var"], values.var(1, unbiased=False), rtol=1e-3, atol=1e-5)
