"""Deployment: models as TorchScript or ONNX files, and running them without detectron2 (``runtime``)."""

from .compare import Difference, compare_detections
from .files import FORMATS, FixedShape, export_model, largest_shape
from .graphs import DetectionGraph, build_graph
from .runtime import Detections, ExportedDetector

__all__ = [
    "FORMATS",
    "DetectionGraph",
    "Detections",
    "Difference",
    "ExportedDetector",
    "FixedShape",
    "build_graph",
    "compare_detections",
    "export_model",
    "largest_shape",
]
