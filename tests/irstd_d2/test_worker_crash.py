"""Worker processes that are killed, by the system or by a decoder that crashes."""

import ctypes
import faulthandler
import logging
import multiprocessing
import os
import random
import signal
import threading
import time
from functools import partial
from pathlib import Path

import pytest
import torch
import toy_training as toy
from detectron2.utils import comm
from processes import run_processes
from torch.utils.data import DataLoader
from toy_training import assert_same_tensors

from irstd_d2.data.dataset_mapper import IRSTDDatasetMapper
from irstd_d2.engine import (
    IRSTDTrainer,
    RestartingLoader,
    ResumableTrainingSampler,
    SeededMapDataset,
    WorkerCrashError,
    loading,
)


def config(folder, **overrides):
    return toy.toy_config(folder, **{"DATALOADER.NUM_WORKERS": 2, "SOLVER.IMS_PER_BATCH": 4, **overrides})


@pytest.fixture
def toy_config(tmp_path):
    folder = tmp_path / "images"
    folder.mkdir()
    toy.register(folder, train=12)
    yield lambda **overrides: config(tmp_path / "run", **overrides)
    toy.unregister()


def train(cfg, resume=False, **hooks):
    trainer = IRSTDTrainer(cfg)
    for name, function in hooks.items():
        setattr(trainer._trainer if name == "after_backward" else trainer, name, partial(function, trainer))
    trainer.resume_or_load(resume)
    trainer.train()
    return trainer


def weights(trainer):
    averaged = {f"averaged.{k}": v for k, v in trainer.ema.average.state_dict().items()}
    return {k: v.clone() for k, v in (trainer.checkpointer.model.state_dict() | averaged).items()}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Weights of a training in which nobody dies, for there are no workers."""
    folder = tmp_path_factory.mktemp("whole")
    toy.register(folder, train=12)
    final = weights(train(config(folder / "run", **{"DATALOADER.NUM_WORKERS": 0})))
    toy.unregister()
    return final


@pytest.fixture
def fatal(tmp_path, monkeypatch):
    """A folder. A worker is killed on an image whose name is a file there, which goes, unless it says "always"."""
    folder, main, read_image = tmp_path / "fatal", os.getpid(), IRSTDDatasetMapper.__call__
    folder.mkdir()

    def crash(self, record):
        mark = folder / record["image_id"]
        if mark.exists() and os.getpid() != main:
            if mark.read_text() != "always":
                mark.unlink()
            os.kill(os.getpid(), signal.SIGKILL)
        return read_image(self, record)

    monkeypatch.setattr(IRSTDDatasetMapper, "__call__", crash)
    return folder


@pytest.fixture
def workers():
    """Gives the worker processes that were started since the test began."""
    others = set(multiprocessing.active_children())
    return lambda: [process for process in multiprocessing.active_children() if process not in others]


def test_workers_that_die_twice_change_nothing(whole, toy_config, fatal, caplog):
    (fatal / "0_4").touch()
    (fatal / "0_9").touch()
    with caplog.at_level("WARNING"):
        crashed = train(toy_config())
    assert_same_tensors(whole, weights(crashed))
    assert not list(fatal.iterdir())
    assert "was killed by SIGKILL; it read sample" in caplog.text
    assert "0_4.png, last" in caplog.text
    assert "0_9.png, last" in caplog.text
    assert "(1 of at most 3 times in 1000 batches)" in caplog.text


def test_a_file_that_always_kills_stops_the_training_which_resumes_without_loss(whole, toy_config, fatal):
    (fatal / "0_4").write_text("always")
    with pytest.raises(WorkerCrashError, match="died 4 times within 1000 batches") as info:
        train(toy_config())
    lines = str(info.value).splitlines()[1:-1]
    assert len(lines) == 4
    assert all("0_4.png, last" in line for line in lines)
    (fatal / "0_4").unlink()
    again = train(toy_config(), resume=True)
    assert again.start_iter <= 2  # a pass has three batches
    assert_same_tensors(whole, weights(again))


def test_what_was_trained_before_the_last_crash_is_saved(whole, toy_config, workers, tmp_path):
    def kill_from(trainer):
        if trainer.iter >= 7:
            for process in workers():
                process.kill()
        super(IRSTDTrainer, trainer).before_step()

    with pytest.raises(WorkerCrashError, match="killed by SIGKILL"):
        train(toy_config(**{"DATALOADER.MAX_RESTARTS": 0}), before_step=kill_from)
    assert (tmp_path / "run" / "last_checkpoint").read_text() == "model_0000006.pth"
    again = train(toy_config(), resume=True)
    assert again.start_iter == 7
    assert_same_tensors(whole, weights(again))


@pytest.mark.parametrize("moment", ["before_step", "after_backward", "after_step"])
def test_a_death_in_the_middle_of_a_step_waits_for_the_next_fetch(whole, toy_config, workers, moment, caplog):
    killed = []

    def kill(trainer):
        if trainer.iter in (3, 8):
            killed.append(trainer.iter)
            victim = random.choice(workers())
            victim.kill()
            victim.join()
            for _ in range(100):  # the signal's handler runs between two of these
                time.sleep(0.0001)
        getattr(super(IRSTDTrainer, trainer), moment)()

    with caplog.at_level("WARNING"):
        crashed = train(toy_config(), **{moment: kill})
    assert killed == [3, 8]
    assert f"again at sample {32 if moment == 'before_step' else 36}" in caplog.text
    assert caplog.text.count("The workers are started again") == 2
    assert_same_tensors(whole, weights(crashed))


def train_and_kill(cfg, rank):
    restarts = []
    handler = logging.Handler()
    handler.emit = lambda record: restarts.append(record.getMessage())
    logging.getLogger("irstd_d2.engine.loading").addHandler(handler)
    others = set(multiprocessing.active_children())

    def kill(trainer):
        if trainer.iter in (3, 7) and comm.get_rank() == rank:
            next(process for process in multiprocessing.active_children() if process not in others).kill()
        super(IRSTDTrainer, trainer).before_step()

    return weights(train(cfg, before_step=kill)), restarts


@pytest.mark.slow
def test_one_of_two_processes_restarts_its_workers(toy_config):
    whole = run_processes(2, train_and_kill, toy_config(), None)
    killed = run_processes(2, train_and_kill, toy_config(), 1)
    assert [error for _, error in whole + killed] == [None] * 4
    for rank in range(2):
        (before, _), (after, restarts) = whole[rank][0], killed[rank][0]
        assert_same_tensors(before, after)
        assert len(restarts) == 2 * rank


@pytest.mark.slow
def test_thirty_workers_killed_at_random_moments_change_nothing(toy_config, workers, caplog):
    options = {"SOLVER.MAX_ITER": 150, "DATALOADER.MAX_RESTARTS": 1000, "SOLVER.CHECKPOINT_PERIOD": 1000}
    whole = weights(train(toy_config(**options, **{"DATALOADER.NUM_WORKERS": 0})))
    rng, timers, kills = random.Random(0), [], []

    def kill_one():
        while not workers():  # they are started again just now
            time.sleep(0.001)
        rng.choice(workers()).kill()
        kills.append(1)

    def before_step(trainer):
        if trainer.iter % 5 == 0:
            timers.append(threading.Timer(rng.uniform(0, 0.05), kill_one))
            timers[-1].start()
        super(IRSTDTrainer, trainer).before_step()

    with caplog.at_level("WARNING"):
        crashed = train(toy_config(**options), before_step=before_step)
    for timer in timers:
        timer.join()
    assert len(kills) == 30
    assert caplog.text.count("The workers are started again") >= 15  # two may die at once, and the last after the end
    assert_same_tensors(whole, weights(crashed))


# The loader alone.


def read(record):
    if record.get("fault") and record["fault"].exists():
        record["fault"].unlink()
        faulthandler.disable()  # else a page of stacks in the output of the tests
        record["how"]()
    return {"i": record["i"], "draw": torch.rand(3)}


def take(dicts, count, **options):
    options = {"num_workers": 2, "max_restarts": 3, **options}
    samples = SeededMapDataset(dicts, read, 5, options["num_workers"])
    sampler = ResumableTrainingSampler(len(dicts), seed=3, start=4, rank=0, world_size=1)
    batches = iter(RestartingLoader(samples, sampler, batch_size=2, **options))
    return [[(s["i"], s["draw"].tolist()) for s in next(batches)] for _ in range(count)]


@pytest.mark.parametrize(
    ("how", "words"),
    [
        (lambda: ctypes.string_at(0), "was killed by SIGSEGV"),
        (os.abort, "was killed by SIGABRT"),
        (lambda: os._exit(3), "ended with code 3"),
        (lambda: os.kill(os.getpid(), signal.SIGKILL), "was killed by SIGKILL"),
    ],
)
def test_ways_to_die(tmp_path, how, words, caplog):
    dicts = [{"i": i, "file_name": f"{i}.png"} for i in range(7)]
    whole = take(dicts, 12, num_workers=0)
    assert take(dicts, 12) == whole
    dicts[5].update(fault=tmp_path / "fault", how=how)
    (tmp_path / "fault").touch()
    with caplog.at_level("WARNING"):
        assert take(dicts, 12) == whole
    assert words in caplog.text
    assert "5.png, last" in caplog.text


def test_crashes_of_long_ago_are_forgotten(tmp_path, monkeypatch):
    dicts = [{"i": i, "file_name": f"{i}.png"} for i in range(40)]
    whole = take(dicts, 18, num_workers=0)

    def with_crashes():
        for batch in (1, 16):
            image = whole[batch][0][0]
            dicts[image].update(fault=tmp_path / str(image), how=lambda: os._exit(1))
            dicts[image]["fault"].touch()
        return take(dicts, 18, max_restarts=1)

    with pytest.raises(WorkerCrashError, match="died 2 times within 1000 batches"):
        with_crashes()
    monkeypatch.setattr(loading, "RESTART_WINDOW", 8)
    assert with_crashes() == whole


def test_a_restart_leaves_no_process_and_no_open_file_behind(workers):
    def open_files():
        return len(list(Path("/proc/self/fd").iterdir()))

    dicts = [{"i": i, "file_name": f"{i}.png"} for i in range(5)]
    samples = SeededMapDataset(dicts, read, 5, 2)
    sampler = ResumableTrainingSampler(5, seed=3, rank=0, world_size=1)
    batches = iter(RestartingLoader(samples, sampler, batch_size=2, num_workers=2, max_restarts=99))
    seen = []
    for _ in range(6):
        for _ in range(5):
            next(batches)
        assert len(workers()) == 2
        workers()[0].kill()
        next(batches)
        seen.append(open_files())
    assert max(seen[2:]) <= max(seen[:2]) + 4
    del batches
    assert not workers()


def test_an_error_of_a_sample_is_no_crash(caplog):
    def fail():
        raise ConnectionError("as if read over a network")

    class Always:
        def exists(self):
            return True

        def unlink(self):
            """Stays."""

    dicts = [{"i": 0, "file_name": "0.png", "fault": Always(), "how": fail}]
    with caplog.at_level("WARNING"), pytest.MonkeyPatch.context() as patch:
        patch.setattr(loading, "_GRACE", 0.1)
        with pytest.raises(ConnectionError, match="as if read over a network"):
            take(dicts, 1)
    assert not caplog.text


def test_workers_of_other_loaders_still_raise_at_once():
    class Deadly(torch.utils.data.Dataset):
        def __len__(self):
            return 8

        def __getitem__(self, index):
            os._exit(1)

    dicts = [{"i": i, "file_name": f"{i}.png"} for i in range(5)]
    samples = SeededMapDataset(dicts, read, 5, 1)
    sampler = ResumableTrainingSampler(5, seed=3, rank=0, world_size=1)
    batches = iter(RestartingLoader(samples, sampler, batch_size=2, num_workers=1))
    next(batches)
    with pytest.raises(RuntimeError, match="DataLoader worker"):
        list(DataLoader(Deadly(), num_workers=1))
    next(batches)


def test_before_the_first_sample_and_without_room_nothing_is_noted():
    dicts = [{"i": 0, "file_name": "0.png"}]
    assert SeededMapDataset(dicts, read, 5, 1).last_begun(0) == "no sample"
    plain = DataLoader(SeededMapDataset(dicts, read, 5), sampler=[(0, 0)], num_workers=1, collate_fn=list)
    assert [batch[0]["i"] for batch in plain] == [0]
