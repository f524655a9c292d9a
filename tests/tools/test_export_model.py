"""The command line of tools/export_model.py, and the exported file run by the copied runtime alone."""

import json
import logging
import runpy
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.modeling import build_model
from PIL import Image

from irstd_d2 import get_config
from irstd_d2.export import runtime

CONFIG = "configs/auxdet/tiny/auxdet_tiny.yaml"


@pytest.fixture
def tool(repo_root, monkeypatch):
    monkeypatch.chdir(repo_root)

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["export_model", *map(str, arguments)])
        with pytest.raises(SystemExit) as end:
            runpy.run_path("tools/export_model.py", run_name="__main__")
        return end.value.code

    return run


@pytest.fixture
def weights(tmp_path, repo_root):
    model = build_model(get_config(repo_root / CONFIG, ["MODEL.DEVICE", "cpu"]))
    torch.save({"model": model.state_dict()}, tmp_path / "weights.pth")
    return tmp_path / "weights.pth"


@pytest.fixture
def pictures(tmp_path):
    paths = []
    for i, size in enumerate([(60, 90), (128, 128)]):
        pixels = np.random.default_rng(i).integers(0, 255, size, np.uint8)
        paths.append(tmp_path / f"{i}.png")
        Image.fromarray(pixels).save(paths[-1])
    return paths


def test_exports_checks_and_runs_alone(tool, weights, pictures, tmp_path, caplog):
    output = tmp_path / "model.ts"
    arguments = ["--config-file", CONFIG, "--weights", weights, "--format", "torchscript", "--output", output]
    keep_all = ["--opts", "MODEL.ROI_HEADS.SCORE_THRESH_TEST", "0.0"]
    with caplog.at_level(logging.INFO):
        assert tool(*arguments, "--platform", "Air", "--band", "LWIR", "--check", *pictures, *keep_all) == 0
    lines = [line for line in caplog.messages if "without partner" in line]
    assert len(lines) == 2
    assert all("0 without partner" in line and "DIFFERENT" not in line for line in lines)

    shutil.copy(runtime.__file__, tmp_path / "runtime.py")
    command = [
        sys.executable,
        "-W",
        "ignore",
        "runtime.py",
        "model.ts",
        "0.png",
        "--threshold",
        "0",
        "--platform",
        "Air",
    ]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    row = json.loads(done.stdout)
    assert row["file_name"] == "0.png"
    assert len(row["boxes"]) == len(row["scores"]) > 5
    assert np.array(row["boxes"]).max() <= 90


def test_a_difference_is_an_error(tool, weights, pictures, tmp_path, caplog):
    output = tmp_path / "model.ts"
    arguments = ["--config-file", CONFIG, "--weights", weights, "--format", "torchscript", "--output", output]
    keep_all = ["--opts", "MODEL.ROI_HEADS.SCORE_THRESH_TEST", "0.0"]
    with caplog.at_level(logging.INFO):
        assert tool(*arguments, "--score-tolerance", "-1", "--check", pictures[0], *keep_all) == 1
    assert "DIFFERENT" in caplog.text


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (["--output", "model.txt", "--format", "onnx"], "name ONNX files *.onnx"),
        (["--output", "model.ts", "--format", "torchscript", "--no-dynamic"], "takes any number and size"),
        (["--output", "model.ts", "--format", "torchscript", "--weights", "absent.pth"], "absent.pth"),
    ],
)
def test_says_what_is_wrong(tool, weights, tmp_path, capsys, changes, message):
    changes = [str(tmp_path / part) if part.endswith((".ts", ".txt", ".pth")) else part for part in changes]
    assert tool("--config-file", CONFIG, "--weights", weights, *changes) == 2
    assert message in capsys.readouterr().err
    assert not Path(tmp_path, "model.ts").exists()
