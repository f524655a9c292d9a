"""Checkpoints that survive a crash and never run code from a file."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch
from detectron2.checkpoint import DetectionCheckpointer
from torch import nn

from ..checkpoint import load_plain
from ..errors import ConfigError, DatasetError
from ..files import write_atomically


class IRSTDCheckpointer(DetectionCheckpointer):
    """detectron2's checkpointer with atomic writes, weights-only reading and a way back from a torn file.

    A resume takes ``model_NNNNNNN.pth`` or ``model_final.pth``; files of other names (``model_best.pth``) are for use
    as ``MODEL.WEIGHTS``.

    Args:
        model: the trained model.
        save_dir: folder of the checkpoints.
        deployed: the module whose weights are the file's ``model``, when it is not ``model`` itself: averaged weights.
        checkpointables: state to save and restore beside the weights.
    """

    def __init__(
        self, model: nn.Module, save_dir: str = "", *, deployed: nn.Module | None = None, **checkpointables: Any
    ):
        super().__init__(model, save_dir, **checkpointables)
        self.deployed = self.model if deployed is None else deployed

    def save(self, name: str, **kwargs: Any) -> None:
        """Save weights and state as ``NAME.pth``; a resume takes it from then on if the name says so.

        Raises:
            OSError: it cannot be written; earlier checkpoints are untouched.
        """
        if not self.save_dir or not self.save_to_disk:
            return
        data = {"model": self.deployed.state_dict()}
        data.update({key: obj.state_dict() for key, obj in self.checkpointables.items()})
        data.update(kwargs)
        path = Path(self.save_dir) / f"{name}.pth"
        self.logger.info("Saving checkpoint to %s", path)
        write_atomically(path, lambda file: torch.save(data, file))
        if iteration_of(path) is not None:
            self.tag_last_checkpoint(path.name)

    def tag_last_checkpoint(self, last_filename_basename: str) -> None:
        path = Path(self.save_dir) / "last_checkpoint"
        write_atomically(path, lambda file: file.write(last_filename_basename.encode()))

    def has_checkpoint(self) -> bool:
        """Whether there is anything to resume from, be it only checkpoints whose pointer file was lost."""
        return bool(self.save_dir) and bool(self.resume_candidates())

    def resume_or_load(self, path: str, *, resume: bool = True) -> dict[str, Any]:
        """Resume from the newest readable checkpoint of the folder, else load the weights at ``path``.

        Raises:
            RuntimeError: when the folder has checkpoints but none can be read.
        """
        candidates = self.resume_candidates() if resume else []
        for candidate in candidates:
            try:
                load_plain(candidate, mmap=True)
            except DatasetError as error:
                self.logger.warning("%s %s; going back to the one before", candidate, error.problem)
                continue
            return self.load(str(candidate))
        if candidates:
            raise RuntimeError(
                f"none of the {len(candidates)} checkpoints in {self.save_dir} can be read; "
                "remove the folder to start again, or restore one of them"
            )
        return self.load(path, checkpointables=[])

    def resume_candidates(self) -> list[Path]:
        """The checkpoints a resume tries in turn: the one that ``last_checkpoint`` names, then older ones.

        Checkpoints beyond the named one are left over from an earlier run in the same folder and are not tried.
        """
        folder = Path(self.save_dir)
        found = {
            path: iteration for path in folder.glob("model_*.pth") if (iteration := iteration_of(path)) is not None
        }
        newest_first = sorted(found, key=lambda path: found[path], reverse=True)
        tagged = Path(self.get_checkpoint_file())
        if tagged not in found:
            return newest_first
        return [tagged, *(path for path in newest_first if found[path] < found[tagged])]

    def load(self, path: str, checkpointables: list[str] | None = None) -> dict[str, Any]:
        """Load weights and, of ``checkpointables``, the state; see detectron2.

        Raises:
            ConfigError: there is no such file, or it is a pickle.
            DatasetError: the file is damaged or holds more than tensors and plain data.
        """
        if path and "://" not in path and not Path(path).is_file():
            raise ConfigError(f"MODEL.WEIGHTS is {path}, which is not a file; check the path")
        return super().load(path, checkpointables=checkpointables)

    def _load_file(self, filename: str) -> dict[str, Any]:
        if filename.endswith((".pkl", ".pyth")):
            raise ConfigError(
                f"MODEL.WEIGHTS is {filename}: pickle files can run code when they are read. Convert it once, from a "
                "source you trust, with tools/convert_checkpoint.py"
            )
        return super()._load_file(filename)

    def _torch_load(self, f: str) -> dict[str, Any]:
        return load_plain(f)


def iteration_of(path: Path) -> float | None:
    """The iteration in the name of a checkpoint to resume from, infinite for the final one; ``None`` for others."""
    if path.name == "model_final.pth":
        return float("inf")
    number = re.fullmatch(r"model_(\d+)\.pth", path.name)
    return int(number[1]) if number else None
