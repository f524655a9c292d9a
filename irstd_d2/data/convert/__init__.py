"""Data sets from one format to another: Pascal VOC, COCO, target masks, YOLO; splits and metadata tables."""

from .coco_format import read_coco
from .conversion import (
    FORMATS,
    ConversionReport,
    collect_converted,
    describe_boxes,
    detect_format,
    read_registered,
    with_metadata,
    write_set,
)
from .detection_set import DetectionSet, ImageRecord, TargetObject
from .mask_format import read_masks
from .voc_format import read_voc
from .yolo_format import read_yolo

__all__ = [
    "FORMATS",
    "ConversionReport",
    "DetectionSet",
    "ImageRecord",
    "TargetObject",
    "collect_converted",
    "describe_boxes",
    "detect_format",
    "read_coco",
    "read_masks",
    "read_registered",
    "read_voc",
    "read_yolo",
    "with_metadata",
    "write_set",
]
