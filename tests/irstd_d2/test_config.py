"""The configuration as a whole."""

import re

import pytest
import torch
from detectron2.engine import default_argument_parser

from irstd_d2 import get_config
from irstd_d2.cli import run_command
from irstd_d2.engine import setup
from irstd_d2.errors import ConfigError
from irstd_d2.inference.predictor import read_config


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
            r"TEST\.EVALUATORS has 'nope'; known are 'centre', 'coco', .*'voc'",
        ),
    ],
)
def test_unknown_names_are_refused_before_the_training(tmp_path, opts, message):
    arguments = ["--config-file", "", *opts, "OUTPUT_DIR", str(tmp_path)]
    with pytest.raises(ConfigError, match=message):
        setup(default_argument_parser().parse_args(arguments))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--config-file", "{0}/absent.yaml"], r"--config-file .*absent\.yaml is neither a file, nor one below .*"),
        (["SOLVER.BASE_LRR", "0.1"], r"SOLVER\.BASE_LRR.*did you mean SOLVER\.BASE_LR\?"),
        (["MODEL.WEIGTHS", "x"], r"MODEL\.WEIGTHS.*did you mean MODEL\.WEIGHTS\?"),
        (["--num-gpus", "2"], r"--num-gpus is 2, but this machine has no CUDA device; .*torchrun --nproc-per-node 2"),
        (["MODEL.DEVICE", "cuda"], r"MODEL\.DEVICE is cuda, but there is no CUDA device here"),
        (["--resume", "OUTPUT_DIR", "{0}/none"], r"OUTPUT_DIR .*none has no checkpoint to go on from"),
        (["OUTPUT_DIR", "{0}/file"], r"OUTPUT_DIR .*file cannot be written"),
    ],
)
@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without CUDA; torch sees a device here")
def test_an_error_is_one_line_the_last(tmp_path, capsys, arguments, message):
    (tmp_path / "file").touch()
    before = set(tmp_path.iterdir())
    arguments = [argument.format(tmp_path) for argument in arguments]
    config = [] if "--config-file" in arguments else ["--config-file", "baselines/tiny/fcos_tiny.yaml"]
    assert run_command("train", config + arguments) == 2
    out, err = capsys.readouterr()
    assert re.fullmatch(rf"error: .*{message}.*\n", err)
    assert out.count("\n") <= 20
    assert set(tmp_path.iterdir()) == before


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without CUDA; torch sees a device here")
def test_a_gpu_that_is_not_there_is_used_by_no_command():
    assert read_config("fcos_dense").MODEL.DEVICE == "cpu"
    assert read_config("fcos_dense", opts=["MODEL.DEVICE", "cpu"]).MODEL.DEVICE == "cpu"
    for device in ("cuda", "cuda:1"):
        with pytest.raises(ConfigError, match=f"MODEL.DEVICE is {device}, but there is no CUDA device here"):
            read_config("fcos_dense", opts=["TEST.SCORE_THRESHOLD", "0.5", "MODEL.DEVICE", device])
