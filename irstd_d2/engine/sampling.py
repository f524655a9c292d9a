"""A training stream that can be entered at any point and does not depend on the number of workers.

The k-th sample of a training is a pure function of the seed and k: which image it is, and every random draw of its
augmentations. So a training that was stopped goes on with exactly the samples it would have had.
"""

from __future__ import annotations

import itertools
import logging
import random
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from detectron2.utils import comm
from torch.utils.data import Dataset, Sampler, get_worker_info

logger = logging.getLogger(__name__)

# A run of unreadable samples this long means that the data set, not a sample, is broken.
MAX_SKIPS = 100


def seed_everything(*entropy: int) -> None:
    """Seed Python's, numpy's and torch's generators of this process from a few integers."""
    state = np.random.SeedSequence(entropy).generate_state(3)
    random.seed(int(state[0]))
    np.random.seed(int(state[1]))
    torch.manual_seed(int(state[2]))


class ResumableTrainingSampler(Sampler):
    """Infinite stream of ``(index, position)``, reshuffled every pass, that can start anywhere.

    Args:
        size: number of images.
        seed: of the shuffling; the same on every process.
        shuffle: keep the data set's order when False.
        start: position of the first sample over all processes: batch size times iterations done.
        rank, world_size: this process and their number; by default detectron2's.
    """

    def __init__(
        self,
        size: int,
        *,
        seed: int,
        shuffle: bool = True,
        start: int = 0,
        rank: int | None = None,
        world_size: int | None = None,
    ):
        if size <= 0:
            raise ValueError(f"a training set of {size} images; is the split empty or all filtered out?")
        self.size, self.seed, self.shuffle, self.start = size, seed, shuffle, start
        self.rank = comm.get_rank() if rank is None else rank
        self.world_size = comm.get_world_size() if world_size is None else world_size

    def __iter__(self) -> Iterator[tuple[int, int]]:
        yield from itertools.islice(self._stream(), self.rank, None, self.world_size)

    def _stream(self) -> Iterator[tuple[int, int]]:
        first_pass, offset = divmod(self.start, self.size)
        position = self.start
        for number in itertools.count(first_pass):
            order = np.arange(self.size)
            if self.shuffle:
                np.random.default_rng((self.seed, number)).shuffle(order)
            for index in order[offset:].tolist():
                yield index, position
                position += 1
            offset = 0


class SeededMapDataset(Dataset):
    """Map data set dicts to samples, seeding each sample by its place in the training stream.

    The ``mapper`` gives ``None`` to skip an unreadable image. What each of ``num_workers`` processes reads is noted
    where this process can look it up.
    """

    def __init__(
        self,
        dicts: Sequence[dict[str, Any]],
        mapper: Callable[[dict[str, Any]], dict[str, Any] | None],
        seed: int,
        num_workers: int = 0,
    ):
        self.dicts, self.mapper, self.seed = dicts, mapper, seed
        # Per worker the position and the index of the sample that it began last.
        self.num_workers = num_workers
        self._begun = torch.full((num_workers, 2), -1).share_memory_()

    def __len__(self) -> int:
        return len(self.dicts)

    def __getitem__(self, key: tuple[int, int]) -> dict[str, Any]:
        index, position = key
        seed_everything(self.seed, position)
        worker = get_worker_info()
        for _ in range(MAX_SKIPS):
            if worker is not None and worker.id < len(self._begun):
                self._begun[worker.id] = torch.tensor((position, index))
            record = self.dicts[index]
            try:
                sample = self.mapper(record)
            except Exception as error:
                error.add_note(f"while reading sample {position} of the training, {record.get('file_name')}")
                raise
            if sample is not None:
                return sample
            index = int(np.random.randint(len(self.dicts)))
        raise RuntimeError(f"{MAX_SKIPS} unreadable images in a row; check the data set with tools/check_dataset.py")

    def last_begun(self, worker: int) -> str:
        """The sample that a worker process began last, also when it is dead."""
        position, index = self._begun[worker].tolist()
        if position < 0:
            return "no sample"
        return f"sample {position} of the training, {self.dicts[index].get('file_name')},"
