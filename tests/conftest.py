"""Fixtures that every test can use.

The published reference numbers and the real data are not part of a clone. They are looked for in the folder that the
environment variable ``IRSTD_SHARED`` names, else in ``../shared`` beside the checkout; tests that need them skip,
naming what is missing, where they are absent.
"""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.utils import logger as detectron2_logger
from detectron2.utils.logger import setup_logger
from filelock import FileLock

import auxdet_d2  # noqa: F401  registers
import bafe_d2  # noqa: F401  registers
from irstd_d2.data.datasets import register_voc_folder

ROOT = Path(__file__).resolve().parents[1]


def pytest_configure(config: pytest.Config) -> None:
    torch.set_num_threads(int(os.environ.get("IRSTD_TEST_THREADS", "1")))


@pytest.fixture(autouse=True)
def _fixed_seed():
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def _fresh_logging():
    """What a test's training does to the loggers ends with the test, so that no test depends on the one before."""
    names = ("detectron2", "fvcore", "irstd_d2", "auxdet_d2", "bafe_d2")
    before = [(logging.getLogger(name), logging.getLogger(name).propagate) for name in names]
    yield
    for logger, propagate in before:
        logger.propagate = propagate
        logger.handlers.clear()
    setup_logger.cache_clear()
    detectron2_logger._LOG_COUNTER.clear()  # a warning given once per process is given once per test


def _shared(name: str) -> Path:
    folder = Path(os.environ.get("IRSTD_SHARED", ROOT.parent / "shared")) / name
    if not folder.exists():
        pytest.skip(f"{folder} is absent: set IRSTD_SHARED to the folder that holds {name}/")
    return folder


@pytest.fixture(scope="session")
def repo_root() -> Path:
    return ROOT


@pytest.fixture(scope="session")
def oracle_dir() -> Path:
    """The whole arrays computed with the published implementations, whose compact form the packages hold."""
    return _shared("oracle")


@pytest.fixture(scope="session")
def papers_dir() -> Path:
    return _shared("papers")


@pytest.fixture(scope="session")
def shared_dir() -> Path:
    return _shared("data").parent


@pytest.fixture(scope="session")
def omni_mini() -> Path:
    """Real images in WideIRSTD's layout."""
    return _shared("data/OmniIR-mini")


def _unpacked(packed: str, made: str) -> Path:
    """The folder in which the real set ``data/packed`` lies as ``made``, unpacked once for all tests."""
    cache = Path(os.environ.get("IRSTD_CACHE", ROOT / ".cache"))
    done = cache / made / "unpacked"
    if not done.exists():
        unpack = _shared(f"data/{packed}") / "unpack.py"
        cache.mkdir(parents=True, exist_ok=True)
        with FileLock(cache / "unpack.lock"):  # of several test processes one unpacks
            if not done.exists():
                subprocess.run([sys.executable, str(unpack), str(cache)], check=True)
                done.touch()
    return cache


@pytest.fixture(scope="session")
def real_densesirst() -> Path:
    """The folder that holds the real DenseSIRST set as ``SIRSTdevkit/``."""
    return _unpacked("densesirst", "SIRSTdevkit")


@pytest.fixture(scope="session")
def real_masks() -> Iterator[str]:
    """The name of a registered set of 437 real images with masks."""
    folder = _unpacked("WideIRSTD-matched", "WideIRSTD-matched") / "WideIRSTD-matched"
    name = "real_masks_val"
    register_voc_folder(name, folder, "val", layout="wideirstd")
    yield name
    DatasetCatalog.remove(name)
    MetadataCatalog.remove(name)
