"""A training that starts from another one's checkpoint takes over its weights and nothing else."""

import pytest
import torch
import toy_training as toy
from toy_training import assert_same_tensors, train

from irstd_d2.engine import IRSTDTrainer
from irstd_d2.errors import ConfigError


@pytest.fixture
def toy_config(tmp_path):
    folder = tmp_path / "images"
    folder.mkdir()
    toy.register(folder)
    yield lambda name, **overrides: toy.toy_config(tmp_path / name, **overrides)
    toy.unregister()


@pytest.mark.parametrize("optimizer", ["SGD", "ADAMW"])
def test_weights_are_all_that_is_taken_over(toy_config, tmp_path, optimizer):
    options = {"SOLVER.OPTIMIZER": optimizer, "SOLVER.MAX_ITER": 3}
    first = train(toy_config("first", **options))
    content = torch.load(tmp_path / "first" / "model_final.pth", weights_only=True)
    assert content["trainer"]  # there would be a state to take over

    second = IRSTDTrainer(toy_config("second", **options, **{"MODEL.WEIGHTS": str(tmp_path / "first/model_final.pth")}))
    second.resume_or_load(False)
    averaged = first.ema.average.module.state_dict()
    assert_same_tensors(second.model.state_dict(), averaged)  # the better weights of the first run ...
    assert_same_tensors(second.ema.average.module.state_dict(), averaged)  # ... start the second one's average
    assert second.ema.updates == 0
    assert second.start_iter == 0
    assert not second.optimizer.state
    fresh = IRSTDTrainer(toy_config("fresh", **options))
    assert second.optimizer.param_groups[0]["lr"] == fresh.optimizer.param_groups[0]["lr"]
    assert second.scheduler.state_dict()["last_epoch"] == fresh.scheduler.state_dict()["last_epoch"]


def test_heads_of_another_shape_start_anew(toy_config, tmp_path, caplog):
    train(toy_config("first", **{"SOLVER.MAX_ITER": 1}))
    path = tmp_path / "first" / "model_final.pth"
    content = torch.load(path, weights_only=True)
    content["model"]["net.4.weight"] = torch.zeros(7, 4, 3, 3)
    torch.save(content, path)
    second = IRSTDTrainer(toy_config("second", **{"MODEL.WEIGHTS": str(path)}))
    with pytest.raises(
        ConfigError, match=r"fills 8 of 9 tensors.*net\.4\.weight \(7, 4, 3, 3\).*WEIGHTS_MATCH partial"
    ):
        second.resume_or_load(False)
    second = IRSTDTrainer(toy_config("second", **{"MODEL.WEIGHTS": str(path), "MODEL.WEIGHTS_MATCH": "partial"}))
    before = second.model.net[4].weight.clone()
    with caplog.at_level("WARNING"):
        second.checkpointer.logger.propagate = True
        second.resume_or_load(False)
    assert "net.4.weight" in caplog.text
    assert torch.equal(second.model.net[4].weight, before)
    assert torch.equal(second.model.net[0].weight, content["model"]["net.0.weight"])
