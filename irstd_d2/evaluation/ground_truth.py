"""The ground truth of a registered data set as tables, and the groups that metrics are broken down by."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.structures import BoxMode

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
        """
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
            values = (values.get(key) for values in self.metadata)
            labels = np.array([UNKNOWN if value is None else str(value) for value in values], dtype=object)
            names = sorted(set(labels.tolist()))
        return {name: labels == name for name in names}


_RESOLUTION_NAMES = (*(f"<={edge}" for edge in RESOLUTION_EDGES), f">{RESOLUTION_EDGES[-1]}")


def _resolution_class(metadata: dict[str, Any]) -> str:
    longest = max(metadata["width"], metadata["height"])
    return _RESOLUTION_NAMES[int(np.searchsorted(RESOLUTION_EDGES, longest))]
