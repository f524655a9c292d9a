"""Pictures in which a target of 3x3 pixels can be seen: markers around it, never on it, and zoomed insets."""

from __future__ import annotations

import math
from collections.abc import Sequence
from os import PathLike

import cv2
import numpy as np

from .data.layout_writer import png_bytes
from .files import write_atomically

TARGET_COLOUR = (80, 220, 80)  # RGB
TRUE_COLOUR = (90, 170, 255)
FALSE_COLOUR = (255, 90, 60)
SKY_COLOUR = (120, 160, 255)
FRAME_COLOUR = (235, 235, 235)
TEXT_COLOUR = (255, 255, 120)
INSET_PIXELS = 32  # edge of an inset in pixels of the image; a multiple of it where a target is larger
INSET_MARGIN = 4  # pixels of the image around a target in its inset
INSET_ZOOM = 8  # at least; a target of 3x3 pixels then covers 24x24
Part = tuple[int, int, int]  # upper left pixel x, y and edge of a part of an image
_FONT, _FONT_SCALE = cv2.FONT_HERSHEY_SIMPLEX, 0.42


def to_bytes(image: np.ndarray) -> np.ndarray:
    """(H, W, 3) in any range -> uint8 with the image's own range stretched to 0..255."""
    low, high = float(image.min()), float(image.max())
    return ((image - low) * (255 / max(high - low, 1e-6))).astype(np.uint8)


def enlarge(image: np.ndarray, zoom: int) -> np.ndarray:
    """Repeat every pixel ``zoom`` times in both directions."""
    return np.ascontiguousarray(np.repeat(np.repeat(image, zoom, 0), zoom, 1))


def _scaled(image: np.ndarray, zoom: float) -> np.ndarray:
    if zoom >= 1 and zoom == int(zoom):
        return enlarge(image, int(zoom))
    size = max(1, round(image.shape[1] * zoom)), max(1, round(image.shape[0] * zoom))
    interpolation = cv2.INTER_AREA if zoom < 1 else cv2.INTER_NEAREST
    return np.ascontiguousarray(cv2.resize(image, size, interpolation=interpolation))


def draw_brackets(
    canvas: np.ndarray,
    box: np.ndarray,
    colour: tuple[int, int, int],
    *,
    zoom: float = 1,
    gap: int = 2,
    thickness: int = 1,
) -> None:
    """Mark a box by its corners, in place, ``gap`` canvas pixels outside of it, growing outwards to ``thickness``.

    Args:
        canvas: (H * zoom, W * zoom, 3) uint8.
        box: x1 y1 x2 y2 in pixels of the image, of which each takes ``zoom`` canvas pixels.
        colour: RGB.
    """
    for extra in range(thickness):
        x1, y1 = np.round(np.asarray(box[:2]) * zoom).astype(int) - gap - 1 - extra
        x2, y2 = np.round(np.asarray(box[2:]) * zoom).astype(int) + gap + extra
        bottom, right = canvas.shape[0] - 1, canvas.shape[1] - 1
        if x1 < 0 and y1 < 0 and x2 > right and y2 > bottom:  # fills the canvas, and would have no visible mark
            x1, y1, x2, y2 = extra, extra, right - extra, bottom - extra
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
    insets: int | Sequence[Part] = 3,
    inset_zoom: int | None = None,
    below: bool = False,
) -> np.ndarray:
    """Draw targets and detections on an enlarged image, with numbered insets beside it or below.

    Every inset is stretched to its own range of values, so that a faint target shows beside a bright one elsewhere.

    Args:
        image: (H, W, 3) RGB in any range.
        targets: (G, 4) ground truth, or ``None``.
        boxes: (D, 4) detections, or ``None``.
        scores: (D,) written in the insets, best first, where they do not cover another.
        correct: (D,) bool, colours detections; all count as correct by default.
        sky: (H, W) bool, the line between it and the rest is drawn.
        edge: the whole image is drawn about this long: enlarged by a whole number, or reduced if it is longer by half.
            With ``below`` it is drawn exactly this wide.
        insets: number of zoomed parts with every pixel, around the best detections and the targets without one; or
            these parts, see :func:`choose_parts`.
        inset_zoom: of the insets of ``INSET_PIXELS``, larger parts are reduced to their size; by default what fits, but
            at least ``INSET_ZOOM``.
        below: the insets stand in a row below the image, instead of in a column beside it.

    Returns:
        (height, width, 3) uint8 RGB
    """
    targets = np.zeros((0, 4)) if targets is None else np.asarray(targets, float).reshape(-1, 4)
    boxes = np.zeros((0, 4)) if boxes is None else np.asarray(boxes, float).reshape(-1, 4)
    scores = np.ones(len(boxes)) if scores is None else np.asarray(scores)
    correct = np.ones(len(boxes), bool) if correct is None else np.asarray(correct)
    order = np.argsort(-scores, kind="stable")
    boxes, scores, correct = boxes[order], scores[order], correct[order]
    height, width = image.shape[:2]
    scale = edge / (width if below else max(height, width))
    zoom = scale if below or scale < 2 / 3 else max(1, round(scale))
    pixels = to_bytes(image)

    def draw(canvas: np.ndarray, zoom: float, corner: np.ndarray) -> None:
        for box in targets:
            draw_brackets(canvas, box - np.tile(corner, 2), TARGET_COLOUR, zoom=zoom, gap=1)
        # The weakest first, so that the best stays on top.
        for box, right in zip(boxes[::-1], correct[::-1]):
            colour = TRUE_COLOUR if right else FALSE_COLOUR
            draw_brackets(canvas, box - np.tile(corner, 2), colour, zoom=zoom, gap=min(4, int(zoom) + 1))

    canvas = _scaled(pixels, zoom)
    if sky is not None:
        large = _scaled(sky.astype(np.uint8), zoom)
        canvas[(large == 1) & (cv2.erode(large, np.ones((3, 3), np.uint8)) == 0)] = SKY_COLOUR
    draw(canvas, zoom, np.zeros(2))
    image_size = height, width
    parts = choose_parts([*boxes, *targets], insets, image_size) if isinstance(insets, int) else list(insets)
    if not parts:
        return canvas
    if inset_zoom is None:
        inset_zoom = max(INSET_ZOOM, canvas.shape[1 if below else 0] // (max(len(parts), 3) * INSET_PIXELS))
    column = []
    for number, (x, y, side) in enumerate(parts, 1):
        part_zoom = inset_zoom * INSET_PIXELS / side
        part = _scaled(to_bytes(image[y : y + side, x : x + side]), part_zoom)
        draw(part, part_zoom, np.array([x, y]))
        write_scores(part, boxes, scores, np.array([x, y]), part_zoom, targets=targets)
        frame = np.zeros((INSET_PIXELS * inset_zoom, INSET_PIXELS * inset_zoom, 3), np.uint8)
        frame[: part.shape[0], : part.shape[1]] = part
        _write(frame, str(number), 5, 14, FRAME_COLOUR)
        column.append(np.pad(frame, ((2, 2), (2, 2), (0, 0)), constant_values=90))
        left, top = int(x * zoom), int(y * zoom)
        right, bottom = int(min(x + side, width) * zoom) - 1, int(min(y + side, height) * zoom) - 1
        cv2.rectangle(canvas, (left, top), (right, bottom), FRAME_COLOUR, 1)
        # Beside the frame when it is too small to hold the number.
        _write(canvas, str(number), left + 3 if right - left > 24 else right + 3, top + 13, FRAME_COLOUR)
    return _join(canvas, np.concatenate(column, axis=1 if below else 0), axis=0 if below else 1)


def choose_parts(boxes: Sequence[np.ndarray], count: int, image_size: tuple[int, int]) -> list[Part]:
    """Parts worth a look: around boxes in their order, except those with their centre near that of one before.

    Args:
        boxes: x1 y1 x2 y2, most interesting first.
        count: parts at most.
        image_size: (height, width)

    Returns:
        Upper left pixel x, y and edge of each: ``INSET_PIXELS`` or the least multiple that shows the box whole.
    """
    chosen: list[tuple[np.ndarray, int]] = []
    for box in boxes:
        centre = (box[:2] + box[2:]) / 2
        if len(chosen) < count and all(np.abs(centre - c).max() > INSET_PIXELS / 2 for c, _ in chosen):
            room = min(float((box[2:] - box[:2]).max()) + 2 * INSET_MARGIN, max(image_size))
            chosen.append((centre, INSET_PIXELS * max(1, math.ceil(room / INSET_PIXELS))))
    parts = []
    for centre, side in chosen:
        last = np.maximum(np.array(image_size[::-1]) - side, 0)
        x, y = np.clip(np.round(centre - side / 2), 0, last).astype(int)
        parts.append((int(x), int(y), side))
    return parts


def _write(canvas: np.ndarray, text: str, x: int, y: int, colour: tuple[int, int, int]) -> None:
    for ink, width in (((0, 0, 0), 3), (colour, 1)):
        cv2.putText(canvas, text, (x, y), _FONT, _FONT_SCALE, ink, width, cv2.LINE_AA)


def write_scores(
    canvas: np.ndarray,
    boxes: np.ndarray,
    scores: np.ndarray,
    corner: np.ndarray,
    zoom: float,
    *,
    targets: np.ndarray | None = None,
) -> None:
    """Write scores below or above their boxes, in place, best first; a score without a free place is left out.

    ``canvas`` (h * zoom, w * zoom, 3) uint8 is the part at ``corner`` (x, y) of the image, enlarged. No score covers
    another, a detection (D, 4) or one of ``targets`` (G, 4), in pixels of the image.
    """
    (text_width, text_height), _ = cv2.getTextSize("0.00", _FONT, _FONT_SCALE, 1)
    on_canvas = (boxes - np.tile(corner, 2)) * zoom
    taken = on_canvas if targets is None else np.concatenate([on_canvas, (targets - np.tile(corner, 2)) * zoom])
    for box, score in zip(on_canvas, scores):
        x = int(box[0])
        for y in (int(box[3]) + 7 + text_height, int(box[1]) - 7):
            label = np.array([x, y - text_height, x + text_width, y], float)
            inside = (label[:2] >= 0).all() and (label[2:] < canvas.shape[1::-1]).all()
            if inside and ((label[2:] <= taken[:, :2]) | (taken[:, 2:] <= label[:2])).any(1).all():
                _write(canvas, f"{score:.2f}", x, y, TEXT_COLOUR)
                taken = np.concatenate([taken, label[None]])
                break


def _join(first: np.ndarray, second: np.ndarray, axis: int) -> np.ndarray:
    """Two pictures with a gap: the second below the first (axis 0) or to its right (axis 1)."""
    across = 1 - axis
    length = max(first.shape[across], second.shape[across])

    def fill(picture: np.ndarray, gap: int) -> np.ndarray:
        missing = [(0, 0)] * 3
        missing[across], missing[axis] = (0, length - picture.shape[across]), (0, gap)
        return np.pad(picture, missing)

    return np.concatenate([fill(first, 4), fill(second, 0)], axis=axis)


def with_caption(picture: np.ndarray, text: str) -> np.ndarray:
    """Add a line of text above a picture; what does not fit is cut off, and letters beyond ASCII become "?"."""
    strip = np.zeros((20, picture.shape[1], 3), np.uint8)
    _write(strip, text.encode("ascii", "replace").decode(), 4, 14, FRAME_COLOUR)
    return np.concatenate([strip, picture])


def contact_sheet(pictures: Sequence[np.ndarray], columns: int = 3) -> np.ndarray:
    """Lay out (h, w, 3) pictures in rows as high as their highest, on black."""
    rows = []
    for start in range(0, len(pictures), columns):
        row = pictures[start : start + columns]
        height = max(len(p) for p in row) + 6
        rows.append(np.concatenate([np.pad(p, ((0, height - len(p)), (0, 6), (0, 0))) for p in row], axis=1))
    width = max(row.shape[1] for row in rows)
    return np.concatenate([np.pad(row, ((0, 0), (0, width - row.shape[1]), (0, 0))) for row in rows])


def write_picture(path: str | PathLike, picture: np.ndarray) -> None:
    """Write an RGB picture as PNG, whatever characters the path has."""
    write_atomically(path, png_bytes(picture[..., ::-1]))
