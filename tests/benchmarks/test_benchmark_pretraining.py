"""The benchmark of pretraining: its arms differ in where the weights come from alone."""

import json
import sys
from pathlib import Path

import pytest


@pytest.fixture
def pretraining(repo_root, monkeypatch):
    monkeypatch.syspath_prepend(repo_root / "benchmarks")
    import pretraining

    return pretraining


@pytest.fixture
def run(pretraining, monkeypatch, tmp_path):
    """Run the program with a training that only notes its command and leaves a result."""
    commands = []

    def train(command, **_):
        commands.append(command)
        folder = Path(command[command.index("OUTPUT_DIR") + 1])
        folder.mkdir(parents=True)
        metrics = {key: float(len(commands)) for key in pretraining.SHOWN.values()}
        (folder / "metrics.json").write_text(json.dumps(metrics) + "\n")
        (folder / "model_final.pth").touch()

    monkeypatch.setattr(pretraining.subprocess, "run", train)
    monkeypatch.setattr(pretraining, "RESULTS", tmp_path / "pretraining.md")

    def main(*arguments):
        output = ["--output", str(tmp_path / "runs"), "--imagenet", str(tmp_path / "lite0.pth")]
        monkeypatch.setattr(sys, "argv", ["pretraining.py", *output, *arguments])
        commands.clear()
        pretraining.main()
        return [dict(zip(c[2::2], c[3::2])) for c in commands]

    return main


def test_arms_differ_in_their_weights_alone(run, tmp_path):
    runs = {Path(options.pop("OUTPUT_DIR")).name: options for options in run("--seeds", "1")}
    assert list(runs) == ["lite0_random_0", "lite0_imagenet_0", "r10_random_0", "synthetic_0", "r10_synthetic_0"]
    weights = {name: options.pop("MODEL.WEIGHTS", "") for name, options in runs.items()}
    assert weights["lite0_imagenet_0"] == str(tmp_path / "lite0.pth")
    assert weights["r10_synthetic_0"] == str(tmp_path / "runs" / "synthetic_0" / "model_final.pth")
    assert not weights["lite0_random_0"] + weights["r10_random_0"] + weights["synthetic_0"]
    assert runs["lite0_random_0"] == runs["lite0_imagenet_0"]
    assert runs["r10_random_0"] == runs["r10_synthetic_0"]
    assert runs["synthetic_0"] != runs["r10_synthetic_0"]
    # Chosen on validation images: the test set is not looked at.
    assert not [name for name, options in runs.items() if "test" in options["DATASETS.TEST"]]


def test_finished_runs_are_kept_and_parts_write_no_table(run, tmp_path, capsys):
    assert len(run("--seeds", "2", "--arms", "lite0_random", "r10_synthetic")) == 6
    assert not (tmp_path / "pretraining.md").exists()
    assert len(run("--seeds", "2")) == 4  # the other two arms
    table = (tmp_path / "pretraining.md").read_text(encoding="utf-8")
    assert table in capsys.readouterr().out
    rows = [line for line in table.splitlines() if line.startswith(("| EfficientNet", "| ResNet"))]
    assert [row.split(" | ")[1] for row in rows] == ["random", "ImageNet", "random", "synthetic scenes"]
    assert rows[0].split(" | ")[2:4] == ["2", "2.5 +- 2.1"]  # of 1 and 4
    assert not run("--seeds", "2")
