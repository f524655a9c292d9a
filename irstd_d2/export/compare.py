"""How far the detections of an exported file are from those of the model.

Letters in shapes: D and E detections of the two.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .runtime import Detections

PARTNER = 1.0  # pixels within which a detection is taken for the same


# Single precision does not order scores that differ by less.
NEGLIGIBLE_SCORE = 1e-6


@dataclass(frozen=True)
class Difference:
    """Of two sets of detections.

    Attributes:
        pairs: detections that both have.
        boxes: largest difference of a coordinate in a pair, in pixels.
        scores: largest difference of the scores of a pair.
        unpaired: detections that only one of them has.
        unpaired_score: their highest score; 0 without any.
    """

    pairs: int
    boxes: float
    scores: float
    unpaired: int
    unpaired_score: float

    def within(self, boxes: float, scores: float) -> bool:
        """Whether everything has a partner within these tolerances.

        Of negligible scores, rounding decides which of two overlapping boxes suppresses the other; these need none.
        """
        return self.unpaired_score <= NEGLIGIBLE_SCORE and self.boxes <= boxes and self.scores <= scores


def compare_detections(expected: Detections, found: Detections) -> Difference:
    """Pair the detections of one image, the best first, and measure how far the pairs are apart.

    Equal scores may come in any order, so partners are found by place: the free detection of the same class with the
    nearest box, at most ``PARTNER`` pixels away, is the partner.
    """
    distance = np.abs(expected.boxes[:, None] - found.boxes[None]).max(2, initial=0)
    distance[expected.classes[:, None] != found.classes[None]] = np.inf
    pairs = []
    for row in np.argsort(-expected.scores, kind="stable"):
        if distance.shape[1] and distance[row].min() <= PARTNER:
            column = int(distance[row].argmin())
            pairs.append((int(row), column, float(distance[row, column])))
            distance[:, column] = np.inf
    rows, columns = [p[0] for p in pairs], [p[1] for p in pairs]
    lonely = np.concatenate([np.delete(expected.scores, rows), np.delete(found.scores, columns)])
    return Difference(
        pairs=len(pairs),
        boxes=max((p[2] for p in pairs), default=0.0),
        scores=float(np.abs(expected.scores[rows] - found.scores[columns]).max(initial=0)),
        unpaired=len(lonely),
        unpaired_score=float(lonely.max(initial=0)),
    )
