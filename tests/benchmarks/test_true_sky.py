"""Scores fall where the true mask says that no sky is, and nowhere else."""

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from programs import load_program

from irstd_d2.errors import ConfigError

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
BOXES = {"sky": [4, 8, 3, 3], "ground": [4, 9, 3, 3], "unknown": [29, 10, 2, 1], "beyond": [28, 18, 9, 9]}
FILE = "coco_instances_results.json"


@pytest.fixture
def register():
    names = []

    def add(name, mask):
        record = {"image_id": "a", "height": 20, "width": 30, "sem_seg_file_name": mask}
        DatasetCatalog.register(name, lambda: [record])
        MetadataCatalog.get(name).set(thing_classes=["target"])
        names.append(name)
        return name

    yield add
    for name in names:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)


@pytest.fixture
def program(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return load_program(BENCHMARKS / "true_sky.py")


def save_run(folder, name, score):
    rows = [{"image_id": "a", "category_id": 0, "bbox": box, "score": score} for box in BOXES.values()]
    (folder / "inference" / name).mkdir(parents=True)
    (folder / "inference" / name / FILE).write_text(json.dumps(rows))
    return rows


def test_scores_outside_the_sky_fall(program, register, tmp_path, capsys):
    mask = np.zeros((20, 30), np.uint8)
    mask[:10], mask[10, 29] = 1, 255
    cv2.imwrite(str(tmp_path / "sky.png"), mask)
    name = register(f"true_sky_{tmp_path.name}", str(tmp_path / "sky.png"))
    rows = save_run(tmp_path / "run", name, 0.5)
    save_run(tmp_path / "more" / "run", name, 0.25)  # of the same name
    runs = [str(tmp_path / "run"), str(tmp_path / "more" / "run")]
    assert program.main([*runs, "--dataset", name, "--factor", "0.1", "--output", str(tmp_path / "new")]) == 0
    first, second = (json.loads((tmp_path / "new" / f"run ({i})" / FILE).read_text()) for i in (1, 2))
    scores = dict(zip(BOXES, [row["score"] for row in first], strict=True))
    assert scores == pytest.approx({"sky": 0.5, "ground": 0.05, "unknown": 0.5, "beyond": 0.05})
    assert [{**row, "score": 0.5} for row in first] == rows
    assert [row["score"] for row in second] == pytest.approx([score / 2 for score in scores.values()])
    assert f"'{tmp_path / 'new' / 'run (1)'}'" in capsys.readouterr().out


def test_sets_without_masks_are_refused(program, register, tmp_path, capsys):
    name = register(f"true_sky_{tmp_path.name}", None)
    with pytest.raises(SystemExit):
        program.main([str(tmp_path), "--dataset", name, "--output", str(tmp_path / "new")])
    assert "has no sky masks" in capsys.readouterr().err
    with pytest.raises(ConfigError, match="is not registered"):
        program.main([str(tmp_path), "--dataset", "no_such_set", "--output", str(tmp_path / "new")])
