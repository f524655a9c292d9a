"""Commands of the documentation, for tests that run them."""

from __future__ import annotations

import os
import re
import runpy
import subprocess
import sys
from pathlib import Path


def blocks(page: Path, language: str) -> list[str]:
    """Fenced blocks of one language."""
    return re.findall(rf"```{language}\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)


def run_commands(page: Path, scratch: Path, monkeypatch, **environment: str) -> list[str]:
    """Run the bash blocks of a page in the current folder; each starts ``$PYTHON`` with a tool.

    bash passes the arguments, then the tools run in this process: starting each anew would take most of the time.

    Returns:
        Names of the tools.
    """
    recorder, calls = scratch / "recorder", scratch / "calls"
    recorder.write_text('#!/usr/bin/env bash\nprintf "%s\\0" "$@" >> "$CALLS"; printf "\\n\\0" >> "$CALLS"\n')
    recorder.chmod(0o755)
    known = {**os.environ, "IRSTD": str(Path(__file__).parents[1]), "PYTHON": str(recorder), "CALLS": str(calls)}
    script = "\n".join(["set -euo pipefail", *blocks(page, "bash")])
    subprocess.run(["bash", "-c", script], env=known | environment, check=True)
    tools = []
    for call in calls.read_text(encoding="utf-8").split("\n\0")[:-1]:
        arguments = call.split("\0")[:-1]
        monkeypatch.setattr(sys, "argv", arguments)
        try:
            runpy.run_path(arguments[0], run_name="__main__")
        except SystemExit as end:
            assert end.code == 0, arguments  # noqa: PT017
        tools.append(Path(arguments[0]).stem)
    return tools
