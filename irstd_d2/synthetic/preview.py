"""Contact sheets: many scenes in one picture."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw

from .scene import Scene

TARGET_COLOR = (255, 70, 70)
CLUTTER_COLOR = (80, 160, 255)
SKYLINE_COLOR = (90, 220, 90)


def draw_scene(scene: Scene, zoom: int = 2) -> Image.Image:
    """Return a scene, enlarged, with its targets (red), the look-alikes (blue) and the skyline (green)."""
    gray = scene.image if scene.image.dtype == np.uint8 else (scene.image >> 8).astype(np.uint8)
    height, width = gray.shape
    color = np.repeat(gray[..., None], 3, axis=2)
    color[1:][scene.sky_mask[1:] != scene.sky_mask[:-1]] = SKYLINE_COLOR
    picture = Image.fromarray(color).resize((width * zoom, height * zoom), Image.Resampling.NEAREST)
    draw = ImageDraw.Draw(picture)
    for boxes, outline in ((scene.boxes, TARGET_COLOR), (scene.clutter_boxes, CLUTTER_COLOR)):
        for x1, y1, x2, y2 in (boxes * zoom).tolist():
            draw.rectangle((x1 - 2, y1 - 2, x2 + 1, y2 + 1), outline=outline)
    platform, band = scene.metadata["platform"], scene.metadata["band"]
    draw.text((3, 1), f"{platform} {band} {width}x{height}: {scene.background}", fill=(255, 255, 120))
    return picture


def contact_sheet(scenes: Sequence[Scene], columns: int = 6, zoom: int = 2) -> Image.Image:
    """Return one scene or more in rows, each drawn by :func:`draw_scene`."""
    pictures = [draw_scene(scene, zoom) for scene in scenes]
    cell_width, cell_height = (4 + max(sides) for sides in zip(*(picture.size for picture in pictures)))
    rows = -(-len(pictures) // columns)
    sheet = Image.new("RGB", (cell_width * min(columns, len(pictures)), cell_height * rows), (40, 40, 40))
    for k, picture in enumerate(pictures):
        sheet.paste(picture, (k % columns * cell_width + 2, k // columns * cell_height + 2))
    return sheet


__all__ = ["contact_sheet", "draw_scene"]
