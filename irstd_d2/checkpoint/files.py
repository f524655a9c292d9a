"""Reading and writing checkpoint files of others, without running what they may contain."""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from os import PathLike, fspath
from typing import Any

import torch
from torch import Tensor

from ..errors import DatasetError
from ..files import write_atomically
from .safe import SUFFIX, read_safetensors


def load_plain(path: str | PathLike, *, mmap: bool = False) -> Any:
    """Read what ``torch.save`` or :func:`write_safetensors` wrote: tensors and plain data; nothing in it is run.

    Args:
        path: the file.
        mmap: leave the tensors on the disk until they are used.

    Raises:
        DatasetError: for a file that is missing, damaged, or holds objects other than plain data and tensors.
    """
    if fspath(path).endswith(SUFFIX):
        return read_safetensors(path)
    try:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)
    except pickle.UnpicklingError as error:
        raise DatasetError(
            path,
            "file",
            f"cannot be read, for it is damaged or holds objects that are not plain tensors ({_reason(error)})",
            "fetch or train it again; if you trust its author, load it once elsewhere and save its state dict alone "
            "with torch.save",
        ) from error
    except Exception as error:  # a damaged pickle may end in any: IndexError, struct.error, UnicodeDecodeError...
        raise DatasetError(
            path, "file", f"cannot be read ({_reason(error)})", "check the path, or fetch or train it again"
        ) from error


def _reason(error: Exception) -> str:
    return str(error).splitlines()[0] if str(error) else type(error).__name__


def read_state_dict(path: str | PathLike) -> dict[str, Tensor]:
    """Read the tensors of a checkpoint, from ``{"state_dict": ...}``, ``{"model": ...}`` or a plain dict.

    Raises:
        DatasetError: for a file that :func:`load_plain` refuses, or that holds no tensors.
    """
    content = load_plain(path)
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
