"""Reading and writing checkpoint files of others, without running what they may contain."""

from __future__ import annotations

import pickle
import re
from collections import OrderedDict
from collections.abc import Callable, Mapping
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


def _as_dict(*_args: object) -> dict[object, object]:
    """Stands for the type of a dict that is filled item by item."""
    return {}


def _as_list(*_args: object) -> list[object]:
    """Stands for the type of a list that is filled item by item."""
    return []


_PATHS = "Path PosixPath PurePosixPath PureWindowsPath WindowsPath"
# What mmengine and its users write beside the weights: curves of the message hub, schedules, configurations, times,
# paths. Each name gives an inert object; nothing of these modules is called, getattr included.
_HARMLESS = {
    "argparse": "Namespace",
    "builtins": "Ellipsis bool bytes dict float frozenset getattr int list range slice str tuple",
    "datetime": "date datetime time timedelta timezone",
    "mmengine.config.config": "Config ConfigDict",
    "mmengine.config.lazy": "LazyAttr LazyObject",
    "mmengine.logging.history_buffer": "HistoryBuffer",
    "mmengine.logging.message_hub": "MessageHub",
    "mmengine.optim.scheduler.param_scheduler": "OneCycleParamScheduler",
    "numpy": "bool dtype float16 float32 float64 int16 int32 int64 int8 ndarray uint16 uint32 uint64 uint8",
    "numpy._core.multiarray": "_reconstruct scalar",
    "numpy.core.multiarray": "_reconstruct scalar",  # of numpy 1
    "pathlib": _PATHS,
    "pathlib._local": _PATHS,  # of Python 3.13
}
_STAND_INS: list[Callable[..., Any] | tuple[Callable[..., Any], str]] = [
    *((_Inert, f"{module}.{name}") for module, names in _HARMLESS.items() for name in names.split()),
    (_as_dict, "collections.defaultdict"),
    (_as_list, "collections.deque"),
]

# Modules that are put around others, for several processes, compilation or an average of the weights, and the counts
# of such averages, which stand beside the averaged ``module``.
_WRAPPERS = {"module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"}
_COUNTS = {"steps", "n_averaged"}


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
        with torch.serialization.safe_globals(_STAND_INS if stand_ins else []):
            return torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)
    except pickle.UnpicklingError as error:
        problem = f"cannot be read, for it is damaged or holds objects that are not plain tensors ({_refused(error)})"
        fix = "fetch or train it again; if you trust its author, load it once elsewhere and save its state dict alone "
        fix += "with torch.save" + ("" if stand_ins else "; irstd convert-checkpoint reads what mmengine saves")
        raise DatasetError(path, "file", problem, fix) from error
    except (FileNotFoundError, IsADirectoryError, PermissionError) as error:
        problem = f"cannot be opened ({error.strerror})"
        raise DatasetError(path, "file", problem, "check its path and rights") from error
    except Exception as error:  # a damaged pickle may end in any: IndexError, struct.error, UnicodeDecodeError...
        problem = f"cannot be read, for it is damaged or no checkpoint ({_reason(error)})"
        raise DatasetError(path, "file", problem, "check the path, or fetch or train it again") from error


def _refused(error: Exception) -> str:
    """The name of the object at which reading stopped, or why else it did."""
    found = re.search(r"GLOBAL `?([\w.]+)", str(error)) or re.search(r"WeightsUnpickler error:\s+(.+)", str(error))
    return found[1] if found else _reason(error)


def _reason(error: Exception) -> str:
    return f"{type(error).__name__} {str(error).partition(chr(10))[0]}".rstrip()


def read_state_dict(path: str | PathLike) -> dict[str, Tensor]:
    """Read the tensors of a checkpoint, from ``{"state_dict": ...}``, ``{"model": ...}`` or a plain dict.

    Names are those of the model itself, without wrappers around it or around a part.

    Raises:
        DatasetError: for a file that :func:`load_plain` refuses, that holds no tensors, other things among them,
            or two of one name.
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
    result: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        if not isinstance(name, str):
            raise DatasetError(path, "file", f"{name!r} is no name of a tensor", "save the state dict of a model")
        *modules, last = name.split(".")
        beside = ".".join([*modules, "module."])
        if last in _COUNTS and _WRAPPERS.issuperset(modules) and any(str(k).startswith(beside) for k in tensors):
            continue
        new = ".".join([module for module in modules if module not in _WRAPPERS] + [last])
        if new in result:
            problem = f"two tensors are called {new}, the second as {name}"
            raise DatasetError(path, "file", problem, "save the state dict of one model")
        result[new] = tensor
    return result


def with_versions(state: Mapping[str, Tensor]) -> OrderedDict[str, Tensor]:
    """The state with the versions of its modules, as ``Module.state_dict`` gives it.

    Without them mmdet's heads take it for one of an old version, and rename what ends in ``cls``.
    """
    result: OrderedDict[str, Tensor] = OrderedDict(state)
    parts = [name.split(".")[:-1] for name in state]
    modules = dict.fromkeys(".".join(part[:end]) for part in parts for end in range(len(part) + 1))
    # Those of torch: batch norms that count batches have a 2.
    versions = {name: {"version": 2 if f"{name}.num_batches_tracked" in state else 1} for name in modules}
    result._metadata = versions  # type: ignore[attr-defined]
    return result


def write_checkpoint(content: Mapping[str, object], path: str | PathLike) -> None:
    """Write a checkpoint so that a complete file, old or new, exists at every moment."""
    write_atomically(path, lambda file: torch.save(dict(content), file))
