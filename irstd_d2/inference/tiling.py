"""Detection on images that are larger than memory or training size allows, tile by tile.

Tiles overlap, and the image is divided into cores, one per tile, that do not. A detection belongs to the tile whose
core holds its centre, so a target on a seam is reported once. As two tiles may place the same centre a fraction of a
pixel apart, cores reach a little over their seam and the doubles in that strip are removed by NMS. A target is judged
with its whole surroundings as long as it and the context that the network needs fit into the overlap.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from detectron2.layers import batched_nms
from detectron2.structures import Boxes, Instances

from ..errors import ConfigError

Model = Callable[[list[dict[str, Any]]], list[dict[str, Any]]]


@dataclass(frozen=True)
class Tile:
    """A part of an image and the share of it that the tile answers for.

    Attributes:
        window: x1, y1, x2, y2 in pixels, half-open.
        core: the same for the core; the cores of a grid divide the image.
    """

    window: tuple[int, int, int, int]
    core: tuple[float, float, float, float]


def _axis(length: int, tile: int, overlap: int) -> list[tuple[int, int, float, float]]:
    """Windows of one axis as (start, end, core start, core end), evenly spread, seams in the middle of overlaps."""
    if length <= tile:
        return [(0, length, 0.0, float(length))]
    count = -(-(length - overlap) // (tile - overlap))
    starts = np.linspace(0, length - tile, count).round().astype(int).tolist()
    seams = [0.0] + [(a + tile + b) / 2 for a, b in pairwise(starts)] + [float(length)]
    return [(s, s + tile, a, b) for s, a, b in zip(starts, seams, seams[1:])]


def tile_grid(height: int, width: int, tile: int, overlap: int) -> list[Tile]:
    """Cover an image with tiles of equal size, row by row.

    Args:
        height, width: of the image in pixels.
        tile: edge of a tile; an image edge that is shorter gives shorter tiles.
        overlap: pixels that neighbours share at least.

    Raises:
        ConfigError: when the overlap leaves a tile no pixel of its own.
    """
    if not 0 <= overlap < tile:
        raise ConfigError(f"the overlap is {overlap} and the tile {tile} pixels; use 0 <= overlap < tile")
    return [
        Tile((x1, y1, x2, y2), (cx1, cy1, cx2, cy2))
        for y1, y2, cy1, cy2 in _axis(height, tile, overlap)
        for x1, x2, cx1, cx2 in _axis(width, tile, overlap)
    ]


class TiledPredictor:
    """Run a detector on tiles of one image and merge the results.

    Args:
        model: takes a list of detectron2 sample dicts and returns one ``{"instances": Instances}`` per dict, in the
            pixels of its ``height`` and ``width``.
        tile: edge of a tile in pixels of the image.
        overlap: pixels that neighbours share; at least the largest target plus twice the context to keep.
        batch_size: tiles per call of the model; memory grows with it, not with the image.
        seam: pixels by which a core reaches over its seam, to be rid of doubles and gaps by rounding.
        nms_threshold: IoU above which the weaker of two detections of a class from different tiles is a double.
        max_detections: kept per image, best first; 0 keeps all.
        prepare: turns a crop (h, w) or (h, w, C) of the image into the model's (3, h, w) float32 tensor in 0..255; by
            default 8-bit values stay and 16-bit values are divided by 257.
    """

    def __init__(
        self,
        model: Model,
        *,
        tile: int = 512,
        overlap: int = 64,
        batch_size: int = 4,
        seam: float = 2.0,
        nms_threshold: float = 0.5,
        max_detections: int = 0,
        prepare: Callable[[np.ndarray], torch.Tensor] | None = None,
    ):
        tile_grid(tile, tile, tile, overlap)  # refuses an impossible overlap here, not at the first image
        self.model, self.tile, self.overlap, self.batch_size = model, tile, overlap, batch_size
        self.seam, self.nms_threshold, self.max_detections = seam, nms_threshold, max_detections
        self.prepare = prepare or crop_to_tensor

    def __call__(
        self,
        image: np.ndarray,
        metadata: dict[str, Any] | None = None,
        progress: Callable[[Sequence[Any]], Iterator[Any]] | None = None,
    ) -> Instances:
        """Detect targets in one image.

        Args:
            image: (H, W) or (H, W, 3), 8- or 16-bit or float32 in 0..255; may be memory-mapped, one tile is touched
                at a time.
            metadata: platform and band of the image; every tile carries them and the ORIGINAL width and height.
            progress: wraps the list of batches, e.g. ``tqdm.tqdm``.

        Returns:
            ``Instances`` on the CPU with ``pred_boxes`` (D, 4) in pixels of the image, ``scores`` and
            ``pred_classes``, in descending order of score.
        """
        height, width = image.shape[:2]
        metadata = {"width": width, "height": height, **(metadata or {})}
        tiles = tile_grid(height, width, self.tile, self.overlap)
        batches = [tiles[i : i + self.batch_size] for i in range(0, len(tiles), self.batch_size)]
        parts: list[Instances] = []
        for batch in progress(batches) if progress else batches:
            samples = [self._sample(image, tile, metadata) for tile in batch]
            with torch.no_grad():
                outputs = self.model(samples)
            parts += [
                self._own(output["instances"].to("cpu"), tile, (height, width)) for output, tile in zip(outputs, batch)
            ]
        return self._merge(parts)

    def _sample(self, image: np.ndarray, tile: Tile, metadata: dict[str, Any]) -> dict[str, Any]:
        x1, y1, x2, y2 = tile.window
        return {
            "image": self.prepare(image[y1:y2, x1:x2]),
            "height": y2 - y1,
            "width": x2 - x1,
            "metadata": dict(metadata),
        }

    def _own(self, instances: Instances, tile: Tile, image_size: tuple[int, int]) -> Instances:
        """Move a tile's detections to the image and keep those whose centre lies in its core."""
        x1, y1 = tile.window[:2]
        boxes = instances.pred_boxes.tensor.float() + torch.tensor([x1, y1, x1, y1], dtype=torch.float32)
        centre = (boxes[:, :2] + boxes[:, 2:]) / 2
        low, high = torch.tensor(tile.core[:2]) - self.seam, torch.tensor(tile.core[2:]) + self.seam
        keep = ((centre >= low) & (centre < high)).all(1)
        kept = Instances(image_size)
        kept.pred_boxes = Boxes(boxes[keep])
        kept.scores = instances.scores[keep].float()
        kept.pred_classes = instances.pred_classes[keep]
        return kept

    def _merge(self, parts: Sequence[Instances]) -> Instances:
        merged = Instances.cat(parts)
        keep = batched_nms(merged.pred_boxes.tensor, merged.scores, merged.pred_classes, self.nms_threshold)
        return merged[keep[: self.max_detections] if self.max_detections else keep]


def crop_to_tensor(crop: np.ndarray) -> torch.Tensor:
    """Turn a crop into (3, h, w) float32 in 0..255.

    Args:
        crop: (h, w) or (h, w, 3); uint8 as it is, uint16 divided by 257, float as it is.

    Raises:
        ValueError: for another type or number of channels.
    """
    if crop.dtype not in (np.uint8, np.uint16) and crop.dtype.kind != "f":
        raise ValueError(f"image of type {crop.dtype}; use uint8, uint16 or float in 0..255")
    pixels = torch.from_numpy(crop.astype(np.float32))
    if crop.dtype == np.uint16:
        pixels /= 257
    if pixels.ndim == 2:
        return pixels.expand(3, -1, -1).contiguous()
    if pixels.shape[2] != 3:
        raise ValueError(f"image with {pixels.shape[2]} channels; use gray or three channels")
    return pixels.permute(2, 0, 1).contiguous()
