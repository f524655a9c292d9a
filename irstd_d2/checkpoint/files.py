"""Reading and writing checkpoint files of others, without running what they may contain."""

from __future__ import annotations

import pickle
import re
from collections.abc import Mapping
from os import PathLike, fspath
from typing import Any

import torch
from torch import Tensor

from ..errors import DatasetError
from ..files import write_atomically
from .safe import SUFFIX, read_safetensors


class _Inert:
    """Stands for an object of another program: takes whatever it is made from and does nothing with it."""

    def __new__(cls, *_args: object) -> _Inert:
        return super().__new__(cls)

    def __init__(self, *_args: object):
        """Nothing is kept."""

    def __setstate__(self, state: object) -> None:
        """Nothing is kept."""


# What mmengine writes beside the weights: curves of its message hub, with numpy arrays and the names of their methods.
# Each name gives an inert object; none of the functions is called.
_STAND_INS = (
    "mmengine.logging.history_buffer.HistoryBuffer",
    "builtins.getattr",
    "_codecs.encode",
    "numpy.dtype",
    "numpy.ndarray",
    *(f"numpy.{core}.multiarray.{name}" for core in ("core", "_core") for name in ("_reconstruct", "scalar")),
)


def load_plain(path: str | PathLike, *, mmap: bool = False, stand_ins: bool = False) -> Any:
    """Read what ``torch.save`` or :func:`write_safetensors` wrote: tensors and plain data; nothing in it is run.

    ``mmap`` leaves the tensors on the disk until they are used. ``stand_ins`` reads the objects that mmengine writes
    beside the weights as inert ones; any other is still refused.

    Raises:
        DatasetError: for a file that is missing, damaged, or holds objects other than plain data and tensors.
    """
    if fspath(path).endswith(SUFFIX):
        return read_safetensors(path)
    try:
        with torch.serialization.safe_globals([(_Inert, name) for name in _STAND_INS] if stand_ins else []):
            return torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)
    except pickle.UnpicklingError as error:
        problem = f"cannot be read, for it is damaged or holds objects that are not plain tensors ({_refused(error)})"
        fix = "fetch or train it again; if you trust its author, load it once elsewhere and save its state dict alone "
        raise DatasetError(path, "file", problem, f"{fix}with torch.save") from error
    except (FileNotFoundError, IsADirectoryError, PermissionError) as error:
        problem = f"cannot be opened ({error.strerror})"
        raise DatasetError(path, "file", problem, "check its path and rights") from error
    except Exception as error:  # a damaged pickle may end in any: IndexError, struct.error, UnicodeDecodeError...
        problem = f"cannot be read, for it is damaged or no checkpoint ({_reason(error)})"
        raise DatasetError(path, "file", problem, "check the path, or fetch or train it again") from error


def _refused(error: Exception) -> str:
    """The name of the object at which reading stopped."""
    named = re.search(r"GLOBAL `?([\w.]+)", str(error))
    return named[1] if named else _reason(error)


def _reason(error: Exception) -> str:
    return f"{type(error).__name__} {str(error).partition(chr(10))[0]}".rstrip()


def read_state_dict(path: str | PathLike) -> dict[str, Tensor]:
    """Read the tensors of a checkpoint, from ``{"state_dict": ...}``, ``{"model": ...}`` or a plain dict.

    Raises:
        DatasetError: for a file that :func:`load_plain` refuses, that holds no tensors, or other things among them.
    """
    content = load_plain(path, stand_ins=True)
    for key in ("state_dict", "model"):
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
            # A plain dict may hold counts beside the weights; here each entry is a weight, and one left out is lost.
            for name, value in content.items():
                if not isinstance(value, Tensor):
                    problem = f"{name} is no tensor but {type(value).__name__.removeprefix('_').lower()}"
                    raise DatasetError(path, key, problem, "save the state dict of a model")
    tensors = {k: v for k, v in content.items() if isinstance(v, Tensor)} if isinstance(content, Mapping) else {}
    if not tensors:
        raise DatasetError(path, "file", "holds no tensors", "give a checkpoint with a state dict")
    return {name.removeprefix("module."): tensor for name, tensor in tensors.items()}


def write_checkpoint(content: Mapping[str, object], path: str | PathLike) -> None:
    """Write a checkpoint so that a complete file, old or new, exists at every moment."""
    write_atomically(path, lambda file: torch.save(dict(content), file))
