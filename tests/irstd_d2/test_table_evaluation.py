"""Evaluators over whole data sets: VOC protocols, Pd/Fa, groups, saved predictions, several processes."""

import json
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from detectron2.structures import Boxes, BoxMode, Instances
from detectron2.utils import comm
from loops import for_every

from irstd_d2.errors import DatasetError
from irstd_d2.evaluation.average_precision import EXACT, PAPER, VOCProtocol, precision_recall, voc_verdicts
from irstd_d2.evaluation.collection import add_predictions_file
from irstd_d2.evaluation.ground_truth import GroundTruth
from irstd_d2.evaluation.mask_evaluation import MaskEvaluator
from irstd_d2.evaluation.matching import detection_table, target_table
from irstd_d2.evaluation.results import split_metric_name
from irstd_d2.evaluation.table_evaluation import (
    CentreDistanceEvaluator,
    DetectionProbabilityEvaluator,
    TableEvaluator,
    VOCDetectionEvaluator,
)


def record(image_id, boxes, *, width=100, height=50, difficult=(), **metadata):
    return {
        "image_id": image_id,
        "width": width,
        "height": height,
        "metadata": metadata,
        "annotations": [
            {"bbox": b, "bbox_mode": BoxMode.XYXY_ABS, "category_id": 0, "iscrowd": int(i in difficult)}
            for i, b in enumerate(boxes)
        ],
    }


@pytest.fixture
def truth():
    return GroundTruth.from_dicts(
        [
            record("a", [[10, 10, 13, 13], [20, 20, 23, 23]], platform="Air", band="LWIR"),
            record("b", [[5, 5, 8, 8]], platform="Space", band="NIR", width=1024, height=740),
            record("c", [], platform=None),
        ]
    )


def detections(boxes, scores):
    instances = Instances((50, 100))
    instances.pred_boxes = Boxes(torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4))
    instances.scores = torch.tensor(scores, dtype=torch.float32)
    instances.pred_classes = torch.zeros(len(scores), dtype=torch.long)
    return {"instances": instances}


def run(evaluator):
    evaluator.process([{"image_id": "a"}], [detections([[10, 10, 13, 13], [21, 20, 24, 23]], [0.9, 0.8])])
    evaluator.process([{"image_id": "b"}, {"image_id": "c"}], [detections([], []), detections([[0, 0, 4, 4]], [0.7])])
    return evaluator.evaluate()


def test_voc_exact_and_paper_protocols_differ_by_the_widths(truth):
    exact = run(VOCDetectionEvaluator(truth, iou_thresholds=(0.5, 0.55)))["voc_exact"]
    paper = run(VOCDetectionEvaluator(truth, iou_thresholds=(0.5, 0.55), protocol=PAPER))["voc_paper"]
    assert exact["AP50_area"] == pytest.approx(200 / 3)
    assert exact["AP50_11point"] == pytest.approx(100 * 7 / 11)
    assert exact["recall50"] == pytest.approx(200 / 3)
    assert exact["precision50"] == pytest.approx(200 / 3)
    assert exact["AP55_area"] == pytest.approx(100 / 3)  # a shift by one pixel has IoU 0.5
    assert paper["AP55_area"] == pytest.approx(200 / 3)  # and 0.6 with the old widths


def test_groups_by_platform_and_resolution(truth):
    results = run(VOCDetectionEvaluator(truth, group_by=("platform", "resolution")))["voc_exact"]
    assert results["platform/Air/AP50_area"] == pytest.approx(100)
    assert results["platform/Space/AP50_area"] == 0
    assert np.isnan(results["platform/unknown/AP50_area"])
    assert results["resolution/<=256/recall50"] == pytest.approx(100)
    assert results["resolution/<=1024/recall50"] == 0
    assert list(truth.image_groups("resolution")) == ["<=256", "<=1024"]


def test_a_group_that_no_image_has_is_warned_of(truth, caplog):
    truth.image_groups("platform")
    assert not caplog.records
    assert list(truth.image_groups("weather of the day")) == ["unknown"]
    assert "weather of the day, which results are grouped by, is in the metadata of no image" in caplog.text


def test_pd_fa_counts_pixels_of_false_detections(truth):
    results = run(DetectionProbabilityEvaluator(truth))["pd_fa"]
    assert results["Pd"] == pytest.approx(200 / 3)
    assert results["Fa"] == pytest.approx(16 / (5000 + 1024 * 740 + 5000) * 1e6)
    assert results["FAPI@50"] == 0
    assert np.isinf(results["FAPI@80"])
    assert results["F1"] == pytest.approx(80)
    assert results["F1_threshold"] == pytest.approx(0.8)


def test_pd_fa_at_other_distances_and_rates(truth):
    """The second detection of image a is 1 pixel off its target: within half a pixel only the first is right."""
    strict = DetectionProbabilityEvaluator(truth, max_distance=0.5, froc_recalls=(0.3,), fa_rates=(50,))
    results = run(strict)["pd_fa"]
    assert results["Pd"] == pytest.approx(100 / 3)
    assert results["Fa"] == pytest.approx((9 + 16) / (5000 + 1024 * 740 + 5000) * 1e6)
    assert results["FAPI@30"] == 0
    assert results["Pd@Fa50"] == pytest.approx(100 / 3)
    assert not {"FAPI@80", "Pd@Fa10"} & set(results)


@pytest.mark.parametrize("kind", [VOCDetectionEvaluator, DetectionProbabilityEvaluator, CentreDistanceEvaluator])
def test_one_process_of_several_can_judge_by_itself(truth, monkeypatch, kind):
    alone = run(kind(truth))
    monkeypatch.setattr(comm, "get_world_size", lambda: 2)
    monkeypatch.setattr(comm, "gather", lambda *_, **__: pytest.fail("asked the other process"))
    monkeypatch.setattr(comm, "synchronize", lambda: pytest.fail("waits for the other process"))
    np.testing.assert_equal(run(kind(truth, distributed=False)), alone)


def test_difficult_targets_count_neither_way():
    truth = GroundTruth.from_dicts([record("a", [[0, 0, 4, 4], [10, 10, 14, 14]], difficult={1})])
    evaluator = VOCDetectionEvaluator(truth)
    evaluator.process([{"image_id": "a"}], [detections([[10, 10, 14, 14], [0, 0, 4, 4]], [0.9, 0.5])])
    results = evaluator.evaluate()["voc_exact"]
    assert results["AP50_area"] == results["precision50"] == 100


def test_classes_are_averaged_over_those_with_targets():
    rows = record("a", [[0, 0, 4, 4], [10, 10, 14, 14]])
    rows["annotations"][1]["category_id"] = 1
    truth = GroundTruth.from_dicts([rows], ("plane", "ship", "car"))
    evaluator = VOCDetectionEvaluator(truth)
    evaluator.add("a", np.array([[0, 0, 4, 4.0]]), np.array([0.5]), np.array([0]))
    results = evaluator.evaluate()["voc_exact"]
    assert results["AP50_area"] == 50
    assert results["AP50_area-plane"] == 100
    assert results["AP50_area-ship"] == 0
    assert "AP50_area-car" not in results


def test_images_without_predictions_are_counted_and_named(truth, caplog):
    evaluator = VOCDetectionEvaluator(truth)
    with caplog.at_level("WARNING"):
        assert evaluator.evaluate()["voc_exact"]["recall50"] == 0
    assert "3 of 3 images have no predictions" in caplog.text


def test_an_empty_data_set_has_no_numbers():
    evaluator = VOCDetectionEvaluator(GroundTruth.from_dicts([]))
    assert all(np.isnan(v) for v in evaluator.evaluate()["voc_exact"].values())


def test_unknown_images_and_bad_scores_are_refused(truth):
    evaluator = VOCDetectionEvaluator(truth)
    with pytest.raises(ValueError, match="'z' is not in the evaluated data set"):
        evaluator.add("z", np.zeros((0, 4)), np.zeros(0), np.zeros(0, int))
    with pytest.raises(ValueError, match="image 'a' has detections .* not finite"):  # noqa: RUF043
        evaluator.process([{"image_id": "a"}], [detections([[0, 0, 1, 1]], [float("nan")])])


def test_the_base_class_says_what_to_implement(truth):
    with pytest.raises(TypeError, match=r"abstract class TableEvaluator .*compute"):
        TableEvaluator(truth)


def test_a_saved_predictions_file_gives_the_same_numbers(truth, tmp_path):
    evaluator = VOCDetectionEvaluator(truth)
    expected = run(evaluator)
    rows = [
        {"image_id": "a", "category_id": 1, "bbox": [10, 10, 3, 3], "score": 0.9},
        {"image_id": "a", "category_id": 1, "bbox": [21, 20, 3, 3], "score": 0.8},
        {"image_id": "c", "category_id": 1, "bbox": [0, 0, 4, 4], "score": 0.7},
    ]
    path = tmp_path / "results.json"
    path.write_text(json.dumps(rows))
    again = VOCDetectionEvaluator(replace(truth, category_index={1: 0}))
    add_predictions_file(again, path)
    assert again.evaluate() == expected
    with pytest.raises(DatasetError, match=r"category 1 is none of the data set's, which are 0 \(target\)"):
        add_predictions_file(VOCDetectionEvaluator(truth), path)


@pytest.mark.parametrize("text", ["{", '[{"image_id": "a"}]', "[1]", '[{"image_id": "a", "bbox": [1], "score": 1}]'])
def test_a_broken_predictions_file_is_named(truth, tmp_path, text):
    path = tmp_path / "results.json"
    path.write_text(text)
    with pytest.raises(DatasetError, match=r"results\.json: predictions: cannot be read"):
        add_predictions_file(VOCDetectionEvaluator(truth), path)


@for_every(("protocol", "legacy"), [(EXACT, False), (PAPER, True)])
def test_the_evaluator_gives_the_numbers_of_the_papers_implementation(voc_metric, protocol, legacy):
    records = [
        record(i, image["gt"], difficult=np.flatnonzero(image["difficult"]).tolist())
        for i, image in enumerate(voc_metric["images"])
    ]
    evaluator = VOCDetectionEvaluator(GroundTruth.from_dicts(records), iou_thresholds=(0.5, 0.75), protocol=protocol)
    for i, image in enumerate(voc_metric["images"]):
        boxes, scores = np.reshape(np.array(image["det"], float), (-1, 4)), np.array(image["scores"], float)
        evaluator.add(i, boxes, scores, np.zeros(len(scores), int))
    found = evaluator.evaluate()[f"voc_{protocol.name}"]
    for threshold in ("0.5", "0.75"):
        suffix = f"{float(threshold) * 100:.0f}"
        for mode, name in (("area", "area"), ("11points", "11point")):
            expected = voc_metric["results"][f"eval_map/{mode}/iou{threshold}/legacy={legacy}/stable"]
            assert found[f"AP{suffix}_{name}"] == pytest.approx(100 * expected["mAP"], abs=1e-4)
            assert found[f"recall{suffix}"] == pytest.approx(100 * expected["max_recall"], abs=1e-4)
            assert found[f"precision{suffix}"] == pytest.approx(100 * expected["last_precision"], abs=1e-4)
            published = voc_metric["results"].get(f"VOCMetric/{mode}/iou{threshold}/dataset_type=VOC2012")
            if legacy:  # sorted unstably there: the order of equal scores moves it by a few thousandths
                assert found[f"AP{suffix}_{name}"] / 100 == pytest.approx(published["mAP"], abs=4e-3)
        if legacy:
            recall = voc_metric["results"]["eval_recalls/100/legacy=True"][threshold]
            assert found[f"recall{suffix}"] == pytest.approx(100 * recall, abs=1e-4)


@for_every(("mode", "threshold"), [("area", "0.5"), ("area", "0.75"), ("11points", "0.5")])
@for_every("legacy", [False, True])
def test_the_curve_is_that_of_the_papers_implementation_between_equal_scores(voc_metric, mode, threshold, legacy):
    images = voc_metric["images"]
    targets = target_table([i["gt"] for i in images], None, [i["difficult"] for i in images])
    detections = detection_table([i["det"] for i in images], [i["scores"] for i in images])
    protocol = VOCProtocol(legacy_widths=legacy, dtype=np.float32)
    verdicts = voc_verdicts(detections, targets, float(threshold), protocol)
    curve = precision_recall(verdicts, detections.scores, int((~targets.ignored).sum()), np.float32)
    expected = voc_metric["results"][f"eval_map/{mode}/iou{threshold}/legacy={legacy}"]
    last = np.flatnonzero(np.append(np.diff(detections.scores) != 0, True))
    np.testing.assert_allclose(curve.recall[last], np.array(expected["recall"])[last], atol=1e-6)
    np.testing.assert_allclose(curve.precision[last], np.array(expected["precision"])[last], atol=1e-6)


@for_every(
    ("image_id", "box", "score", "category", "message"),
    [
        ("z", [1, 1, 2, 2], 0.5, 0, "image 'z' is not in the evaluated data set"),
        ("a", [1, 1, 2, 2], np.nan, 0, "score or box is not finite"),
        ("a", [1, 1, 2, 2], np.inf, 0, "not finite"),
        ("a", [1, -np.inf, 2, 2], 0.5, 0, "not finite"),
        ("a", [13, 13, 10, 10], 0.5, 0, r"negative size, \[13.0, 13.0, 10.0, 10.0\]; give x1 y1 x2 y2"),
        ("a", [10, 13, 13, 10], 0.5, 0, "negative size"),
        ("a", [1, 1, 2, 2], 0.5, 1, "classes outside 0 to 0"),
        ("a", [1, 1, 2, 2], 0.5, -1, "classes outside 0 to 0"),
    ],
)
def test_every_evaluator_refuses_what_would_give_a_wrong_number(truth, image_id, box, score, category, message):
    masks = MaskEvaluator(truth, SimpleNamespace())
    for evaluator in (VOCDetectionEvaluator(truth), DetectionProbabilityEvaluator(truth), masks):
        found = np.array([box], float), np.array([score]), np.array([category])
        with pytest.raises(ValueError, match=message):
            evaluator.add(image_id, *found)


def test_a_map_of_a_foreign_image_is_refused(truth):
    with pytest.raises(ValueError, match="image 'z' is not in the evaluated data set"):
        MaskEvaluator(truth, SimpleNamespace()).add_map("z", np.zeros((50, 100)))


def test_boxes_without_area_and_outside_of_the_image_are_false(truth):
    evaluator = DetectionProbabilityEvaluator(truth)
    evaluator.add("c", np.array([[7.0, 7, 7, 9], [-50, -50, -40, -40]]), np.array([0.9, 0.8]), np.zeros(2, int))
    results = evaluator.evaluate()["pd_fa"]
    pixels = 2 * 100 * 50 + 1024 * 740
    assert results["Fa"] == pytest.approx(1e6 * 100 / pixels)
    assert results["Fa_boxes"] == pytest.approx(1e6 * 2 / pixels)


@for_every("places", [(0, 1), (0, 2), (1, 2)])
def test_images_with_one_id_are_refused(places):
    dicts = [record(name, [[1, 1, 3, 3]]) | {"file_name": f"{name}.png"} for name in "abc"]
    first, second = places
    dicts[second]["image_id"] = dicts[first]["image_id"]
    with pytest.raises(DatasetError, match=f"{'abc'[second]}.png: image_id: '{'abc'[first]}' is also that of"):
        GroundTruth.from_dicts(dicts)


@for_every("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_results_of_any_precision_are_taken(truth, dtype):
    """Under autocast the scores of a detector are bfloat16, which numpy does not have."""
    output = detections([[10, 10, 13, 13], [21, 20, 24, 23]], [0.875, 0.75])
    exact, rounded = VOCDetectionEvaluator(truth), VOCDetectionEvaluator(truth)
    exact.process([{"image_id": "a"}], [output])
    found = output["instances"]
    found.scores, found.pred_boxes = found.scores.to(dtype).requires_grad_(), Boxes(found.pred_boxes.tensor)
    found.pred_boxes.tensor = found.pred_boxes.tensor.to(dtype)
    rounded.process([{"image_id": "a"}], [output])
    assert rounded.evaluate() == exact.evaluate()


def test_names_of_classes_may_hold_a_slash():
    """It parts the names of groups from those of metrics."""
    dicts = [record("a", [[10, 10, 13, 13], [20, 20, 23, 23]], platform="Air/Sea")]
    dicts[0]["annotations"][1]["category_id"] = 1
    truth = GroundTruth.from_dicts(dicts, ("drone/uav", "a/b/c"))
    evaluator = VOCDetectionEvaluator(truth, group_by=["platform"], distributed=False)
    evaluator.add("a", np.array([[10, 10, 13, 13]]), np.array([0.5]), np.array([0]))
    metrics = evaluator.evaluate()["voc_exact"]
    for group in (("", ""), ("platform", "Air/Sea")):
        values = {metric: value for name, value in metrics.items() if split_metric_name(name)[:2] == group
                  for metric in [split_metric_name(name)[2]]}  # fmt: skip
        assert (values["AP50_area-drone_uav"], values["AP50_area-a_b_c"], values["AP50_area"]) == (100, 0, 50)
