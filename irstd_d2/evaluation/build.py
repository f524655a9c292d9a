"""Evaluators by name, so that a configuration lists the protocols it wants."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from detectron2.config import CfgNode
from detectron2.evaluation import DatasetEvaluator, DatasetEvaluators
from fvcore.common.registry import Registry

from ..errors import check_known
from .average_precision import EXACT, PAPER, VOCProtocol
from .coco_evaluation import IRSTDCOCOEvaluator
from .collection import PredictionsWriter
from .ground_truth import GroundTruth
from .mask_evaluation import MaskEvaluator, TargetMasks
from .sky import SkyEvaluator
from .table_evaluation import CentreDistanceEvaluator, DetectionProbabilityEvaluator, VOCDetectionEvaluator

EVALUATOR_REGISTRY = Registry("EVALUATOR")
EVALUATOR_REGISTRY.__doc__ = """
Builders of evaluators, chosen by ``cfg.TEST.EVALUATORS``.
A registered function is called as ``build(cfg, dataset_name, output_folder)``; without a folder it saves nothing.
"""


@EVALUATOR_REGISTRY.register()
def coco(cfg: CfgNode, dataset_name: str, _output_folder: str | None) -> DatasetEvaluator:
    return IRSTDCOCOEvaluator(dataset_name, max_detections=cfg.TEST.DETECTIONS_PER_IMAGE, group_by=cfg.TEST.GROUP_BY)


def _voc(cfg: CfgNode, dataset_name: str, protocol: VOCProtocol) -> DatasetEvaluator:
    return VOCDetectionEvaluator(
        GroundTruth.from_dataset(dataset_name),
        iou_thresholds=cfg.TEST.VOC_IOU_THRESHOLDS,
        protocol=protocol,
        group_by=cfg.TEST.GROUP_BY,
    )


@EVALUATOR_REGISTRY.register()
def voc(cfg: CfgNode, dataset_name: str, _output_folder: str | None) -> DatasetEvaluator:
    return _voc(cfg, dataset_name, EXACT)


@EVALUATOR_REGISTRY.register()
def voc_paper(cfg: CfgNode, dataset_name: str, _output_folder: str | None) -> DatasetEvaluator:
    return _voc(cfg, dataset_name, PAPER)


@EVALUATOR_REGISTRY.register()
def pd_fa(cfg: CfgNode, dataset_name: str, _output_folder: str | None) -> DatasetEvaluator:
    return DetectionProbabilityEvaluator(
        GroundTruth.from_dataset(dataset_name), score_thresh=cfg.TEST.SCORE_THRESHOLD, group_by=cfg.TEST.GROUP_BY
    )


@EVALUATOR_REGISTRY.register()
def centre(cfg: CfgNode, dataset_name: str, _output_folder: str | None) -> DatasetEvaluator:
    return CentreDistanceEvaluator(
        GroundTruth.from_dataset(dataset_name), distances=cfg.TEST.CENTRE_DISTANCES, group_by=cfg.TEST.GROUP_BY
    )


@EVALUATOR_REGISTRY.register()
def mask(cfg: CfgNode, dataset_name: str, _output_folder: str | None) -> DatasetEvaluator:
    truth = GroundTruth.from_dataset(dataset_name)
    return MaskEvaluator(
        truth,
        TargetMasks.of(dataset_name, truth, cfg.TEST.TARGET_MASKS or None),
        threshold=cfg.TEST.SCORE_THRESHOLD,
        group_by=cfg.TEST.GROUP_BY,
    )


@EVALUATOR_REGISTRY.register()
def sky(cfg: CfgNode, dataset_name: str, _output_folder: str | None) -> DatasetEvaluator:
    return SkyEvaluator(dataset_name, group_by=cfg.TEST.GROUP_BY)


def check_evaluators(names: Iterable[str]) -> None:
    """Raise ``ConfigError`` for a name that is not in the registry."""
    check_known("TEST.EVALUATORS", names, sorted(name for name, _ in EVALUATOR_REGISTRY))


def build_evaluator(cfg: CfgNode, dataset_name: str, output_folder: str | None = None) -> DatasetEvaluators:
    """Build the evaluators of ``cfg.TEST.EVALUATORS`` for one data set; the detections are saved whatever they are.

    They are saved in ``output_folder``, by default ``OUTPUT_DIR/inference/DATASET``.

    Raises:
        ConfigError: an evaluator is unknown.
    """
    check_evaluators(cfg.TEST.EVALUATORS)
    folder = output_folder or str(Path(cfg.OUTPUT_DIR) / "inference" / dataset_name)
    evaluators = [EVALUATOR_REGISTRY.get(name)(cfg, dataset_name, folder) for name in cfg.TEST.EVALUATORS]
    return DatasetEvaluators([PredictionsWriter(GroundTruth.from_dataset(dataset_name), folder), *evaluators])
