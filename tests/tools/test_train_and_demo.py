"""The command lines: train, evaluate, resume, detect."""

import json
import runpy
import sys

import cv2
import numpy as np
import pytest
import torch
import toy_training as toy
from toy_training import TEST, TRAIN

CONFIG = "configs/baselines/tiny/fcos_tiny.yaml"
SMALL = [
    *("DATASETS.TRAIN", str((TRAIN,)), "DATASETS.TEST", str((TEST,)), "INPUT.FIXED_SIZE", "(64, 64)"),
    *("SOLVER.IMS_PER_BATCH", "2", "SOLVER.MAX_ITER", "3", "DATALOADER.NUM_WORKERS", "0"),
]


@pytest.fixture
def tool(repo_root, tmp_path, monkeypatch):
    """Run a tool as a script would, in this process."""
    monkeypatch.chdir(repo_root)
    images = tmp_path / "images"
    images.mkdir()
    toy.register(images)

    def run(name, *arguments):
        monkeypatch.setattr(sys, "argv", [name, *map(str, arguments)])
        try:
            runpy.run_path(f"tools/{name}.py", run_name="__main__")
        except SystemExit as end:
            return end.code
        return 0

    yield run
    toy.unregister()


def test_train_evaluate_and_detect(tool, tmp_path, capsys):
    out = tmp_path / "out"
    options = [*SMALL, "OUTPUT_DIR", out]
    assert tool("train_net", "--config-file", CONFIG, *options) == 0
    assert (out / "config.yaml").exists()
    assert any(out.glob("events.out.tfevents.*"))
    predictions = out / "inference" / TEST / "coco_instances_results.json"
    trained = predictions.read_text()
    predictions.unlink()
    weights = out / "model_final.pth"
    assert tool("train_net", "--config-file", CONFIG, "--eval-only", *options, "MODEL.WEIGHTS", weights) == 0
    assert predictions.read_text() == trained
    assert tool("train_net", "--config-file", CONFIG, "--resume", *options, "SOLVER.MAX_ITER", "5") == 0
    assert torch.load(weights, weights_only=True)["iteration"] == 4
    capsys.readouterr()
    assert tool("train_net", "--config-file", CONFIG, *options, "SOLVER.MAX_ITER", "1") == 0
    screen = " ".join("".join(capsys.readouterr()).split())
    assert "holds a training (model_final.pth), whose files this one overwrites" in screen
    assert torch.load(weights, weights_only=True)["iteration"] == 0

    found = tmp_path / "found"
    folder = tmp_path / "mine" / "sub"
    folder.mkdir(parents=True)
    single = tmp_path / "other" / "a.tif"
    single.parent.mkdir()
    for path in (folder / "a.png", folder.parent / "a.tif", folder.parent / "b ü.png", single):
        cv2.imwrite(str(path), np.random.default_rng(0).integers(0, 255, (48, 80), dtype=np.uint8))
    (folder / "notes.txt").touch()
    arguments = ["--config-file", CONFIG, "--weights", weights, "--output", found, "--platform", "Air"]
    assert tool("demo", *arguments, "--threshold", "0", "--input", folder.parent, single, "--opts", *SMALL[4:6]) == 0
    names = {p.name for p in found.iterdir() if not p.name.startswith(".")}
    assert names == {"a.png", "a_2.png", "sub__a.png", "b ü.png", "detections.json"}
    rows = json.loads((found / "detections.json").read_text())
    assert {row["image_id"] for row in rows} <= {"a", "a_2", "sub__a", "b ü"}
    for row in rows:
        x, y, w, h = row["bbox"]
        assert 0 <= x < x + w <= 80
        assert 0 <= y < y + h <= 48

    (folder / "torn.png").write_bytes((folder / "a.png").read_bytes()[:100])
    capsys.readouterr()
    assert tool("demo", *arguments, "--input", folder, "--opts", *SMALL[4:6]) == 1
    printed = capsys.readouterr()
    assert "torn.png" in printed.err
    assert "1 images, " in printed.out


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["SOLVER.MAX_ITER", "0"], "SOLVER.MAX_ITER is 0; it must be at least 1"),
        (["SOLVER.MAX_ITER", "-5"], "SOLVER.MAX_ITER is -5; it must be at least 1"),
        (["SOLVER.MAX_EPOCHS", "-1"], "SOLVER.MAX_EPOCHS is -1; it must be at least 0"),
        (["SOLVER.IMS_PER_BATCH", "0"], "SOLVER.IMS_PER_BATCH is 0; it must be at least 1"),
        (["SOLVER.CHECKPOINT_PERIOD", "0"], "SOLVER.CHECKPOINT_PERIOD is 0; it must be at least 1"),
        (["DATASETS.TRAIN", "()"], "DATASETS.TRAIN is empty; name a data set, such as '(\"mine_train\",)'"),
        (["MODEL.DEVICE", "gpu"], "MODEL.DEVICE is 'gpu'; use 'cuda', 'cuda:1' or 'cpu'"),
        (["MODEL.DEVICE", "cpu:x"], "MODEL.DEVICE is 'cpu:x'; use 'cuda', 'cuda:1' or 'cpu'"),
    ],
)
def test_a_training_that_cannot_be_is_refused(tool, tmp_path, capsys, options, message):
    out = tmp_path / "out"
    assert tool("train_net", "--config-file", CONFIG, *SMALL, "OUTPUT_DIR", out, *options) == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("error: ")
    assert message in last
    assert not list(out.glob("*.pth"))


def test_what_is_missing_is_named_before_anything_runs(tool, tmp_path, capsys):
    assert tool("train_net", "--config-file", CONFIG, "--eval-only", *SMALL, "DATASETS.TEST", "()") == 2
    assert "error: DATASETS.TEST is empty; name a data set" in capsys.readouterr().err
    assert tool("train_net", *SMALL, "OUTPUT_DIR", tmp_path / "out") == 2
    assert capsys.readouterr().err.startswith("error: give --config-file, ")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("missing", ["input", "weights"])
def test_demo_says_what_is_missing(tool, tmp_path, capsys, missing):
    image = tmp_path / "a.png"
    cv2.imwrite(str(image), np.zeros((8, 8), np.uint8))
    given = {"input": image, "weights": tmp_path / "model.pth"}
    given[missing] = tmp_path / "nothing"
    arguments = ["--config-file", CONFIG, "--output", tmp_path / "found"]
    assert tool("demo", *arguments, "--input", given["input"], "--weights", given["weights"]) == 2
    assert str(given["weights" if missing == "weights" else "input"]) in capsys.readouterr().err


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without CUDA; torch sees a device here")
def test_without_cuda_the_cpu_is_used_with_one_line(tool, tmp_path, capsys):
    options = [*SMALL, "OUTPUT_DIR", tmp_path / "out", "SOLVER.MAX_ITER", "1", "DATASETS.TEST", "()"]
    tool("train_net", "--config-file", CONFIG, *options)
    assert capsys.readouterr().out.count("no CUDA device") == 1
    assert (tmp_path / "out" / "log.txt").read_text().count("no CUDA device") == 1
