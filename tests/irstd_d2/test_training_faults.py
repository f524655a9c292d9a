"""Trainings that must stop: losses that are not finite, failing evaluations, settings that cannot work."""

import pytest
import torch
from toy_training import FULL, assert_same_tensors, train, trained_weights

from irstd_d2.engine import (
    IRSTDTrainer,
    NonFiniteLossError,
)
from irstd_d2.errors import ConfigError


def test_a_non_finite_loss_names_the_images_and_saves_the_state_before_it(toy_config, tmp_path):
    trainer = IRSTDTrainer(toy_config())
    trainer.resume_or_load(False)
    trainer.model.poison_at = 3
    pattern = r"iteration 2 is not finite\nprocess 0: losses \{'loss_heat': nan, .*0_\d\.png"
    with pytest.raises(NonFiniteLossError, match=pattern):
        trainer.train()
    saved = torch.load(tmp_path / "run" / "model_0000001.pth", weights_only=True)
    assert_same_tensors(trained_weights(saved), trainer.model.state_dict())
    assert_same_tensors(saved["model"], trainer.ema.average.module.state_dict())
    again = train(toy_config(), resume=True)
    assert again.start_iter == 2
    assert again.iter == 12


@pytest.mark.parametrize("when", ["first", "poisoned"])
def test_a_state_that_is_no_good_is_not_resumed_from(toy_config, tmp_path, when):
    trainer = IRSTDTrainer(toy_config())
    trainer.resume_or_load(False)
    trainer.model.poison_at = 1 if when == "first" else 7
    if when == "poisoned":  # as after a gradient that was not finite
        trainer.model.net[1].running_mean[0] = torch.nan
    with pytest.raises(NonFiniteLossError):
        trainer.train()
    assert [path.name for path in (tmp_path / "run").glob("*.pth")] == ["model_nonfinite.pth"]
    assert not trainer.checkpointer.has_checkpoint()


def test_a_failing_evaluation_loses_no_training(toy_config, tmp_path):
    trainer = IRSTDTrainer(toy_config(**FULL))
    trainer.resume_or_load(False)

    def fail(cfg, model):
        raise OSError("evaluation failed")

    trainer.test = fail
    with pytest.raises(OSError, match="evaluation failed"):
        trainer.train()
    assert (tmp_path / "run" / "last_checkpoint").read_text() == "model_0000005.pth"


def test_unknown_precision_is_refused(toy_config):
    with pytest.raises(ConfigError, match=r"SOLVER\.AMP\.DTYPE is 'int8'"):
        IRSTDTrainer(toy_config(**{"SOLVER.AMP.ENABLED": True, "SOLVER.AMP.DTYPE": "int8"}))


@pytest.mark.parametrize(
    ("key", "value"),
    [("DATALOADER.SAMPLER_TRAIN", "RepeatFactorTrainingSampler"), ("DATALOADER.ASPECT_RATIO_GROUPING", True)],
)
def test_keys_that_would_be_ignored_are_refused(toy_config, key, value):
    with pytest.raises(ConfigError, match=key):
        IRSTDTrainer(toy_config(**{key: value}))


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("SOLVER.REPEAT_DATASET", 0),
        ("SOLVER.EMA.DECAY", 1.5),
        ("TEST.PRECISE_BN.NUM_ITER", 0),
        ("TEST.BEST_METRIC", "pd_fa/Fa"),
        ("TEST.BEST_METRIC", "mine_val/pd_fa/Fa_boxes"),
        ("TEST.BEST_METRIC", "pd_fa/FAPI@80"),
        ("TEST.BEST_METRIC", "mask/Fa_shooting"),
    ],
)
def test_values_that_spoil_a_training_without_a_word_are_refused(toy_config, key, value):
    with pytest.raises(ConfigError, match=rf"{key} is {value}"):
        IRSTDTrainer(toy_config(**{key: value}))


@pytest.mark.parametrize(("warmup", "said"), [(12, True), (50, True), (11, False)])
def test_a_warm_up_as_long_as_the_training_is_said(toy_config, caplog, warmup, said):
    """With a cosine the rate then falls from its first value to 0."""
    IRSTDTrainer(toy_config(**{"SOLVER.WARMUP_ITERS": warmup, "SOLVER.LR_SCHEDULER_NAME": "WarmupCosineLR"}))
    assert (f"SOLVER.WARMUP_ITERS {warmup} is no less than MAX_ITER 12" in caplog.text) == said
