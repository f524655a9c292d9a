"""Detection on images that are larger than memory or training size allows, tile by tile.

Tiles overlap, and the image is divided into cores, one per tile, that do not. A detection belongs to the tile whose
core holds its centre, so a target on a seam is reported once. As two tiles may place the same centre a fraction of a
pixel apart, cores reach a little over their seam, and a detection is dropped when a better one of ANOTHER tile covers
it, as the detector's own suppression would have it on the whole image; what one tile reports together is left alone. A
target is judged with its whole surroundings as long as it and the context that the network needs fit into the overlap.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby, pairwise
from typing import Any

import numpy as np
import torch
from detectron2.structures import Boxes, Instances, pairwise_iou
from torch import Tensor

from ..errors import ConfigError

Model = Callable[[list[dict[str, Any]]], list[dict[str, Any]]]
_ROWS = 1024  # detections that are compared with all others at a time
# Pixels by which a core reaches over its seam; tiles must agree on the centre of a target to this accuracy.
_SEAM = 2.0


@dataclass(frozen=True)
class Tile:
    """A part of an image and the share of it that the tile answers for.

    Attributes:
        window: x1, y1, x2, y2 in pixels, half-open.
        core: the same for the core; the cores of a grid divide the image.
    """

    window: tuple[int, int, int, int]
    core: tuple[float, float, float, float]

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) of the window."""
        x1, y1, x2, y2 = self.window
        return y2 - y1, x2 - x1


def _axis(length: int, tile: int, overlap: int, align: int) -> list[tuple[int, int, float, float]]:
    """Windows of one axis as (start, end, core start, core end), evenly spread, seams in the middle of overlaps."""
    if length <= tile:
        return [(0, length, 0.0, float(length))]
    steps = -(-(length - tile) // align)  # from the first start to the last, in units of ``align``
    count = -(-steps // ((tile - overlap) // align))
    starts = [align * (i * steps // count) for i in range(count + 1)]
    ends = [min(start + tile, length) for start in starts]
    seams = [0.0, *((end + start) / 2 for end, start in zip(ends, starts[1:])), float(length)]
    return [(start, end, low, high) for start, end, (low, high) in zip(starts, ends, pairwise(seams))]


def tile_grid(height: int, width: int, tile: int, overlap: int, align: int = 1) -> list[Tile]:
    """Cover an image with tiles, row by row.

    Args:
        height, width: of the image in pixels.
        tile: edge of a tile; an image edge that is shorter gives shorter tiles.
        overlap: pixels that neighbours share at least.
        align: tiles start at multiples of this, so that a network of this stride samples them as it samples the whole
            image; the last tile of a row or column may be shorter by less than this.

    Raises:
        ConfigError: when the overlap leaves a tile no pixels of its own.
    """
    if not 0 <= overlap < tile:
        raise ConfigError(f"the overlap is {overlap} and the tile {tile} pixels; use 0 <= overlap < tile")
    if tile - overlap < align:
        raise ConfigError(f"tiles of {tile} pixels with an overlap of {overlap} cannot start every {align} pixels; "
                          f"use an overlap of at most {tile - align}, or larger tiles")  # fmt: skip
    return [
        Tile((x1, y1, x2, y2), (cx1, cy1, cx2, cy2))
        for y1, y2, cy1, cy2 in _axis(height, tile, overlap, align)
        for x1, x2, cx1, cx2 in _axis(width, tile, overlap, align)
    ]


class TiledPredictor:
    """Run a detector on tiles of one image and merge the results.

    Args:
        model: takes a list of detectron2 sample dicts and returns one ``{"instances": Instances}`` per dict, in the
            pixels of its ``height`` and ``width``.
        tile: edge of a tile in pixels of the image.
        overlap: pixels that neighbours share; at least the largest target plus twice the context to keep.
        align: see :func:`tile_grid`.
        batch_size: tiles per call of the model; memory grows with it, not with the image.
        nms_thresh: IoU above which the weaker of two detections of a class from different tiles is a double; best
            the detector's own.
        prepare: turns a crop (h, w) or (h, w, C) of the image into the model's (3, h', w') float32 tensor in 0..255;
            by default 8-bit values stay and 16-bit values are divided by 257.
        whole: entries of the sample of every tile that are of the whole image, such as its ``context``; with any, a
            tile also says what it shows, ``context_window``.
    """

    def __init__(
        self,
        model: Model,
        *,
        tile: int = 512,
        overlap: int = 64,
        align: int = 1,
        batch_size: int = 4,
        nms_thresh: float = 0.5,
        prepare: Callable[[np.ndarray], Tensor] | None = None,
        whole: dict[str, Any] | None = None,
    ):
        tile_grid(tile, tile, tile, overlap, align)  # refuses an impossible overlap here, not at the first image
        self.model, self.tile, self.overlap, self.align, self.batch_size = model, tile, overlap, align, batch_size
        self.nms_thresh, self.prepare, self.whole = nms_thresh, prepare or crop_to_tensor, whole or {}

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
        tiles = tile_grid(height, width, self.tile, self.overlap, self.align)
        batches = batches_of_one_size([tile.size for tile in tiles], self.batch_size)
        parts: list[Instances] = []
        for batch in progress(batches) if progress else batches:
            samples = [self._sample(image, tiles[i], metadata) for i in batch]
            with torch.no_grad():
                outputs = self.model(samples)
            parts += [
                self._own(output["instances"].to("cpu"), tiles[i], i, (height, width))
                for output, i in zip(outputs, batch)
            ]
        return self._merge(Instances.cat(parts))

    def _sample(self, image: np.ndarray, tile: Tile, metadata: dict[str, Any]) -> dict[str, Any]:
        x1, y1, x2, y2 = tile.window
        height, width = tile.size
        crop = self.prepare(image[y1:y2, x1:x2])
        sample = {"image": crop, "height": height, "width": width, "metadata": dict(metadata)}
        if self.whole:
            sample |= {**self.whole, "context_window": torch.tensor(tile.window, dtype=torch.float32)}
        return sample

    def _own(self, instances: Instances, tile: Tile, index: int, image_size: tuple[int, int]) -> Instances:
        """Move a tile's detections to the image and keep those whose centre lies in its core or the strip around."""
        x1, y1 = tile.window[:2]
        boxes = instances.pred_boxes.tensor.float() + torch.tensor([x1, y1, x1, y1], dtype=torch.float32)
        centre = (boxes[:, :2] + boxes[:, 2:]) / 2
        low, high = torch.tensor(tile.core[:2]), torch.tensor(tile.core[2:])
        keep = ((centre >= low - _SEAM) & (centre < high + _SEAM)).all(1)
        kept = Instances(image_size)
        kept.pred_boxes = Boxes(boxes[keep])
        kept.scores = instances.scores[keep].float()
        kept.pred_classes = instances.pred_classes[keep]
        inside = ((boxes[:, :2] >= low) & (boxes[:, 2:] <= high)).all(1)
        kept.crosses = ~inside[keep]
        kept.tile = torch.full((len(kept),), index)
        return kept

    def _merge(self, parts: Instances) -> Instances:
        """Drop doubles and boxes without area, and sort by descending score."""
        parts = parts[parts.pred_boxes.nonempty()]
        parts = parts[torch.argsort(parts.scores, descending=True, stable=True)]
        merged = parts[self._not_doubles(parts)]
        merged.remove("crosses")
        merged.remove("tile")
        return merged

    def _not_doubles(self, parts: Instances) -> Tensor:
        """(D,) bool of detections in descending order: no better one of another tile, itself no double, covers it."""
        keep = torch.ones(len(parts), dtype=torch.bool)
        # Of two boxes of different tiles that overlap, one at least reaches out of the core of its tile.
        crossing = torch.nonzero(parts.crosses)[:, 0]
        pairs = [torch.empty(0, 2, dtype=torch.long)]
        for rows in crossing.split(_ROWS):
            some = parts[rows]
            covered = pairwise_iou(some.pred_boxes, parts.pred_boxes) > self.nms_thresh
            covered &= some.tile[:, None] != parts.tile
            covered &= some.pred_classes[:, None] == parts.pred_classes
            first, second = torch.nonzero(covered, as_tuple=True)
            pairs.append(torch.stack([rows[first], second], dim=1).sort(dim=1).values)
        for better, worse in torch.cat(pairs).unique(dim=0).tolist():  # doubles only, by descending score
            if keep[better]:
                keep[worse] = False
        return keep


def batches_of_one_size(sizes: Sequence[tuple[int, ...]], batch_size: int) -> list[list[int]]:
    """Indices of images in batches of one size: they need no padding, which would change what the network sees."""
    order = sorted(range(len(sizes)), key=lambda i: (sizes[i], i))
    batches = []
    for _, members in groupby(order, key=lambda i: sizes[i]):
        same = list(members)
        batches += [same[i : i + batch_size] for i in range(0, len(same), batch_size)]
    return batches


def crop_to_tensor(crop: np.ndarray) -> Tensor:
    """Turn a crop (h, w) or (h, w, 3) into (3, h, w) float32 in 0..255; uint16 is divided by 257.

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
