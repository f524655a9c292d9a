"""A disk that is full or read-only: an error with the path, and nothing lost that was written before.

Tests run as root in many places, where rights stop nobody. So a full disk is a limit on the size of files, which the
system itself enforces, and a read-only one refuses in ``Path.open``.
"""

import errno
import os
import resource
import signal
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
import toy_training as toy
from torch import nn
from toy_training import TEST, train

from irstd_d2.engine import IRSTDCheckpointer, IRSTDTrainer
from irstd_d2.files import staged_folder, write_atomically
from irstd_d2.synthetic import SceneConfig
from irstd_d2.synthetic.writer import write_wideirstd


@contextmanager
def full(folder):
    """No file grows beyond 200 bytes."""
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (200, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, handler)


@contextmanager
def read_only(folder):
    """Nothing below the folder opens for writing, and no folder is made in it."""
    with pytest.MonkeyPatch.context() as patch:
        open_file, make_folder = Path.open, Path.mkdir

        def refuse(path):
            if path.is_relative_to(folder):
                raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(path))

        def guarded_open(self, mode="r", *args, **kwargs):
            if set(mode) & set("wxa+"):
                refuse(self)
            return open_file(self, mode, *args, **kwargs)

        def guarded_mkdir(self, *args, **kwargs):
            if not self.is_dir():
                refuse(self)
            make_folder(self, *args, **kwargs)

        patch.setattr(Path, "open", guarded_open)
        patch.setattr(Path, "mkdir", guarded_mkdir)
        yield


FAULTS = pytest.mark.parametrize("fault", [full, read_only], ids=["full", "read-only"])
REASON = r"File too large|Read-only file system"


def content(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@FAULTS
def test_checkpoints(tmp_path, fault):
    model = nn.Linear(40, 40)
    checkpointer = IRSTDCheckpointer(model, str(tmp_path))
    checkpointer.save("model_0000004", iteration=4)
    before = content(tmp_path)
    with fault(tmp_path), pytest.raises(OSError, match=rf"model_0000009\.pth could not be written: .*({REASON})"):
        checkpointer.save("model_0000009", iteration=9)
    assert content(tmp_path) == before
    assert IRSTDCheckpointer(model, str(tmp_path)).resume_or_load("", resume=True)["iteration"] == 4


@FAULTS
def test_a_training_that_cannot_save_goes_on_from_where_it_could(toy_config, tmp_path, fault):
    whole = train(toy_config("whole"))
    cfg = toy_config()
    trainer = train(cfg, stop_after=6)
    trainer = IRSTDTrainer(cfg)
    trainer.resume_or_load(True)
    assert trainer.start_iter == 6
    step = trainer.before_step
    with pytest.MonkeyPatch.context() as patch:

        def before_step():
            if trainer.iter == 8:
                patch.setattr(trainer.checkpointer, "save", saves_to_a_faulty_disk)
            step()

        save = trainer.checkpointer.save

        def saves_to_a_faulty_disk(name, **kwargs):
            with fault(tmp_path):
                save(name, **kwargs)

        trainer.before_step = before_step
        with pytest.raises(OSError, match=r"model_0000009\.pth could not be written"):
            trainer.train()
    again = train(cfg, resume=True)
    assert again.start_iter == 6
    toy.assert_same_tensors(whole.model.state_dict(), again.model.state_dict())


def test_logs_that_cannot_be_written_name_their_folder(toy_config, tmp_path):
    trainer = IRSTDTrainer(toy_config(**{"SOLVER.MAX_ITER": 30}))
    trainer.resume_or_load(False)
    hook = next(hook for hook in trainer._hooks if type(hook).__name__ == "RunLog")

    class Full:
        def write(self):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        def close(self):
            """Nothing is open."""

    start = hook.before_train

    def before_train():
        start()
        hook._writers.append(Full())

    hook.before_train = before_train
    with pytest.raises(OSError, match=rf"the logs in {tmp_path / 'run'} could not be written: .*No space left"):
        trainer.train()


@FAULTS
def test_predictions(toy_config, tmp_path, fault):
    cfg = toy_config(**{"DATASETS.TEST": (TEST,), "TEST.EVALUATORS": ("coco",)})
    torch.manual_seed(3)
    model = IRSTDTrainer.build_model(cfg).eval()
    IRSTDTrainer.test(cfg, model)
    before = content(tmp_path / "run")
    assert any(name.endswith("coco_instances_results.json") for name in before)
    with fault(tmp_path / "run"), pytest.raises(OSError, match=rf"results\.json could not be written: .*({REASON})"):
        IRSTDTrainer.test(cfg, model)
    assert content(tmp_path / "run") == before


@FAULTS
def test_generated_sets_go_on_where_they_stopped(tmp_path, fault):
    config = SceneConfig(seed=3, size=(96, 64))
    whole = write_wideirstd(tmp_path / "whole", config, train=4, val=0, progress=False)
    part = write_wideirstd(tmp_path / "part", config, train=2, val=0, progress=False)
    before = content(part)
    with fault(tmp_path / "part"), pytest.raises(OSError, match=rf"could not be written: .*({REASON})"):
        write_wideirstd(tmp_path / "part", config, train=4, val=0, progress=False)
    assert content(part).items() >= before.items()
    write_wideirstd(tmp_path / "part", config, train=4, val=0, progress=False)
    assert content(part) == content(whole)


@FAULTS
@pytest.mark.parametrize("exists", [False, True])
def test_folders_that_appear_as_a_whole(tmp_path, fault, exists):
    target = tmp_path / "target"
    if exists:
        target.mkdir()
        (target / "old").write_bytes(b"old")

    def write():
        with staged_folder(target, overwrite=True) as folder:
            (folder / "new").write_bytes(b"new" * 100)

    with fault(tmp_path), pytest.raises(OSError, match=rf"target could not be written: .*({REASON})"):
        write()
    assert content(tmp_path) == ({"target/old": b"old"} if exists else {})
    write()
    assert content(tmp_path) == {"target/new": b"new" * 100}


@FAULTS
def test_any_file_that_is_written_as_a_whole(tmp_path, fault):
    path = tmp_path / "report.html"
    write_atomically(path, lambda file: file.write(b"old"))
    with fault(tmp_path), pytest.raises(OSError, match=rf"report\.html could not be written: .*({REASON})"):
        write_atomically(path, lambda file: file.write(b"new" * 100))
    assert content(tmp_path) == {"report.html": b"old"}
