"""The command line of tools/analyze_model.py."""

import runpy
import sys

import pytest


@pytest.fixture
def tool(repo_root, monkeypatch):
    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["analyze_model", *map(str, arguments)])
        with pytest.raises(SystemExit) as end:
            runpy.run_path(str(repo_root / "tools" / "analyze_model.py"), run_name="__main__")
        return end.value.code

    return run


def test_prints_modules(tool, capsys):
    assert tool("configs/baselines/tiny/fcos_tiny.yaml", "--depth", "1", "--size", "64", "96") == 0
    shown = capsys.readouterr().out
    assert "[baselines/tiny/fcos_tiny.yaml](../configs/baselines/tiny/fcos_tiny.yaml)" in shown
    assert "At 96x64:" in shown
    assert "| backbone | 110,928 |" in shown
    assert "| head | 38,857 |" in shown
    assert "backbone.bottom_up" not in shown


def test_refuses_what_is_no_configuration(tool, capsys):
    assert tool("configs/nothing.yaml") == 2
    assert "configs/nothing.yaml is not a configuration" in capsys.readouterr().err
    assert tool() == 2  # argparse's own
    assert tool("--all", "configs/baselines/tiny/fcos_tiny.yaml") == 2
