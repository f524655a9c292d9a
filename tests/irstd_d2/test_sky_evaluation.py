"""Sky metrics against counts by hand and a slow loop, in groups, over processes and on faulty input."""

import cv2
import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.utils import comm
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as nps

from irstd_d2 import get_config
from irstd_d2.evaluation import SkyEvaluator, build_evaluator
from irstd_d2.evaluation.sky import confusion, sky_metrics

MASKS = {
    "a": np.array([[1, 1, 0], [1, 0, 255]], np.uint8),
    "b": np.array([[0, 0, 0], [1, 1, 1]], np.uint8),
    "c": None,
}
PLATFORMS = {"a": "Air", "b": "Land", "c": "Land"}


@pytest.fixture
def dataset(tmp_path):
    dicts = []
    for name, mask in MASKS.items():
        record = {"file_name": f"{name}.png", "image_id": name, "height": 2, "width": 3, "annotations": []}
        record["metadata"] = {"platform": PLATFORMS[name]}
        if mask is not None:
            record["sem_seg_file_name"] = str(tmp_path / f"{name}.png")
            cv2.imwrite(record["sem_seg_file_name"], mask)
        dicts.append(record)
    DatasetCatalog.register("sky_test", lambda: dicts)
    MetadataCatalog.get("sky_test").set(thing_classes=["target"])
    yield "sky_test"
    DatasetCatalog.remove("sky_test")
    MetadataCatalog.remove("sky_test")


def result(sky):
    sky = torch.tensor(sky, dtype=torch.float32)
    return {"sem_seg": torch.stack([1 - sky, sky])}


PREDICTED = {"a": [[0.9, 0.2, 0.4], [0.7, 0.6, 0.9]], "b": [[0.1, 0.1, 0.1], [0.9, 0.9, 0.9]], "c": [[1] * 3] * 2}


def run(evaluator, names=("a", "b", "c")):
    for name in names:
        evaluator.process([{"image_id": name}], [result(PREDICTED[name])])


def test_counts_by_hand():
    # Of image a: sky found twice and missed once; other right once, called sky once; one pixel ignored.
    matrix = confusion(np.array([[1, 0, 0], [1, 1, 1]], bool), MASKS["a"])
    np.testing.assert_array_equal(matrix, [[1, 1], [1, 2]])
    assert sky_metrics(matrix) == pytest.approx(
        {"IoU": 50.0, "IoU_other": 100 / 3, "mIoU": (50 + 100 / 3) / 2, "pixel_accuracy": 60.0}
    )


label_maps = st.tuples(st.integers(1, 6), st.integers(1, 6)).flatmap(
    lambda shape: st.tuples(
        nps.arrays(np.int64, shape, elements=st.sampled_from([0, 1])),
        nps.arrays(np.uint8, shape, elements=st.sampled_from([0, 1, 255])),
    )
)


@given(label_maps)
def test_metrics_are_those_of_sets_of_pixels(maps):
    predicted, truth = maps
    pixels = [(p, t) for p, t in zip(predicted.ravel(), truth.ravel()) if t != 255]
    metrics = sky_metrics(confusion(predicted.astype(bool), truth))
    for label, name in ((1, "IoU"), (0, "IoU_other")):
        union = sum(label in pair for pair in pixels)
        both = sum(pair == (label, label) for pair in pixels)
        expected = 100 * both / union if union else float("nan")
        assert metrics[name] == pytest.approx(expected, nan_ok=True)
    right = sum(p == t for p, t in pixels)
    assert metrics["pixel_accuracy"] == pytest.approx(100 * right / len(pixels) if pixels else np.nan, nan_ok=True)


def test_a_data_set_is_judged_over_its_pixels_and_by_group(dataset, tmp_path):
    cfg = get_config(opts=["TEST.EVALUATORS", "('sky',)", "TEST.GROUP_BY", "('platform',)"])
    evaluator = build_evaluator(cfg, dataset, str(tmp_path / "inference"))
    evaluator.reset()
    run(evaluator)
    metrics = evaluator.evaluate()["sky"]
    assert not (tmp_path / "inference").exists()  # a model of the sky alone has no detections to save
    assert metrics["IoU"] == pytest.approx(100 * 5 / 7)  # 2 of 4 and 3 of 3 pixels, not the mean of images
    assert metrics["pixel_accuracy"] == pytest.approx(100 * 9 / 11)
    assert metrics["platform/Air/IoU"] == pytest.approx(50.0)
    assert metrics["platform/Land/mIoU"] == pytest.approx(100.0)


def test_processes_are_joined_and_repeated_images_count_once(dataset, monkeypatch):
    whole, first, second = (SkyEvaluator(dataset) for _ in range(3))
    run(whole)
    expected = whole.evaluate()
    run(first, ["a"])
    run(second, ["b", "a", "c"])
    monkeypatch.setattr(comm, "get_world_size", lambda: 2)
    monkeypatch.setattr(comm, "synchronize", lambda: None)
    monkeypatch.setattr(comm, "gather", lambda data, dst: [data, second._confusion])
    assert first.evaluate() == expected
    monkeypatch.setattr(comm, "is_main_process", lambda: False)
    assert first.evaluate() is None


def test_faults_are_named(dataset):
    evaluator = SkyEvaluator(dataset)
    with pytest.raises(ValueError, match="'d' is not in the evaluated data set"):
        evaluator.process([{"image_id": "d"}], [result(PREDICTED["a"])])
    with pytest.raises(ValueError, match="gives no sem_seg: take 'sky' out"):
        evaluator.process([{"image_id": "a"}], [{}])
    with pytest.raises(ValueError, match=r"\(1, 3\), the mask \(2, 3\)"):
        evaluator.process([{"image_id": "a"}], [result([[0.0, 0.0, 0.0]])])


def test_a_set_without_masks_has_no_metrics(dataset, caplog):
    for record in DatasetCatalog.get(dataset):
        record.pop("sem_seg_file_name", None)
    evaluator = SkyEvaluator(dataset)
    assert "no sky masks" in caplog.text
    run(evaluator)
    assert np.isnan(evaluator.evaluate()["sky"]["mIoU"])
