"""The published models' weights and inputs, regenerated from names alone, and comparison of sampled arrays."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch
from programs import load_program


def load_fill(oracle_dir: Path):
    return load_program(oracle_dir / "fill.py")


class Published:
    """Weights of a manifest and seeded images.

    Args:
        oracle_dir: folder of the reference numbers.
        manifest: file name of the model's manifest.
    """

    def __init__(self, oracle_dir: Path, manifest: str):
        self._fill = load_fill(oracle_dir)
        self.manifest = json.loads((oracle_dir / manifest).read_text())
        state = self._fill.regenerate(self.manifest)
        self.state = {k: torch.from_numpy(np.array(v)) for k, v in state.items()}

    def image(self, seed: int, shape: tuple[int, ...]) -> torch.Tensor:
        return torch.from_numpy(self._fill.image(seed, shape))


def assert_close(actual, expected, tolerance=5e-5, what=""):
    """Compare with a tolerance relative to the largest expected magnitude."""
    actual = actual.detach().numpy() if isinstance(actual, torch.Tensor) else np.asarray(actual)
    assert actual.shape == expected.shape, f"{what}: {actual.shape} against {expected.shape}"
    scale = max(np.abs(expected).max(initial=0), 1e-12)
    error = np.abs(actual - expected).max(initial=0) / scale
    assert error <= tolerance, f"{what}: relative error {error:.2e}"
    return error


def summary(x: torch.Tensor) -> np.ndarray:
    """[mean, population standard deviation, sum, sum of magnitudes, min, max] in float64."""
    a = x.detach().double().numpy()
    return np.array([a.mean(), a.std(), a.sum(), np.abs(a).sum(), a.min(), a.max()])


def assert_same_detections(boxes, scores, expected, box_tolerance=0.005, score_tolerance=1e-4):
    """Compare detections with (D, 5) expected rows as sets: every row has a partner, one to one."""
    boxes, scores = np.asarray(boxes), np.asarray(scores)
    assert len(boxes) == len(expected)
    free = np.ones(len(boxes), bool)
    for row in expected:
        distance = np.abs(boxes - row[:4]).max(1, initial=0) if len(boxes) else np.zeros(0)
        fits = free & (distance <= box_tolerance) & (np.abs(scores - row[4]) <= score_tolerance)
        assert fits.any(), f"no detection like {row}"
        free[np.flatnonzero(fits)[distance[fits].argmin()]] = False
