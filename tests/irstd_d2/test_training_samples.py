"""The stream of training samples: entered anywhere, seeded by position, its errors named."""

import random

import numpy as np
import pytest
import torch
from toy_training import assert_same_tensors, train

from irstd_d2.engine import (
    IRSTDTrainer,
    ResumableTrainingSampler,
    SeededMapDataset,
    seed_everything,
)
from irstd_d2.errors import ConfigError


def test_workers_do_not_change_the_training(toy_config):
    none = train(toy_config("none", **{"SOLVER.MAX_ITER": 4}))
    two = train(toy_config("two", **{"SOLVER.MAX_ITER": 4, "DATALOADER.NUM_WORKERS": 2}))
    assert_same_tensors(none.model.state_dict(), two.model.state_dict())


@pytest.mark.parametrize(("size", "world_size", "start"), [(5, 1, 0), (5, 1, 13), (7, 2, 10), (4, 3, 12)])
def test_sampler_can_be_entered_anywhere(size, world_size, start):
    def take(count, **kwargs):
        samplers = [
            iter(ResumableTrainingSampler(size, seed=3, rank=r, world_size=world_size, **kwargs))
            for r in range(world_size)
        ]
        return [next(samplers[i % world_size]) for i in range(count)]

    whole = take(start + 3 * size)
    assert whole[start:] == take(3 * size, start=start)
    assert [position for _, position in whole] == list(range(len(whole)))
    for begin in range(0, len(whole) - size + 1, size):  # every pass shows every image once
        assert sorted(index for index, _ in whole[begin : begin + size]) == list(range(size))
    unshuffled = iter(ResumableTrainingSampler(size, seed=3, shuffle=False, rank=0, world_size=1))
    assert [next(unshuffled)[0] for _ in range(size + 1)] == [*range(size), 0]


def test_an_empty_training_set_is_refused():
    with pytest.raises(ValueError, match="is the split empty"):
        ResumableTrainingSampler(0, seed=0)


def test_samples_are_seeded_by_position_and_bad_ones_are_replaced():
    def mapper(record):
        return None if record["bad"] else {"value": (record["i"], np.random.rand(), torch.rand(1).item())}

    dicts = [{"i": i, "bad": i == 1} for i in range(4)]
    data = SeededMapDataset(dicts, mapper, seed=5)
    assert len(data) == 4
    assert data[0, 9] == data[0, 9]
    assert data[0, 9] != data[0, 10]
    assert data[1, 3]["value"][0] != 1
    with pytest.raises(RuntimeError, match="100 unreadable images in a row"):
        SeededMapDataset([{"i": 0, "bad": True}], mapper, seed=5)[0, 0]


@pytest.mark.parametrize("workers", [0, 2])
def test_an_error_names_its_sample(toy_config, monkeypatch, workers):
    def fail(self, aug_input):
        raise ZeroDivisionError("in an augmentation")

    monkeypatch.setattr("detectron2.data.transforms.AugmentationList.__call__", fail)
    with pytest.raises(ZeroDivisionError) as info:
        train(toy_config(**{"DATALOADER.NUM_WORKERS": workers}))
    text = str(info.value) + "".join(getattr(info.value, "__notes__", []))
    assert "while reading sample 0 of the training" in text
    assert ".png" in text


def test_batches_must_divide_over_the_processes(toy_config, monkeypatch):
    monkeypatch.setattr("irstd_d2.engine.trainer.comm.get_world_size", lambda: 2)
    with pytest.raises(ConfigError, match="not a multiple of 2 processes"):
        IRSTDTrainer.build_train_loader(toy_config())


def test_seeding_covers_all_generators():
    def draw():
        seed_everything(1, 2)
        return random.random(), np.random.rand(), torch.rand(1).item()

    assert draw() == draw()
