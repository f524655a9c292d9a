"""Freed memory stays with the process once it is asked to keep it."""

import ctypes
import os
import subprocess
import sys

import pytest

from irstd_d2 import memory

PROGRAM = """
import os, sys
import torch
from irstd_d2.memory import keep_freed_memory

def resident():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")

wanted = sys.argv[1] == "keep"
kept = keep_freed_memory() if wanted else False
torch.ones(1)
before = resident()
block = torch.ones(30_000_000)
del block
print(kept, resident() - before)
"""


def run(mode, **environment):
    plain = {name: value for name, value in os.environ.items() if name not in memory._CHOSEN_BY_USER}
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", PROGRAM, mode],
        env={**plain, **environment}, capture_output=True, text=True, check=True,
    )  # fmt: skip
    kept, grown = done.stdout.split()
    return kept == "True", int(grown)


@pytest.mark.skipif(
    not hasattr(ctypes.CDLL(None), "gnu_get_libc_version"), reason="needs the GNU C library, whose settings these are"
)
def test_memory_is_kept_when_asked_for():
    kept, grown = run("keep")
    assert kept
    assert grown > 100e6  # of 120 MB
    kept, grown = run("leave")
    assert not kept
    assert grown < 20e6
    kept, grown = run("keep", MALLOC_MMAP_MAX_="65536")  # the user's own setting stays
    assert not kept
    assert grown < 20e6
