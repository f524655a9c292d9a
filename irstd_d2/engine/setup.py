"""From the command line to a frozen configuration."""

from __future__ import annotations

import argparse
import gc
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from detectron2.config import CfgNode
from detectron2.utils import comm
from detectron2.utils.collect_env import collect_env_info
from detectron2.utils.env import seed_all_rng

from ..config import choose_device, get_config
from ..data import set_skip_bad
from ..data.datasets import check_registered
from ..errors import ConfigError
from ..evaluation.build import check_evaluators
from ..files import write_atomically
from ..memory import keep_freed_memory
from ..systems import registered_systems
from .checkpoint import IRSTDCheckpointer, read_facts
from .resume import Change, check_config
from .screen import FILE_ONLY, start_logs

logger = logging.getLogger(__name__)


def setup(args: argparse.Namespace) -> CfgNode:
    """Merge file and command line into a configuration, choose the device and start the logs.

    The configuration goes to ``OUTPUT_DIR/config.yaml``, with what a resume changed at its top; that of an evaluation
    in the folder of a training to ``config_eval.yaml``. On a CPU the process keeps the memory that it frees
    (:func:`irstd_d2.memory.keep_freed_memory`). ``args`` are those of ``detectron2.engine.default_argument_parser``.

    Raises:
        ConfigError: a key, a data set, an evaluator or a device is not there, the folder cannot be written, or a resume
            contradicts its checkpoint; better now than after the training.
    """
    cfg = get_config(args.config_file or None, args.opts)
    for key in ("TEST",) if args.eval_only else ("TRAIN", "TEST"):
        check_registered(f"DATASETS.{key}", cfg.DATASETS[key])
    check_evaluators(cfg.TEST.EVALUATORS)
    needed = "TEST" if args.eval_only else "TRAIN"
    if not cfg.DATASETS[needed]:
        raise ConfigError(f"DATASETS.{needed} is empty; name a data set, such as '(\"mine_{needed.lower()}\",)'")
    no_cuda = choose_device(cfg, args.opts)
    cfg.freeze()
    if cfg.MODEL.DEVICE == "cpu":
        keep_freed_memory()
    set_skip_bad(cfg.DATASETS.SKIP_BAD)
    history = _history(cfg) if args.resume and not args.eval_only else ""
    _make_folder(Path(cfg.OUTPUT_DIR))
    start_logs(cfg.OUTPUT_DIR, comm.get_rank(), ("irstd_d2", *(system.name for system in registered_systems())))
    logger.info("environment\n%s", collect_env_info(), extra=FILE_ONLY)
    logger.info("arguments: %s", args, extra=FILE_ONLY)
    logger.info("configuration\n%s", cfg.dump(), extra=FILE_ONLY)
    if not (args.resume or args.eval_only):
        _warn_of_overwriting(Path(cfg.OUTPUT_DIR))
    if comm.is_main_process():
        path = Path(cfg.OUTPUT_DIR) / "config.yaml"
        if args.eval_only and path.exists():
            path = path.with_name("config_eval.yaml")
        write_atomically(path, history + cfg.dump())
        logger.info("configuration and environment are in %s and log.txt", path)
    if no_cuda:
        logger.info("no CUDA device here: running on the CPU (MODEL.DEVICE cpu)")
    # Each process has a seed of its own.
    seed_all_rng(None if cfg.SEED < 0 else cfg.SEED + comm.get_rank())
    if not args.eval_only:
        torch.backends.cudnn.benchmark = cfg.CUDNN_BENCHMARK
    return cfg


def check_gpus(num_gpus: int) -> None:
    """Refuse more processes than there are GPUs, before any is started.

    Raises:
        ConfigError: naming how several processes run on a CPU.
    """
    found = torch.cuda.device_count()
    if num_gpus > max(1, found):
        raise ConfigError(
            f"--num-gpus is {num_gpus}, but this machine has {found or 'no'} CUDA device{'s' if found > 1 else ''}; "
            f"for processes on a CPU: torchrun --nproc-per-node {num_gpus} tools/train_net.py ..."
        )


@contextmanager
def process_group(backend: str) -> Iterator[None]:
    """The process group that torchrun's environment describes, if it does; ``backend`` as torch calls it."""
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        yield
        return
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    torch.distributed.init_process_group(backend)
    comm.create_local_process_group(int(os.environ["LOCAL_WORLD_SIZE"]))
    try:
        yield
        comm.synchronize()  # else a process that is done first ends while others still work
    finally:
        gc.collect()  # what still holds the group would end its threads after PyTorch's own end
        torch.distributed.destroy_process_group()


def _warn_of_overwriting(folder: Path) -> None:
    """Say that a training begins where another one, which is not resumed, has left checkpoints."""
    if candidates := IRSTDCheckpointer(torch.nn.Module(), str(folder)).resume_candidates():
        logger.warning(
            "OUTPUT_DIR %s holds a training (%s), whose files this one overwrites; stop it (Ctrl-C) and go on with "
            "--resume, or choose another folder, to keep them",
            folder,
            candidates[0].name,
        )


def _history(cfg: CfgNode) -> str:
    """Comments for the top of ``config.yaml`` that say from which iteration of a resume on it holds."""
    checkpointer = IRSTDCheckpointer(torch.nn.Module(), cfg.OUTPUT_DIR)
    newest = checkpointer.newest_readable()
    saved = Path(cfg.OUTPUT_DIR) / "config.yaml"
    if newest is None:
        # torchrun starts a training again with the arguments that it had at first.
        if "TORCHELASTIC_RUN_ID" in os.environ:
            return ""
        raise ConfigError(
            f"--resume: OUTPUT_DIR {cfg.OUTPUT_DIR} has no checkpoint to go on from; check the folder, or leave "
            "--resume away to start from the beginning"
        )
    found = read_facts(newest)
    text = saved.read_text(encoding="utf-8") if saved.exists() else ""
    before = found["run"]["config"] if "run" in found else text
    changed: list[Change] = check_config(before, cfg.dump(), newest) if before else []
    earlier = "".join(line for line in text.splitlines(keepends=True) if line.startswith("#"))
    # Where a run is and on what it runs changes nothing of what was trained.
    telling = [str(change) for change in changed if change.key not in ("OUTPUT_DIR", "VERSION")]
    if not telling:
        return earlier
    return earlier + f"# from iteration {found.get('iteration', -1) + 1} on: {'; '.join(telling)}\n"


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if not os.access(folder, os.W_OK | os.X_OK):
            raise PermissionError(13, os.strerror(13))
    except OSError as error:
        problem = f"OUTPUT_DIR {folder} cannot be written ({error.strerror})"
        raise ConfigError(f"{problem}; choose another, or make it writable") from error
