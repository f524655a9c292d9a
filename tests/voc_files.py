"""Writes small data sets in VOC layouts for the tests."""

from __future__ import annotations

import cv2
import numpy as np

from irstd_d2.data.layout import LAYOUTS


def voc_xml(width=32, height=24, boxes=((3, 4, 6, 8),), name="Target", extra="", filename="a.png", difficult=0):
    objects = "".join(
        f"<object><name>{name}</name><difficult>{difficult}</difficult><bndbox><xmin>{x1}</xmin><ymin>{y1}</ymin>"
        f"<xmax>{x2}</xmax><ymax>{y2}</ymax></bndbox></object>"
        for x1, y1, x2, y2 in boxes
    )
    size = f"<size><width>{width}</width><height>{height}</height><depth>1</depth></size>"
    return f"<annotation><filename>{filename}</filename>{size}{extra}{objects}</annotation>"


class VocSet:
    """A set on disk that tests add to and damage.

    Args:
        root: folder.
        layout: a name of ``LAYOUTS``.
    """

    def __init__(self, root, layout="voc_png"):
        self.root, self.layout = root, LAYOUTS[layout]
        for folder in (self.layout.images, self.layout.annotations):
            (root / folder).mkdir(parents=True, exist_ok=True)

    def image(self, name, suffix=".png"):
        return self.root / self.layout.images / f"{name}{suffix}"

    def xml(self, name):
        return self.root / self.layout.annotations / f"{name}.xml"

    def add(self, name, width=32, height=24, suffix=".png", **xml):
        """Write one image and its annotation."""
        pixels = np.full((height, width), 40, np.uint8)
        for x1, y1, x2, y2 in xml.get("boxes", ((3, 4, 6, 8),)):
            pixels[y1:y2, x1:x2] = 200
        self.image(name, suffix).write_bytes(cv2.imencode(suffix, pixels)[1].tobytes())
        self.xml(name).write_text(voc_xml(width, height, **xml), encoding="utf-8")
        return self

    def split(self, name, text):
        path = self.root / self.layout.split.format(split=name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return path


def three_images(root):
    """Three images; 'b' is first in the split, 'c' in none."""
    voc = VocSet(root)
    for name in "abc":
        voc.add(name, boxes=((3, 4, 6, 8), (10, 11, 12, 14)))
    voc.split("train", "b\na\n")
    return voc
