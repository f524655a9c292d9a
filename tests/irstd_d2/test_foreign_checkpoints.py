"""Checkpoints of mmengine as they are: weights are read, nothing else comes to life, what is unknown is named."""

import os
from collections import OrderedDict

import numpy as np
import pytest
import torch

from irstd_d2.checkpoint import load_plain, read_state_dict
from irstd_d2.checkpoint.files import _Inert
from irstd_d2.errors import DatasetError


@pytest.fixture
def content():
    """What mmengine 0.10 saves, made with mmengine itself."""
    logging = pytest.importorskip("mmengine.logging", reason="needs the package mmengine (installed with --no-deps)")
    hub = logging.MessageHub.get_instance("test_foreign_checkpoints")
    for i in range(3):
        hub.update_scalar("train/loss", 1.0 / (i + 1))
    hub.update_info("iter", 3)
    model = torch.nn.Sequential(OrderedDict(backbone=torch.nn.Linear(2, 2)))
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
    model(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    return {
        "meta": {"cfg": "model = dict()", "epoch": 1, "iter": 3, "dataset_meta": {"classes": ("target",)}},
        "state_dict": model.state_dict(),
        "message_hub": hub.state_dict(),
        "optimizer": optimizer.state_dict(),
        "param_schedulers": [{"last_step": 3, "_global_step": 4, "gamma": np.float64(0.1)}],
        "ema_state_dict": {"steps": torch.tensor(3)},
    }


def test_weights_beside_a_message_hub_are_read(tmp_path, content):
    torch.save(content, tmp_path / "epoch_1.pth")
    state = read_state_dict(tmp_path / "epoch_1.pth")
    assert state.keys() == content["state_dict"].keys()
    assert all(torch.equal(state[name], value) for name, value in content["state_dict"].items())


def test_nothing_else_comes_to_life(tmp_path, content):
    torch.save(content, tmp_path / "epoch_1.pth")
    found = load_plain(tmp_path / "epoch_1.pth", stand_ins=True)
    assert type(found["message_hub"]["log_scalars"]["train/loss"]) is _Inert
    assert found["meta"] == content["meta"]
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
