"""Contact sheets: many scenes in one picture."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from PIL import Image, ImageDraw

from .scene import Scene

TARGET_COLOUR = (255, 70, 70)
CLUTTER_COLOUR = (80, 160, 255)
SKYLINE_COLOUR = (90, 220, 90)


def draw_scene(scene: Scene, zoom: int = 2) -> Image.Image:
    """Return a scene with its targets (red), the look-alikes among its clutter (blue) and its skyline (green).

    Args:
        scene: to draw.
        zoom: pixels of the picture for a pixel of the scene.
    """
    gray = scene.image if scene.image.dtype == np.uint8 else (scene.image >> 8).astype(np.uint8)
    height, width = gray.shape
    colour = np.repeat(gray[..., None], 3, axis=2)
    edge = np.zeros((height, width), bool)
    edge[1:] = scene.sky_mask[1:] != scene.sky_mask[:-1]
    colour[edge] = SKYLINE_COLOUR
    picture = Image.fromarray(colour).resize((width * zoom, height * zoom), Image.Resampling.NEAREST)
    draw = ImageDraw.Draw(picture)
    for boxes, outline in ((scene.boxes, TARGET_COLOUR), (scene.clutter_boxes, CLUTTER_COLOUR)):
        for x1, y1, x2, y2 in (boxes * zoom).tolist():
            draw.rectangle((x1 - 2, y1 - 2, x2 + 1, y2 + 1), outline=outline)
    platform, band = scene.metadata["platform"], scene.metadata["band"]
    draw.text((3, 1), f"{platform} {band} {width}x{height}: {scene.background}", fill=(255, 255, 120))
    return picture


def contact_sheet(scenes: Iterable[Scene], columns: int = 6, zoom: int = 2) -> Image.Image:
    """Return scenes in rows, each drawn by :func:`draw_scene`.

    Raises:
        ValueError: when there is no scene.
    """
    pictures = [draw_scene(scene, zoom) for scene in scenes]
    if not pictures:
        raise ValueError("a contact sheet needs at least one scene")
    cell = max(p.width for p in pictures) + 4, max(p.height for p in pictures) + 4
    rows = -(-len(pictures) // columns)
    sheet = Image.new("RGB", (cell[0] * min(columns, len(pictures)), cell[1] * rows), (40, 40, 40))
    for k, picture in enumerate(pictures):
        sheet.paste(picture, (k % columns * cell[0] + 2, k // columns * cell[1] + 2))
    return sheet


__all__ = ["contact_sheet", "draw_scene"]
