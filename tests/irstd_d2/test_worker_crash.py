"""A worker process that is killed, by the system or by a decoder that crashes."""

import os
import signal

import pytest
import toy_training as toy
from toy_training import assert_same_tensors, train

from irstd_d2.data.dataset_mapper import IRSTDDatasetMapper


@pytest.fixture
def toy_config(tmp_path):
    folder = tmp_path / "images"
    folder.mkdir()
    toy.register(folder)
    yield lambda name="run", **overrides: toy.toy_config(tmp_path / name, **overrides)
    toy.unregister()


def test_a_killed_worker_names_the_samples_and_a_resume_ends_as_if_nothing_happened(toy_config, tmp_path, monkeypatch):
    options = {"DATALOADER.NUM_WORKERS": 2, "SOLVER.CHECKPOINT_PERIOD": 2}
    whole = train(toy_config("whole", **options))
    read, main, fatal = IRSTDDatasetMapper.__call__, os.getpid(), tmp_path / "fatal"

    def crash(self, record):
        if record["image_id"] == "0_4" and os.getpid() != main and fatal.exists():
            os.kill(os.getpid(), signal.SIGKILL)
        return read(self, record)

    monkeypatch.setattr(IRSTDDatasetMapper, "__call__", crash)
    fatal.touch()
    with pytest.raises((RuntimeError, ConnectionError, EOFError)) as info:  # which one is a race
        train(toy_config(**options))
    note = "".join(info.value.__notes__)
    assert "a worker process died in iteration" in note
    assert "0_4.png" in note
    fatal.unlink()
    again = train(toy_config(**options), resume=True)
    assert_same_tensors(whole.model.state_dict(), again.model.state_dict())
