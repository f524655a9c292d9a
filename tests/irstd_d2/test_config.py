"""The configuration as a whole."""

import runpy
import sys

import pytest
from detectron2.engine import default_argument_parser

from irstd_d2 import get_config
from irstd_d2.engine import setup
from irstd_d2.errors import ConfigError


def test_a_configuration_cannot_run_code(tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text(f"OUTPUT_DIR: !!python/object/apply:os.mkdir ['{tmp_path}/made']\n", encoding="utf-8")
    with pytest.raises(ConfigError, match=r"could not determine a constructor for the tag .*python/object/apply"):
        get_config(path)
    assert not (tmp_path / "made").exists()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "does not exist"),
        ("MODEL: [", "while parsing a flow node"),
        ("MODEL:\n  NOPE: 1", r"Non-existent config key: MODEL\.NOPE"),
        ("MODEL: 3", ""),
        ("SOLVER:\n  MAX_ITER: many", "Type mismatch .* for config key: SOLVER.MAX_ITER"),
        ("_BASE_: absent.yaml", r"absent\.yaml"),
        ("3", ""),
        ("- 3", ""),
    ],
)
def test_a_faulty_file_is_named(tmp_path, text, message):
    path = tmp_path / "mine.yaml"
    if text is not None:
        path.write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError, match=rf"configuration .*mine\.yaml: (.|\n)*{message}"):
        get_config(path)


@pytest.mark.parametrize(
    ("opts", "message"),
    [
        (["MODEL.NOPE", "1"], r"Non-existent key: MODEL\.NOPE"),
        (["SOLVER.MAX_ITER"], "odd length"),
        (["SOLVER.MAX_ITER", "many"], "Type mismatch"),
    ],
)
def test_faulty_keys_on_the_command_line_are_named(opts, message):
    with pytest.raises(ConfigError, match=rf"configuration keys: .*{message}"):
        get_config(opts=opts)


@pytest.mark.parametrize(
    ("opts", "message"),
    [
        (
            ["DATASETS.TRAIN", "('densesirst_v2_tran',)"],
            r"DATASETS\.TRAIN has 'densesirst_v2_tran'.*near are densesirst_v",
        ),
        (["DATASETS.TEST", "('?',)"], r"DATASETS\.TEST has '\?'.*datasets/README\.md"),
        (
            ["TEST.EVALUATORS", "('coco', 'nope')"],
            r"TEST\.EVALUATORS has nope; known are centre, coco, .*voc",
        ),
    ],
)
def test_unknown_names_are_refused_before_the_training(tmp_path, opts, message):
    arguments = ["--config-file", "", *opts, "OUTPUT_DIR", str(tmp_path)]
    with pytest.raises(ConfigError, match=message):
        setup(default_argument_parser().parse_args(arguments))
    assert not list(tmp_path.iterdir())


def test_train_net_gives_one_line(tmp_path, repo_root, monkeypatch):
    tool = str(repo_root / "tools" / "train_net.py")
    monkeypatch.setattr(sys, "argv", [tool, "--config-file", str(tmp_path / "absent.yaml")])
    with pytest.raises(SystemExit, match=r"^error: configuration .*absent\.yaml: .*does not exist$"):
        runpy.run_path(tool, run_name="__main__")
