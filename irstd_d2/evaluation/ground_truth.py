"""The ground truth of a registered data set as tables, and the groups that metrics are broken down by."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.structures import BoxMode
from detectron2.utils.logger import log_first_n

from ..errors import DatasetError
from .breakdown import ImageFiles
from .matching import TargetTable, target_table

UNKNOWN = "unknown"

# Longest edge in pixels of the original image; the classes follow the resolutions that WideIRSTD-Full mixes.
RESOLUTION_EDGES = (256, 512, 1024)


@dataclass(frozen=True)
class GroundTruth:
    """Targets of a data set in columns, with what is known of each image.

    Attributes:
        image_ids: per image, in the data set's order.
        targets: all targets; ``targets.image`` indexes ``image_ids``.
        pixels: (I,) height times width of each original image.
        metadata: per image the dict ``{"platform": ..., "band": ..., "width": ..., "height": ...}``.
        class_names: names of the classes.
        files: per image, where its pixels are.
        category_index: the data set's own category ids, which saved predictions have -> class indices.
    """

    image_ids: tuple[Any, ...]
    targets: TargetTable
    pixels: np.ndarray
    metadata: tuple[dict[str, Any], ...]
    class_names: tuple[str, ...]
    files: tuple[ImageFiles, ...]
    category_index: Mapping[int, int]

    @classmethod
    def from_dicts(
        cls,
        dicts: Sequence[dict[str, Any]],
        class_names: Sequence[str] = ("target",),
        category_index: Mapping[int, int] | None = None,
    ) -> GroundTruth:
        """Build from detectron2 data set dicts; an annotation with ``iscrowd`` counts neither as found nor missed.

        ``category_index`` leads from the set's own category ids to class indices; equal by default.

        Raises:
            DatasetError: for two images of one id, whose detections could not be told apart.
        """
        first: dict[Any, dict[str, Any]] = {}
        for record in dicts:
            other = first.setdefault(record["image_id"], record)
            if other is not record:
                problem = f"{record['image_id']!r} is also that of {other.get('file_name')}"
                raise DatasetError(
                    str(record.get("file_name")), "image_id", problem, "give each image of the set an id of its own"
                )
        boxes, classes, ignored = [], [], []
        for record in dicts:
            annotations = record.get("annotations", [])
            corners = [BoxMode.convert(list(a["bbox"]), a["bbox_mode"], BoxMode.XYXY_ABS) for a in annotations]
            boxes.append(np.array(corners, float).reshape(-1, 4))
            classes.append(np.array([a["category_id"] for a in annotations], int))
            ignored.append(np.array([bool(a.get("iscrowd", 0)) for a in annotations], bool))
        return cls(
            image_ids=tuple(record["image_id"] for record in dicts),
            targets=target_table(boxes, classes, ignored),
            pixels=np.array([record["height"] * record["width"] for record in dicts], dtype=np.int64),
            metadata=tuple(
                {"width": record["width"], "height": record["height"], **(record.get("metadata") or {})}
                for record in dicts
            ),
            class_names=tuple(class_names),
            files=tuple(
                ImageFiles(r.get("file_name"), r.get("sem_seg_file_name"), r["height"], r["width"]) for r in dicts
            ),
            category_index=dict(enumerate(range(len(class_names)))) if category_index is None else category_index,
        )

    @classmethod
    def from_dataset(cls, name: str) -> GroundTruth:
        """Build from the name of a registered data set."""
        dicts = DatasetCatalog.get(name)  # some sets know their class names only once they are loaded
        catalog = MetadataCatalog.get(name)
        return cls.from_dicts(dicts, catalog.thing_classes, catalog.get("thing_dataset_id_to_contiguous_id"))

    @cached_property
    def _place(self) -> dict[Any, int]:
        return {image_id: i for i, image_id in enumerate(self.image_ids)}

    def index_of(self, image_id: Any) -> int:
        """The place of an image in the data set's order.

        Raises:
            ValueError: for an image that the data set does not have.
        """
        if image_id not in self._place:
            raise ValueError(f"image {image_id!r} is not in the evaluated data set; were the right predictions given?")
        return self._place[image_id]

    def check_detections(self, image_id: Any, boxes: np.ndarray, scores: np.ndarray, classes: np.ndarray) -> int:
        """Refuse what would give a wrong number, and return the place of the image.

        Args:
            image_id: one of ``image_ids``.
            boxes, scores, classes: of its detections, (d, 4) x1 y1 x2 y2, (d,) and (d,).

        Raises:
            ValueError: for an image or a class that the data set does not have, a score or box that is not finite, or a
                box whose second corner lies before its first.
        """
        index = self.index_of(image_id)
        if not (np.isfinite(boxes).all() and np.isfinite(scores).all()):
            raise ValueError(f"image {image_id!r} has detections whose score or box is not finite")
        boxes = np.asarray(boxes, float).reshape(-1, 4)
        if (turned := (boxes[:, 2:] < boxes[:, :2]).any(1)).any():
            raise ValueError(
                f"image {image_id!r} has a detection of negative size, {boxes[turned][0].tolist()}; give x1 y1 x2 y2"
            )
        known = len(self.class_names)
        if len(classes) and not (classes.min() >= 0 and classes.max() < known):
            raise ValueError(f"image {image_id!r} has detections of classes outside 0 to {known - 1}")
        return index

    @property
    def category_ids(self) -> tuple[int, ...]:
        """The data set's own category id of each class; the first where several stand for one class."""
        first = {index: own for own, index in reversed(list(self.category_index.items()))}
        return tuple(first.get(index, index) for index in range(len(self.class_names)))

    def image_groups(self, key: str) -> dict[str, np.ndarray]:
        """Sort the images into groups: name -> (I,) bool, in alphabetical order (resolutions in ascending order).

        ``key`` is ``platform``, ``band``, ``resolution``, or any other key of the metadata.
        """
        if key == "resolution":
            labels = np.array([_resolution_class(values) for values in self.metadata], dtype=object)
            names = [name for name in _RESOLUTION_NAMES if name in labels]
        else:
            if not any(key in values for values in self.metadata):
                known = ", ".join(dict.fromkeys(name for values in self.metadata for name in values))
                text = f"{key}, which results are grouped by, is in the metadata of no image; there are {known}"
                log_first_n(logging.WARNING, text, name=__name__, key="message")
            values = (values.get(key) for values in self.metadata)
            labels = np.array([UNKNOWN if value is None else str(value) for value in values], dtype=object)
            names = sorted(set(labels.tolist()))
        return {name: labels == name for name in names}


_RESOLUTION_NAMES = (*(f"<={edge}" for edge in RESOLUTION_EDGES), f">{RESOLUTION_EDGES[-1]}")


def _resolution_class(metadata: dict[str, Any]) -> str:
    longest = max(metadata["width"], metadata["height"])
    return _RESOLUTION_NAMES[int(np.searchsorted(RESOLUTION_EDGES, longest))]
