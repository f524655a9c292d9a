"""A table of differences: what was compared, the largest difference, and the tolerance."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from ..checkpoint.naming import NameMap
from .reference import Reference, sampled_as, six_sums

RELATIVE = 5e-5  # of the largest magnitude of an array
BOXES, SCORES = 0.005, 1e-4  # pixels, and absolute


@dataclass(frozen=True)
class Row:
    """One line of the table.

    Attributes:
        what: the part of a model.
        numbers: how many were compared, by themselves or in sums over them.
        difference, tolerance: the largest one, and what is allowed.
        unit: of both: "relative", "px", "absolute".
        worst: the array with the largest difference.
    """

    what: str
    numbers: int
    difference: float
    tolerance: float
    unit: str
    worst: str

    @property
    def ok(self) -> bool:
        """Whether the difference is within the tolerance; one that is not a number is not."""
        return self.difference <= self.tolerance


class Comparison:
    """Collects differences; those of the same part become one row, which shows the worst.

    Attributes:
        compared: (file, array) of the reference that were compared.
    """

    def __init__(self) -> None:
        self._rows: dict[tuple[str, str], Row] = {}
        self.compared: set[tuple[str, str]] = set()

    @property
    def rows(self) -> list[Row]:
        """The table so far."""
        return list(self._rows.values())

    def add(self, what: str, name: str, difference: float, tolerance: float, *, numbers: int, unit: str) -> None:
        """Add a difference to the row of a part; with several tolerances the row shows the one nearest to failing."""
        if np.isnan(difference):
            difference = np.inf
        row = Row(what, numbers, float(difference), tolerance, unit, name)
        known = self._rows.get((what, unit))
        if known is not None:
            worse = max(known, row, key=lambda r: r.difference / r.tolerance if r.tolerance else r.difference * np.inf)
            row = replace(worse, numbers=known.numbers + numbers)
        self._rows[what, unit] = row

    def values(
        self, what: str, actual: Tensor | np.ndarray, reference: Reference, name: str, tolerance: float = RELATIVE
    ) -> None:
        """Compare an array with one of the reference, relative to the largest magnitude."""
        self.compared.add((reference.name, name))
        actual = _array(actual)
        if actual.shape != reference.shape(name):
            self.add(what, f"{name}, whose shape is {actual.shape}", np.inf, tolerance, numbers=0, unit="relative")
            return
        found, expected, scale = reference.pairs(name, actual)
        self._relative(what, name, found, expected, scale, tolerance, numbers=actual.size)
        if sums := reference.sums(name, actual):
            # The plain sum cancels; the others are compared one by one.
            self._relative(what, name, sums[0][[0, 1, 4, 5]], sums[1][[0, 1, 4, 5]], scale, tolerance)
            self._relative(what, name, sums[0][3:4], sums[1][3:4], float(sums[1][3]), tolerance)

    def sample(self, what: str, actual: Tensor, reference: Reference, name: str, tolerance: float = RELATIVE) -> None:
        """Compare a feature map with ``name_sample`` and ``name_summary``."""
        self.values(what, sampled_as(actual, reference.shape(f"{name}_sample")), reference, f"{name}_sample", tolerance)
        self.summary(what, actual, reference, name, tolerance)

    def summary(self, what: str, actual: Tensor, reference: Reference, name: str, tolerance: float = RELATIVE) -> None:
        """Compare the sums over a feature map with ``name_summary``, all but the plain sum, which cancels."""
        self.compared.add((reference.name, f"{name}_summary"))
        expected, found = reference[f"{name}_summary"], six_sums(_array(actual))
        scale = float(np.abs(expected[4:]).max())
        self._relative(what, name, found[[0, 1, 4, 5]], expected[[0, 1, 4, 5]], scale, tolerance, numbers=0)
        self._relative(what, name, found[3:4], expected[3:4], float(expected[3]), tolerance, numbers=actual.numel())

    def number(self, what: str, name: str, actual: float, expected: float, tolerance: float) -> None:
        """Compare one number, relative to the reference."""
        self._relative(what, name, np.array([actual]), np.array([expected]), abs(expected), tolerance, numbers=1)

    def same(
        self, what: str, actual: Tensor | np.ndarray, reference: Reference, name: str, *, any_order: bool = False
    ) -> None:
        """Compare whole numbers, such as indices and counts: the share that differs must be zero.

        With ``any_order`` those of the reference are sorted first.
        """
        self.compared.add((reference.name, name))
        found, expected = _array(actual), np.sort(reference[name]) if any_order else reference[name]
        wrong = float(np.mean(found != expected)) if found.shape == expected.shape and found.size else 0.0
        if found.shape != expected.shape:
            wrong = 1.0
        self.add(what, name, wrong, 0.0, numbers=expected.size, unit="share")

    def boxes(self, what: str, actual: Tensor, reference: Reference, name: str, tolerance: float) -> None:
        """Compare boxes with those of the reference, in pixels, one by one."""
        self.compared.add((reference.name, name))
        found, expected, _ = reference.pairs(name, _array(actual))
        difference = np.abs(found - expected).max(initial=0)
        self.add(what, name, difference, tolerance, numbers=actual.numel(), unit="px")

    def detections(
        self,
        what: str,
        boxes: Tensor,
        scores: Tensor,
        reference: Reference,
        name: str,
        *,
        box_tolerance: float = BOXES,
        score_tolerance: float = SCORES,
    ) -> None:
        """Compare detections with rows (D, 5) of boxes and score as sets: every row needs a partner of its own.

        A different number of detections is an infinite difference.
        """
        self.compared.add((reference.name, name))
        expected = reference[name]
        pixels, score = paired_differences(_array(boxes), _array(scores), expected, box_tolerance, score_tolerance)
        self.add(f"{what}: boxes", name, pixels, box_tolerance, numbers=4 * len(expected), unit="px")
        self.add(f"{what}: scores", name, score, score_tolerance, numbers=len(expected), unit="absolute")

    def gradients(
        self,
        what: str,
        gradients: Mapping[str, Tensor | None],
        reference: Reference,
        tolerance: float = 1e-3,
        *,
        tolerances: Mapping[str, float] | None = None,
        scales: Mapping[str, float] | None = None,
    ) -> None:
        """Compare sums of gradients, and sums of their magnitudes, relative to the latter.

        Args:
            gradients: published name of every parameter that exists in our model -> gradient, ``None`` for none.
            reference: has ``grad_names``, ``grad_is_none`` and ``grad_sum_abssum``.
            tolerance: of all parameters but those in ``tolerances``, by published name.
            scales: published name -> what the difference is relative to, for gradients that are zero but for rounding.
        """
        self.compared |= {(reference.name, f"grad_{name}") for name in ("names", "is_none", "sum_abssum")}
        for name, none, sums in zip(
            map(str, reference["grad_names"]), reference["grad_is_none"], reference["grad_sum_abssum"]
        ):
            gradient = gradients.get(name)
            if none or gradient is None:
                difference = 0.0 if none and gradient is None else np.inf
                self.add(what, name, difference, tolerance, numbers=0, unit="relative")
                continue
            found = torch.stack([gradient.double().sum(), gradient.double().abs().sum()]).numpy()
            scale = (scales or {}).get(name, max(float(sums[1]), 1e-6))
            limit = (tolerances or {}).get(name, tolerance)
            self._relative(what, name, found, sums, scale, limit, numbers=gradient.numel())

    def _relative(
        self,
        what: str,
        name: str,
        found: np.ndarray,
        expected: np.ndarray,
        scale: float,
        tolerance: float,
        numbers: int = 0,
    ) -> None:
        difference = np.abs(found.astype(np.float64) - expected).max(initial=0) / max(scale, 1e-12)
        self.add(what, name, difference, tolerance, numbers=numbers, unit="relative")


def paired_differences(
    boxes: np.ndarray, scores: np.ndarray, expected: np.ndarray, box_tolerance: float, score_tolerance: float
) -> tuple[float, float]:
    """Largest differences between detections, (D, 4) and (D,), and their partners (E, 5), in pixels and in score.

    Every expected row takes, in its order, the nearest detection that is still free; nearness is measured in
    tolerances. Infinite if D is not E.
    """
    if len(boxes) != len(expected):
        return np.inf, np.inf
    free = np.ones(len(boxes), bool)
    largest = np.zeros(2)
    for row in expected:
        pixels, score = np.abs(boxes - row[:4]).max(1), np.abs(scores - row[4])
        distance = np.where(free, np.maximum(pixels / box_tolerance, score / score_tolerance), np.inf)
        best = int(distance.argmin())
        free[best] = False
        largest = np.maximum(largest, [pixels[best], score[best]])
    return float(largest[0]), float(largest[1])


def our_names(names: NameMap, published: Iterable[str]) -> dict[str, str]:
    """Published name -> our name, of those that have one."""
    order = list(published)
    renamed = names.to_ours({name: torch.tensor(number) for number, name in enumerate(order)})
    return {order[int(number)]: ours for ours, number in renamed.values.items()}


def _array(x: Tensor | np.ndarray) -> np.ndarray:
    return x.detach().cpu().numpy() if isinstance(x, Tensor) else np.asarray(x)
