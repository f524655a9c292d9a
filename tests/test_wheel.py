"""The wheel by itself: unpacked in an empty folder, without the clone, it detects with a model of its zoo."""

import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import cv2
import detectron2
import numpy as np
import pytest
import torch
from detectron2.modeling import build_model

from irstd_d2 import get_config, model_zoo
from irstd_d2.model_zoo.adding import add_run

CONFIG = "configs/baselines/tiny/fcos_tiny.yaml"
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def wheel(tmp_path_factory, repo_root):
    """The unpacked wheel of a copy of the project that has one random model in its zoo."""
    copy = tmp_path_factory.mktemp("copy")
    for name in ("irstd_d2", "auxdet_d2", "bafe_d2", "configs"):
        shutil.copytree(repo_root / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(repo_root / name, copy)
    run = copy / "run"
    run.mkdir()
    cfg = get_config(repo_root / CONFIG, ["MODEL.DEVICE", "cpu"])
    (run / "config.yaml").write_text(cfg.dump())
    (run / "metrics.json").write_text('{"bbox/AP50": 1.0}\n')
    model = build_model(cfg)
    torch.nn.init.constant_(model.head.cls_logits.bias, 0.5)
    torch.save({"model": model.state_dict(), "classes": [{"id": 1, "name": "Drone"}]}, run / "model_final.pth")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(model_zoo, "FOLDER", copy / "irstd_d2" / "model_zoo")
        add_run(run, "tiny_random", license="CC0", commit="", score_thresh=0.1)
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--disable-pip-version-check", "--no-deps"]
    subprocess.run([*command, "--no-build-isolation", "--wheel-dir", copy / "dist", copy], check=True)
    (file,) = (copy / "dist").glob("*.whl")
    unpacked = tmp_path_factory.mktemp("unpacked")
    zipfile.ZipFile(file).extractall(unpacked)
    return unpacked


def run(wheel, folder, *command):
    path = f"{wheel}{os.pathsep}{Path(detectron2.__file__).parents[1]}"  # the detectron2 that these tests run on
    environment = {**os.environ, "PYTHONPATH": path, "PYTHONWARNINGS": "ignore"}
    return subprocess.run(
        [sys.executable, *map(str, command)], cwd=folder, env=environment, capture_output=True, text=True, check=False
    )


def test_the_wheel_detects_by_itself(wheel, tmp_path):
    image = np.random.default_rng(0).integers(0, 255, (48, 80), dtype=np.uint8)
    cv2.imwrite(str(tmp_path / "image.png"), image)
    done = run(wheel, tmp_path, "-m", "irstd_d2", "detect", "image.png", "--weights", "tiny_random")
    assert done.returncode == 0, done.stderr[-2000:]
    assert "1 images, " in done.stdout
    rows = json.loads((tmp_path / "detections" / "detections.json").read_text())
    assert {row["category_name"] for row in rows} == {"Drone"}
    assert (tmp_path / "detections" / "image.png").is_file()


def test_the_wheel_holds_configurations_systems_and_the_console_script(wheel, tmp_path):
    (info,) = wheel.glob("*.dist-info")
    assert "irstd = irstd_d2.cli:main" in (info / "entry_points.txt").read_text()
    check = (
        "import irstd_d2; from irstd_d2 import model_zoo; irstd_d2.load_systems()\n"
        "for name in ('bafe/tiny/bafe_fine.yaml', 'configs/auxdet/auxdet_r18_fpn.yaml'):\n"
        "    print(model_zoo.find_config(name)); irstd_d2.get_config(model_zoo.find_config(name))\n"
    )
    done = run(wheel, tmp_path, "-c", check)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.splitlines() == [
        str(wheel / "irstd_d2" / "configs" / name)
        for name in ("bafe/tiny/bafe_fine.yaml", "auxdet/auxdet_r18_fpn.yaml")
    ]


def test_the_wheel_holds_the_reference_numbers(wheel, tmp_path, repo_root):
    done = run(wheel, tmp_path, "-m", "irstd_d2", "check-equality", "metrics", "bafe_d2")
    assert done.returncode == 0, done.stdout + done.stderr[-2000:]
    assert "all within tolerance" in done.stdout
    for folder in ("auxdet_d2/reference", "bafe_d2/reference"):
        names = {path.name for path in (repo_root / folder).iterdir()}
        assert {path.name for path in (wheel / folder).iterdir()} == names
        assert any(name.endswith("_sizes.npz") for name in names)
