"""The evaluator of predicted metadata, by hand and under distribution."""

import math

import pytest
from detectron2.utils import comm

from auxdet_d2.evaluation import MetadataEvaluator
from auxdet_d2.metadata import MetadataVocabulary
from irstd_d2 import get_config
from irstd_d2.evaluation import EVALUATOR_REGISTRY

GUESS = {"platform": "Air", "band": "NIR", "width": 200.0, "height": 50.0}
TRUTHS = [
    {"platform": "airborne", "band": "LWIR", "width": 100, "height": 100},
    {"platform": "Land", "band": None, "width": 200, "height": 50},
    {"platform": "Moon", "band": "nir", "width": None, "height": 3},
    None,
]


def evaluator():
    return EVALUATOR_REGISTRY.get("metadata")(get_config(), "unused", None)


def process(judge, numbers):
    for i in numbers:
        judge.process([{"image_id": i, "metadata": TRUTHS[i]}], [{"metadata": GUESS}])
    return judge


def test_values_by_hand():
    metrics = process(evaluator(), range(4)).evaluate()["metadata"]
    # A size that is twice and half the known one; a foreign name is as good as none.
    assert metrics == {"platform": 50.0, "band": 50.0, "size_error": 0.5}


def test_nothing_known():
    metrics = process(evaluator(), [3]).evaluate()["metadata"]
    assert all(math.isnan(value) for value in metrics.values())
    judge = process(evaluator(), [0])
    judge.reset()
    assert all(math.isnan(value) for value in judge.evaluate()["metadata"].values())


def test_processes_share_their_images(monkeypatch):
    first, second = (process(MetadataEvaluator(MetadataVocabulary()), numbers) for numbers in ([0, 2], [1, 2, 3]))
    monkeypatch.setattr(comm, "get_world_size", lambda: 2)
    monkeypatch.setattr(comm, "synchronize", lambda: None)
    monkeypatch.setattr(comm, "gather", lambda rows, dst: [rows, second._rows])
    # Without aliases the first platform is foreign.
    assert first.evaluate()["metadata"] == {"platform": 0.0, "band": 50.0, "size_error": 0.5}
    monkeypatch.setattr(comm, "is_main_process", lambda: False)
    assert first.evaluate() is None


def test_a_model_without_prediction_is_refused():
    with pytest.raises(ValueError, match=r"PREDICT\.ENABLED"):
        evaluator().process([{"image_id": 0, "metadata": None}], [{"instances": None}])
