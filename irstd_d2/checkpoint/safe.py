"""Weights in half precision as safetensors: no pickle, half the size, facts about the model in the header."""

from __future__ import annotations

import json
from collections.abc import Mapping
from os import PathLike, fspath
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from ..errors import DatasetError
from ..files import write_atomically

SUFFIX = ".safetensors"
_FACTS = "irstd_d2"


def read_safetensors(path: str | PathLike) -> dict[str, Any]:
    """Read ``{"model": {name: tensor}}``, single precision, and beside it the facts of :func:`write_safetensors`.

    Raises:
        DatasetError: the file is missing or damaged.
    """
    try:
        with safe_open(fspath(path), framework="pt") as file:
            # Not iterable itself.
            weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            facts = json.loads((file.metadata() or {}).get(_FACTS, "{}"))
    except (OSError, SafetensorError, ValueError) as error:
        raise DatasetError(path, "file", f"cannot be read ({error})", "fetch it again") from error
    return facts | {"model": {name: tensor.float() if tensor.dtype == torch.half else tensor
                              for name, tensor in weights.items()}}  # fmt: skip


def write_safetensors(path: str | PathLike, weights: Mapping[str, Tensor], facts: Mapping[str, Any]) -> None:
    """Write weights in half precision, with plain ``facts`` about them.

    Vectors (norms, biases), integers, and what half precision cannot hold stay as they are.
    """
    # Clones: the format knows no weights in common, such as those of the norms of several levels.
    halved = {name: _half(tensor.detach().cpu().contiguous().clone()) for name, tensor in weights.items()}
    write_atomically(path, save(halved, {_FACTS: json.dumps(dict(facts), sort_keys=True, allow_nan=False)}))


def _half(tensor: Tensor) -> Tensor:
    if tensor.ndim < 2 or tensor.dtype != torch.float32:
        return tensor
    half = tensor.half()
    return half if half.isfinite().all() else tensor
