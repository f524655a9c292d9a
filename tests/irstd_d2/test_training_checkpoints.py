"""Checkpoints: damaged, lost, hostile, too many; a disk that is full or read-only."""

import os
import subprocess
import sys

import pytest
import torch
from torch import nn
from toy_training import assert_same_tensors, train

from irstd_d2 import get_config
from irstd_d2.engine import IRSTDCheckpointer, load_weights
from irstd_d2.engine.checkpoint import refuse_frozen_random
from irstd_d2.engine.hooks import PeriodicCheckpointer
from irstd_d2.errors import ConfigError, DatasetError
from irstd_d2.files import write_atomically


@pytest.mark.parametrize("damage", ["empty", "torn", "garbage", "no text"])
def test_a_torn_checkpoint_falls_back_to_the_one_before(toy_config, tmp_path, damage, caplog):
    cfg = toy_config()
    whole = train(cfg)
    last = tmp_path / "run" / "model_final.pth"
    data = last.read_bytes()
    content = {"empty": b"", "torn": data[: len(data) // 2], "garbage": b"garbage" * 99, "no text": b"V\xff\n."}
    last.write_bytes(content[damage])
    with caplog.at_level("WARNING"):
        again = train(cfg, resume=True)
    assert "model_final.pth cannot be read" in caplog.text
    assert again.start_iter == 10
    assert_same_tensors(whole.model.state_dict(), again.model.state_dict())


@pytest.mark.parametrize("pointer", [None, "", "model_0009999.pth", "../elsewhere.pth"])
def test_a_lost_or_wrong_pointer_does_not_lose_the_checkpoints(toy_config, tmp_path, pointer):
    cfg = toy_config()
    train(cfg, stop_after=11)
    path = tmp_path / "run" / "last_checkpoint"
    path.unlink() if pointer is None else path.write_text(pointer)
    (tmp_path / "run" / "model_final.pth").unlink()
    assert train(cfg, resume=True).start_iter == 10


def test_checkpoints_of_an_earlier_run_are_neither_resumed_nor_removed(tmp_path):
    for number in (3, 7, 11, 900):
        (tmp_path / f"model_{number:07d}.pth").touch()
    for name in ("model_best.pth", "model_nonfinite.pth", "resnet18.pth", ".model_0000012.pth.partial"):
        (tmp_path / name).touch()
    checkpointer = IRSTDCheckpointer(nn.Linear(1, 1), str(tmp_path))
    assert [p.name for p in checkpointer.resume_candidates()][:2] == ["model_0000900.pth", "model_0000011.pth"]
    hook = PeriodicCheckpointer(checkpointer, 4, keep=2)
    hook.max_iter = 100
    hook.step(15)
    names = [p.name for p in checkpointer.resume_candidates()]
    assert names == ["model_0000015.pth", "model_0000011.pth"]
    assert (tmp_path / "model_0000900.pth").exists()
    assert len(list(tmp_path.glob("*.pth"))) == 6


def test_when_no_checkpoint_can_be_read_it_says_so(toy_config, tmp_path):
    cfg = toy_config()
    train(cfg, stop_after=1)
    for path in (tmp_path / "run").glob("*.pth"):
        path.write_bytes(b"")
    with pytest.raises(RuntimeError, match="none of the 1 checkpoints"):
        train(cfg, resume=True)


def test_without_a_folder_there_is_nothing_to_resume():
    assert not IRSTDCheckpointer(nn.Linear(1, 1)).has_checkpoint()
    IRSTDCheckpointer(nn.Linear(1, 1)).save("model_final")


class Evil:
    def __init__(self, trace):
        self.trace = trace

    def __reduce__(self):
        return (os.mkdir, (str(self.trace),))


def test_a_checkpoint_cannot_run_code(tmp_path):
    model = nn.Linear(1, 1)
    torch.save({"model": model.state_dict(), "extra": Evil(tmp_path / "trace")}, tmp_path / "evil.pth")
    with pytest.raises(DatasetError, match=r"plain tensors \((posix|nt)\.mkdir\)"):
        IRSTDCheckpointer(model, str(tmp_path)).load(str(tmp_path / "evil.pth"))
    (tmp_path / "model.pkl").write_bytes(b"")
    with pytest.raises(ConfigError, match="pickle files can run code"):
        IRSTDCheckpointer(model, str(tmp_path)).load(str(tmp_path / "model.pkl"))
    assert not (tmp_path / "trace").exists()


@pytest.mark.parametrize(
    ("content", "error"), [(None, ConfigError), (b"", DatasetError), (b"PK\x03\x04", DatasetError)]
)
def test_weights_that_cannot_be_loaded_are_named(tmp_path, content, error):
    path = tmp_path / "weights.pth"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(error, match=r"weights\.pth"):
        IRSTDCheckpointer(nn.Linear(1, 1)).load(str(path))


def test_an_evil_checkpoint_is_passed_over_at_a_resume(toy_config, tmp_path):
    cfg = toy_config()
    train(cfg, stop_after=6)
    torch.save({"model": {}, "extra": Evil(tmp_path / "trace")}, tmp_path / "run" / "model_final.pth")
    (tmp_path / "run" / "last_checkpoint").write_text("model_final.pth")
    assert train(cfg, resume=True).start_iter == 5
    assert not (tmp_path / "trace").exists()


def test_old_checkpoints_are_removed_over_resumes(toy_config, tmp_path):
    cfg = toy_config(**{"SOLVER.CHECKPOINT_PERIOD": 2, "SOLVER.CHECKPOINT_KEEP": 2})
    train(cfg, stop_after=7)
    train(cfg, resume=True)
    names = sorted(path.name for path in (tmp_path / "run").glob("*.pth"))
    assert names == ["model_0000009.pth", "model_0000011.pth", "model_final.pth"]


def test_all_checkpoints_are_kept_on_request(toy_config, tmp_path):
    train(toy_config(**{"SOLVER.CHECKPOINT_PERIOD": 2, "SOLVER.CHECKPOINT_KEEP": 0}))
    assert len(list((tmp_path / "run").glob("model_0*.pth"))) == 6


def test_a_failed_write_keeps_the_old_file_and_names_it(tmp_path):
    path = tmp_path / "folder" / "file"
    write_atomically(path, lambda file: file.write(b"old"))

    def fail(file):
        file.write(b"new")
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match=r"folder/file could not be written: .*No space left"):
        write_atomically(path, fail)
    assert path.read_bytes() == b"old"
    assert list(path.parent.iterdir()) == [path]
    (tmp_path / "plain").touch()
    with pytest.raises(OSError, match="plain/file could not be written"):
        write_atomically(tmp_path / "plain" / "file", fail)


FULL_DISK = """
import resource, signal, sys
import torch
from torch import nn
from irstd_d2.engine import IRSTDCheckpointer
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
small, large = nn.Linear(10, 10), nn.Linear(300, 300)
IRSTDCheckpointer(small, sys.argv[1]).save("model_0000004", iteration=4)
try:
    IRSTDCheckpointer(large, sys.argv[1]).save("model_0000009", iteration=9)
except OSError as error:
    print("error:", error)
"""


def test_a_checkpoint_beyond_the_space_left_loses_nothing(tmp_path):
    result = subprocess.run(
        [sys.executable, "-c", FULL_DISK, str(tmp_path)], capture_output=True, text=True, check=True
    )
    assert f"error: {tmp_path}/model_0000009.pth could not be written" in result.stdout
    assert sorted(p.name for p in tmp_path.iterdir()) == ["last_checkpoint", "model_0000004.pth"]
    assert IRSTDCheckpointer(nn.Linear(10, 10), str(tmp_path)).resume_or_load("", resume=True)["iteration"] == 4


CASES = [
    ({"c.weight": None}, r"fills 3 of 4 tensors of the model: 1 missing \(c\.weight\)"),
    ({"a.weight": torch.zeros(2, 2)}, r"1 of another shape \(a\.weight \(2, 2\) in the file, \(1, 1\) in the model\)"),
    ({"roi_heads.weight": torch.zeros(1)}, r"fills 4 of 4 .* 1 unknown to the model \(roi_heads\.weight\)"),
]


def two_layers():
    return nn.ModuleDict({"a": nn.Linear(1, 1), "c": nn.Linear(1, 1)})


@pytest.mark.parametrize(("changes", "message"), CASES)
def test_weights_must_fill_the_model(tmp_path, changes, message):
    state = {k: v for k, v in (two_layers().state_dict() | changes).items() if v is not None}
    torch.save({"model": state}, tmp_path / "weights.pth")
    with pytest.raises(ConfigError, match=message):
        IRSTDCheckpointer(two_layers()).load(str(tmp_path / "weights.pth"))
    IRSTDCheckpointer(two_layers(), match="partial").load(str(tmp_path / "weights.pth"))


def test_weights_of_which_nothing_fits_are_refused_even_in_part(tmp_path):
    torch.save({"model": {"other": torch.zeros(1)}}, tmp_path / "weights.pth")
    with pytest.raises(ConfigError, match="fills 0 of 4"):
        IRSTDCheckpointer(two_layers(), match="partial").load(str(tmp_path / "weights.pth"))


def test_no_weights_are_refused_where_they_are_used():
    with pytest.raises(ConfigError, match=r"MODEL\.WEIGHTS is empty, so the detector would be random"):
        load_weights(two_layers(), get_config())
    assert load_weights(two_layers(), get_config(opts=["MODEL.WEIGHTS_MATCH", "none"])) is None
    with pytest.raises(ConfigError, match="known are 'complete', 'partial', 'none'"):
        load_weights(two_layers(), get_config(opts=["MODEL.WEIGHTS_MATCH", "all"]))


@pytest.mark.parametrize("freeze", ["parameter", "norm"])
def test_frozen_parts_are_not_trained_from_random_weights(freeze):
    class Norms(nn.Module):
        def __init__(self):
            super().__init__()
            self.backbone = nn.Sequential(nn.Conv2d(1, 1, 1), nn.BatchNorm2d(1))
            self.backbone[0].requires_grad_(freeze != "parameter")

        def train(self, mode=True):
            super().train(mode)
            self.backbone[1].train(mode and freeze != "norm")
            return self

    with pytest.raises(ConfigError, match=r"freezes .*backbone\..*configs/bafe/\*_scratch\.yaml"):
        refuse_frozen_random(Norms(), get_config())
    refuse_frozen_random(Norms(), get_config(opts=["MODEL.WEIGHTS", "backbone.pth"]))
    refuse_frozen_random(two_layers(), get_config())
