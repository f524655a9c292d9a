"""What a reader of annotations found, before anything is refused."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from detectron2.utils.logger import log_first_n

from .classes import ClassTable
from .faults import Fault, refuse_or_skip


@dataclass(frozen=True)
class Scan:
    """Images, classes and faults of a set.

    Args:
        dicts: detectron2's dataset dicts of all sound images.
        faults: of the other images.
        left_out: number of objects of other classes, by their names; their images are kept.
        notes: remarks on what is sound but worth knowing.
    """

    dicts: list[dict[str, Any]]
    classes: ClassTable
    faults: list[Fault]
    left_out: Mapping[str, int] = field(default_factory=Counter)
    notes: tuple[str, ...] = ()

    def accept(self, source: str, *, skip_bad: bool) -> list[dict[str, Any]]:
        """Return the dicts, or refuse the set; ``source`` is for messages.

        With ``skip_bad`` faulty images are left out, with one logged summary.

        Raises:
            DatasetError: there are faults and ``skip_bad`` is off.
        """
        refuse_or_skip(self.faults, skip_bad, source)
        for remark in self.remarks():
            log_first_n(logging.INFO, f"{source}: {remark}", key="message")  # a set is read for every evaluator
        log_first_n(logging.INFO, f"Loaded {len(self.dicts)} images from {source}", key="message")
        return self.dicts

    def remarks(self) -> list[str]:
        """The notes, and one line on the objects of other classes if there are any."""
        if not self.left_out:
            return list(self.notes)
        counts = ", ".join(f"{count} x {name}" for name, count in Counter(self.left_out).most_common())
        return [*self.notes, f"left out {sum(self.left_out.values())} objects of other classes: {counts}"]
