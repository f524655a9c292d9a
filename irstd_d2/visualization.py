"""Pictures in which a target of 3x3 pixels can be seen: markers around it, never on it, and zoomed insets."""

from __future__ import annotations

from collections.abc import Sequence
from os import PathLike
from pathlib import Path

import cv2
import numpy as np

TARGET_COLOUR = (80, 220, 80)  # RGB
TRUE_COLOUR = (90, 170, 255)
FALSE_COLOUR = (255, 90, 60)
SKY_COLOUR = (120, 160, 255)
INSET_PIXELS = 32  # edge of an inset in pixels of the image


def to_bytes(image: np.ndarray) -> np.ndarray:
    """(H, W, 3) in any range -> uint8 with the image's own range stretched to 0..255."""
    low, high = float(image.min()), float(image.max())
    return ((image - low) * (255 / max(high - low, 1e-6))).astype(np.uint8)


def enlarge(image: np.ndarray, zoom: int) -> np.ndarray:
    """Repeat every pixel ``zoom`` times in both directions."""
    return np.ascontiguousarray(np.repeat(np.repeat(image, zoom, 0), zoom, 1))


def draw_brackets(
    canvas: np.ndarray, box: np.ndarray, colour: tuple[int, int, int], *, zoom: int = 1, gap: int = 2
) -> None:
    """Mark a box by its corners, ``gap`` canvas pixels outside of it, in place.

    Args:
        canvas: (H * zoom, W * zoom, 3) uint8.
        box: x1 y1 x2 y2 in pixels of the image.
        colour: RGB.
        zoom: canvas pixels per pixel of the image.
        gap: canvas pixels between box and mark.
    """
    x1, y1 = np.round(np.asarray(box[:2]) * zoom).astype(int) - gap - 1
    x2, y2 = np.round(np.asarray(box[2:]) * zoom).astype(int) + gap
    arm = max(3, min(x2 - x1, y2 - y1) // 4)
    for x, y, dx, dy in ((x1, y1, 1, 1), (x2, y1, -1, 1), (x1, y2, 1, -1), (x2, y2, -1, -1)):
        cv2.line(canvas, (int(x), int(y)), (int(x + dx * arm), int(y)), colour, 1)
        cv2.line(canvas, (int(x), int(y)), (int(x), int(y + dy * arm)), colour, 1)


def draw_detections(
    image: np.ndarray,
    *,
    targets: np.ndarray | None = None,
    boxes: np.ndarray | None = None,
    scores: np.ndarray | None = None,
    correct: np.ndarray | None = None,
    sky: np.ndarray | None = None,
    edge: int = 512,
    insets: int = 3,
) -> np.ndarray:
    """Draw targets and detections on an enlarged image, with insets beside it.

    Args:
        image: (H, W, 3) RGB in any range.
        targets: (G, 4) ground truth, or ``None``.
        boxes: (D, 4) detections, or ``None``.
        scores: (D,) written in the insets.
        correct: (D,) bool, colours detections; all count as correct by default.
        sky: (H, W) bool, its outline is drawn.
        edge: the enlarged image is at most about this long, and never smaller than the image.
        insets: number of zoomed parts, around the best detections and the targets without one.

    Returns:
        (height, width, 3) uint8 RGB
    """
    targets = np.zeros((0, 4)) if targets is None else np.asarray(targets, float).reshape(-1, 4)
    boxes = np.zeros((0, 4)) if boxes is None else np.asarray(boxes, float).reshape(-1, 4)
    scores = np.ones(len(boxes)) if scores is None else np.asarray(scores)
    correct = np.ones(len(boxes), bool) if correct is None else np.asarray(correct)
    height, width = image.shape[:2]
    zoom = max(1, edge // max(height, width))
    pixels = to_bytes(image)

    def draw(canvas: np.ndarray, zoom: int, corner: np.ndarray) -> np.ndarray:
        for box in targets:
            draw_brackets(canvas, box - np.tile(corner, 2), TARGET_COLOUR, zoom=zoom, gap=1)
        for box, right in zip(boxes, correct):
            colour = TRUE_COLOUR if right else FALSE_COLOUR
            draw_brackets(canvas, box - np.tile(corner, 2), colour, zoom=zoom, gap=4)
        return canvas

    canvas = enlarge(pixels, zoom)
    if sky is not None:
        outline, _ = cv2.findContours(enlarge(sky.astype(np.uint8), zoom), cv2.RETR_LIST, cv2.CHAIN_APPROX_NONE)
        cv2.drawContours(canvas, outline, -1, SKY_COLOUR, 1)
    canvas = draw(canvas, zoom, np.zeros(2))
    centres = _inset_centres(targets, boxes, scores, insets)
    if not len(centres):
        return canvas
    inset_edge = max(canvas.shape[0] // insets, 2 * INSET_PIXELS)
    inset_zoom = max(2, inset_edge // INSET_PIXELS)
    column = []
    for centre in centres:
        corner = np.clip(
            np.round(centre - INSET_PIXELS / 2), 0, np.maximum([width, height] - np.array(INSET_PIXELS), 0)
        )
        x, y = corner.astype(int)
        part = enlarge(pixels[y : y + INSET_PIXELS, x : x + INSET_PIXELS], inset_zoom)
        part = draw(part, inset_zoom, corner)
        _write_scores(part, boxes, scores, corner, inset_zoom)
        frame = np.zeros((INSET_PIXELS * inset_zoom, INSET_PIXELS * inset_zoom, 3), np.uint8)
        frame[: part.shape[0], : part.shape[1]] = part
        column.append(frame)
    return _beside(canvas, np.concatenate(column))


def _inset_centres(targets: np.ndarray, boxes: np.ndarray, scores: np.ndarray, count: int) -> np.ndarray:
    """Centres of the parts worth a look: best detections first, then targets, none close to another."""
    order = np.argsort(-scores, kind="stable")
    candidates = np.concatenate([boxes[order], targets])
    chosen: list[np.ndarray] = []
    for centre in (candidates[:, :2] + candidates[:, 2:]) / 2:
        if len(chosen) < count and all(np.abs(centre - c).max() > INSET_PIXELS / 2 for c in chosen):
            chosen.append(centre)
    return np.array(chosen)


def _write_scores(part: np.ndarray, boxes: np.ndarray, scores: np.ndarray, corner: np.ndarray, zoom: int) -> None:
    for box, score in zip(boxes, scores):
        x, y = ((box[[0, 3]] - corner) * zoom).astype(int)
        if 0 <= x < part.shape[1] and 0 <= y < part.shape[0]:
            cv2.putText(part, f"{score:.2f}", (int(x), int(y) + 16), cv2.FONT_HERSHEY_SIMPLEX, 0.35, (255, 255, 90), 1)


def _beside(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    height = max(len(left), len(right))
    padded = [np.pad(part, ((0, height - len(part)), (0, 0), (0, 0))) for part in (left, right)]
    gap = np.zeros((height, 4, 3), np.uint8)
    return np.concatenate([padded[0], gap, padded[1]], axis=1)


def contact_sheet(pictures: Sequence[np.ndarray], columns: int = 3) -> np.ndarray:
    """Lay out (h, w, 3) pictures in rows, top left aligned on black."""
    height = max(p.shape[0] for p in pictures) + 6
    width = max(p.shape[1] for p in pictures) + 6
    rows = -(-len(pictures) // columns)
    sheet = np.zeros((rows * height, min(columns, len(pictures)) * width, 3), np.uint8)
    for i, picture in enumerate(pictures):
        y, x = (i // columns) * height, (i % columns) * width
        sheet[y : y + picture.shape[0], x : x + picture.shape[1]] = picture
    return sheet


def write_picture(path: str | PathLike, picture: np.ndarray) -> None:
    """Write an RGB picture as PNG, whatever characters the path has."""
    done, data = cv2.imencode(".png", picture[..., ::-1])
    if not done:
        raise ValueError(f"OpenCV could not encode a picture of shape {picture.shape}")
    Path(path).write_bytes(data.tobytes())
