"""The worst misses and false alarms of a run as zoomed crops."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..data import read_image
from ..evaluation.error_analysis import CLASSES, NO_ERROR
from ..evaluation.ground_truth import UNKNOWN, GroundTruth
from ..evaluation.matching import NO_TARGET, DetectionTable
from ..visualization import FALSE_COLOUR, TARGET_COLOUR, TRUE_COLOUR, draw_brackets, enlarge, to_bytes, write_scores
from .metrics import RunOnSet
from .pictures import data_uri

CROP = 48  # pixels of the original image on each side of a crop
ZOOM = 4


@dataclass(frozen=True)
class Case:
    """One picture of the gallery.

    Attributes:
        kind: ``miss`` or ``false alarm``.
        image: name of the file, and what is known of it.
        text: what is seen, for the caption.
        picture: data URI; empty if the file cannot be read, which ``text`` then says.
    """

    kind: str
    image: str
    text: str
    picture: str


@dataclass(frozen=True)
class Gallery:
    """The worst cases of a run at its best F1.

    Attributes:
        run: name of the run.
        threshold: detections below this score are left out.
        false_alarms, misses: how many there are in the whole data set.
        cases: the worst of both kinds, false alarms first.
    """

    run: str
    threshold: float
    false_alarms: int
    misses: int
    cases: tuple[Case, ...]


def worst_cases(run: RunOnSet, dicts: Sequence[dict[str, Any]], truth: GroundTruth, *, count: int = 12) -> Gallery:
    """Draw the false alarms with the highest scores and the largest targets that were missed, at the best F1.

    ``count`` pictures of each kind; at most one of a kind per image, so that a bad image does not fill the gallery.
    """
    # The table is sorted by score, and matching gives the best score its choice, so a cut changes no match above it.
    detections, verdicts = run.rescored.detections, run.rescored.verdicts
    kept = detections.rows(detections.scores >= run.threshold)
    matched = verdicts.target[: len(kept)]
    false = np.flatnonzero(verdicts.false[: len(kept)])
    found = np.zeros(len(truth.targets), bool)
    found[matched[matched != NO_TARGET]] = True
    missed = np.flatnonzero(~found & ~truth.targets.ignored)
    size = (truth.targets.boxes[missed, 2:] - truth.targets.boxes[missed, :2]).prod(1)
    missed = missed[np.argsort(-size, kind="stable")]

    def case(kind: str, image: int, box: np.ndarray, text: str) -> Case:
        name = Path(dicts[image]["file_name"]).name
        try:
            picture = _crop(dicts[image]["file_name"], image, box, kind, truth, kept, matched)
        except (OSError, ValueError) as error:
            text, picture = f"{text}; the image cannot be read: {error}", ""
        return Case(
            kind, " · ".join([name, *_facts(dicts[image])]), f"{text}, at x {box[0]:.0f}, y {box[1]:.0f}", picture
        )

    errors = run.rescored.errors
    cases = []
    for i in _one_per_image(false, kept.image, count):
        text = f"False alarm{_in_brackets(errors.detections[i])}, score {kept.scores[i]:.2f}"
        cases.append(case("false alarm", kept.image[i], kept.boxes[i], text))
    for i in _one_per_image(missed, truth.targets.image, count):
        x1, y1, x2, y2 = truth.targets.boxes[i]
        text = f"Missed target of {x2 - x1:.0f}\u00d7{y2 - y1:.0f} pixels{_in_brackets(errors.targets[i])}"
        cases.append(case("miss", truth.targets.image[i], truth.targets.boxes[i], text))
    return Gallery(run.name, run.threshold, len(false), len(missed), tuple(cases))


def _in_brackets(error: int) -> str:
    """The class of an error; what is wrong by distance may be right by overlap and then has none."""
    name = "" if error == NO_ERROR else CLASSES[error].removeprefix("missed ")
    return "" if name in ("", "otherwise") else f" ({name})"


def _one_per_image(rows: np.ndarray, image: np.ndarray, count: int) -> np.ndarray:
    _, first = np.unique(image[rows], return_index=True)
    return rows[np.sort(first)][:count]


def _facts(record: dict[str, Any]) -> list[str]:
    metadata = record.get("metadata") or {}
    return [str(metadata[key]) for key in ("platform", "band") if metadata.get(key) not in (None, UNKNOWN)]


def _crop(
    file_name: str,
    image_index: int,
    box: np.ndarray,
    kind: str,
    truth: GroundTruth,
    detections: DetectionTable,
    matched: np.ndarray,
) -> str:
    image = read_image(file_name, format="RGB")
    corner = np.round((box[:2] + box[2:] - CROP) / 2).astype(int)
    corner = np.clip(corner, 0, np.maximum(np.array(image.shape[1::-1]) - CROP, 0))
    crop = image[corner[1] : corner[1] + CROP, corner[0] : corner[0] + CROP]
    canvas = enlarge(to_bytes(crop), ZOOM)
    shift = np.tile(corner, 2)
    targets = truth.targets.boxes[truth.targets.image == image_index]
    for target in targets:
        draw_brackets(canvas, target - shift, TARGET_COLOUR, zoom=ZOOM)
    mine = np.flatnonzero(detections.image == image_index)
    for index in mine[::-1]:
        ink = FALSE_COLOUR if matched[index] == NO_TARGET else TRUE_COLOUR
        draw_brackets(canvas, detections.boxes[index] - shift, ink, zoom=ZOOM, gap=6)
    colour, gap = (FALSE_COLOUR, 6) if kind == "false alarm" else (TARGET_COLOUR, 2)
    draw_brackets(canvas, box - shift, colour, zoom=ZOOM, gap=gap, thickness=2)
    write_scores(canvas, detections.boxes[mine], detections.scores[mine], corner, ZOOM, targets=targets)
    return data_uri(canvas)
