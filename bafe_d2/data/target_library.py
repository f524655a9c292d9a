"""A library of small targets, cut from the training images and resized to what can be pasted."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from os import PathLike
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from detectron2.data import DatasetCatalog
from detectron2.structures import BoxMode
from tqdm import tqdm

from irstd_d2.data import read_image
from irstd_d2.data.faults import get_skip_bad
from irstd_d2.errors import DatasetError
from irstd_d2.files import write_atomically

logger = logging.getLogger(__name__)

EDGE = 5  # pixels; pasted targets fit into 5x5 (section III-B)
_VERSION = 2


@dataclass(frozen=True)
class TargetLibrary:
    """Targets of at most 5x5 pixels.

    Attributes:
        patches: (T, 5, 5) float32 brightness in [0, 1], zero beyond a target's size.
        sizes: (T, 2) width and height in pixels.
        classes: (T,) int64, what each target is labelled as; ``None`` for class 0.
    """

    patches: np.ndarray
    sizes: np.ndarray
    classes: np.ndarray | None = None

    def __post_init__(self):
        if len(self.patches) == 0:
            raise ValueError("a target library without targets; is the data set annotated?")

    def __len__(self) -> int:
        return len(self.patches)

    @classmethod
    def from_crops(
        cls, crops: Iterable[np.ndarray], *, classes: Sequence[int] | None = None, fill: bool = False
    ) -> TargetLibrary:
        """Build from crops (h, w) in [0, 1]; larger ones are shrunk, aspect ratio kept, smaller ones stay.

        With ``fill`` all become exactly 5x5 pixels, as the released DenseSIRST has them; ``classes`` are of the crops.
        """
        patches, sizes = [], []
        for crop in crops:
            height, width = crop.shape
            scale = EDGE / max(height, width)
            if fill:
                enlarged = cv2.INTER_LINEAR if min(height, width) < EDGE else cv2.INTER_AREA
                crop = cv2.resize(crop.astype(np.float32), (EDGE, EDGE), interpolation=enlarged)
                height, width = crop.shape
            elif scale < 1:
                shape = (max(1, round(width * scale)), max(1, round(height * scale)))
                crop = cv2.resize(crop.astype(np.float32), shape, interpolation=cv2.INTER_AREA)
                height, width = crop.shape
            patch = np.zeros((EDGE, EDGE), np.float32)
            patch[:height, :width] = crop
            patches.append(patch)
            sizes.append((width, height))
        return cls(
            np.array(patches, np.float32).reshape(-1, EDGE, EDGE),
            np.array(sizes, np.int64).reshape(-1, 2),
            None if classes is None else np.array(classes, np.int64),
        )

    @classmethod
    def from_dicts(
        cls, dicts: Sequence[dict[str, Any]], *, fill: bool = False, progress: bool = False, **reading: Any
    ) -> TargetLibrary:
        """Cut every target that is not difficult out of the images of data set dicts.

        ``fill`` as in ``from_crops``; ``reading`` is ``high_bit_depth`` of ``irstd_d2.data.read_image``.
        """
        crops, classes = [], []
        for record in tqdm(dicts, desc="target library", disable=not progress):
            annotations = [a for a in record.get("annotations", []) if not a.get("iscrowd", 0)]
            if not annotations:
                continue
            try:
                image = read_image(record["file_name"], **reading).mean(2) / 255
            except DatasetError as error:
                if not get_skip_bad():
                    raise
                logger.warning("Skipped: %s", error)
                continue
            for annotation in annotations:
                box = BoxMode.convert(list(annotation["bbox"]), annotation["bbox_mode"], BoxMode.XYXY_ABS)
                x1, y1 = (max(0, int(np.floor(v))) for v in box[:2])
                x2, y2 = (max(0, int(np.ceil(v))) for v in box[2:])
                crop = image[y1:y2, x1:x2]
                if crop.size:
                    crops.append(crop)
                    classes.append(annotation["category_id"])
        return cls.from_crops(crops, classes=classes, fill=fill)

    @classmethod
    def from_datasets(
        cls, names: Sequence[str], cache_dir: str | PathLike | None = None, *, high_bit_depth: str = "auto"
    ) -> TargetLibrary:
        """Build from registered data sets, or read the library that an earlier run stored in ``cache_dir``.

        The file's name changes with the images, boxes and classes it was made from and how they were read; ``None``
        keeps nothing. ``high_bit_depth`` as in ``from_dicts``.
        """
        dicts = [record for name in names for record in DatasetCatalog.get(name)]
        if cache_dir is None:
            return cls.from_dicts(dicts, progress=True, high_bit_depth=high_bit_depth)
        path = Path(cache_dir) / f"targets-{_fingerprint(dicts, high_bit_depth)}.npz"
        if path.exists():
            return cls.load(path)
        library = cls.from_dicts(dicts, progress=True, high_bit_depth=high_bit_depth)
        library.save(path)
        logger.info("library of %d targets saved to %s", len(library), path)
        return library

    def scaled(self, gain: float) -> TargetLibrary:
        """The same targets, ``gain`` times as bright."""
        return replace(self, patches=(self.patches * np.float32(gain)).clip(0, 1))

    def save(self, path: str | PathLike) -> None:
        """Write the library; a complete file, old or new, exists at every moment."""
        arrays = {name: array for name, array in asdict(self).items() if array is not None}
        write_atomically(path, lambda file: np.savez_compressed(file, **arrays))

    @classmethod
    def load(cls, path: str | PathLike) -> TargetLibrary:
        """Read a library.

        Raises:
            DatasetError: for a file that is not one.
        """
        try:
            with np.load(path, allow_pickle=False) as arrays:
                return cls(**arrays)
        except (OSError, ValueError, TypeError) as error:
            raise DatasetError(path, "file", f"is no target library ({error})", "remove it; it is made anew") from error


def _fingerprint(dicts: Sequence[dict[str, Any]], high_bit_depth: str) -> str:
    """Changes when an image file, how it is read, a box or a class changes."""
    digest = hashlib.sha256(f"{_VERSION}{high_bit_depth}".encode())
    for record in dicts:
        stat = Path(record["file_name"]).stat()
        keys = ("bbox", "bbox_mode", "category_id", "iscrowd")
        boxes = [[a.get(key, 0) for key in keys] for a in record.get("annotations", [])]
        row = [record["file_name"], stat.st_size, stat.st_mtime_ns, boxes]
        digest.update(json.dumps(row, default=float).encode())
    return digest.hexdigest()[:16]
