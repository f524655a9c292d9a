"""Work on many items, in this process or in several, with a progress bar."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from typing import Any

from tqdm import tqdm


def for_each(work: Callable[[Any], object], items: Sequence[Any], *, workers: int, title: str, progress: bool) -> None:
    """Call ``work`` with every item, in this process or in ``workers`` others; then work and items can be pickled.

    What it returns is dropped; ``title`` is of the progress bar.

    Raises:
        Exception: the first that ``work`` raises; items that wait are then not begun.
    """
    with tqdm(total=len(items), desc=title, unit="image", disable=not progress or not items) as bar:

        def count(done: Iterable[object]) -> None:
            for _ in done:
                bar.update()

        if workers <= 1:
            count(map(work, items))
            return
        # Not forked: the caller may run threads.
        pool = ProcessPoolExecutor(workers, mp_context=get_context("spawn"))
        try:
            count(pool.map(work, items, chunksize=8))
        finally:
            pool.shutdown(cancel_futures=True)
