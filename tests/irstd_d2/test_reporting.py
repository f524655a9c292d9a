"""The HTML report: complete, self-contained, and safe with hostile names."""

import json
import re

import cv2
import numpy as np
import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.structures import BoxMode

from irstd_d2.errors import DatasetError
from irstd_d2.reporting import write_report
from irstd_d2.reporting.run import load_run

HOSTILE = "<img src=x onerror=alert(1)> $\\bad"


@pytest.fixture
def data_set(tmp_path):
    name = "report_test_set"
    rng = np.random.default_rng(0)
    dicts = []
    for i in range(6):
        image = rng.integers(20, 60, (64, 80), np.uint8)
        corner = rng.integers(5, 50, (2, 2))
        boxes = np.concatenate([corner, corner + 3], 1)
        for x1, y1, x2, y2 in boxes:
            image[y1:y2, x1:x2] = 220
        path = tmp_path / f"{i} {HOSTILE.replace('/', '')}.png"
        path.write_bytes(cv2.imencode(".png", image)[1].tobytes())
        dicts.append(
            {
                "file_name": str(path),
                "image_id": f"im{i}",
                "height": 64,
                "width": 80,
                "metadata": {"platform": "Air" if i % 2 else "Land", "band": "LWIR", "width": 80, "height": 64},
                "annotations": [
                    {"bbox": b.tolist(), "bbox_mode": BoxMode.XYXY_ABS, "category_id": 0, "iscrowd": 0} for b in boxes
                ],
            }
        )
    DatasetCatalog.register(name, lambda: dicts)
    MetadataCatalog.get(name).set(thing_classes=["target"])
    yield name, dicts
    DatasetCatalog.remove(name)
    MetadataCatalog.remove(name)


def make_run(folder, data_set, *, shift=0, iterations=30):
    name, dicts = data_set
    rng = np.random.default_rng(1)
    rows = []
    for record in dicts:
        for annotation in record["annotations"]:
            x1, y1, x2, y2 = annotation["bbox"]
            bbox = [x1 + shift, y1, x2 - x1, y2 - y1]
            rows.append({"image_id": record["image_id"], "category_id": 0, "bbox": bbox, "score": rng.random()})
        rows.append({"image_id": record["image_id"], "category_id": 0, "bbox": [1, 1, 4, 4], "score": rng.random()})
    (folder / "inference" / name).mkdir(parents=True)
    (folder / "inference" / name / "coco_instances_results.json").write_text(json.dumps(rows))
    lines = [{"iteration": i, "total_loss": 3 / (1 + i), "lr": 0.01} for i in range(iterations)]
    (folder / "metrics.json").write_text("\n".join(json.dumps(row) for row in lines) + '\n{"iteration": 3')
    (folder / "config.yaml").write_text(f"DATASETS:\n  TEST: [{name}]\nNOTE: '{HOSTILE}'\n")
    (folder / "log.txt").write_text(
        "[11/21 05:00:00 d2]: Environment info:\n----\nPyTorch  2.x\n----\n[11/21 05:00:01 d2]: next line\n"
    )
    return folder


def test_report_of_two_runs(tmp_path, data_set):
    first = make_run(tmp_path / "baseline", data_set, shift=2)
    second = make_run(tmp_path / HOSTILE, data_set)
    path = write_report([first, second], tmp_path / "out" / "report.html", gallery=4, draws=50)
    text = path.read_text(encoding="utf-8")
    assert "6 images, 12 targets" in text
    row = re.search(r"<tr><td>voc_exact AP50_area</td><td>(.*?)</td><td>(.*?)</td>", text)
    assert float(row[1]) < float(row[2])
    assert "against baseline: +" in text
    assert text.count("<figure>") >= 4
    assert "data:image/png;base64," in text
    assert "PyTorch  2.x" in text
    assert "AP50 by platform" in text or text.count("<svg") >= 6  # matplotlib draws text as shapes
    # Nothing is loaded from elsewhere, nothing runs, and no hostile name became markup.
    assert not re.search(r"<script|<link|<iframe|src=\"(?!data:)|@import|url\((?!#)", text)
    assert "<img src=x" not in text
    assert "&lt;img src=x onerror=alert(1)&gt;" in text


def test_equal_numbers_in_report_and_evaluator(tmp_path, data_set):
    from irstd_d2.evaluation.ground_truth import GroundTruth
    from irstd_d2.evaluation.table_evaluation import VOCDetectionEvaluator, add_predictions_file

    run = make_run(tmp_path / "a", data_set, shift=1)
    text = write_report([run], tmp_path / "r.html", gallery=0, draws=0).read_text(encoding="utf-8")
    evaluator = VOCDetectionEvaluator(GroundTruth.from_dataset(data_set[0]), iou_thresholds=(0.25, 0.5, 0.75))
    add_predictions_file(evaluator, run / "inference" / data_set[0] / "coco_instances_results.json")
    for metric, value in evaluator.evaluate()["voc_exact"].items():
        assert f"<td>voc_exact {metric}</td><td>{value:.2f}</td>" in text
    assert "<figure>" not in text


def test_runs_of_the_same_name_are_told_apart(tmp_path, data_set):
    runs = [make_run(tmp_path / part / "run", data_set) for part in "ab"]
    text = write_report(runs, tmp_path / "r.html", gallery=0, draws=0).read_text(encoding="utf-8")
    assert "<th>run (1)</th><th>run (2)</th>" in text


def test_history_drops_the_torn_last_line_and_keeps_the_last_of_a_resumed_iteration(tmp_path, data_set):
    folder = make_run(tmp_path / "a", data_set, iterations=3)
    path = folder / "metrics.json"
    path.write_text('{"iteration": 1, "total_loss": 9}\n\n{"iteration": 1, "total_loss": 2}\n{"iteration": 2, "lr": ')
    run = load_run(folder)
    assert run.series("total_loss") == ([1], [2])
    path.write_text('{"iteration": 1\n{"iteration": 2}\n')
    with pytest.raises(DatasetError, match=r"metrics\.json: line 1: is not JSON"):
        load_run(folder)


def test_folders_that_are_no_runs_are_refused(tmp_path, data_set):
    with pytest.raises(DatasetError, match="holds neither"):
        load_run(tmp_path)
    folder = make_run(tmp_path / "a", data_set)
    (folder / "config.yaml").write_text("a: [")
    with pytest.raises(DatasetError, match=r"config\.yaml: file: is not YAML"):
        load_run(folder)


def test_predictions_directly_under_inference_belong_to_the_configured_test_set(tmp_path, data_set):
    folder = make_run(tmp_path / "a", data_set)
    name = data_set[0]
    path = folder / "inference" / name / "coco_instances_results.json"
    path.rename(folder / "inference" / path.name)
    (folder / "log.txt").unlink()
    run = load_run(folder)
    assert list(run.predictions) == [name]
    assert run.environment == ""
