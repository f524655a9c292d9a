"""COCO metrics: both libraries agree, area ranges, groups, empty cases, the saved file, the printed table."""

import json
import math
import sys

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.evaluation import COCOEvaluator
from detectron2.structures import Boxes, BoxMode, Instances
from hypothesis import given, settings
from hypothesis import strategies as st

from irstd_d2 import get_config
from irstd_d2.errors import ConfigError
from irstd_d2.evaluation import IRSTDCOCOEvaluator, build_evaluator, format_results
from irstd_d2.evaluation.coco_evaluation import coco_metrics
from irstd_d2.evaluation.ground_truth import GroundTruth
from irstd_d2.evaluation.matching import detection_table

NAME = "coco_evaluation_test"


def record(image_id, boxes, *, classes=None, difficult=(), **metadata):
    return {
        "file_name": f"{image_id}.png",
        "image_id": image_id,
        "width": 64,
        "height": 48,
        "metadata": metadata,
        "annotations": [
            {
                "bbox": list(box),
                "bbox_mode": BoxMode.XYXY_ABS,
                "category_id": 0 if classes is None else classes[i],
                "iscrowd": int(i in difficult),
            }
            for i, box in enumerate(boxes)
        ],
    }


def detections(boxes, scores, classes=None):
    instances = Instances((48, 64))
    instances.pred_boxes = Boxes(torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4))
    instances.scores = torch.tensor(scores, dtype=torch.float32)
    instances.pred_classes = torch.tensor(classes if classes is not None else [0] * len(scores), dtype=torch.long)
    return {"instances": instances}


def rows_of(image_id, boxes, scores, classes=None):
    classes = classes if classes is not None else [0] * len(scores)
    return [
        {"image_id": image_id, "category_id": c, "bbox": [x1, y1, x2 - x1, y2 - y1], "score": s}
        for (x1, y1, x2, y2), s, c in zip(boxes, scores, classes)
    ]


def random_case(seed):
    """Targets of a few pixels and detections around them, with difficult ones, misses and false alarms."""
    rng = np.random.default_rng(seed)
    dicts, rows = [], []
    for image in range(1, rng.integers(2, 7)):
        corner = rng.integers(0, 40, (rng.integers(0, 6), 2))
        boxes = np.concatenate([corner, corner + rng.integers(1, rng.choice([4, 12, 40]), corner.shape)], 1)
        classes = rng.integers(0, 2, len(boxes)).tolist()
        difficult = set(np.flatnonzero(rng.random(len(boxes)) < 0.15).tolist())
        dicts.append(record(image, boxes.astype(float).tolist(), classes=classes, difficult=difficult))
        near = boxes[rng.integers(0, len(boxes), rng.integers(0, 12))] if len(boxes) else np.zeros((0, 4))
        near = near + rng.integers(-2, 3, near.shape) * rng.choice([0.25, 0.5, 1.0])
        near[:, 2:] = np.maximum(near[:, 2:], near[:, :2] + 0.25)
        scores = rng.choice([0.1, 0.5, 0.9], len(near)) + 0.001 * rng.random(len(near))
        rows += rows_of(image, near.tolist(), scores.tolist(), rng.integers(0, 2, len(near)).tolist())
    return dicts, rows


def tables(dicts, rows):
    boxes = {item["image_id"]: ([], [], []) for item in dicts}
    for row in rows:
        x, y, w, h = row["bbox"]
        for column, value in zip(boxes[row["image_id"]], ([x, y, x + w, y + h], row["score"], row["category_id"])):
            column.append(value)
    return GroundTruth.from_dicts(dicts, ["a", "b"]).targets, detection_table(*zip(*boxes.values()))


def assert_same_metrics(a, b):
    assert a.keys() == b.keys()
    for key in a:
        assert a[key] == pytest.approx(b[key], abs=1e-9, nan_ok=True), key


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**31), max_detections=st.sampled_from([3, 100, 300]))
def test_both_libraries_give_the_same_metrics(seed, max_detections):
    dicts, rows = random_case(seed)
    truth, found = tables(dicts, rows)
    fast, slow = (
        coco_metrics(found, truth, len(dicts), num_classes=2, max_detections=max_detections, use_faster=f)
        for f in (True, False)
    )
    assert_same_metrics(fast, slow)


@pytest.fixture
def register():
    def build(dicts, classes=("target",)):
        DatasetCatalog.register(NAME, lambda: dicts)
        MetadataCatalog.get(NAME).set(thing_classes=list(classes), evaluator_type="coco")

    yield build
    DatasetCatalog.remove(NAME)
    MetadataCatalog.remove(NAME)


def evaluate(outputs, **arguments):
    evaluator = IRSTDCOCOEvaluator(NAME, **arguments)
    for image_id, output in outputs.items():
        evaluator.process([{"image_id": image_id}], [output])
    return evaluator.evaluate()["bbox"]


def test_the_usual_metrics_equal_detectron2s_evaluator(register, tmp_path):
    dicts, rows = random_case(3)
    register(dicts, ["a", "b"])
    outputs = {}
    for item in dicts:
        mine = [r for r in rows if r["image_id"] == item["image_id"]]
        boxes = [[r["bbox"][0], r["bbox"][1], r["bbox"][0] + r["bbox"][2], r["bbox"][1] + r["bbox"][3]] for r in mine]
        outputs[item["image_id"]] = detections(boxes, [r["score"] for r in mine], [r["category_id"] for r in mine])
    theirs = COCOEvaluator(NAME, ("bbox",), distributed=False, output_dir=str(tmp_path), use_fast_impl=False)
    theirs.reset()
    for image_id, output in outputs.items():
        theirs.process([{"image_id": image_id}], [output])
    expected = theirs.evaluate()["bbox"]
    found = evaluate(outputs)
    assert expected["AP50"] > 1
    for key in ("AP", "AP50", "AP75"):
        assert found[key] == pytest.approx(expected[key], abs=1e-9)


def test_values_by_hand(register):
    register([record("a", [[10, 10, 13, 13], [20, 20, 23, 23]]), record("b", [])])
    # Shifted by one pixel a box of 3x3 has IoU 6 / 12 with its target.
    found = evaluate(
        {"a": detections([[10, 10, 13, 13], [21, 20, 24, 23]], [0.9, 0.8]), "b": detections([[0, 0, 3, 3]], [0.85])}
    )
    # In order of score: true, false, true (at IoU 0.5) or false (above). Recall 0 to 0.5 has precision 1, above 2/3.
    assert found["AP50"] == pytest.approx(100 * (51 * 1 + 50 * 2 / 3) / 101)
    assert found["AP25"] == found["AP50"]
    assert found["AP75"] == pytest.approx(100 * 51 / 101)
    assert found["recall50"] == 100
    assert found["AR"] == pytest.approx(100 * (1 + 9 * 0.5) / 10)


@pytest.mark.parametrize(
    ("edge", "name"), [(2, "<9"), (3, "9-25"), (4, "9-25"), (5, "25-81"), (9, "81-1024"), (31, "81-1024"), (32, None)]
)
def test_every_target_has_one_area_range(register, edge, name):
    register([record("a", [[5, 5, 5 + edge, 5 + edge]])])
    found = evaluate({"a": detections([[5, 5, 5 + edge, 5 + edge]], [0.9])})
    ranges = {key.removeprefix("AP50-") for key, value in found.items() if key.startswith("AP50-") and value == 100}
    assert ranges == ({name} if name else set())
    assert {key for key, value in found.items() if "50-" in key and math.isnan(value)} == {
        f"{metric}-{other}"
        for metric in ("AP50", "recall50")
        for other in ("<9", "9-25", "25-81", "81-1024")
        if other != name
    }


def test_groups(register):
    register(
        [
            record("a", [[10, 10, 13, 13]], platform="Air"),
            record("b", [[10, 10, 13, 13]], platform="Land"),
            record("c", [], platform="Land"),
            record("d", [[10, 10, 13, 13]]),
        ]
    )
    hit = detections([[10, 10, 13, 13]], [0.9])
    found = evaluate(
        {"a": hit, "b": detections([], []), "c": hit, "d": hit}, group_by=("platform",), max_detections=300
    )
    values = {g: (found[f"platform/{g}/AP50"], found[f"platform/{g}/recall50"]) for g in ("Air", "Land", "unknown")}
    assert values == {"Air": (100, 100), "Land": (0, 0), "unknown": (100, 100)}
    assert found["recall50"] == pytest.approx(200 / 3)
    table = format_results({"bbox": found, "pd_fa": {"Pd": 50.0}})
    # Hit, false alarm, hit of three targets: precision 1 to recall 0.33, 2/3 to 0.66.
    header, _, first, *_, last = table.splitlines()
    assert [c.strip() for c in header.strip("|").split("|")] == [
        *("evaluator", "metric", "all", "platform/Air", "platform/Land", "platform/unknown")
    ]
    assert [c.strip() for c in first.strip("|").split("|")] == ["bbox", "AP", "55.45", "100.00", "0.00", "100.00"]
    assert [c.strip() for c in last.strip("|").split("|")] == ["pd_fa", "Pd", "50.00", "-", "-", "-"]


@pytest.mark.parametrize("faster", [True, False])
def test_nothing_detected_and_nothing_to_detect(register, faster):
    register([record("a", [[1, 1, 4, 4]]), record("b", [])])
    nothing = evaluate({"a": detections([], []), "b": detections([], [])}, use_faster=faster)
    assert (nothing["AP"], nothing["recall50"]) == (0, 0)
    DatasetCatalog.remove(NAME)
    MetadataCatalog.remove(NAME)
    register([record("b", [])])
    empty = evaluate({"b": detections([[1, 1, 4, 4]], [0.5])}, use_faster=faster)
    assert all(math.isnan(value) for value in empty.values())


def test_difficult_targets_count_neither_way(register):
    register([record("a", [[1, 1, 4, 4], [20, 20, 23, 23]], difficult={1})])
    found = evaluate({"a": detections([[20, 20, 23, 23], [1, 1, 4, 4]], [0.9, 0.8])})
    assert (found["AP50"], found["recall50"]) == (100, 100)


def test_no_more_than_the_best_detections_count(register):
    register([record("a", [[1, 1, 4, 4]])])
    boxes = [[30, 30, 33, 33]] * 100 + [[1, 1, 4, 4]]
    outputs = {"a": detections(boxes, np.linspace(0.9, 0.1, 101).tolist())}
    assert evaluate(outputs, max_detections=100)["recall50"] == 0
    assert evaluate(outputs, max_detections=300)["recall50"] == 100


def test_an_unknown_image_is_refused(register):
    register([record("a", [])])
    with pytest.raises(ValueError, match="image 'z' is not in the evaluated data set"):
        evaluate({"z": detections([], [])})


@pytest.mark.parametrize(("box", "score"), [([1, 1, math.nan, 4], 0.5), ([1, 1, 4, 4], math.inf)])
def test_detections_that_are_not_finite_are_refused(register, box, score):
    register([record("a", [])])
    with pytest.raises(ValueError, match="'a' has detections whose score or box is not finite"):
        evaluate({"a": detections([box], [score])})


@pytest.mark.parametrize("evaluators", [("coco",), ("pd_fa",), ()])
def test_detections_are_saved_in_the_order_of_the_set_whatever_is_evaluated(register, tmp_path, capsys, evaluators):
    register([record("a", []), record("b", [[1, 1, 4, 4]])])
    evaluator = build_evaluator(get_config(opts=["TEST.EVALUATORS", evaluators]), NAME, str(tmp_path / "new"))
    evaluator.reset()
    found = {"b": detections([[1, 1, 4.5, 4]], [0.5]), "a": detections([[2, 2, 4, 4]], [0.25])}
    evaluator.process([{"image_id": image_id} for image_id in found], list(found.values()))
    evaluator.evaluate()
    rows = json.loads((tmp_path / "new" / "coco_instances_results.json").read_text())
    assert rows == [
        {"image_id": "a", "category_id": 0, "bbox": [2, 2, 2, 2], "score": 0.25},
        {"image_id": "b", "category_id": 0, "bbox": [1, 1, 3.5, 3], "score": 0.5},
    ]
    assert capsys.readouterr().out == ""


def test_evaluators_come_from_the_configuration(register, tmp_path):
    register([record("a", [[1, 1, 4, 4]], band="NIR")])
    cfg = get_config(
        None,
        [
            *("TEST.EVALUATORS", ("coco", "voc", "voc_paper", "pd_fa"), "TEST.GROUP_BY", ("band",)),
            *("OUTPUT_DIR", str(tmp_path), "TEST.DETECTIONS_PER_IMAGE", 300),
        ],
    )
    evaluator = build_evaluator(cfg, NAME)
    evaluator.reset()
    evaluator.process([{"image_id": "a"}], [detections([[1, 1, 4, 4]], [0.9])])
    results = evaluator.evaluate()
    assert list(results) == ["bbox", "voc_exact", "voc_paper", "pd_fa"]
    assert results["bbox"]["band/NIR/AP50"] == results["voc_exact"]["band/NIR/AP50_area"] == 100
    assert (tmp_path / "inference" / NAME / "coco_instances_results.json").exists()
    cfg.TEST.EVALUATORS = ("nonsense",)
    with pytest.raises(ConfigError, match=r"TEST\.EVALUATORS has 'nonsense'; known are 'centre', 'coco'"):
        build_evaluator(cfg, NAME)


def test_without_the_faster_library_the_plain_one_is_used(register, monkeypatch):
    register([record("a", [[1, 1, 4, 4]])])
    monkeypatch.setitem(sys.modules, "faster_coco_eval", None)
    assert evaluate({"a": detections([[1, 1, 4, 4]], [0.9])})["AP"] == pytest.approx(100)
    with pytest.raises(ImportError):
        evaluate({"a": detections([[1, 1, 4, 4]], [0.9])}, use_faster=True)
