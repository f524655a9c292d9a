"""The training engine: exact resume, checkpoints, averaged weights, mixed precision, optimisers and schedules."""

import json
import math
import os
import signal
import subprocess
import sys
import time

import cv2
import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.modeling import META_ARCH_REGISTRY
from detectron2.structures import BoxMode
from torch import nn

from irstd_d2 import get_config
from irstd_d2.engine import (
    EMAHook,
    IRSTDCheckpointer,
    IRSTDTrainer,
    NonFiniteLossError,
    ResumableTrainingSampler,
    SeededMapDataset,
    seed_everything,
)
from irstd_d2.errors import ConfigError
from irstd_d2.solver import build_optimizer, with_iteration_schedule

TRAIN, TEST = "engine_test_train", "engine_test_val"


def make_dicts(folder, count, seed):
    dicts = []
    for i in range(count):
        rng = np.random.default_rng((seed, i))
        image = rng.normal(60, 8, (64, 64))
        annotations = []
        for x, y in rng.integers(4, 56, (2, 2)).tolist():
            image[y : y + 4, x : x + 4] += 120
            annotations.append(
                {"bbox": [x, y, x + 4, y + 4], "bbox_mode": BoxMode.XYXY_ABS, "category_id": 0, "iscrowd": 0}
            )
        path = folder / f"{seed}_{i}.png"
        cv2.imwrite(str(path), image.clip(0, 255).astype(np.uint8))
        dicts.append(
            {"file_name": str(path), "image_id": path.stem, "height": 64, "width": 64, "annotations": annotations}
        )
    return dicts


@META_ARCH_REGISTRY.register()
class ToyDetector(nn.Module):
    """A few weights with batch norm and dropout: everything that a resume must restore."""

    def __init__(self, cfg):
        super().__init__()
        self.net = nn.Sequential(
            nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(0.3), nn.Conv2d(4, 1, 3, padding=1)
        )
        self.poison_at = None
        self.steps = 0

    def forward(self, samples):
        image = torch.stack([s["image"] for s in samples]) / 255
        heat = self.net(image)
        if not self.training:
            return []
        target = torch.zeros_like(heat)
        for i, sample in enumerate(samples):
            for x1, y1, x2, y2 in sample["instances"].gt_boxes.tensor.long().tolist():
                target[i, 0, y1:y2, x1:x2] = 1
        self.steps += 1
        loss = nn.functional.binary_cross_entropy_with_logits(heat, target)
        return {"loss_heat": loss * (math.nan if self.steps == self.poison_at else 1), "loss_l2": heat.mean() ** 2}


@pytest.fixture
def data_sets(tmp_path):
    for name, count, seed in ((TRAIN, 10, 0), (TEST, 3, 1)):
        dicts = make_dicts(tmp_path, count, seed)
        DatasetCatalog.register(name, lambda dicts=dicts: dicts)
        MetadataCatalog.get(name).set(thing_classes=["target"])
    yield
    for name in (TRAIN, TEST):
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)


@pytest.fixture
def toy_config(tmp_path, data_sets):
    def build(name="run", **overrides):
        options = {
            "MODEL.META_ARCHITECTURE": "ToyDetector",
            "MODEL.WEIGHTS": "",
            "MODEL.DEVICE": "cpu",
            "DATASETS.TRAIN": (TRAIN,),
            "DATASETS.TEST": (),
            "DATALOADER.NUM_WORKERS": 0,
            "INPUT.MIN_SIZE_TRAIN": (64,),
            "SOLVER.IMS_PER_BATCH": 3,
            "SOLVER.MAX_ITER": 12,
            "SOLVER.STEPS": (8,),
            "SOLVER.BASE_LR": 0.05,
            "SOLVER.WARMUP_ITERS": 4,
            "SOLVER.CHECKPOINT_PERIOD": 5,
            "SOLVER.EMA.ENABLED": True,
            "SEED": 7,
            "OUTPUT_DIR": str(tmp_path / name),
            **overrides,
        }
        (tmp_path / name).mkdir(exist_ok=True)
        cfg = get_config(None, [item for pair in options.items() for item in pair])
        cfg.freeze()
        return cfg

    return build


def train(cfg, resume=False, stop_after=None):
    trainer = IRSTDTrainer(cfg)
    trainer.resume_or_load(resume)
    if stop_after is not None:
        trainer.max_iter = stop_after
    trainer.train()
    return trainer


def same(a, b):
    assert a.keys() == b.keys()
    for key in a:
        assert torch.equal(a[key], b[key]), key


@pytest.mark.parametrize("optimizer", ["SGD", "ADAMW", "DADAPT_ADAM"])
def test_a_resumed_training_ends_with_the_same_weights(toy_config, optimizer):
    options = {"SOLVER.OPTIMIZER": optimizer}
    if optimizer == "DADAPT_ADAM":
        options["SOLVER.BASE_LR"] = 1.0
    whole = train(toy_config("whole", **options))
    cfg = toy_config("parts", **options)
    train(cfg, stop_after=5)
    parts = train(cfg, resume=True)
    assert parts.start_iter == 5
    same(whole.model.state_dict(), parts.model.state_dict())
    same(whole.ema.state_dict(), parts.ema.state_dict())
    assert whole.scheduler.last_epoch == parts.scheduler.last_epoch == 12
    assert whole.scheduler.get_last_lr() == parts.scheduler.get_last_lr()


def test_workers_do_not_change_the_training(toy_config):
    none = train(toy_config("none", **{"SOLVER.MAX_ITER": 4}))
    two = train(toy_config("two", **{"SOLVER.MAX_ITER": 4, "DATALOADER.NUM_WORKERS": 2}))
    same(none.model.state_dict(), two.model.state_dict())


def test_seeds_change_the_training(toy_config):
    a = train(toy_config("a", **{"SOLVER.MAX_ITER": 2})).model.state_dict()
    b = train(toy_config("b", **{"SOLVER.MAX_ITER": 2, "SEED": 8})).model.state_dict()
    assert not torch.equal(a["net.0.weight"], b["net.0.weight"])


def test_without_a_seed_training_runs(toy_config):
    assert train(toy_config(SEED=-1, **{"SOLVER.MAX_ITER": 2, "SOLVER.EMA.ENABLED": False})).iter == 2


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


def test_a_non_finite_loss_saves_the_state_and_names_the_images(toy_config, tmp_path):
    trainer = IRSTDTrainer(toy_config())
    trainer.resume_or_load(False)
    trainer.model.poison_at = 3
    with pytest.raises(NonFiniteLossError, match=r"iteration=2!(.|\n)*loss_heat(.|\n)*0_\d\.png"):
        trainer.train()
    saved = torch.load(tmp_path / "run" / "model_0000002_nonfinite.pth", weights_only=True)
    same(saved["model"], trainer.model.state_dict())


@pytest.mark.parametrize("damage", ["empty", "torn", "garbage"])
def test_a_torn_checkpoint_falls_back_to_the_one_before(toy_config, tmp_path, damage, caplog):
    cfg = toy_config()
    whole = train(cfg)
    last = tmp_path / "run" / "model_final.pth"
    data = last.read_bytes()
    last.write_bytes({"empty": b"", "torn": data[: len(data) // 2], "garbage": b"garbage" * 99}[damage])
    (tmp_path / "run" / "model_0000009.pth").exists()
    with caplog.at_level("WARNING"):
        again = train(cfg, resume=True)
    assert "model_final.pth cannot be read" in caplog.text
    assert again.start_iter == 10
    same(whole.model.state_dict(), again.model.state_dict())


def test_when_no_checkpoint_can_be_read_it_says_so(toy_config, tmp_path):
    cfg = toy_config()
    train(cfg, stop_after=1)
    for path in (tmp_path / "run").glob("*.pth"):
        path.write_bytes(b"")
    with pytest.raises(RuntimeError, match="none of the 1 checkpoints"):
        train(cfg, resume=True)


class Evil:
    def __init__(self, trace):
        self.trace = trace

    def __reduce__(self):
        return (os.mkdir, (str(self.trace),))


def test_a_checkpoint_cannot_run_code(tmp_path):
    model = nn.Linear(1, 1)
    torch.save({"model": model.state_dict(), "extra": Evil(tmp_path / "trace")}, tmp_path / "evil.pth")
    with pytest.raises(Exception, match=r"(?i)weights.only"):
        IRSTDCheckpointer(model, str(tmp_path)).load(str(tmp_path / "evil.pth"))
    (tmp_path / "model.pkl").write_bytes(b"")
    with pytest.raises(ConfigError, match="pickle files can run code"):
        IRSTDCheckpointer(model, str(tmp_path)).load(str(tmp_path / "model.pkl"))
    assert not (tmp_path / "trace").exists()


def test_old_checkpoints_are_removed(toy_config, tmp_path):
    train(toy_config(**{"SOLVER.CHECKPOINT_PERIOD": 2, "SOLVER.CHECKPOINT_KEEP": 2}))
    names = sorted(path.name for path in (tmp_path / "run").glob("*.pth"))
    assert names == ["model_0000009.pth", "model_0000011.pth", "model_final.pth"]


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


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_mixed_precision_trains_on_the_cpu(toy_config, dtype):
    trainer = train(toy_config(**{"SOLVER.AMP.ENABLED": True, "SOLVER.AMP.DTYPE": dtype}))
    assert trainer.iter == 12
    assert all(torch.isfinite(p).all() for p in trainer.model.parameters())
    assert trainer._trainer.scaler.is_enabled() == (dtype == "float16")


def test_unknown_precision_is_refused(toy_config):
    with pytest.raises(ConfigError, match=r"SOLVER\.AMP\.DTYPE is 'int8'"):
        IRSTDTrainer(toy_config(**{"SOLVER.AMP.ENABLED": True, "SOLVER.AMP.DTYPE": "int8"}))


def test_epochs_become_iterations():
    cfg = get_config(
        None,
        [
            *("SOLVER.MAX_EPOCHS", 20, "SOLVER.STEP_EPOCHS", (8, 16), "SOLVER.REPEAT_DATASET", 3),
            *("SOLVER.IMS_PER_BATCH", 2),
        ],
    )
    done = with_iteration_schedule(cfg, 768)  # BAFE-Net on DenseSIRST: 1,152 iterations per epoch
    assert (done.SOLVER.MAX_ITER, done.SOLVER.STEPS) == (23040, (9216, 18432))
    assert with_iteration_schedule(cfg, 767).SOLVER.MAX_ITER == 20 * 1151
    plain = get_config()
    assert with_iteration_schedule(plain, 5) is plain
    with pytest.raises(ConfigError, match="MAX_EPOCHS is 0"):
        with_iteration_schedule(get_config(None, ["SOLVER.STEP_EPOCHS", (1,)]), 5)


def test_warm_up_and_steps_have_the_published_values(toy_config):
    cfg = toy_config(
        **{
            "SOLVER.BASE_LR": 1.0,
            "SOLVER.WARMUP_METHOD": "constant",
            "SOLVER.WARMUP_FACTOR": 1 / 3,
            "SOLVER.WARMUP_ITERS": 3,
            "SOLVER.STEPS": (6, 9),
            "SOLVER.MAX_ITER": 11,
        }
    )
    trainer = IRSTDTrainer(cfg)
    rates = []
    for _ in range(11):
        rates.append(trainer.scheduler.get_last_lr()[0])
        trainer._trainer.optimizer.step()
        trainer.scheduler.step()
    np.testing.assert_allclose(rates, [1 / 3] * 3 + [1] * 3 + [0.1] * 3 + [0.01] * 2)


@pytest.mark.parametrize("name", ["SGD", "ADAMW", "DADAPT_ADAM"])
def test_norms_and_biases_can_be_spared_from_weight_decay(name):
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.GroupNorm(2, 4))
    cfg = get_config(
        None,
        [
            *("SOLVER.OPTIMIZER", name, "SOLVER.BASE_LR", 1.0, "SOLVER.WEIGHT_DECAY", 0.05),
            *("SOLVER.WEIGHT_DECAY_NORM", 0.0, "SOLVER.WEIGHT_DECAY_BIAS", 0.0),
        ],
    )
    decay = {p: g["weight_decay"] for g in build_optimizer(cfg, model).param_groups for p in g["params"]}
    assert decay[model[0].weight] == 0.05
    assert decay[model[0].bias] == decay[model[1].weight] == decay[model[1].bias] == 0


def test_d_adaptation_decays_apart_from_the_gradient():
    cfg = get_config(None, ["SOLVER.OPTIMIZER", "DADAPT_ADAM", "SOLVER.BASE_LR", 1.0])
    assert build_optimizer(cfg, nn.Linear(2, 2)).param_groups[0]["decouple"]
    with pytest.raises(ConfigError, match="BIAS_LR_FACTOR"):
        build_optimizer(
            get_config(None, ["SOLVER.OPTIMIZER", "DADAPT_ADAM", "SOLVER.BIAS_LR_FACTOR", 2.0]), nn.Linear(2, 2)
        )
    with pytest.raises(ConfigError, match=r"SOLVER\.OPTIMIZER is 'LION'"):
        build_optimizer(get_config(None, ["SOLVER.OPTIMIZER", "LION"]), nn.Linear(2, 2))


def test_batches_must_divide_over_the_processes(toy_config, monkeypatch):
    monkeypatch.setattr("irstd_d2.engine.trainer.comm.get_world_size", lambda: 2)
    with pytest.raises(ConfigError, match="not a multiple of 2 processes"):
        IRSTDTrainer.build_train_loader(toy_config())


def test_seeding_covers_all_generators():
    def draw():
        seed_everything(1, 2)
        import random

        return random.random(), np.random.rand(), torch.rand(1).item()

    assert draw() == draw()


TINY = [
    "--config-file", "configs/baselines/tiny/retinanet_tiny.yaml", "SOLVER.MAX_ITER", "30", "SOLVER.IMS_PER_BATCH", "2",
    "SOLVER.CHECKPOINT_PERIOD", "4", "INPUT.FIXED_SIZE", "(64, 64)", "DATALOADER.NUM_WORKERS", "1",
    "DATASETS.TEST", "()",
]  # fmt: skip

RUNNER = """
import runpy, sys
sys.path[:0] = [{tests!r}, {root!r}]
import pathlib, test_engine as t
from detectron2.data import DatasetCatalog, MetadataCatalog
folder = pathlib.Path({folder!r})
DatasetCatalog.register(t.TRAIN, lambda: t.make_dicts(folder, 10, 0))
MetadataCatalog.get(t.TRAIN).set(thing_classes=["target"])
sys.argv = ["train_net.py", *{arguments!r}]
runpy.run_path({script!r}, run_name="__main__")
"""


@pytest.mark.slow
def test_sigkill_and_resume_equal_an_uninterrupted_training(tmp_path, repo_root):
    def command(name, *more):
        arguments = [*TINY[:2], *more, *TINY[2:], "DATASETS.TRAIN", str((TRAIN,)), "OUTPUT_DIR", str(tmp_path / name)]
        code = RUNNER.format(
            tests=str(repo_root / "tests" / "irstd_d2"),
            root=str(repo_root),
            folder=str(tmp_path),
            arguments=arguments,
            script=str(repo_root / "tools" / "train_net.py"),
        )
        return [sys.executable, "-c", code]

    def run(name, *more):
        subprocess.run(command(name, *more), cwd=repo_root, check=True, capture_output=True, timeout=300)

    env = {"cwd": repo_root, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    run("whole")
    kills = 0
    rng = np.random.default_rng(0)
    for wanted in rng.choice(np.arange(4, 28), 3, replace=False).tolist():
        process = subprocess.Popen(command("killed", "--resume"), start_new_session=True, **env)
        deadline = time.monotonic() + 200
        while process.poll() is None and time.monotonic() < deadline:
            done = max((int(p.stem[6:]) for p in (tmp_path / "killed").glob("model_0*.pth")), default=0)
            if done >= wanted:
                break
            time.sleep(0.02)
        kills += process.poll() is None
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    run("killed", "--resume")
    assert kills >= 1
    whole, killed = (torch.load(tmp_path / n / "model_final.pth", weights_only=True) for n in ("whole", "killed"))
    same(whole["model"], killed["model"])
    assert whole["iteration"] == killed["iteration"] == 29
    last = [json.loads((tmp_path / n / "metrics.json").read_text().splitlines()[-1]) for n in ("whole", "killed")]
    assert last[0]["iteration"] == last[1]["iteration"]
    assert last[0]["lr"] == last[1]["lr"]
