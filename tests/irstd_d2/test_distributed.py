"""Training and evaluation in several processes on the CPU."""

import os
import time
from pathlib import Path

import pytest
import torch
import toy_training as toy
from detectron2.data import DatasetCatalog
from detectron2.utils import comm
from processes import run_processes
from toy_training import TEST, TRAIN, assert_same_tensors

from irstd_d2 import get_config
from irstd_d2.engine import IRSTDTrainer

CONFIG = Path(__file__).resolve().parents[2] / "configs/baselines/tiny/fcos_tiny.yaml"


@pytest.fixture
def toy_config(tmp_path):
    folder = tmp_path / "images"
    folder.mkdir()
    toy.register(folder, train=12, test=5)
    yield lambda name="run", **overrides: toy.toy_config(tmp_path / name, **overrides)
    toy.unregister()


def tiny_fcos(output, **overrides):
    """A small FCOS without batch norm, whose batches can be split."""
    options = {
        "MODEL.DEVICE": "cpu",
        "MODEL.RESNETS.NORM": "GN",
        "MODEL.RESNETS.STEM_OUT_CHANNELS": 32,
        "MODEL.RESNETS.RES2_OUT_CHANNELS": 32,
        "INPUT.FIXED_SIZE": (64, 64),
        "DATASETS.TRAIN": (TRAIN,),
        "DATASETS.TEST": (),
        "DATALOADER.NUM_WORKERS": 0,
        "SOLVER.IMS_PER_BATCH": 4,
        "SOLVER.MAX_ITER": 3,
        "SOLVER.OPTIMIZER": "SGD",
        "SOLVER.BASE_LR": 0.01,
        "SOLVER.WARMUP_ITERS": 0,
        "OUTPUT_DIR": str(output),
        **overrides,
    }
    cfg = get_config(CONFIG, [item for pair in options.items() for item in pair])
    cfg.freeze()
    return cfg


def train(cfg):
    trainer = IRSTDTrainer(cfg)
    trainer.resume_or_load(False)
    trainer.train()
    losses = [value for value, _ in trainer.storage.history("total_loss").values()] if comm.is_main_process() else None
    return {k: v.clone() for k, v in trainer.checkpointer.model.state_dict().items()}, losses


@pytest.mark.parametrize("count", [2, 4])
def test_processes_train_as_one_with_the_same_batch(toy_config, tmp_path, count):
    for record in DatasetCatalog.get(TRAIN)[::3]:
        record["annotations"] = []  # some processes see no target in some steps
    alone, losses = train(tiny_fcos(tmp_path / "alone"))
    found = run_processes(count, train, tiny_fcos(tmp_path / "together"))
    assert [error for _, error in found] == [None] * count
    weights = [result[0] for result, _ in found]
    for other in weights[1:]:
        assert_same_tensors(weights[0], other)
    for name, value in alone.items():
        torch.testing.assert_close(weights[0][name], value, rtol=1e-4, atol=2e-6, msg=lambda m, n=name: f"{n}: {m}")
    assert found[0][0][1] == pytest.approx(losses, rel=1e-5)


def test_unused_weights_and_averaging_in_processes(toy_config):
    found = run_processes(2, train, toy_config(**{"SOLVER.IMS_PER_BATCH": 4}))
    assert [error for _, error in found] == [None, None]
    for name in ("net.0.weight", "net.4.weight", "unused"):
        assert torch.equal(found[0][0][0][name], found[1][0][0][name])


EVALUATE = {"DATASETS.TEST": (TEST,), "TEST.EVALUATORS": ("coco", "voc", "pd_fa"), "TEST.GROUP_BY": ("platform",)}


def evaluate(cfg):
    torch.manual_seed(3)
    model = IRSTDTrainer.build_model(cfg).eval()
    return IRSTDTrainer.test(cfg, model)


def test_processes_evaluate_as_one(toy_config, tmp_path):
    alone = evaluate(toy_config("alone", **EVALUATE))
    found = run_processes(2, evaluate, toy_config("together", **EVALUATE))
    assert [error for _, error in found] == [None, None]
    assert str(found[0][0]) == str(alone)
    assert "platform/Air/AP50" in alone["bbox"]
    assert not found[1][0]
    saved = [
        (tmp_path / name / "inference" / TEST / "coco_instances_results.json").read_text()
        for name in ("alone", "together")
    ]
    assert saved[0] == saved[1]


def test_running_statistics_are_shared_for_an_evaluation(toy_config):
    def run(cfg):
        trainer = IRSTDTrainer(cfg)
        seen = []

        def test(cfg, model):
            seen.append(model.module.net[1].running_mean.clone())
            return {}

        trainer.test = test
        trainer.resume_or_load(False)
        trainer.train()
        return seen

    found = run_processes(2, run, toy_config(**EVALUATE, **{"SOLVER.IMS_PER_BATCH": 4, "TEST.EVAL_PERIOD": 5}))
    assert [error for _, error in found] == [None, None]
    assert len(found[0][0]) == 3
    for a, b in zip(found[0][0], found[1][0]):
        assert torch.equal(a, b)


def train_with_poison(cfg, rank):
    trainer = IRSTDTrainer(cfg)
    trainer.resume_or_load(False)
    if comm.get_rank() == rank:
        trainer.model.module.poison_at = 3
    trainer.train()


def test_a_loss_that_is_not_finite_stops_all_processes(toy_config, tmp_path):
    found = run_processes(2, train_with_poison, toy_config(**{"SOLVER.IMS_PER_BATCH": 4}), 1)
    for _, error in found:
        assert "NonFiniteLossError: the loss of iteration 2 is not finite" in error
        assert "process 1: losses {'loss_heat': nan" in error
    assert (tmp_path / "run" / "last_checkpoint").read_text() == "model_0000001.pth"


def train_and_lose(cfg, rank):
    trainer = IRSTDTrainer(cfg)
    trainer.resume_or_load(False)
    if comm.get_rank() == rank:
        trainer.before_step = lambda: os._exit(9) if trainer.iter == 4 else None
    trainer.train()


def test_a_process_that_dies_ends_the_others_soon(toy_config):
    start = time.monotonic()
    found = run_processes(2, train_and_lose, toy_config(**{"SOLVER.IMS_PER_BATCH": 4}), 1, timeout=60)
    assert time.monotonic() - start < 60
    assert found[1] == (None, None)
    assert "RuntimeError" in found[0][1]
