"""How well a model predicts metadata; importing registers the evaluator ``metadata``."""

from __future__ import annotations

import math
from collections import OrderedDict
from typing import Any

import numpy as np
from detectron2.config import CfgNode
from detectron2.evaluation import DatasetEvaluator
from detectron2.utils import comm

from irstd_d2.evaluation import EVALUATOR_REGISTRY

from .metadata import UNKNOWN_INDEX, ImagingMetadata, MetadataVocabulary


class MetadataEvaluator(DatasetEvaluator):
    """Compare predicted metadata with the given one, in ``metadata`` of the results.

    ``platform`` and ``band``: images with the right name, percent of those where it is known; ``size_error``: mean
    difference of predicted and known sides as a logarithm to base 2, so that 1 is a factor of two. Fields that no image
    knows are not-a-number.

    Args:
        vocabulary: of the model.
        distributed: gather from all processes; the main one reports.
    """

    def __init__(self, vocabulary: MetadataVocabulary, *, distributed: bool = True):
        self._vocabulary, self._distributed = vocabulary, distributed
        self.reset()

    def reset(self) -> None:
        self._rows: dict[Any, tuple[float, float, float]] = {}

    def process(self, inputs: list[dict[str, Any]], outputs: list[dict[str, Any]]) -> None:
        """Compare the metadata of a batch.

        Raises:
            ValueError: for a result without metadata.
        """
        for sample, output in zip(inputs, outputs):
            if "metadata" not in output:
                raise ValueError(
                    "the model predicts no metadata: take 'metadata' out of TEST.EVALUATORS, or set "
                    "MODEL.AUXDET.PREDICT.ENABLED True"
                )
            predicted, known = output["metadata"], ImagingMetadata.from_dict(sample.get("metadata"))
            row = []
            for names, given in ((self._vocabulary.platforms, known.platform), (self._vocabulary.bands, known.band)):
                index = names.index(given)
                right = float(names.index(predicted[names.field_name]) == index)
                row.append(math.nan if index == UNKNOWN_INDEX else right)
            error = math.nan
            if known.width and known.height:
                ratios = predicted["width"] / known.width, predicted["height"] / known.height
                error = sum(abs(math.log2(ratio)) for ratio in ratios) / 2
            self._rows[sample["image_id"]] = (row[0], row[1], error)

    def evaluate(self) -> OrderedDict[str, dict[str, float]] | None:
        rows = self._rows
        if self._distributed and comm.get_world_size() > 1:
            comm.synchronize()
            parts = comm.gather(rows, dst=0)
            if not comm.is_main_process():
                return None
            rows = {image_id: row for part in parts for image_id, row in part.items()}
        platform, band, size = np.array(list(rows.values())).reshape(-1, 3).T
        return OrderedDict(
            metadata={"platform": 100 * _mean(platform), "band": 100 * _mean(band), "size_error": _mean(size)}
        )


def _mean(values: np.ndarray) -> float:
    known = values[~np.isnan(values)]
    return float(known.mean()) if len(known) else math.nan


@EVALUATOR_REGISTRY.register()
def metadata(cfg: CfgNode, _dataset_name: str, _output_folder: str | None) -> DatasetEvaluator:
    return MetadataEvaluator(MetadataVocabulary.from_config(cfg))
