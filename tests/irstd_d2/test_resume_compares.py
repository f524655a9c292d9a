"""A resume compares its configuration and data with those of the training that it goes on with."""

import argparse
import logging

import pytest
import torch
import yaml
from detectron2.data import DatasetCatalog
from toy_training import TEST, TRAIN, train

from irstd_d2.cli.train import get_parser
from irstd_d2.engine import IRSTDTrainer, setup
from irstd_d2.engine.checkpoint import read_facts
from irstd_d2.engine.hooks import BestCheckpointer
from irstd_d2.engine.resume import Change, takes_effect
from irstd_d2.errors import ConfigError


def rates(trainer):
    return {group["lr"] for group in trainer.optimizer.param_groups}


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("SOLVER.IMS_PER_BATCH", 2),
        ("SEED", 8),
        ("MODEL.PIXEL_MEAN", [1.0, 2.0, 3.0]),
        ("MODEL.META_ARCHITECTURE", "FCOS"),
        ("SOLVER.OPTIMIZER", "ADAMW"),
        ("SOLVER.AMP.ENABLED", True),
        ("INPUT.RANDOM_FLIP", "none"),
        ("DATASETS.TRAIN", (TRAIN, TRAIN)),
        ("SOLVER.EMA.ENABLED", False),
    ],
)
def test_what_is_trained_must_stay(toy_config, tmp_path, key, value):
    train(toy_config(), stop_after=5)
    before = (tmp_path / "run" / "last_checkpoint").read_text()
    args = get_parser().parse_args(["--resume"])
    changed = toy_config(**{key: value})
    args.config_file, args.opts = "", [item for pair in flat(changed) for item in pair]
    old = getattr_path(toy_config(), key)
    with pytest.raises(ConfigError) as caught:
        setup(args)
    message = str(caught.value)
    assert key in message
    assert f"was {plain(old)!r} and is {plain(value)!r} now" in message
    assert "MODEL.WEIGHTS" in message
    assert (tmp_path / "run" / "last_checkpoint").read_text() == before
    assert not (tmp_path / "run" / "config.yaml").exists()  # nothing untrue is written


@pytest.mark.parametrize(
    ("names", "follows"),
    [
        ("BASE_LR BASE_LR_END STEPS STEP_EPOCHS MAX_ITER MAX_EPOCHS", True),
        ("BASE_LR_SCALE STEPS_PER_BATCH STEP MAX_NORM", False),  # keys that a system may add
    ],
)
def test_keys_of_the_schedule_are_known_by_their_whole_names(names, follows):
    assert {takes_effect(Change(f"SOLVER.{name}", 1, 2)) for name in names.split()} == {follows}


def plain(value):
    return yaml.safe_load(yaml.safe_dump(list(value) if isinstance(value, tuple) else value))


def getattr_path(cfg, key):
    for part in key.split("."):
        cfg = cfg[part]
    return cfg


def flat(cfg, prefix=""):
    """Only keys that differ from the defaults would do; all of them are as good."""
    for key, value in cfg.items():
        if isinstance(value, dict):
            yield from flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def test_rate_decay_and_schedule_take_effect(toy_config):
    train(toy_config(**{"SOLVER.OPTIMIZER": "ADAMW"}), stop_after=5)
    new = {"SOLVER.BASE_LR": 0.002, "SOLVER.WEIGHT_DECAY": 0.25, "SOLVER.BETAS": (0.8, 0.9), "SOLVER.GAMMA": 0.5}
    cfg = toy_config(**{"SOLVER.OPTIMIZER": "ADAMW", "SOLVER.STEPS": (7,), "SOLVER.MAX_ITER": 9, **new})
    trainer = IRSTDTrainer(cfg)
    trainer.resume_or_load(True)
    assert rates(trainer) == {0.002}
    assert {group["weight_decay"] for group in trainer.optimizer.param_groups} == {0.25, 0.0}
    assert {tuple(group["betas"]) for group in trainer.optimizer.param_groups} == {(0.8, 0.9)}
    trainer.train()
    assert rates(trainer) == {0.001}  # half of it after the step at 7
    assert trainer.iter == 9


def test_momentum_of_the_gradients_is_kept(toy_config):
    first = train(toy_config(), stop_after=5)
    trainer = IRSTDTrainer(toy_config(**{"SOLVER.BASE_LR": 0.002}))
    trainer.resume_or_load(True)
    a, b = (list(t.optimizer.state_dict()["state"].values()) for t in (first, trainer))
    assert all(
        torch.equal(x["momentum_buffer"], y["momentum_buffer"])
        for x, y in zip(a, b)
        if x["momentum_buffer"] is not None
    )


@pytest.mark.parametrize("change", ["fewer", "moved"])
def test_other_data_is_refused_and_moved_data_is_not(toy_config, tmp_path, change):
    train(toy_config(), stop_after=5)
    records = DatasetCatalog.get(TRAIN)
    DatasetCatalog.remove(TRAIN)
    if change == "fewer":
        DatasetCatalog.register(TRAIN, lambda: records[1:])
        trainer = IRSTDTrainer(toy_config())
        with pytest.raises(
            ConfigError, match=r"DATASETS\.TRAIN changed since: 10 images and now 9 and 20 targets and now 18"
        ):
            trainer.resume_or_load(True)
        return
    moved = tmp_path / "elsewhere"
    (tmp_path / "images").rename(moved)
    DatasetCatalog.register(
        TRAIN, lambda: [{**r, "file_name": r["file_name"].replace("images", "elsewhere")} for r in records]
    )
    assert train(toy_config(), resume=True).start_iter == 5


def test_other_boxes_are_other_data(toy_config):
    train(toy_config(), stop_after=5)
    DatasetCatalog.get(TRAIN)[3]["annotations"][0]["bbox"][0] += 1
    with pytest.raises(ConfigError, match="as many images and targets as before, but others"):
        IRSTDTrainer(toy_config()).resume_or_load(True)


def test_config_yaml_says_from_when_a_value_holds(toy_config, tmp_path):
    cfg = toy_config()
    train(cfg, stop_after=5)
    args = get_parser().parse_args(["--resume"], argparse.Namespace(systems=()))
    path = tmp_path / "run" / "config.yaml"
    path.write_text("# from iteration 2 on: earlier\n" + cfg.dump())
    args.opts = [item for pair in flat(toy_config(**{"SOLVER.BASE_LR": 0.002})) for item in pair]
    setup(args)
    text = path.read_text()
    assert text.startswith("# from iteration 2 on: earlier\n# from iteration 5 on: SOLVER.BASE_LR 0.05 -> 0.002\n")
    assert yaml.safe_load(text)["SOLVER"]["BASE_LR"] == 0.002


def test_a_resume_without_checkpoint_is_refused_but_under_torchrun(toy_config, tmp_path, monkeypatch):
    args = get_parser().parse_args(["--resume"])
    args.opts = [item for pair in flat(toy_config()) for item in pair]
    with pytest.raises(ConfigError, match=r"OUTPUT_DIR .*run has no checkpoint to go on from"):
        setup(args)
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "1")
    assert setup(args).SOLVER.BASE_LR == 0.05


def test_an_evaluation_leaves_the_training_s_configuration(toy_config, tmp_path):
    args = get_parser().parse_args(["--eval-only"])
    path = tmp_path / "run" / "config.yaml"
    args.opts = [item for pair in flat(toy_config()) for item in pair]
    args.opts += ["DATASETS.TEST", ("densesirst_v2_test",)]
    path.write_text("the training's")
    setup(args)
    assert path.read_text() == "the training's"
    assert (tmp_path / "run" / "config_eval.yaml").exists()


def test_another_number_of_processes_is_said(toy_config, tmp_path, caplog):
    train(toy_config(), stop_after=5)
    path = tmp_path / "run" / "model_0000004.pth"
    content = torch.load(path, weights_only=True)
    content["run"]["processes"] = 4
    torch.save(content, path)
    (tmp_path / "run" / "model_final.pth").unlink(missing_ok=True)
    (tmp_path / "run" / "last_checkpoint").write_text(path.name)
    logging.getLogger("irstd_d2").propagate = True
    with caplog.at_level("WARNING"):
        IRSTDTrainer(toy_config()).resume_or_load(True)
    assert "resumed with 1 processes, where 4 trained before" in caplog.text


def test_checkpoints_of_older_versions_are_compared_with_config_yaml(toy_config, tmp_path):
    cfg = toy_config()
    train(cfg, stop_after=5)
    folder = tmp_path / "run"
    for path in folder.glob("model_*.pth"):
        content = torch.load(path, weights_only=True)
        del content["run"], content["classes"]
        torch.save(content, path)
        assert set(read_facts(path)) == {"iteration"}
    (folder / "config.yaml").write_text(cfg.dump() + "DATALOADER_OF_OLD: 3\n")
    args = get_parser().parse_args(["--resume"])
    args.opts = [item for pair in flat(toy_config(SEED=8)) for item in pair]
    with pytest.raises(ConfigError, match="SEED was 7 and is 8 now"):
        setup(args)
    assert train(cfg, resume=True).start_iter == 5


def test_every_checkpoint_carries_classes_and_the_run(toy_config, tmp_path):
    cfg = toy_config()
    train(cfg, stop_after=5)
    for path in (tmp_path / "run").glob("model_*.pth"):
        facts = read_facts(path)
        assert [row["name"] for row in facts["classes"]] == ["target"]
        assert facts["run"]["data"]["images"] == 10
        assert yaml.safe_load(facts["run"]["config"]) == yaml.safe_load(cfg.dump())


@pytest.mark.parametrize("change", [{"TEST.BEST_METRIC": "pd_fa/Pd"}, {"DATASETS.TEST": (TRAIN,)}, {}])
def test_the_best_value_of_another_measure_does_not_count(toy_config, caplog, change):
    full = {"DATASETS.TEST": (TEST,), "TEST.EVALUATORS": ("pd_fa",), "TEST.BEST_METRIC": "pd_fa/F1"}
    first = IRSTDTrainer(toy_config(**full))
    (hook,) = (hook for hook in first._hooks if isinstance(hook, BestCheckpointer))
    hook.best_metric, hook.best_iter = 98.0, 4
    first.iter = 4
    first.checkpointer.save("model_0000004", iteration=4)
    trainer = IRSTDTrainer(toy_config(**{**full, **change}))
    trainer.resume_or_load(True)
    (hook,) = (hook for hook in trainer._hooks if isinstance(hook, BestCheckpointer))
    assert (hook.best_metric, hook.best_iter) == ((None, None) if change else (98.0, 4))
    assert ("starts anew" in caplog.text) == bool(change)


@pytest.mark.parametrize("change", [{"SOLVER.WEIGHT_DECAY_BIAS": 0.3}, {"SOLVER.WEIGHT_DECAY_NORM": 0.0001}])
def test_values_that_group_the_weights_anew_are_refused(toy_config, change):
    trainer = IRSTDTrainer(toy_config())
    trainer.iter = 4
    trainer.checkpointer.save("model_0000004", iteration=4)
    with pytest.raises(ConfigError, match=r"WEIGHT_DECAY\* .* groups of other weights"):
        IRSTDTrainer(toy_config(**change)).resume_or_load(True)
