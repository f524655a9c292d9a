"""Weights and inputs that anyone can make again from names, shapes and seeds.

The values of a tensor are drawn by ``numpy.random.default_rng(zlib.crc32(name))`` in double precision, scaled by its
rule, and rounded once to single precision.
"""

from __future__ import annotations

import math
import re
import zlib
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

# Gain and offset behind the kind, e.g. "he*0.3" and "bias+-3.5".
_SCALED = re.compile(r"(?P<kind>he|bias)(?:\*(?P<gain>[\d.e-]+))?(?:\+(?P<offset>[-\d.e]+))?")


def tensor_values(name: str, shape: Sequence[int], rule: str) -> np.ndarray:
    """Draw the values of one tensor.

    Args:
        name: published name, the seed.
        rule: "int_zero" and "const=C": without chance; "running_var" uniform in 0.5..1.5; "running_mean" normal of
            deviation 0.1; "norm" and "scalar" the same around 1; "bias*G+C" normal of deviation 0.02 G around C;
            "he*G+C" that of deviation G sqrt(2 / inputs) around C. G is 1 and C is 0 where they are not written.

    Raises:
        ValueError: for an unknown rule.
    """
    shape = tuple(shape)
    if rule == "int_zero":
        return np.zeros(shape, np.int64)
    if rule.startswith("const="):
        return np.full(shape, float(rule.removeprefix("const=")), np.float32)
    rng = np.random.default_rng(zlib.crc32(name.encode()))
    if rule == "running_var":
        values = 0.5 + rng.random(shape)
    elif rule == "running_mean":
        values = 0.1 * rng.standard_normal(shape)
    elif rule in ("norm", "scalar"):
        values = 1 + 0.1 * rng.standard_normal(shape)
    else:
        match = _SCALED.fullmatch(rule)
        if match is None:
            raise ValueError(f"{name}: no rule is called {rule!r}")
        gain, offset = float(match["gain"] or 1), float(match["offset"] or 0)
        normal = rng.standard_normal(shape)
        # The order of the factors decides the last bit.
        values = (
            0.02 * gain * normal if match["kind"] == "bias" else gain * normal * np.sqrt(2.0 / math.prod(shape[1:]))
        )
        values = offset + values
    return np.asarray(values, dtype=np.float32)


def published_state(rules: Mapping[str, tuple[Sequence[int], str]]) -> dict[str, Tensor]:
    """Make a state dict of (shape, rule) per name."""
    return {name: torch.from_numpy(tensor_values(name, shape, rule)) for name, (shape, rule) in rules.items()}


def image(seed: int, shape: Sequence[int]) -> Tensor:
    """Standard normal numbers in float32."""
    return torch.from_numpy(np.random.default_rng(seed).standard_normal(tuple(shape)).astype(np.float32))
