"""tools/ablate.py: its arguments, its data, the subprocess of a training, and one true run of two rows."""

import fcntl
import math
import os
import re
import signal
import sys
import time
from argparse import ArgumentTypeError
from pathlib import Path

import pytest
from programs import load_program

from irstd_d2.ablation import TABLES, NotFinishedError, get_scale, make_job, resolve
from irstd_d2.synthetic import SceneConfig, dense_config

CONFIGS = Path(__file__).resolve().parents[2] / "configs"


@pytest.fixture
def tool(repo_root, monkeypatch):
    """The tool as a module, with sets of a few images."""
    module = load_program(repo_root / "tools" / "ablate.py")
    for name, value in (("TRAIN", 6), ("VAL", 3), ("OMNI", SceneConfig(size=(64, 64)))):
        monkeypatch.setattr(module, name, value)
    monkeypatch.setattr(module, "DENSE", dense_config(size=(64, 64)))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    return module


@pytest.fixture
def script(tmp_path, monkeypatch):
    """Put a shell script in Python's place, so that a training is what the test says."""

    def use(text):
        path = tmp_path / "python"
        path.write_text(f"#!/bin/sh\n{text}\n")
        path.chmod(0o755)
        monkeypatch.setattr(sys, "executable", str(path))

    return use


def job(output, row="a_none"):
    table = TABLES["bafe-4"]
    cfg = resolve(table.row(row), table, get_scale("synthetic", "cpu"), CONFIGS)
    made = make_job(table, table.row(row), 0, cfg, output)
    made.folder.mkdir(parents=True)
    return made


@pytest.mark.parametrize(
    ("text", "iterations", "seconds"), [("300", 300, math.inf), ("20m", 0, 1200), ("1.5h", 0, 5400), ("0.5m", 0, 30)]
)
def test_budget(tool, text, iterations, seconds):
    assert tool.parse_budget(text) == (iterations, seconds)


@pytest.mark.parametrize("text", ["", "0", "-3", "m", "20s", "0m", "x1h", "nanm", "1.5"])
def test_budget_refuses(tool, text):
    with pytest.raises(ArgumentTypeError, match="for example 300"):
        tool.parse_budget(text)


def test_list_names_every_table_and_row(tool, capsys):
    assert tool.main(["--list"]) == 0
    text = capsys.readouterr().out
    for table in TABLES.values():
        assert f"{table.name}: {table.title}" in text
        assert all(f"    {row.name} " in text for row in table.trainable)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "known are auxdet-1"),
        (["auxdet-10"], "auxdet-10"),
        (["bafe-4", "--seeds", "0"], "--seeds is 0"),
        (["bafe-4", "--rows", "nonsense"], "nonsense"),
        (["bafe-4", "--scale", "wide"], "cannot be run at scale 'wide'"),
        (["bafe-4", "--scale", "dense", "--preset", "cpu"], "SIRSTdevkit"),
        (["beyond-bafe"], "use one of ['fine']"),
        (["beyond-bafe", "--scale", "dense", "--preset", "gpu", "--rows", "ema"], "small scales only"),
        (["auxdet-5", "--scale", "omni", "--preset", "gpu"], "set DETECTRON2_DATASETS"),
    ],
)
def test_errors_name_the_fix(tool, tmp_path, monkeypatch, caplog, arguments, message):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path / "nothing"))
    assert tool.main([*arguments, "--output", str(tmp_path / "out")]) == 2
    assert message in caplog.text


def test_the_data_that_a_table_needs_is_made_once(tool, tmp_path):
    scale = get_scale("synthetic", "cpu")
    root = tool.prepare_data(scale, {"bafe"}, tmp_path)
    assert [path.name for path in root.iterdir()] == ["synthetic_dense"]
    images = sorted((root / "synthetic_dense/SIRSTdevkit/PNGImages").iterdir())
    assert len(images) == 9
    before = [path.stat().st_mtime_ns for path in images]
    assert tool.prepare_data(scale, {"bafe", "auxdet"}, tmp_path) == root
    assert [path.stat().st_mtime_ns for path in images] == before
    assert (root / "synthetic_omni").is_dir()


def test_real_data_is_used_where_it_lies(tool, tmp_path, monkeypatch):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    (tmp_path / "SIRSTdevkit").mkdir()
    assert tool.prepare_data(get_scale("dense", "gpu"), {"bafe"}, tmp_path / "out") == tmp_path


def test_a_training_gets_its_configuration_data_and_folder(tool, tmp_path, script):
    script('echo "$@"; echo "$DETECTRON2_DATASETS $OMP_NUM_THREADS"; exit 7')
    made = job(tmp_path)
    assert tool.Trainer(tmp_path / "data", 1)(made, math.inf) == 7
    said = (made.folder / "stdout.txt").read_text()
    assert re.search(r"tools/train_net\.py .*--resume --config-file .*/ablation\.yaml OUTPUT_DIR ", said)
    assert said.splitlines()[-1] == f"{tmp_path / 'data'} 1"


def test_a_training_that_takes_too_long_is_stopped(tool, tmp_path, script):
    made = job(tmp_path)
    script(f"exec sleep 60 # {made.folder}")
    start = time.monotonic()
    with pytest.raises(NotFinishedError, match="no time left"):
        tool.Trainer(tmp_path, 1)(made, 0.3)
    assert time.monotonic() - start < 30


def test_stopping_the_command_stops_the_training(tool, tmp_path, script, caplog):
    # The training tells its process number and then sends the command what Ctrl-C sends.
    script(f"echo $$ > {tmp_path}/child; kill -INT $PPID; exec sleep 60")
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        assert tool.main(["bafe-4", "--rows", "a_none", "--output", str(tmp_path / "out")]) == 130
    finally:
        signal.signal(signal.SIGINT, before)
    assert "the same command goes on" in caplog.text
    with pytest.raises(ProcessLookupError):
        os.kill(int((tmp_path / "child").read_text()), 0)


def test_a_training_that_another_command_runs_is_left_alone(tool, tmp_path, script):
    made = job(tmp_path)
    script("exit 0")
    with (made.folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(NotFinishedError, match="another process"):
            tool.Trainer(tmp_path, 1)(made, math.inf)
    assert tool.Trainer(tmp_path, 1)(made, math.inf) == 0


def test_the_training_keeps_the_lock_when_the_command_dies(tool, tmp_path, script):
    made = job(tmp_path)
    script("sleep 30 & echo $!")  # the child outlives its parent and has inherited the lock
    assert tool.Trainer(tmp_path, 1)(made, math.inf) == 0
    child = int((made.folder / "stdout.txt").read_text())
    try:
        with pytest.raises(NotFinishedError, match="another process"):
            tool.Trainer(tmp_path, 1)(made, math.inf)
    finally:
        os.kill(child, 9)


def test_parameters_of_the_published_configurations(tool):
    assert tool.count_parameters(TABLES["bafe-4"]) == {}
    counts = tool.count_parameters(TABLES["auxdet-4"])
    assert {name: round(count / 1e6, 3) for name, count in counts.items()} == {
        row.name: row.parameters for row in TABLES["auxdet-4"].rows
    }


def test_a_run_reports_failures_and_succeeds_later(tool, tmp_path, script, monkeypatch, caplog):
    caplog.set_level("INFO")
    evaluation = '{"iteration": 1, "voc_paper/AP50_11point": 20, "voc_paper/AP50_area": 10, "voc_paper/recall50": 30}'
    broken = tmp_path / "broken"
    broken.touch()
    # OUTPUT_DIR is the last argument; the segmentation head's training fails as long as the file is there.
    script(
        f"""for folder; do :; done
case $folder in *b_seg_head*) test -e {broken} && echo "no luck" && exit 1;; esac
echo '{evaluation}' > $folder/metrics.json"""
    )
    arguments = ["bafe-4", "--rows", "a_none", "b_seg_head", "--seeds", "2", "--output", str(tmp_path / "out")]
    monkeypatch.setattr(sys, "argv", ["ablate.py", *arguments])
    assert tool.main([*arguments, "--report"]) == 1
    report = (tmp_path / "out/ablation_bafe_4_synthetic.md").read_text()
    assert report.count("pending; no time left") == 4
    assert "0 trainings of 300 iterations" in report
    assert tool.main(arguments) == 1
    report = (tmp_path / "out/ablation_bafe_4_synthetic.md").read_text()
    assert report.count("failed; exit status 1: no luck") == 2
    assert "bafe-4 b_seg_head, seed 1 failed" in caplog.text
    assert "| none | 22.5 | 20.0 ± 0.0 (2) | 31.1 | 30.0 ± 0.0 (2) | 18.0 | 10.0 ± 0.0 (2) |" in report
    assert "python tools/ablate.py bafe-4 --rows a_none b_seg_head --seeds 2" in report
    broken.unlink()
    assert tool.main(arguments) == 0
    report = (tmp_path / "out/ablation_bafe_4_synthetic.md").read_text()
    assert "Not finished" not in report
    assert "1 within the spread" in report
    assert (tmp_path / "out/ablation_bafe_4_synthetic.png").stat().st_size > 5000
    assert "4 trainings of 300 iterations of 8 images" in report
    # With a second table that has none of the rows, and one that has the first.
    assert tool.main(["bafe-5", "bafe-3", *arguments[:2], "a_none", *arguments[4:]]) == 0
    reports = sorted(path.stem for path in (tmp_path / "out").glob("*.md"))
    assert reports == ["ablation_bafe_3_synthetic", "ablation_bafe_4_synthetic"]


@pytest.mark.slow
def test_two_rows_train_and_are_not_trained_again(tool, tmp_path, caplog):
    caplog.set_level("INFO")
    options = ["DATALOADER.NUM_WORKERS", "0", "INPUT.FIXED_SIZE", "(64, 64)", "SOLVER.IMS_PER_BATCH", "2"]
    arguments = ["bafe-4", "--rows", "a_none", "d_adapter", "--budget", "3", "--output", str(tmp_path)]
    arguments += ["--opts", *options]
    assert tool.main(arguments) == 0, [path.read_text()[-3000:] for path in tmp_path.rglob("stdout.txt")]
    assert "2 trainings of 3 iterations of 2 images" in (tmp_path / "ablation_bafe_4_synthetic.md").read_text()
    weights = sorted(tmp_path.glob("runs/*/model_final.pth"))
    assert len(weights) == 2
    before = [path.stat().st_mtime_ns for path in weights]
    caplog.clear()
    assert tool.main(arguments) == 0
    assert caplog.text.count("done before") == 2
    assert [path.stat().st_mtime_ns for path in weights] == before


def test_a_wrong_budget_ends_the_command(tool, capsys):
    with pytest.raises(SystemExit) as end:
        tool.main(["auxdet-5", "--budget", "soon"])
    assert end.value.code == 2
    assert "'soon' is neither a number of iterations" in capsys.readouterr().err
