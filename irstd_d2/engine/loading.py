"""A loader that starts its worker processes again when one of them dies.

A worker that the system kills for its memory, or whose decoder crashes, takes its process with it. PyTorch then raises
an error in the main process, from a signal handler, wherever that happens to be: in the middle of a step. Here the
error waits for the next fetch of a batch; there the workers are started again where the stream stands. What they give
is the same as without the crash, for the k-th sample depends on nothing but the seed and k (``sampling``).
"""

from __future__ import annotations

import logging
import signal
import threading
from collections import deque
from collections.abc import Iterator
from functools import partial
from multiprocessing import connection
from multiprocessing.process import BaseProcess
from typing import Any
from weakref import WeakSet

from torch.utils.data import DataLoader

from .sampling import ResumableTrainingSampler, SeededMapDataset

logger = logging.getLogger(__name__)

# Batches over which restarts are counted.
RESTART_WINDOW = 1000
# Seconds that a process may take to end, after its connections broke or after it was told to.
_GRACE = 5.0


class WorkerCrashError(RuntimeError):
    """Worker processes died more often than ``DATALOADER.MAX_RESTARTS`` permits; the message names their samples."""


class RestartingLoader:
    """Batches of a training stream, without end and over the deaths of worker processes.

    Args:
        samples: of the stream.
        sampler: the stream; its ``start`` is where an iteration of this loader begins.
        batch_size: of this process.
        num_workers: processes that read; 0 reads in this one.
        max_restarts: times that the workers are started again within ``RESTART_WINDOW`` batches.
        pin_memory: copy the batches to page-locked memory, for a GPU.
    """

    def __init__(
        self,
        samples: SeededMapDataset,
        sampler: ResumableTrainingSampler,
        *,
        batch_size: int,
        num_workers: int = 0,
        max_restarts: int = 0,
        pin_memory: bool = False,
    ):
        self.samples, self.sampler, self.max_restarts = samples, sampler, max_restarts
        self._global_batch = batch_size * sampler.world_size
        self._loader = DataLoader(
            samples,
            batch_size=batch_size,
            sampler=sampler,
            num_workers=num_workers,
            drop_last=True,
            collate_fn=_as_list,
            pin_memory=pin_memory,
        )

    def __iter__(self) -> Iterator[list[dict[str, Any]]]:
        """Yield the batches.

        Raises:
            WorkerCrashError: workers died more than ``max_restarts`` times within ``RESTART_WINDOW`` batches.
        """
        first, given = self.sampler.start, 0
        crashes: deque[tuple[int, str]] = deque()
        while True:
            self.sampler.start = first + given * self._global_batch
            workers = _Workers(self._loader)
            try:
                while (batch := workers.fetch()) is not None:
                    yield batch
                    given += 1
                crashes.append((given, "; ".join(self._describe(*worker) for worker in workers.stop())))
            finally:
                workers.release()
            while crashes[0][0] <= given - RESTART_WINDOW:
                crashes.popleft()
            if len(crashes) > self.max_restarts:
                raise WorkerCrashError(self._complaint([text for _, text in crashes]))
            logger.warning(
                "%s. The workers are started again at sample %d of the training (%d of at most %d times in %d batches)",
                crashes[-1][1],
                first + given * self._global_batch,
                len(crashes),
                self.max_restarts,
                RESTART_WINDOW,
            )

    def _describe(self, number: int, code: int | None) -> str:
        how = f"was killed by {signal.Signals(-code).name}" if code and code < 0 else f"ended with code {code}"
        return f"worker process {number} {how}; it read {self.samples.last_begun(number)} last"

    def _complaint(self, crashes: list[str]) -> str:
        return "\n".join(
            [
                f"worker processes died {len(crashes)} times within {RESTART_WINDOW} batches; DATALOADER.MAX_RESTARTS "
                f"is {self.max_restarts}:",
                *crashes,
                "If it is one file each time, look at it, or take it out of the split (DATALOADER.NUM_WORKERS 0 shows "
                "where it fails). If SIGKILL hits different files, memory is short: use fewer workers. Then --resume",
            ]
        )


class _Workers:
    """One iterator over a loader, and the processes that work for it."""

    def __init__(self, loader: DataLoader):
        self._starting, self._fetching = True, False
        self._processes: list[BaseProcess] = []
        _running.add(self)
        self._batches: Iterator[list[dict[str, Any]]] = iter(loader)
        # PyTorch shows the processes nowhere else; without workers there is no such attribute.
        self._processes = getattr(self._batches, "_workers", [])
        self._starting = False
        _defer_crashes()

    def fetch(self) -> list[dict[str, Any]] | None:
        """The next batch; ``None`` when a worker is dead, now or before."""
        try:
            self._fetching = True
            try:
                return None if self._dead() else next(self._batches)
            finally:
                self._fetching = False
        except Exception as error:
            self._fetching = False
            # A connection breaks before its process is gone. Errors of samples come here, too.
            broken = isinstance(error, ConnectionError | EOFError | FileNotFoundError)
            if not self._dead(_GRACE if broken else 0):
                raise
        return None

    def will_notice(self) -> bool:
        """Whether a worker is dead and a fetch that is still to come will see it."""
        return self._starting or (not self._fetching and bool(self._dead()))

    def _dead(self, timeout: float = 0) -> list[int]:
        """Numbers of the workers that have ended; waits up to ``timeout`` seconds for one."""
        if not self._processes:
            return []
        ended = connection.wait([process.sentinel for process in self._processes], timeout)
        return [number for number, process in enumerate(self._processes) if process.sentinel in ended]

    def stop(self) -> list[tuple[int, int | None]]:
        """End all workers.

        Returns:
            number and exit code of those that had ended before.
        """
        dead = self._dead()
        for number, process in enumerate(self._processes):
            if number not in dead:
                process.terminate()
        for process in self._processes:
            process.join(_GRACE)
        return [(number, self._processes[number].exitcode) for number in dead]

    def release(self) -> None:
        """Let PyTorch clear up, while the deaths of workers still raise nothing."""
        self._batches = iter(())


_running: WeakSet[_Workers] = WeakSet()


def _defer_crashes() -> None:
    """Put :func:`_on_child` before the handler that PyTorch has set with the first worker of this process."""
    if threading.current_thread() is not threading.main_thread():
        return  # only the main thread may, and PyTorch did not either
    handler = signal.getsignal(signal.SIGCHLD)
    if callable(handler) and getattr(handler, "func", None) is not _on_child:
        signal.signal(signal.SIGCHLD, partial(_on_child, handler))


def _on_child(handler: Any, number: int, frame: Any) -> None:
    """Call PyTorch's handler; its error is dropped for a worker of ours whose death the next fetch will notice."""
    try:
        handler(number, frame)
    except RuntimeError:
        if not any(workers.will_notice() for workers in list(_running)):
            raise


def _as_list(batch: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return batch
