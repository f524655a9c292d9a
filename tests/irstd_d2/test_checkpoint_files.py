"""Checkpoints of anybody: tensors have the model's own names, none is lost; anything else is refused or inert."""

import os
import re
from collections import defaultdict, deque

import numpy as np
import pytest
import torch
from test_foreign_checkpoints import toy_net

from irstd_d2.checkpoint import load_plain, read_state_dict
from irstd_d2.checkpoint.files import _Inert
from irstd_d2.errors import DatasetError

WRAPPED = {
    "several processes": (lambda name: f"module.{name}", {}),
    "each part in several processes": (lambda name: name.replace(".", ".module.", 1), {}),
    "mmengine's average": (lambda name: f"module.{name}", {"steps": torch.tensor(3)}),
    "torch's average of a compiled model": (lambda name: f"module._orig_mod.{name}", {"n_averaged": torch.tensor(3)}),
}


@pytest.mark.parametrize("case", WRAPPED)
@pytest.mark.parametrize("key", ["state_dict", "model", None])
def test_names_are_those_of_the_model_itself(tmp_path, case, key):
    wrap, own = WRAPPED[case]
    weights = toy_net().state_dict()
    state = {wrap(name): value for name, value in weights.items()} | own
    torch.save({key: state, "meta": {}} if key else state, tmp_path / "a.pth")
    assert read_state_dict(tmp_path / "a.pth").keys() == weights.keys()


@pytest.mark.parametrize(
    ("state", "problem"),
    [
        ({"a.w": torch.ones(1), "module.a.w": torch.zeros(1)}, r"two tensors are called a\.w, the second as module\.a"),
        ({3: torch.ones(1)}, "3 is no name of a tensor"),
    ],
)
def test_names_that_would_be_lost(tmp_path, state, problem):
    torch.save(state, tmp_path / "a.pth")
    with pytest.raises(DatasetError, match=problem):
        read_state_dict(tmp_path / "a.pth")


def test_a_model_may_have_tensors_of_these_names(tmp_path):
    torch.save({"steps": torch.ones(1), "a.module": torch.ones(1)}, tmp_path / "a.pth")
    assert read_state_dict(tmp_path / "a.pth").keys() == {"steps", "a.module"}


@pytest.mark.parametrize(
    ("wrap", "others"),
    [
        (lambda name: f"module.{name}", {}),
        (lambda name: f"_orig_mod.{name}", {}),
        (lambda name: name.replace("a.", "a.module."), {}),
        (lambda name: f"module.{name}", {"steps": torch.ones(1)}),  # of the average
        (lambda name: f"module.module.{name}", {"module.n_averaged": torch.ones(1)}),
    ],
)
def test_a_wrapped_model_keeps_its_own_counts(tmp_path, wrap, others):
    weights = {"steps": torch.zeros(1), "n_averaged": torch.zeros(1), "a.weight": torch.zeros(1)}
    torch.save({wrap(name): value for name, value in weights.items()} | others, tmp_path / "a.pth")
    assert read_state_dict(tmp_path / "a.pth") == weights


class Evil:
    def __reduce__(self):
        return os.mkdir, ("made",)


class Harmless:
    """Known to nobody."""


class Loader:
    def __reduce__(self):
        return torch.load, ("other.pth",)


@pytest.mark.parametrize(
    ("thing", "name"),
    [
        (Evil(), r"posix\.mkdir|nt\.mkdir"),
        (Harmless(), r"test_checkpoint_files\.Harmless"),
        (Loader(), r"torch\.serialization\.load"),
        (defaultdict(os.getcwd), r"posix\.getcwd|nt\.getcwd"),
        (deque([Evil()]), r"posix\.mkdir|nt\.mkdir"),
        (np.array([Harmless()]), "Harmless"),
        (re.compile("a"), r"re\._compile"),
        (1 << 3000, "Unsupported operand 139"),
    ],
    ids=["os", "unknown", "load", "factory", "in a list", "in an array", "pattern", "large number"],
)
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
