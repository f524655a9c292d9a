"""The real detectors in two processes: unused weights, no targets, an odd number of images, a process that fails."""

import subprocess
import sys
import textwrap
import time
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
import toy_training as toy
from detectron2.data import DatasetCatalog
from processes import run_processes
from toy_training import TRAIN

import auxdet_d2  # noqa: F401  registers
import bafe_d2  # noqa: F401  registers
from irstd_d2 import get_config
from irstd_d2.engine import IRSTDTrainer

ROOT = Path(__file__).resolve().parents[2]
CONFIGS = ("auxdet/tiny/auxdet_tiny", "auxdet/tiny/cascade_rpn_tiny", "bafe/tiny/bafe_tiny", "bafe/tiny/fcos_tiny")


@pytest.fixture
def records(tmp_path):
    """Five images, an odd number for two processes, with masks of the sky."""
    toy.register(tmp_path, train=5)
    found = DatasetCatalog.get(TRAIN)
    sky = np.zeros((64, 64), np.uint8)
    sky[:32] = 255
    cv2.imwrite(str(tmp_path / "sky.png"), sky)
    for record in found:
        record["sem_seg_file_name"] = str(tmp_path / "sky.png")
    yield found
    toy.unregister()


def tiny(name, output):
    options = {
        "MODEL.DEVICE": "cpu",
        "INPUT.FIXED_SIZE": (64, 64),
        "DATASETS.TRAIN": (TRAIN,),
        "DATASETS.TEST": (),
        "DATALOADER.NUM_WORKERS": 0,
        "SOLVER.IMS_PER_BATCH": 2,
        "SOLVER.MAX_ITER": 4,
        "SOLVER.WARMUP_ITERS": 0,
        "OUTPUT_DIR": str(output),
    }
    cfg = get_config(ROOT / "configs" / f"{name}.yaml", [item for pair in options.items() for item in pair])
    cfg.freeze()
    return cfg


def train(cfg):
    trainer = IRSTDTrainer(cfg)
    trainer.resume_or_load(False)
    trainer.train()
    return {k: v.detach().clone() for k, v in trainer.checkpointer.model.named_parameters()}


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("targets", ["some", "none"])
def test_detectors_train_alike_in_two_processes(records, tmp_path, name, targets):
    for record in records if targets == "none" else records[::2]:
        record["annotations"] = []
    found = run_processes(2, train, tiny(name, tmp_path / "run"))
    assert [error for _, error in found] == [None, None]
    first, second = (result for result, _ in found)
    for key, value in first.items():
        assert torch.isfinite(value).all(), key
        assert torch.equal(value, second[key]), key


RUNNER = """
import os, pathlib, runpy, sys
sys.path[:0] = [{tests!r}, {root!r}]
import toy_training
from irstd_d2.engine import IRSTDTrainer
toy_training.register(pathlib.Path({folder!r}), train=5)

def before_step(self):
    super(IRSTDTrainer, self).before_step()
    if self.iter == 3 and os.environ["RANK"] == "1":
        pathlib.Path({folder!r}, "failed").touch()
        raise ZeroDivisionError("the second process fails")

IRSTDTrainer.before_step = before_step
sys.argv = {arguments!r}
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@pytest.mark.slow
def test_a_process_that_fails_under_torchrun_shows_why_and_ends_the_others(tmp_path):
    (tmp_path / "images").mkdir()
    options = "MODEL.DEVICE cpu MODEL.META_ARCHITECTURE ToyDetector INPUT.FIXED_SIZE (64,64) DATALOADER.NUM_WORKERS 0"
    options += f" SOLVER.IMS_PER_BATCH 2 SOLVER.MAX_ITER 1000 DATASETS.TEST () OUTPUT_DIR {tmp_path / 'run'}"
    arguments = [str(ROOT / "tools" / "train_net.py"), "--config-file", str(ROOT / "configs/bafe/tiny/fcos_tiny.yaml")]
    arguments += [*options.split(), "DATASETS.TRAIN", str((TRAIN,))]
    runner = tmp_path / "runner.py"
    runner.write_text(
        textwrap.dedent(RUNNER).format(
            tests=str(ROOT / "tests"), root=str(ROOT), folder=str(tmp_path / "images"), arguments=arguments
        )
    )
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(runner)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=240, cwd=ROOT, check=False)
    log = result.stdout + result.stderr
    assert result.returncode
    assert "ZeroDivisionError: the second process fails" in log
    assert "in before_step" in log  # its traceback
    assert time.time() - (tmp_path / "images" / "failed").stat().st_mtime < 60
