"""Reference numbers in files: whole, or in a compact form that a package can hold.

In the compact form an array with many numbers is a sample of them at fixed positions and six sums over all.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from ..errors import DatasetError
from .generator import published_state

SAMPLE = 1024  # numbers that are kept of a larger array
SHAPE, NUMBERS, SUMS = "@shape", "@sample", "@sums"


def sample_positions(size: int) -> slice:
    """The positions of a flat array that are kept: every n-th, where n has no factor in common with the size.

    Otherwise all could lie in the same column.
    """
    step = max(1, -(-size // SAMPLE))
    while math.gcd(step, size) > 1:
        step += 1
    return slice(None, None, step)


def six_sums(values: np.ndarray) -> np.ndarray:
    """Mean, population deviation, sum, sum of magnitudes, least and largest, in float64."""
    a = np.asarray(values, dtype=np.float64)
    return np.array([a.mean(), a.std(), a.sum(), np.abs(a).sum(), a.min(), a.max()])


def compact_arrays(
    arrays: Mapping[str, np.ndarray], whole: Callable[[str], bool], without: Callable[[str], bool]
) -> dict[str, np.ndarray]:
    """Reduce the arrays of one file to the compact form.

    ``whole`` says whether an array is kept as it is however large (names and integers always are), ``without`` whether
    it is left out, as inputs that can be generated are.
    """
    result = {}
    for name, array in arrays.items():
        if without(name):
            continue
        if array.size <= SAMPLE or array.dtype.kind != "f" or whole(name):
            result[name] = array
        else:
            result[name + SHAPE] = np.array(array.shape, np.int32)
            result[name + NUMBERS] = array.ravel()[sample_positions(array.size)]
            result[name + SUMS] = six_sums(array)
    return result


@dataclass(frozen=True)
class Manifest:
    """What a published model is fed with.

    Attributes:
        rules: published name -> shape and rule; see ``generator.tensor_values``.
        images, gt_boxes: per image what is known of it, and (M, 4) in network pixels.
        parameters: how many numbers the published model has, and how many of them it can train.
    """

    rules: dict[str, tuple[list[int], str]]
    images: list[dict[str, Any]]
    gt_boxes: list[list[list[float]]]
    parameters: tuple[int, int]

    @cached_property
    def state(self) -> dict[str, Tensor]:
        """The published model's state dict."""
        return published_state(self.rules)


def read_manifest(path: Path) -> Manifest:
    """Read a manifest."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        rules = {entry["name"]: (entry["shape"], entry["rule"]) for entry in values["state_dict"]}
        counts = (values["params_total"], values["params_trainable"])
        return Manifest(rules, values["meta"], values["gt_boxes"], counts)
    except (KeyError, ValueError) as error:
        raise DatasetError(path, "manifest", f"cannot be read ({error})", "take the file of the release") from error


class Reference:
    """The arrays of one ``.npz`` file, whole or compact; ``name`` is that of the file, without its ending."""

    def __init__(self, path: Path):
        self.name = path.stem
        with np.load(path, allow_pickle=False) as file:
            self._arrays = dict(file)

    def names(self) -> set[str]:
        """The arrays, sampled ones included."""
        return {name.partition("@")[0] for name in self._arrays}

    def __getitem__(self, name: str) -> np.ndarray:
        """An array that is whole in both forms."""
        return self._arrays[name]

    def shape(self, name: str) -> tuple[int, ...]:
        """Of an array in its whole form."""
        if name in self._arrays:
            return self._arrays[name].shape
        return tuple(int(edge) for edge in self._arrays[name + SHAPE])

    def pairs(self, name: str, actual: np.ndarray) -> tuple[np.ndarray, np.ndarray, float]:
        """What is to be compared: numbers of an array, those of the reference, and the largest magnitude of all."""
        if name in self._arrays:
            expected = self._arrays[name]
            return actual.ravel(), expected.ravel(), float(np.abs(expected).max(initial=0))
        sums = self._arrays[name + SUMS]
        scale = float(np.abs(sums[4:]).max())
        return actual.ravel()[sample_positions(actual.size)], self._arrays[name + NUMBERS], scale

    def sums(self, name: str, actual: np.ndarray) -> tuple[np.ndarray, np.ndarray] | None:
        """The six sums of an array and of the reference, if that is sampled."""
        if name in self._arrays:
            return None
        return six_sums(actual), self._arrays[name + SUMS]


def sampled_as(x: Tensor, shape: Sequence[int]) -> Tensor:
    """Take every n-th entry of each dimension but the first, so that the shape is the given one."""
    steps = [a // b for a, b in zip(x.shape, shape)]
    return x[(slice(None), *(slice(None, None, step) for step in steps[1:]))]
