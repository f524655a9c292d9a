"""Detections in images of odd sizes, very wide, very tall and smaller than a cell, given as a user gives them."""

from __future__ import annotations

import torch
from torch import nn

from .comparison import Comparison
from .generator import image
from .reference import Reference

# Batches of images (height, width); the k-th image of the n-th batch has the seed 300 + 10 n + k.
BATCHES = {"odd": ((61, 113), (97, 131)), "wide": ((33, 1000),), "tall": ((1000, 33),), "small": ((29, 31),)}
METADATA = ({"platform": "Air", "band": "LWIR"}, {"platform": "Space", "band": None})


def compare_sizes(comparison: Comparison, model: nn.Module, reference: Reference) -> None:
    """Compare what a model detects with rows (D, 5) of the reference, one array per image."""
    model.eval()
    for number, (name, sizes) in enumerate(BATCHES.items()):
        samples = []
        for i, (height, width) in enumerate(sizes):
            known = METADATA[(number + i) % 2] | {"width": width, "height": height}
            pixels = 128 + 50 * image(300 + 10 * number + i, (3, height, width))
            samples.append({"image": pixels, "height": height, "width": width, "metadata": known})
        with torch.no_grad():
            for i, result in enumerate(model(samples)):
                found = result["instances"]
                boxes = found.pred_boxes.tensor
                comparison.detections("unusual sizes", boxes, found.scores, reference, f"{name}{i}")
