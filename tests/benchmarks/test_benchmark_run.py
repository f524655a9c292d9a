"""The benchmark runner: statistics of the harness by hand, and a quick run of every case."""

import os
import subprocess
import sys
import time

import pytest
import torch

CPU = torch.device("cpu")


@pytest.fixture
def harness(repo_root, monkeypatch):
    monkeypatch.syspath_prepend(repo_root / "benchmarks")
    import harness

    return harness


def run(repo_root, *args):
    environment = {**os.environ, "PYTHONWARNINGS": "ignore"}
    return subprocess.run(
        [sys.executable, str(repo_root / "benchmarks/run.py"), "--quick", *args],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )


def test_a_ratio_is_the_median_over_interleaved_pairs(harness, tmp_path, monkeypatch):
    times = {"ours": iter([0.4, 0.4, 2.0, 4.0, 9.0]), "other": iter([1.0, 1.0, 1.0, 3.0])}
    order = []

    def timed(work, device, calls=1):
        order.append(work)
        return next(times[work])

    clock = iter([0.0])  # nine seconds later the time is up
    times["third"] = iter([0.4, 0.4, 2.0, 2.0, 2.0])
    monkeypatch.setattr(harness, "timed", timed)
    monkeypatch.setattr(harness.time, "perf_counter", lambda: next(clock, 9.0))
    bench = harness.Bench(tmp_path, seconds=1.0)
    bench.compare("case", ("a", "ours"), ("b", "other", 2.5), ("c", "third", None))
    # Short work warms up twice, long work once; the ratios of the first pair are 2, 4 and 3.
    assert order == ["ours", "ours", "other", "third", "third", *["ours", "other", "third"] * 3]
    row, last = bench.rows
    assert (last.ratio, last.verdict) == (2.0, "")
    assert row.ratio == 3.0
    assert (row.seconds, row.other_seconds) == (4.0, 1.0)
    assert row.low == pytest.approx(2.2)
    assert row.high == pytest.approx(3.8)
    assert row.verdict == "at most 2.5: **missed**"
    assert "| case | a: 4 s | b: 1 s | 3 (2.2 to 3.8) | at most 2.5: **missed** |" in bench.table()


def test_a_slow_comparison_ends_when_patience_does(harness, tmp_path, monkeypatch):
    seconds = iter(range(100))
    monkeypatch.setattr(harness, "timed", lambda work, device, calls=1: 1.0)
    monkeypatch.setattr(harness.time, "perf_counter", lambda: 10.0 * next(seconds))
    bench = harness.Bench(tmp_path, seconds=0.0, patience=25.0)
    # Started at 0 s; after rounds at 10 and 20 s it goes on, at 30 s no more.
    bench.compare("case", ("a", lambda: None), ("b", lambda: None, None), rounds=5)
    assert next(seconds) == 4
    assert len(bench.rows) == 1


def test_only_the_cases_asked_for_are_run_and_each_row_is_reported(harness, tmp_path):
    seen = []
    bench = harness.Bench(tmp_path, quick=True, only=["M2DM", "step"], report=lambda row: seen.append(row.case))
    for case in ("LEEM", "M2DM, 4 images"):
        bench.compare(case, ("a", lambda: None), ("b", lambda: None, None))
        bench.memory(case, "a", lambda: None)
    bench.share("a step", ("part", 1.0), ("whole", 2.0))
    assert seen == [row.case for row in bench.rows] == ["M2DM, 4 images", "a step"]
    assert [case for case, _, _ in bench.memory_rows] == ["M2DM, 4 images"]


def test_the_time_that_remains_follows_the_pace_so_far(repo_root, monkeypatch):
    monkeypatch.syspath_prepend(repo_root / "benchmarks")
    import run

    monkeypatch.setattr(run, "USUAL_SECONDS", {"parts": 60, "data": 120})
    assert run.remaining(["parts", "data"], 0, 0.0).endswith("parts; about 3 min remain if the machine is quiet")
    assert run.remaining(["parts", "data"], 1, 180.0).endswith("data; about 6 min remain")


def test_rates_and_times_are_written_for_people(harness, tmp_path):
    bench = harness.Bench(tmp_path)
    bench.share("wait", ("waiting", 0.002), ("step", 0.1), at_most=0.05)
    assert "| wait | waiting: 2 ms | step: 100 ms | 0.02 (0.02 to 0.02) | at most 0.05: met |" in bench.table()
    assert harness.Row("", "", "", 0.004, 1, 1, 1, 1, per_second="images").show(0.004) == "250 images/s"
    assert [harness.show_time(t) for t in (2.5, 0.25, 2.5e-5)] == ["2.5 s", "250 ms", "25 µs"]


def test_time_that_is_not_computed_can_be_left_out(harness, monkeypatch):
    assert harness.timed(lambda: time.sleep(0.05), CPU) >= 0.05
    monkeypatch.setattr(harness, "CLOCK", time.process_time)
    assert harness.timed(lambda: time.sleep(0.05), CPU) < 0.02


def test_cpu_time_is_refused_where_it_would_mislead(repo_root, monkeypatch, capsys):
    monkeypatch.syspath_prepend(repo_root / "benchmarks")
    from run import parse_args

    assert parse_args(["--clock", "cpu"]).clock == "cpu"
    for extra in (["--threads", "2"], ["--device", "cuda"]):
        with pytest.raises(SystemExit):
            parse_args(["--clock", "cpu", *extra])
        assert "--threads 1" in capsys.readouterr().err


def test_peak_memory_sees_what_is_gone_afterwards(harness):
    def work():
        kept = torch.ones(20_000_000)  # 80 MB
        time.sleep(0.05)
        return kept.sum()

    assert 60e6 < harness.peak_memory(work, CPU) < 160e6


@pytest.mark.slow
def test_a_quick_run_prints_a_table_and_no_verdict(repo_root, tmp_path):
    output = tmp_path / "new" / "table.md"
    done = run(repo_root, "--cases", "targets", "--output", str(output))
    assert "Not complete" not in done.stdout
    assert done.stdout.strip() == output.read_text(encoding="utf-8").strip()
    assert "| region targets, 20 targets, 128x128 | all at once:" in done.stdout
    assert "GFLOP/s in float32" in done.stdout
    assert "met" not in done.stdout.split("| target |")[1]


def test_an_unknown_case_is_an_error(repo_root):
    with pytest.raises(subprocess.CalledProcessError) as error:
        run(repo_root, "--cases", "targets", "--only", "soup")
    assert "no case of targets has 'soup' in its name" in error.value.stderr


@pytest.mark.slow
def test_every_case_runs(repo_root):
    text = run(repo_root, "--cases", "parts", "data", "detectors").stdout
    for case in ("exchange with its selection", "M2DM", "LEEM", "mapper", "BAG-CP", "waiting for data",
                 "AuxDet R50, 64x64, inference", "BAFE-Net R50, 64x64, training"):  # fmt: skip
        assert f"| {case}" in text, case
