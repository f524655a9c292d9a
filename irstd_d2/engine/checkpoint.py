"""Checkpoints that survive a crash and never run code from a file."""

from __future__ import annotations

import os
import pickle
import re
from pathlib import Path
from typing import Any

import torch
from detectron2.checkpoint import DetectionCheckpointer

from ..errors import ConfigError

# What torch raises for a file that is empty, cut off or not a checkpoint.
_TORN = (EOFError, RuntimeError, pickle.UnpicklingError, KeyError, OSError)


def write_atomically(path: Path, write: Any) -> None:
    """Write a file so that at every moment either the old or the new one is complete.

    Args:
        path: the file.
        write: called with the open binary file.
    """
    partial = path.with_name(f".{path.name}.partial")
    with partial.open("wb") as file:
        write(file)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)


class IRSTDCheckpointer(DetectionCheckpointer):
    """detectron2's checkpointer with atomic writes, weights-only reading and a way back from a torn file."""

    def save(self, name: str, **kwargs: Any) -> None:
        """Save model and state as ``NAME.pth`` and make it the one that a resume takes."""
        if not self.save_dir or not self.save_to_disk:
            return
        data = {"model": self.model.state_dict()}
        data.update({key: obj.state_dict() for key, obj in self.checkpointables.items()})
        data.update(kwargs)
        path = Path(self.save_dir) / f"{name}.pth"
        self.logger.info("Saving checkpoint to %s", path)
        write_atomically(path, lambda file: torch.save(data, file))
        self.tag_last_checkpoint(path.name)

    def tag_last_checkpoint(self, last_filename_basename: str) -> None:
        path = Path(self.save_dir) / "last_checkpoint"
        write_atomically(path, lambda file: file.write(last_filename_basename.encode()))

    def resume_or_load(self, path: str, *, resume: bool = True) -> dict[str, Any]:
        """Resume from the newest readable checkpoint of the folder, else load the weights at ``path``.

        Raises:
            RuntimeError: when the folder has checkpoints but none can be read.
        """
        if not (resume and self.has_checkpoint()):
            return self.load(path, checkpointables=[])
        candidates = self._newest_first()
        for candidate in candidates:
            try:
                torch.load(candidate, map_location="cpu", weights_only=True, mmap=True)
            except _TORN as error:
                self.logger.warning("%s cannot be read (%s); going back to the one before", candidate, error)
                continue
            return self.load(str(candidate))
        raise RuntimeError(
            f"none of the {len(candidates)} checkpoints in {self.save_dir} can be read; "
            "remove the folder to start again, or restore one of them"
        )

    def _newest_first(self) -> list[Path]:
        def iteration(path: Path) -> int:
            number = re.fullmatch(r"model_(\d+)", path.stem)
            return int(number[1]) if number else -1

        tagged = Path(self.get_checkpoint_file())
        others = [Path(file) for file in self.get_all_checkpoint_files() if not Path(file).name.startswith(".")]
        others.sort(key=iteration, reverse=True)
        return [path for path in (tagged, *(p for p in others if p != tagged)) if path.exists()]

    def _load_file(self, filename: str) -> dict[str, Any]:
        if filename.endswith((".pkl", ".pyth")):
            raise ConfigError(
                f"MODEL.WEIGHTS is {filename}: pickle files can run code when they are read. Convert it once, from a "
                "source you trust, with tools/convert_checkpoint.py"
            )
        return super()._load_file(filename)

    def _torch_load(self, f: str) -> dict[str, Any]:
        return torch.load(f, map_location="cpu", weights_only=True)
