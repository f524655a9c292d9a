"""Scores fall where the true mask says that no sky is, and nowhere else."""

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
from detectron2.data import DatasetCatalog
from programs import load_program

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


def test_scores_outside_the_sky_fall(tmp_path, monkeypatch, capsys):
    mask = np.zeros((20, 30), np.uint8)
    mask[:10], mask[10, 29] = 1, 255
    cv2.imwrite(str(tmp_path / "sky.png"), mask)
    name = f"true_sky_{tmp_path.name}"
    DatasetCatalog.register(name, lambda: [{"image_id": "a", "sem_seg_file_name": str(tmp_path / "sky.png")}])
    boxes = {"sky": [4, 8, 3, 3], "ground": [4, 9, 3, 3], "unknown": [29, 10, 2, 1], "beyond": [28, 18, 9, 9]}
    rows = [{"image_id": "a", "category_id": 0, "bbox": box, "score": 0.5} for box in boxes.values()]
    run = tmp_path / "run"
    (run / "inference" / name).mkdir(parents=True)
    (run / "inference" / name / "coco_instances_results.json").write_text(json.dumps(rows))
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    program = load_program(BENCHMARKS / "true_sky.py")
    assert program.main([str(run), "--dataset", name, "--factor", "0.1", "--output", str(tmp_path / "new")]) == 0
    written = json.loads((tmp_path / "new" / "run.json").read_text())
    scores = dict(zip(boxes, [row["score"] for row in written], strict=True))
    assert scores == pytest.approx({"sky": 0.5, "ground": 0.05, "unknown": 0.5, "beyond": 0.05})
    assert [{**row, "score": 0.5} for row in written] == rows
    assert str(tmp_path / "new" / "run.json") in capsys.readouterr().out
    DatasetCatalog.remove(name)
