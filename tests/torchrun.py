"""The toy training under torchrun, as one node or several of one machine."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

from toy_training import TRAIN

ROOT = Path(__file__).resolve().parents[1]
_RUNNER = """
import os, pathlib, runpy, signal, sys
sys.path[:0] = [{tests!r}, {root!r}]
import toy_training
from irstd_d2.engine import IRSTDTrainer
folder = pathlib.Path({folder!r})
(folder / "images").mkdir(exist_ok=True)
toy_training.register(folder / "images")
{code}
sys.argv = {arguments!r}
runpy.run_path(sys.argv[0], run_name="__main__")
"""
OPTIONS = {
    "MODEL.META_ARCHITECTURE": "ToyDetector",
    "MODEL.DEVICE": "cpu",
    "DATASETS.TRAIN": (TRAIN,),
    "DATASETS.TEST": (),
    "DATALOADER.NUM_WORKERS": 0,
    "INPUT.MIN_SIZE_TRAIN": (64,),
    "SOLVER.IMS_PER_BATCH": 4,
    "SOLVER.MAX_ITER": 12,
    "SOLVER.CHECKPOINT_PERIOD": 2,
    "SOLVER.EMA.ENABLED": True,
    "SEED": 7,
}


def toy_program(folder: Path, output: Path, *arguments: str, code: str = "", **options: object) -> Path:
    """Write a program that trains the toy detector with ``tools/train_net.py``.

    Args:
        folder: for the images.
        output: the run's.
        arguments: of the tool.
        code: runs before it; ``folder`` and ``IRSTDTrainer`` are defined.
        options: configuration keys.
    """
    output.mkdir(parents=True, exist_ok=True)
    keys = {**OPTIONS, "OUTPUT_DIR": str(output), **options}
    command = [str(ROOT / "tools" / "train_net.py"), *arguments, *(str(item) for pair in keys.items() for item in pair)]
    path = output / "program.py"
    text = _RUNNER.format(tests=str(ROOT / "tests"), root=str(ROOT), folder=str(folder), code=code, arguments=command)
    path.write_text(text, encoding="utf-8")
    return path


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        return probe.getsockname()[1]


def start_torchrun(program: Path, *options: str) -> subprocess.Popen:
    """Start ``torchrun OPTIONS program``; its output goes to a file beside the program."""
    log = (program.parent / f"log{len(list(program.parent.glob('log*')))}.txt").open("w")
    command = [sys.executable, "-m", "torch.distributed.run", *options, str(program)]
    # Else torchrun never tells a node that comes back where the first one is.
    environment = {**os.environ, "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}
    return subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, cwd=ROOT, env=environment)


def kill_with_children(pid: int) -> None:
    """End a process and all below it at once, as when their machine goes down."""
    found = [pid]
    for parent in found:
        found += map(int, Path(f"/proc/{parent}/task/{parent}/children").read_text(encoding="ascii").split())
    for process in found:
        with contextlib.suppress(ProcessLookupError):
            os.kill(process, signal.SIGKILL)


def logs(program: Path) -> str:
    """The last lines of each."""
    texts = [path.read_text(encoding="utf-8") for path in sorted(program.parent.glob("log*.txt"))]
    return "\n---\n".join("\n".join(text.splitlines()[-20:]) for text in texts)
