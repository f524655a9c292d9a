"""Several processes of one training on the CPU, forked from the test."""

from __future__ import annotations

import multiprocessing
import os
import tempfile
import traceback
from pathlib import Path

import torch
from detectron2.utils import comm


def _member(rank, count, folder, function, arguments):
    torch.set_num_threads(1)
    try:
        torch.distributed.init_process_group(
            "gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=count
        )
        comm.create_local_process_group(count)
        outcome = (function(*arguments), None)
    except BaseException:
        outcome = (None, traceback.format_exc())
    torch.save(outcome, folder / f"{rank}.pt")
    os._exit(0)


def run_processes(count, function, *arguments, timeout=120):
    """Call ``function(*arguments)`` in ``count`` processes that form a process group.

    Returns:
        per process (result, traceback); one of the two is ``None``, both for a process that died.
    """
    context = multiprocessing.get_context("fork")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        processes = [
            context.Process(target=_member, args=(rank, count, folder, function, arguments)) for rank in range(count)
        ]
        for process in processes:
            process.start()
        for process in processes:
            process.join(timeout)
        hanging = [process for process in processes if process.is_alive()]
        for process in hanging:
            process.kill()
        if hanging:
            raise TimeoutError(f"{len(hanging)} processes still ran after {timeout} s")
        files = [folder / f"{rank}.pt" for rank in range(count)]
        return [torch.load(file, weights_only=False) if file.exists() else (None, None) for file in files]
