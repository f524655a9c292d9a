"""Training under torchrun: workers, processes and nodes that die and come back."""

import os
import signal
import subprocess
import sys
import time

import pytest
import torch
from torch.utils.data import dataloader
from torchrun import free_port, kill_with_children, logs, start_torchrun, toy_program
from toy_training import assert_same_tensors, train, trained_weights

from irstd_d2.data.dataset_mapper import IRSTDDatasetMapper

# A worker that meets this image dies, as often as the file allows.
KILL_A_WORKER = """
from irstd_d2.data.dataset_mapper import IRSTDDatasetMapper
read, main = IRSTDDatasetMapper.__call__, os.getpid()
def die(self, record):
    mark = folder / "fatal"
    if record["image_id"] == "0_4" and os.getpid() != main and mark.exists():
        mark.unlink()
        os.kill(os.getpid(), signal.SIGKILL)
    return read(self, record)
IRSTDDatasetMapper.__call__ = die
"""


def wait(process, seconds=240):
    try:
        return process.wait(seconds)
    finally:
        if process.poll() is None:
            kill_with_children(process.pid)


def assert_same_runs(a, b):
    found = [torch.load(folder / "model_final.pth", weights_only=True) for folder in (a, b)]
    assert found[0]["iteration"] == found[1]["iteration"]
    assert_same_tensors(found[0]["model"], found[1]["model"])
    assert_same_tensors(trained_weights(found[0]), trained_weights(found[1]))
    assert_same_tensors(*({str(k): v for k, v in _momentum(content).items()} for content in found))


def _momentum(content):
    state = content["trainer"]["_trainer"]["optimizer"]["state"]
    return {f"{i}.{name}": value for i, row in state.items() for name, value in row.items() if torch.is_tensor(value)}


def test_the_death_of_a_worker_names_what_the_workers_read(tmp_path, toy_config, monkeypatch):
    read, main = IRSTDDatasetMapper.__call__, os.getpid()

    def die(self, record):
        if record["image_id"] == "0_4" and os.getpid() != main:
            os.kill(os.getpid(), signal.SIGKILL)
        return read(self, record)

    monkeypatch.setattr(IRSTDDatasetMapper, "__call__", die)
    with pytest.raises(RuntimeError, match=r"DataLoader worker \(pid") as caught:
        train(toy_config(**{"DATALOADER.NUM_WORKERS": 2}))
    (note,) = caught.value.__notes__
    assert "0_4.png, last" in note
    assert "--resume" in note
    assert [line.split(" began ")[0] for line in note.splitlines()[:2]] == ["worker 0", "worker 1"]


@pytest.mark.parametrize("closed", [EOFError, ConnectionResetError])
def test_a_worker_that_dies_while_it_hands_over_a_batch(toy_config, monkeypatch, closed):
    """Its connection is closed before PyTorch sees its end."""
    read = dataloader._MultiProcessingDataLoaderIter._next_data

    def fail(self):
        read(self)
        raise closed

    monkeypatch.setattr(dataloader._MultiProcessingDataLoaderIter, "_next_data", fail)
    with pytest.raises(RuntimeError, match=r"DataLoader worker \(pid unknown\) ended") as caught:
        train(toy_config(**{"DATALOADER.NUM_WORKERS": 2}))
    assert isinstance(caught.value.__cause__, closed)
    assert "worker 1 began" in caught.value.__notes__[0]


@pytest.mark.parametrize("workers", [0, 1])
def test_the_end_of_a_file_is_no_death_of_a_worker(toy_config, monkeypatch, workers):
    def fail(self, record):
        raise EOFError("short file")

    monkeypatch.setattr(IRSTDDatasetMapper, "__call__", fail)
    with pytest.raises(EOFError, match="short file"):
        train(toy_config(**{"DATALOADER.NUM_WORKERS": workers}))


def test_other_errors_of_samples_get_no_such_note(toy_config, monkeypatch):
    def fail(self, record):
        raise RuntimeError("cannot read")

    monkeypatch.setattr(IRSTDDatasetMapper, "__call__", fail)
    with pytest.raises(RuntimeError, match="cannot read") as caught:
        train(toy_config(**{"DATALOADER.NUM_WORKERS": 1}))
    assert not any("last" in note for note in getattr(caught.value, "__notes__", []))


@pytest.mark.slow
def test_torchrun_goes_on_after_the_death_of_a_worker(tmp_path):
    options = {"DATALOADER.NUM_WORKERS": 2}
    whole = toy_program(tmp_path, tmp_path / "whole", **options)
    subprocess.run([sys.executable, str(whole)], check=True, capture_output=True, timeout=240)
    (tmp_path / "fatal").touch()
    killed = toy_program(tmp_path, tmp_path / "killed", "--resume", code=KILL_A_WORKER, **options)
    assert wait(start_torchrun(killed, "--standalone", "--nproc-per-node", "1", "--max-restarts", "2")) == 0, logs(
        killed
    )
    assert not (tmp_path / "fatal").exists()
    assert "0_4.png, last" in (killed.parent / "log0.txt").read_text()
    assert_same_runs(tmp_path / "whole", tmp_path / "killed")


def two_nodes(program, port, rank):
    rendezvous = ("--rdzv-backend", "c10d", "--rdzv-endpoint", f"localhost:{port}", "--rdzv-id", "test")
    rendezvous += ("--rdzv-conf", f"is_host={int(rank == 0)},keep_alive_interval=1,keep_alive_max_attempt=3")
    return start_torchrun(program, "--nnodes", "2", "--nproc-per-node", "1", "--max-restarts", "5", *rendezvous)


@pytest.mark.slow
def test_two_nodes_train_as_one_and_survive_the_death_of_a_node(tmp_path):
    one = toy_program(tmp_path, tmp_path / "one")
    assert wait(start_torchrun(one, "--standalone", "--nproc-per-node", "2")) == 0, logs(one)

    two = toy_program(tmp_path, tmp_path / "two")
    port = free_port()
    nodes = [two_nodes(two, port, rank) for rank in range(2)]
    assert [wait(node) for node in nodes] == [0, 0], logs(two)
    assert_same_runs(tmp_path / "one", tmp_path / "two")

    # Steps wait, so that the node dies in the middle of the training.
    slow = "import time\nstep = IRSTDTrainer.run_step\nIRSTDTrainer.run_step = lambda self: (time.sleep(1), step(self))"
    killed = toy_program(tmp_path, tmp_path / "killed", "--resume", code=slow)
    port = free_port()
    nodes = [two_nodes(killed, port, rank) for rank in range(2)]
    first = tmp_path / "killed" / "model_0000003.pth"
    deadline = time.monotonic() + 120
    while not first.exists() and time.monotonic() < deadline:
        time.sleep(0.1)
    assert first.exists(), logs(killed)
    kill_with_children(nodes[1].pid)
    nodes[1].wait()
    assert not (tmp_path / "killed" / "model_final.pth").exists()
    nodes[1] = two_nodes(killed, port, 1)
    assert [wait(node) for node in nodes] == [0, 0], logs(killed)
    assert_same_runs(tmp_path / "one", tmp_path / "killed")
