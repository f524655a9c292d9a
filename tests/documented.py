"""Commands of the documentation, for tests that run them as they are printed."""

from __future__ import annotations

import errno
import functools
import importlib
import os
import re
import runpy
import select
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Mapping
from pathlib import Path

ROOT = Path(__file__).parents[1]
# What a line of a block must begin with, after assignments, to be taken for a command.
_COMMAND = re.compile(
    r"""(?:\w+=\S*\s+)*(?:"?\$(?:PYTHON|IRSTD)|(?:\.venv/bin/|tools/|datasets/|benchmarks/)[\w.-]+(?:\s|$)|"""
    r"""(?:bash|cp|cd|export|git|irstd|make|mkdir|pip|python3?|srun|torchrun|node0=\S+)(?:\s|$))"""
)
LIMIT = 900  # seconds of one program
# Stands for every program of the pages: names its process to the test, which runs the program, and ends as that did.
# Several may run at once, so each has an answer of its own.
_STAND_IN = """#!/usr/bin/env bash
mkfifo "$ANSWERS.$$"
echo $$ > "$REQUESTS"
read -r code < "$ANSWERS.$$"
exit "$code"
"""


def blocks(page: Path, language: str) -> list[str]:
    """Fenced blocks of one language."""
    return re.findall(rf"```{language}\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)


def commands(page: Path) -> list[str]:
    """The commands of a page in their order: of ``bash`` and unnamed fenced blocks, and of indented ones."""
    text, fence = page.read_text(encoding="utf-8"), r"^```(\w*)\n(.*?)^```"
    outside = re.sub(fence, lambda match: re.sub(r"[^\n]", "x", match[0]), text, flags=re.DOTALL | re.MULTILINE)
    fenced = re.finditer(fence, text, re.DOTALL | re.MULTILINE)
    indented = re.finditer(r"(?:(?<=\n\n)|\A)(?: {4}[^\n]*\n|\n(?= {4}))+", outside)
    found = [(match.start(), match[2]) for match in fenced if match[1] in ("", "bash", "sh")]
    found += [(match.start(), match[0]) for match in indented]
    result = []
    for _, block in sorted(found):
        lines = [line.strip() for line in re.sub(r"\\\n\s*", "", block).splitlines()]
        lines = [line for line in lines if line and not line.startswith("#")]
        if lines and _COMMAND.match(lines[0]):
            result += [re.sub(r"\s{2,}#.*$", "", line) for line in lines]
    return result


class Shell:
    """bash whose Python programs run in children of a process that has imported what is slow to import.

    That process computes nothing itself: a child of one that has threads, as this one has after its first training, may
    wait forever for a lock that nobody holds.

    Args:
        folder: of the stand-ins for ``python`` and ``irstd``, for example ``.venv/bin`` of a checkout.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        folder.mkdir(parents=True)
        for name in ("python", "irstd"):
            (folder / name).write_text(_STAND_IN)
            (folder / name).chmod(0o755)
        self._requests, self._answers = folder / "requests", folder / "answers"
        os.mkfifo(self._requests)

    def run(self, script: str, cwd: Path, environment: Mapping[str, str], log: Path) -> tuple[int, list[list[str]]]:
        """Run a script.

        Returns:
            The exit code of bash, and name and arguments of each program that was called.
        """
        own = {"PYTHON": str(self.folder / "python"), "IRSTD": str(ROOT)}
        own |= {"REQUESTS": str(self._requests), "ANSWERS": str(self._answers)}
        calls = []
        with log.open("ab") as output, self._requests.open("r+b", buffering=0) as requests:
            bash = subprocess.Popen(
                ["bash", "-c", f"set -euo pipefail\n{script}"],
                cwd=cwd,
                env={**os.environ, **own, **environment},
                stdout=output,
                stderr=output,
            )
            while bash.poll() is None:
                if select.select([requests], [], [], 0.1)[0]:
                    for process in map(int, requests.read(65536).split()):
                        call = Path(f"/proc/{process}/cmdline").read_text().split("\0")[1:-1]
                        calls.append([Path(call[0]).name, *call[1:]])
                        self._answer(process, _ask_server(process))
        return bash.returncode, calls

    def _answer(self, process: int, code: str) -> None:
        """Tell a stand-in the exit code of its program, if it is still there: its shell may have ended it."""
        while Path(f"/proc/{process}").exists():
            try:
                pipe = os.open(f"{self._answers}.{process}", os.O_WRONLY | os.O_NONBLOCK)
            except OSError as error:
                if error.errno != errno.ENXIO:  # no reader yet
                    raise
                time.sleep(0.01)
                continue
            with os.fdopen(pipe, "w") as file:
                file.write(code)
            return


@functools.cache
def _server() -> subprocess.Popen[str]:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    command = [sys.executable, "-W", "ignore", __file__]
    return subprocess.Popen(command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def _ask_server(process: int) -> str:
    """Have the program run that a process stands for; return its exit code and a line break."""
    server = _server()
    assert server.stdin is not None
    assert server.stdout is not None
    server.stdin.write(f"{process}\n")
    server.stdin.flush()
    return server.stdout.readline()


def _serve() -> None:
    """Answer every process number on the standard input with the exit code of its program."""
    for name in ("auxdet_d2", "bafe_d2", "irstd_d2.cli", "irstd_d2.engine", "irstd_d2.inference", "irstd_d2.reporting"):
        importlib.import_module(name)
    for line in sys.stdin:
        call = Path(f"/proc/{int(line)}/cmdline").read_text().split("\0")[1:-1]
        print(_run_in_child(int(line), [Path(call[0]).name, *call[1:]]), flush=True)


def _run_in_child(process: int, call: list[str]) -> int:
    """Run a program with folder, environment and output of a process; return its exit code."""
    child = os.fork()
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    code = 1
    signal.alarm(LIMIT)
    try:
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.chdir(f"/proc/{process}/cwd")
        environment = Path(f"/proc/{process}/environ").read_text().split("\0")
        os.environ.clear()
        os.environ.update(entry.split("=", 1) for entry in environment if "=" in entry)
        for number in (1, 2):
            os.dup2(os.open(f"/proc/{process}/fd/{number}", os.O_WRONLY | os.O_APPEND), number)
        sys.stdout, sys.stderr = (os.fdopen(number, "w", closefd=False) for number in (1, 2))
        _execute(*call)
        code = 0
    except SystemExit as end:
        if isinstance(end.code, str):
            print(end.code, file=sys.stderr)
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:  # whatever it is ends the program, as it would a process of its own
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _execute(program: str, *arguments: str) -> None:
    if program == "irstd":
        from irstd_d2.cli import main

        sys.argv = ["irstd", *arguments]
        raise SystemExit(main(list(arguments)))
    first, *rest = arguments
    sys.argv = [first, *rest]
    if first == "-c":
        sys.argv = ["-c", *rest[1:]]
        exec(rest[0], {"__name__": "__main__"})  # noqa: S102  our own pages
    elif first == "-m":
        sys.argv = rest
        runpy.run_module(rest[0], run_name="__main__", alter_sys=True)
    else:
        sys.path.insert(0, str(Path(first).resolve().parent))
        runpy.run_path(first, run_name="__main__")


if __name__ == "__main__":
    _serve()
