"""Another implementation is timed in an environment of its own, beside ours and in turn."""

import re
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.modeling import build_model
from programs import load_program

from irstd_d2 import get_config

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
SCRIPT = """
import time
print("words that are no answer")
def detect():
    time.sleep(0.3)
    return [[0.0, 0, 4, 4]], [0.5]
def build(size, sample):
    assert sample["image"].shape == (3, size, size) == (3, 64, 64)
    return detect
def build_training(size, sample):
    assert sample["boxes"].shape == (13, 4) and sample["sky"].shape == (64, 64)
    return detect
"""


@pytest.fixture
def published(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return load_program(BENCHMARKS / "published.py")


@pytest.mark.parametrize("training", [False, True])
def test_both_are_timed_in_turn(published, training, tmp_path, capsys):
    script = tmp_path / "sleeps.py"
    script.write_text(SCRIPT)
    config = BENCHMARKS.parent / "configs/bafe/tiny/fcos_tiny.yaml"
    options = ["--published", sys.prefix, "--script", str(script), "--config", str(config), "--size", "64"]
    ways = ["as built", "channels-last"] if training else ["optimised", "as built"]
    assert published.main([*options, "--threads", "1", "--rounds", "2", *(["--training"] if training else [])]) == 0
    out = capsys.readouterr().out
    assert ("the other 1, 0 pairs" in out) is not training  # random weights find more
    rows = dict(re.findall(r"^\| (optimised|as built|channels-last|other) \|(.*)\|$", out, re.M))
    assert list(rows) == [*ways, "other"]
    wall, processor, ratio, _ = map(float, rows["other"].split("|"))
    assert ratio == 1
    assert 0.3 <= wall < 3
    assert processor < wall  # it slept
    for name in ways:
        mine, _, ratio, _ = map(float, rows[name].split("|"))
        assert ratio == pytest.approx(mine / wall, rel=0.5, abs=0.01)


def test_what_cannot_be_timed_is_named(published, tmp_path, capsys):
    with pytest.raises(SystemExit):
        published.main(["--published", str(tmp_path), "--script", "x.py", "--config", "y.yaml"])
    assert "bin/python does not exist" in capsys.readouterr().err
    script = tmp_path / "fails.py"
    script.write_text("raise RuntimeError('no such model')")
    with pytest.raises(SystemExit, match="did not start"):
        published.Other(Path(sys.executable), script, tmp_path, 64, 1, False)


@pytest.mark.slow
def test_exported_files_detect_as_the_model(published, tmp_path):
    sample, config = published.make_sample(64), str(BENCHMARKS.parent / "configs/bafe/tiny/fcos_tiny.yaml")
    torch.manual_seed(1)
    model = build_model(get_config(config, ["MODEL.DEVICE", "cpu"]))
    torch.nn.init.constant_(model.head.cls_logits.bias, 0.5)  # random weights find something
    weights = str(tmp_path / "model.pth")
    torch.save({"model": model.state_dict()}, weights)
    expected = published.build_ours(config, weights, sample, False)["as built"]()[0]["instances"]
    ways = published.build_exported(config, weights, sample, 1, tmp_path, ["onnxruntime"])
    assert list(ways) == ["onnxruntime, float32", "onnxruntime, 8 bits"]
    for name, work in ways.items():
        found, tolerance = work()[0]["instances"], 1e-4 if "float32" in name else 0.05
        assert len(found) == len(expected) > 0
        np.testing.assert_allclose(found.scores, expected.scores, atol=tolerance)
        if "float32" in name:
            np.testing.assert_allclose(found.pred_boxes.tensor, expected.pred_boxes.tensor, atol=0.02)


def test_exported_files_do_not_train(published, tmp_path, capsys):
    options = ["--published", str(tmp_path), "--script", "x.py", "--config", "y.yaml", "--training"]
    options += ["--exported", "onnxruntime"]
    with pytest.raises(SystemExit):
        published.main(options)
    assert "leave --training out" in capsys.readouterr().err
