"""Another implementation is timed in an environment of its own, beside ours and in turn."""

import re
import sys
from pathlib import Path

import pytest
from programs import load_program

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
SCRIPT = """
import time
print("words that are no answer")
def build(size):
    assert size == 64
    return lambda: time.sleep(0.3)
"""


@pytest.fixture
def published(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return load_program(BENCHMARKS / "published.py")


def test_both_are_timed_in_turn(published, tmp_path, capsys):
    script = tmp_path / "sleeps.py"
    script.write_text(SCRIPT)
    config = BENCHMARKS.parent / "configs/bafe/tiny/fcos_tiny.yaml"
    options = ["--published", sys.prefix, "--script", str(script), "--config", str(config), "--size", "64"]
    assert published.main([*options, "--threads", "1", "--rounds", "2"]) == 0
    rows = dict(re.findall(r"^\| (optimised|as built|other) \|(.*)\|$", capsys.readouterr().out, re.M))
    wall, processor, ratio, _ = map(float, rows["other"].split("|"))
    assert ratio == 1
    assert 0.3 <= wall < 3
    assert processor < wall  # it slept
    for name in ("optimised", "as built"):
        mine, _, ratio, _ = map(float, rows[name].split("|"))
        assert ratio == pytest.approx(mine / wall, rel=0.5, abs=0.01)


def test_what_cannot_be_timed_is_named(published, tmp_path, capsys):
    with pytest.raises(SystemExit):
        published.main(["--published", str(tmp_path), "--script", "x.py", "--config", "y.yaml"])
    assert "bin/python does not exist" in capsys.readouterr().err
    script = tmp_path / "fails.py"
    script.write_text("raise RuntimeError('no such model')")
    with pytest.raises(SystemExit, match="did not start"):
        published.Other(Path(sys.executable), script, 64, 1)
