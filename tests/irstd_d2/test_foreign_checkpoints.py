"""Checkpoints of mmengine as they are: weights are read, nothing else comes to life, what is unknown is named."""

import os
from collections import OrderedDict

import numpy as np
import pytest
import torch

from irstd_d2.checkpoint import load_plain, read_state_dict
from irstd_d2.checkpoint.files import _Inert
from irstd_d2.errors import DatasetError

CLASSES = ("target",)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Folder of a training by mmengine's Runner: AdamW by groups, schedules, averaged weights, curves, a best score."""
    pytest.importorskip("mmengine", reason="needs the package mmengine (installed with --no-deps)")
    from mmengine.evaluator import BaseMetric
    from mmengine.model import BaseModel
    from mmengine.runner import Runner

    class Net(BaseModel):
        def __init__(self):
            super().__init__()
            self.backbone = torch.nn.Sequential(OrderedDict(conv1=torch.nn.Linear(2, 4), bn1=torch.nn.BatchNorm1d(4)))

        def forward(self, inputs, mode="tensor"):
            loss = self.backbone(torch.stack(list(inputs))).square().sum()
            return {"loss": loss} if mode == "loss" else [{}] * len(inputs)

    class Data(torch.utils.data.Dataset):
        def __init__(self):
            self.metainfo = {"classes": CLASSES, "palette": [(220, 20, 60)]}

        def __len__(self):
            return 4

        def __getitem__(self, index):
            return {"inputs": torch.tensor([index, 1.0])}

    class Score(BaseMetric):
        default_prefix = "pascal_voc"

        def process(self, _, samples):
            self.results.append(len(samples))

        def compute_metrics(self, results):
            return {"mAP": np.float32(0.5), "AP50": np.float64(sum(results))}

    folder = tmp_path_factory.mktemp("mmengine")
    loader = {"batch_size": 2, "sampler": {"type": "DefaultSampler", "shuffle": True}, "dataset": Data()}
    groups = {"norm_decay_mult": 0.0, "custom_keys": {"backbone.conv1": {"lr_mult": 0.1}}}
    runner = Runner(
        Net(),
        str(folder),
        train_dataloader=loader,
        val_dataloader=loader,
        val_evaluator=[Score()],
        train_cfg={"by_epoch": True, "max_epochs": 2},
        val_cfg={},
        optim_wrapper={"optimizer": {"type": "AdamW", "lr": 0.01, "weight_decay": 0.05}, "paramwise_cfg": groups},
        param_scheduler=[{"type": "LinearLR", "start_factor": 0.1, "by_epoch": False, "end": 2},
                         {"type": "MultiStepLR", "milestones": [1], "by_epoch": True}],
        default_hooks={"checkpoint": {"type": "CheckpointHook", "interval": 1, "save_best": "auto", "rule": "greater"}},
        custom_hooks=[{"type": "EMAHook", "momentum": 0.2}],
        cfg={"model": {"type": "Net"}},
        default_scope="mmengine",
    )  # fmt: skip
    runner.train()
    torch.save(runner.model.state_dict(), folder / "not_averaged.pth")
    return folder


@pytest.fixture
def content(trained):
    """The last checkpoint as mmengine reads it, with the state of mixed precision, which it has on a GPU alone."""
    found = torch.load(trained / "epoch_2.pth", weights_only=False)
    found["optimizer"]["loss_scaler"] = torch.amp.GradScaler("cpu").state_dict()
    return found


def test_what_is_read_is_of_mmengines_structure(content):
    assert content.keys() == {"meta", "state_dict", "message_hub", "optimizer", "param_schedulers", "ema_state_dict"}
    assert type(content["message_hub"]["log_scalars"]["train/loss"]).__name__ == "HistoryBuffer"
    assert content["message_hub"]["runtime_info"]["best_score"] == 0.5
    assert content["meta"]["dataset_meta"]["classes"] == CLASSES
    assert len(content["optimizer"]["param_groups"]) == 4


@pytest.mark.parametrize("name", ["epoch_1.pth", "epoch_2.pth", "best_pascal_voc_mAP_epoch_1.pth"])
def test_weights_beside_everything_else_are_read(trained, name):
    expected = torch.load(trained / name, weights_only=False)["state_dict"]
    state = read_state_dict(trained / name)
    assert state.keys() == expected.keys()
    assert all(torch.equal(state[key], value) for key, value in expected.items())


def test_the_averaged_weights_are_read(trained):
    state, plain = read_state_dict(trained / "epoch_2.pth"), torch.load(trained / "not_averaged.pth")
    assert not torch.equal(state["backbone.conv1.weight"], plain["backbone.conv1.weight"])


def test_nothing_else_comes_to_life(tmp_path, content):
    torch.save(content, tmp_path / "epoch_1.pth")
    found = load_plain(tmp_path / "epoch_1.pth", stand_ins=True)
    assert type(found["message_hub"]["log_scalars"]["train/loss"]) is _Inert
    assert found["meta"] == content["meta"]
    assert found["optimizer"]["loss_scaler"]["scale"] == 65536
    with pytest.raises(DatasetError, match=r"HistoryBuffer|builtins\.getattr"):
        load_plain(tmp_path / "epoch_1.pth")


class Evil:
    def __reduce__(self):
        return os.mkdir, ("made",)


class Harmless:
    """Known to nobody."""


@pytest.mark.parametrize(("thing", "name"), [(Evil(), r"posix\.mkdir|nt\.mkdir"), (Harmless(), "Harmless")])
def test_anything_else_is_refused_and_named(tmp_path, monkeypatch, thing, name):
    monkeypatch.chdir(tmp_path)
    torch.save({"state_dict": {"a": torch.ones(1)}, "message_hub": thing}, tmp_path / "epoch_1.pth")
    with pytest.raises(DatasetError, match=rf"epoch_1\.pth: file: cannot be read.*({name})"):
        read_state_dict(tmp_path / "epoch_1.pth")
    assert not (tmp_path / "made").exists()


def test_getattr_of_a_file_gets_nothing(tmp_path):
    class Reach:
        def __reduce__(self):
            return getattr, ("text", "upper")

    torch.save({"state_dict": {"a": torch.ones(1)}, "other": Reach()}, tmp_path / "epoch_1.pth")
    assert type(load_plain(tmp_path / "epoch_1.pth", stand_ins=True)["other"]) is _Inert


@pytest.mark.parametrize("value", [np.ones(2), "text", None])
@pytest.mark.parametrize("key", ["state_dict", "model"])
def test_a_weight_that_is_no_tensor_is_not_left_out(tmp_path, key, value):
    torch.save({key: {"a": torch.ones(1), "b.weight": value}}, tmp_path / "a.pth")
    with pytest.raises(DatasetError, match=rf"a\.pth: {key}: b\.weight is no tensor but (inert|str|none)"):
        read_state_dict(tmp_path / "a.pth")


def test_counts_beside_plain_weights_are_passed_over(tmp_path):
    torch.save({"a": torch.ones(1), "epoch": 3, "score": np.float64(0.5)}, tmp_path / "a.pth")
    assert read_state_dict(tmp_path / "a.pth").keys() == {"a"}
