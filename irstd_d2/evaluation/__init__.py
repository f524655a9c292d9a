"""Evaluation: COCO, Pascal VOC in the exact and the papers' protocol, Pd and Fa, centre distance, sky."""

from .build import EVALUATOR_REGISTRY, build_evaluator
from .coco_evaluation import IRSTDCOCOEvaluator
from .collection import add_predictions_file
from .ground_truth import GroundTruth
from .results import format_results
from .sky import SkyEvaluator
from .table_evaluation import CentreDistanceEvaluator, DetectionProbabilityEvaluator, VOCDetectionEvaluator

__all__ = [
    "EVALUATOR_REGISTRY",
    "CentreDistanceEvaluator",
    "DetectionProbabilityEvaluator",
    "GroundTruth",
    "IRSTDCOCOEvaluator",
    "SkyEvaluator",
    "VOCDetectionEvaluator",
    "add_predictions_file",
    "build_evaluator",
    "format_results",
]
