"""A long training keeps its memory and its open files."""

import gc
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import toy_training as toy
from detectron2.engine import HookBase
from toy_training import TRAIN

from irstd_d2 import get_config
from irstd_d2.engine import IRSTDTrainer

CONFIG = Path(__file__).resolve().parents[2] / "configs/bafe/tiny/fcos_tiny.yaml"


class Usage(HookBase):
    """Resident memory in MB and open files of this process, every ten iterations."""

    def __init__(self):
        self.rows = []

    def after_step(self):
        if self.trainer.iter % 10 == 0:
            gc.collect()
            pages = int(Path("/proc/self/statm").read_text().split()[1])
            files = len(list(Path("/proc/self/fd").iterdir()))
            self.rows.append((self.trainer.iter, pages * os.sysconf("SC_PAGE_SIZE") / 1e6, files))


def train_and_measure(folder):
    """Train for 500 iterations in this process; print the rows of ``Usage``."""
    toy.register(folder)
    options = {
        "MODEL.DEVICE": "cpu",
        "INPUT.FIXED_SIZE": (48, 48),
        "DATASETS.TRAIN": (TRAIN,),
        "DATASETS.TEST": (),
        "DATALOADER.NUM_WORKERS": 0,
        "SOLVER.IMS_PER_BATCH": 1,
        "SOLVER.MAX_ITER": 500,
        "SOLVER.CHECKPOINT_PERIOD": 50,
        "SOLVER.CHECKPOINT_KEEP": 2,
        "SOLVER.EMA.ENABLED": True,
        "OUTPUT_DIR": str(folder / "run"),
    }
    trainer = IRSTDTrainer(get_config(CONFIG, [item for pair in options.items() for item in pair]))
    usage = Usage()
    trainer.register_hooks([usage])
    trainer.resume_or_load(False)
    trainer.train()
    print(json.dumps(usage.rows))


@pytest.mark.slow
def test_five_hundred_iterations_grow_nothing(tmp_path):
    # A process of its own: what earlier tests have freed goes back to the system when it likes.
    paths = [str(CONFIG.parents[3]), str(CONFIG.parents[3] / "tests"), os.environ.get("PYTHONPATH", "")]
    done = subprocess.run(
        [sys.executable, "-W", "ignore", __file__, str(tmp_path)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    iterations, memory, files = np.array(json.loads(done.stdout.splitlines()[-1])).T
    assert len(iterations) == 50
    settled = iterations >= 200
    slope = np.polyfit(iterations[settled], memory[settled], 1)[0] * 1000
    print(f"{slope:.2f} MB per 1,000 iterations, {memory[settled].min():.0f} to {memory[settled].max():.0f} MB")
    assert slope < 10  # a leaked image of 48x48 per iteration would be 27
    assert files[settled].max() <= files[settled].min() + 2


if __name__ == "__main__":
    train_and_measure(Path(sys.argv[1]))
