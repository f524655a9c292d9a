"""The script for a GPU, in miniature on a CPU."""

import json

import gpu
import pytest
import torch


def test_rows_are_measured_once_and_a_slot_goes_on(tmp_path, capsys):
    arguments = ["--device", "cpu", "--quick", "--output", str(tmp_path)]
    assert gpu.main([*arguments, "--minutes", "0"]) == 1
    assert "0 rows" in capsys.readouterr().out
    assert gpu.main(arguments) == 0, (tmp_path / "gpu.md").read_text()
    lines = (tmp_path / "rows.jsonl").read_text().splitlines()
    rows = dict(map(json.loads, lines))
    assert len(rows) == len(lines) == 4 + 8
    assert next(iter(rows)).startswith("smoke: auxdet/tiny")
    assert all(row["finite"] for name, row in rows.items() if name.startswith("smoke"))
    assert all(row["images/s"] > 0 for name, row in rows.items() if not name.startswith("smoke"))
    # A failed row is measured again, the others are not.
    lost = lines.pop()
    (tmp_path / "rows.jsonl").write_text("\n".join([*lines, json.dumps([json.loads(lost)[0], {"failed": "x"}])]) + "\n")
    assert gpu.main(arguments) == 0
    assert len((tmp_path / "rows.jsonl").read_text().splitlines()) == 13
    assert "failed x" not in (tmp_path / "gpu.md").read_text()


def test_failures_are_named_and_memory_is_no_failure(tmp_path, monkeypatch, capsys):
    def broken():
        raise ValueError("what went wrong")

    def large():
        raise torch.OutOfMemoryError("no")

    monkeypatch.setattr(gpu, "jobs", lambda *_: {"a": broken, "b": large, "c": lambda: {"finite": False}})
    assert gpu.main(["--device", "cpu", "--quick", "--output", str(tmp_path)]) == 1
    assert "2 failed\n  a\n  c" in capsys.readouterr().out
    assert "| b | state out of memory |" in (tmp_path / "gpu.md").read_text()


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without CUDA; torch sees a device here")
def test_without_a_gpu_it_says_so(capsys):
    assert gpu.main([]) == 2
    assert "no CUDA device" in capsys.readouterr().err
