"""The console script and the doors to it: what --help costs, how errors end, names that the options repeat."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

import irstd_d2
from irstd_d2 import cli
from irstd_d2.cli import COMMANDS, detect, evaluate, main, options
from irstd_d2.data.convert import FORMATS
from irstd_d2.data.convert.splitting import STRATA
from irstd_d2.data.image_io import HIGH_BIT_DEPTH_MODES
from irstd_d2.data.layout import LAYOUTS
from irstd_d2.data.target_masks import MASK_VALUES
from irstd_d2.errors import DatasetError
from irstd_d2.export import FORMATS as EXPORT_FORMATS

TOOLS = Path(cli.__file__).resolve().parents[2] / "tools"
# Counts modules in place of seconds, which depend on the machine.
HELP_OF_ALL = """
import sys
from irstd_d2.cli import COMMANDS, main
for command in ([], *([name] for name in COMMANDS)):
    try:
        main([*command, "--help"])
    except SystemExit as end:
        assert not end.code
heavy = {"torch", "detectron2", "numpy", "cv2", "matplotlib"} & set(sys.modules)
assert not heavy, heavy
"""


def test_help_imports_nothing_heavy(repo_root):
    done = subprocess.run([sys.executable, "-c", HELP_OF_ALL], cwd=repo_root, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for command in COMMANDS:
        assert f"usage: irstd {command} [" in done.stdout
        assert f"\n  {command} " in done.stdout


def test_every_tool_runs_as_a_program_and_answers_help_from_anywhere(tmp_path):
    for tool in sorted(TOOLS.glob("*.py")):
        first = tool.read_text().split("\n", 1)[0]
        assert first == "#!/usr/bin/env python3", tool
        assert tool.stat().st_mode & 0o111, tool
    doors = [tool for tool in TOOLS.glob("*.py") if "cli import door" in tool.read_text()]
    assert len(doors) == len([name for name in COMMANDS if name not in ("zoo", "check-equality")])
    done = subprocess.run(
        [sys.executable, "-S", TOOLS / "demo.py", "--help"], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.stdout.startswith("usage: demo.py"), done.stderr


@pytest.mark.parametrize(("absent", "extra"), [("onnx.helper", "export"), ("av", "video"), ("timm", "pretrained")])
def test_an_optional_package_that_is_missing_is_named_with_its_extra(monkeypatch, capsys, absent, extra):
    def run(_):
        raise ModuleNotFoundError(f"No module named {absent!r}", name=absent)

    monkeypatch.setattr(detect, "run", run)
    assert main(["detect", "x.png"]) == 2
    package = absent.partition(".")[0]
    line = f"error: detect needs {package}, which is not installed: pip install 'irstd-d2[{extra}]'\n"
    assert capsys.readouterr().err == line


def test_other_missing_modules_keep_their_traceback(monkeypatch):
    def run(_):
        raise ModuleNotFoundError("No module named 'mine'", name="mine")

    monkeypatch.setattr(detect, "run", run)
    with pytest.raises(ModuleNotFoundError, match="mine"):
        main(["detect", "x.png"])


def test_without_detectron2_one_line_says_how_to_get_it(repo_root, tmp_path):
    run = "from irstd_d2.cli import main; raise SystemExit(main(['check', 'x']))"
    bare = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}  # may hold detectron2's source
    done = subprocess.run([sys.executable, "-S", "-c", run], cwd=repo_root, env=bare, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "pip install" in done.stderr
    assert "tools/setup.sh" in done.stderr


def test_options_repeat_the_librarys_names():
    assert tuple(LAYOUTS) == options.LAYOUTS
    assert HIGH_BIT_DEPTH_MODES == options.HIGH_BIT_DEPTH_MODES
    assert FORMATS == options.DATASET_FORMATS
    assert STRATA == options.STRATA
    assert MASK_VALUES == options.MASK_VALUES
    assert EXPORT_FORMATS == options.EXPORT_FORMATS


def test_an_error_is_one_last_line(monkeypatch, capsys):
    error = DatasetError("a.xml", "object[0]", "has no box", "add one")
    error.add_note("In the data set mine_train.")
    monkeypatch.setattr("irstd_d2.data.check.collect", lambda *_, **__: (_ for _ in ()).throw(error))
    assert main(["check", "mine"]) == 2
    assert capsys.readouterr().err == (
        "error: a.xml: object[0]: has no box. Fix: add one\nIn the data set mine_train.\n"
    )


@pytest.mark.parametrize(
    "arguments",
    [
        ["train", "--config-file", "a.yaml", "OUTPUT_DIR", "output", "--resume"],
        ["train", "SOLVER.MAX_ITER", "5", "--num-gpus", "2"],
        ["detect", "a.png", "--opts", "TEST.DETECTIONS_PER_IMAGE", "5", "--tile", "64"],
    ],
)
def test_an_option_behind_keys_and_values_is_named(arguments, capsys):
    assert main(arguments) == 2
    option = next(text for text in reversed(arguments) if text.startswith("--"))
    assert capsys.readouterr().err == (
        f"error: {option} stands behind KEY VALUE pairs, which end the options; write it before them\n"
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["detect", "a.png", "--score-thresh", "1.5"], "'1.5' is not a number from 0 to 1"),
        (["detect", "a.png", "--threshold", "nan"], "'nan' is not a number from 0 to 1"),
        (["detect", "a.avi", "--max-frames", "0"], "'0' is not a whole number of at least 1"),
        (["detect", "a.png", "--overlap", "-1"], "'-1' is not a whole number of at least 0"),
        (["evaluate", "run", "--dataset", "a", "--score-thresh", "inf"], "'inf' is not a number of at least 0"),
        (["evaluate", "run", "--dataset", "a", "--bootstrap", "1.5"], "'1.5' is not a whole number of at least 0"),
        (["export", "--weights", "a", "--output", "a.onnx", "--size", "0", "8"], "'0' is not a whole number of at"),
        (["report", "run", "--gallery", "-1"], "'-1' is not a whole number of at least 0"),
        (["synthesize", "--domain-conflict", "2"], "'2' is not a number from 0 to 1"),
    ],
)
def test_numbers_out_of_range_are_refused_with_their_option(arguments, message, capsys):
    with pytest.raises(SystemExit) as end:
        main(arguments)
    last = capsys.readouterr().err.splitlines()[-1]
    assert end.value.code == 2
    assert "error: argument --" in last
    assert message in last


def test_numbers_in_range_are_taken():
    args = detect.get_parser().parse_args(["a.png", "--score-thresh", "1", "--overlap", "0", "--max-frames", "1"])
    assert (args.score_thresh, args.overlap, args.max_frames) == (1.0, 0, 1)
    args = evaluate.get_parser().parse_args(["run", "--dataset", "a", "--score-thresh", "30", "0"])  # percent
    assert args.score_thresh == [30.0, 0.0]


def test_an_interrupt_is_one_last_line(monkeypatch, capsys):
    monkeypatch.setattr("irstd_d2.data.check.collect", lambda *_, **__: (_ for _ in ()).throw(KeyboardInterrupt))
    assert main(["check", "mine"]) == 130
    assert capsys.readouterr().err == "error: interrupted; start it again\n"


def test_unknown_commands_and_names_are_refused(capsys):
    with pytest.raises(SystemExit):
        main(["dettect"])
    assert "choose from" in capsys.readouterr().err
    with pytest.raises(AttributeError, match="nothing"):
        irstd_d2.nothing  # noqa: B018


def test_older_names_of_options_still_work():
    args = detect.get_parser().parse_args(["--input", "a.png", "--threshold", "0", "--save", "pictures", "coco", "csv"])
    assert (args.input, args.score_thresh, args.save) == (["a.png"], 0, ["picture", "json", "csv"])
    assert detect.get_parser().parse_args(["a.png", "--save", "json", "yolo"]).save == ["json", "yolo"]
    with pytest.raises(SystemExit):
        detect.get_parser().parse_args(["a.png", "--save", "xml"])
