"""The worst misses and false alarms of a run as zoomed crops."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from ..data import read_image
from ..evaluation.detection_probability import match_by_centre
from ..evaluation.ground_truth import GroundTruth
from ..evaluation.matching import NO_TARGET, DetectionTable
from ..visualization import FALSE_COLOUR, TARGET_COLOUR, TRUE_COLOUR, draw_brackets, enlarge, to_bytes

CROP = 48  # pixels of the original image on each side of a crop
ZOOM = 5


@dataclass(frozen=True)
class Case:
    """One picture of the gallery.

    Attributes:
        kind: ``miss`` or ``false alarm``.
        file_name: of the image, without its folder.
        text: what is seen, for the caption.
        picture: PNG as a data URI.
    """

    kind: str
    file_name: str
    text: str
    picture: str


def worst_cases(
    dicts: Sequence[dict[str, Any]], truth: GroundTruth, detections: DetectionTable, *, count: int = 12
) -> list[Case]:
    """Draw the false alarms with the highest scores and the missed targets, largest first.

    Args:
        dicts: the data set, in the order of ``truth``.
        truth: its ground truth.
        detections: of the run, sorted by score.
        count: pictures of each kind; at most one of a kind per image, so that a bad image does not fill the gallery.
    """
    matched, excused = match_by_centre(detections, truth.targets)
    false = np.flatnonzero((matched == NO_TARGET) & ~excused)
    found = np.zeros(len(truth.targets), bool)
    found[matched[matched != NO_TARGET]] = True
    missed = np.flatnonzero(~found & ~truth.targets.ignored)
    size = (truth.targets.boxes[missed, 2:] - truth.targets.boxes[missed, :2]).prod(1)
    missed = missed[np.argsort(-size, kind="stable")]

    cases = []
    for index in _one_per_image(false, detections.image, count):
        text = f"false alarm, score {detections.scores[index]:.2f}"
        cases.append(
            _case(
                "false alarm", detections.image[index], detections.boxes[index], text, dicts, truth, detections, matched
            )
        )
    for index in _one_per_image(missed, truth.targets.image, count):
        x1, y1, x2, y2 = truth.targets.boxes[index]
        text = f"missed target of {x2 - x1:.0f}x{y2 - y1:.0f} pixels"
        cases.append(
            _case(
                "miss", truth.targets.image[index], truth.targets.boxes[index], text, dicts, truth, detections, matched
            )
        )
    return cases


def _one_per_image(rows: np.ndarray, image: np.ndarray, count: int) -> np.ndarray:
    _, first = np.unique(image[rows], return_index=True)
    return rows[np.sort(first)][:count]


def _case(
    kind: str,
    image_index: int,
    box: np.ndarray,
    text: str,
    dicts: Sequence[dict[str, Any]],
    truth: GroundTruth,
    detections: DetectionTable,
    matched: np.ndarray,
) -> Case:
    file_name = dicts[image_index]["file_name"]
    image = read_image(file_name, format="RGB")
    corner = np.round((box[:2] + box[2:] - CROP) / 2).astype(int)
    corner = np.clip(corner, 0, np.maximum(np.array(image.shape[1::-1]) - CROP, 0))
    crop = image[corner[1] : corner[1] + CROP, corner[0] : corner[0] + CROP]
    canvas = enlarge(to_bytes(crop), ZOOM)
    shift = np.tile(corner, 2)
    for target in truth.targets.boxes[truth.targets.image == image_index]:
        draw_brackets(canvas, target - shift, TARGET_COLOUR, zoom=ZOOM)
    for index in np.flatnonzero(detections.image == image_index):
        if detections.scores[index] >= 0.05:
            colour = FALSE_COLOUR if matched[index] == NO_TARGET else TRUE_COLOUR
            draw_brackets(canvas, detections.boxes[index] - shift, colour, zoom=ZOOM, gap=6)
    return Case(kind, Path(file_name).name, text, _data_uri(canvas))


def _data_uri(canvas: np.ndarray) -> str:
    done, data = cv2.imencode(".png", canvas[..., ::-1])
    if not done:
        raise RuntimeError("OpenCV could not encode a picture of the gallery")
    return "data:image/png;base64," + base64.b64encode(data.tobytes()).decode("ascii")
