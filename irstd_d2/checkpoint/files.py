"""Reading and writing checkpoint files of others, without running what they may contain."""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from os import PathLike
from pathlib import Path

import torch
from torch import Tensor

from ..errors import DatasetError
from ..files import write_atomically


def read_state_dict(path: str | PathLike) -> dict[str, Tensor]:
    """Read the tensors of a checkpoint, from ``{"state_dict": ...}``, ``{"model": ...}`` or a plain dict.

    Raises:
        DatasetError: for a file that is missing, damaged, holds objects other than plain data and tensors, or no
            tensors.
    """
    path = Path(path)
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise DatasetError(
            path,
            "file",
            f"holds objects that are not plain tensors and was not opened ({str(error).splitlines()[0]})",
            "if you trust its author, load it once elsewhere and save its state dict alone with torch.save",
        ) from error
    except (OSError, EOFError, RuntimeError, KeyError) as error:
        raise DatasetError(
            path, "file", f"cannot be read ({error})", "check the path or fetch the file again"
        ) from error
    for key in ("state_dict", "model"):
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
    tensors = {k: v for k, v in content.items() if isinstance(v, Tensor)} if isinstance(content, Mapping) else {}
    if not tensors:
        raise DatasetError(path, "file", "holds no tensors", "give a checkpoint with a state dict")
    return {name.removeprefix("module."): tensor for name, tensor in tensors.items()}


def write_checkpoint(content: Mapping[str, object], path: str | PathLike) -> None:
    """Write a checkpoint so that a complete file, old or new, exists at every moment."""
    write_atomically(path, lambda file: torch.save(dict(content), file))
