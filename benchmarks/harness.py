"""Interleaved timing of pairs, and the tables that hold it.

The two sides of a pair run in turn, so that whatever else the machine does falls on both. What is reported is the
median of the ratios of neighbouring runs, with its 10 % and 90 % quantiles.

The clock is time as it passes. On a machine that others use as well, ``CLOCK`` can be ``time.process_time``: what
the process computed, without what it waited for; that is meaningful for one thread.
"""

from __future__ import annotations

import ctypes
import os
import statistics
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch

Work = Callable[[], object]

CLOCK: Callable[[], float] = time.perf_counter
_PAGE = os.sysconf("SC_PAGE_SIZE")
_MEGABYTE = 1 << 20


@dataclass(frozen=True)
class Row:
    """One comparison.

    Attributes:
        case: what is compared.
        ours, other: what stands on each side.
        seconds, other_seconds: median time of one run.
        ratio, low, high: median, 10 % and 90 % quantile of ours / other.
        at_most: the target for the ratio, ``None`` for none.
        per_second: what is counted when rates are shown in place of times, e.g. "images".
    """

    case: str
    ours: str
    other: str
    seconds: float
    other_seconds: float
    ratio: float
    low: float
    high: float
    at_most: float | None = None
    per_second: str = ""

    def show(self, seconds: float) -> str:
        return f"{1 / seconds:.0f} {self.per_second}/s" if self.per_second else show_time(seconds)

    @property
    def verdict(self) -> str:
        if self.at_most is None:
            return ""
        return f"at most {self.at_most:g}: {'met' if self.ratio <= self.at_most else '**missed**'}"


@dataclass
class Bench:
    """Runs comparisons and keeps their rows.

    Args:
        folder: an empty one, for files.
        device: that models and tensors are put on.
        quick: small inputs, one run and no targets, to see that everything works.
        seconds: time given to one comparison; at least three rounds are run, at most 50.
        patience: seconds after which a comparison ends with the rounds it has, were it one.
        only: texts of which a case's name must have one; empty for all.
        report: called with every new row.
    """

    folder: Path
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    quick: bool = False
    seconds: float = 4.0
    patience: float = 90.0
    only: Sequence[str] = ()
    report: Callable[[Row], object] | None = None
    rows: list[Row] = field(default_factory=list)
    memory_rows: list[tuple[str, str, float]] = field(default_factory=list)

    def compare(
        self,
        case: str,
        ours: tuple[str, Work],
        *others: tuple[str, Work, float | None],
        per_second: str = "",
        rounds: int = 3,
    ) -> None:
        """Time ours and the others in turn, and keep a row for each of the others.

        Args:
            case: what is compared.
            others: each a name, the work, and the target for the ratio ours / other or ``None``.
            rounds: least number of rounds.
        """
        if not self.wants(case):
            return
        works = [ours[1], *(work for _, work, _ in others)]
        calls = [self._calls(work) for work in works]
        mine: list[float] = []
        times: list[list[float]] = [[] for _ in others]
        ratios: list[list[float]] = [[] for _ in others]
        start = time.perf_counter()
        while self._goes_on(len(ratios[0]), start, rounds):
            mine_now, *others_now = (timed(work, self.device, count) for work, count in zip(works, calls))
            mine.append(mine_now)
            for number, seconds in enumerate(others_now):
                times[number].append(seconds)
                ratios[number].append(mine_now / seconds)
        for (name, _, at_most), seconds, ratio in zip(others, times, ratios):
            low, high = np.quantile(ratio, [0.1, 0.9])
            medians = map(statistics.median, (mine, seconds, ratio))
            target = None if self.quick else at_most
            self._keep(Row(case, ours[0], name, *medians, float(low), float(high), target, per_second))

    def wants(self, case: str) -> bool:
        """Whether a case is among those asked for."""
        return not self.only or any(text in case for text in self.only)

    def _keep(self, row: Row) -> None:
        self.rows.append(row)
        if self.report is not None:
            self.report(row)

    def _goes_on(self, done: int, start: float, least: int) -> bool:
        if done == 0 or self.quick:
            return done == 0
        spent = time.perf_counter() - start
        return spent < (self.patience if done < least else self.seconds) and done < 50

    def share(
        self, case: str, part: tuple[str, float], whole: tuple[str, float], *, at_most: float | None = None
    ) -> None:
        """Keep a share of times that the work took itself, in seconds."""
        ratio = part[1] / whole[1]
        at_most = None if self.quick else at_most
        self._keep(Row(case, part[0], whole[0], part[1], whole[1], ratio, ratio, ratio, at_most))

    def memory(self, case: str, name: str, work: Work) -> None:
        """Keep the highest additional memory of one run in MB: of the device's, or of this process."""
        if not self.wants(case):
            return
        self.memory_rows.append((case, name, peak_memory(work, self.device) / _MEGABYTE))

    def _calls(self, work: Work) -> int:
        """Calls per measurement, so that it takes some 5 ms or more; runs the work beforehand, twice if it is short."""
        once = timed(work, self.device)
        if self.quick or once > 0.5:
            return 1
        once = timed(work, self.device)
        return max(1, min(1000, round(0.005 / max(once, 1e-7))))

    def table(self) -> str:
        """All rows as Markdown."""
        lines = [
            "| case | ours | other | ratio ours / other (10 % to 90 %) | target |",
            "|---|---|---|---|---|",
        ]
        lines += [
            f"| {row.case} | {row.ours}: {row.show(row.seconds)} | {row.other}: {row.show(row.other_seconds)} | "
            f"{row.ratio:.3g} ({row.low:.3g} to {row.high:.3g}) | {row.verdict} |"
            for row in self.rows
        ]
        if self.memory_rows:
            lines += ["", "| memory of one run | | MB |", "|---|---|---|"]
            lines += [f"| {case} | {name} | {peak:.0f} |" for case, name, peak in self.memory_rows]
        return "\n".join(lines)


def timed(work: Work, device: torch.device, calls: int = 1) -> float:
    """Seconds per call, everything on the device included."""
    _wait(device)
    start = CLOCK()
    for _ in range(calls):
        work()
    _wait(device)
    return (CLOCK() - start) / calls


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def show_time(seconds: float) -> str:
    for unit, scale in (("s", 1.0), ("ms", 1e-3)):
        if seconds >= scale:
            return f"{seconds / scale:.3g} {unit}"
    return f"{seconds / 1e-6:.3g} µs"


def resident_bytes() -> int:
    """Memory of this process that is in RAM."""
    return int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1]) * _PAGE


def peak_memory(work: Work, device: torch.device) -> int:
    """Bytes that a run needs at its highest point beyond what was in use before."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        work()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    work()
    _return_free_memory()
    before = highest = resident_bytes()
    done = threading.Event()

    def watch() -> None:
        nonlocal highest
        while not done.wait(0.002):
            highest = max(highest, resident_bytes())

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        work()
    finally:
        done.set()
        watcher.join()
    return max(highest, resident_bytes()) - before


def _return_free_memory() -> None:
    """Give what was freed back to the system, so that using it again counts; only where the C library can."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def matrix_rate(device: torch.device, dtype: torch.dtype = torch.float32, edge: int = 2048) -> float:
    """Measured rate of a square matrix product in 10^9 multiplications and additions a second, best of five."""
    a = torch.randn(edge, edge, device=device).to(dtype)
    best = min(timed(lambda: a @ a, device) for _ in range(5))
    return 2 * edge**3 / best / 1e9
