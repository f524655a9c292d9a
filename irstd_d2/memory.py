"""Memory management, where it costs more than it brings: Python's garbage collection, the C library's tidiness."""

from __future__ import annotations

import ctypes
import gc
import os
from collections.abc import Iterator
from contextlib import contextmanager

# Numbers of malloc.h of the GNU C library.
_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4
# Environment variables by which a user chooses an allocator or its settings.
_CHOSEN_BY_USER = (
    "MALLOC_MMAP_MAX_",
    "MALLOC_TRIM_THRESHOLD_",
    "MALLOC_MMAP_THRESHOLD_",
    "GLIBC_TUNABLES",
    "LD_PRELOAD",
)


@contextmanager
def without_garbage_collection() -> Iterator[None]:
    """Tens of thousands of small objects, none of them garbage, would start collections that walk all of memory."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def keep_freed_memory() -> bool:
    """Let this process, and those that it forks, use freed memory again in place of returning it to the system.

    By default the GNU C library gets every large block anew from the system and returns it when it is freed. A feature
    map is such a block: each operation then waits for the system to hand out, and to clear, tens of megabytes page by
    page. On a CPU that is a good part of the time of a network (docs/performance.md). The process keeps the size of its
    highest point until it ends. The same without this function: ``MALLOC_MMAP_MAX_=0 MALLOC_TRIM_THRESHOLD_=-1`` in the
    environment, or another allocator, as in ``LD_PRELOAD=libjemalloc.so.2``.

    Returns:
        whether it was set: not with another C library, nor where an environment variable chooses an allocator or its
        settings already.
    """
    if any(name in os.environ for name in _CHOSEN_BY_USER):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None or not hasattr(ctypes.CDLL(None), "gnu_get_libc_version"):
        return False
    return bool(mallopt(_M_MMAP_MAX, 0)) and bool(mallopt(_M_TRIM_THRESHOLD, -1))
