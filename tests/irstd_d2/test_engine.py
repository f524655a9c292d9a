"""The trainer: exact resume, whatever moment it was stopped at; averaged weights, mixed precision, failures."""

import json
import multiprocessing
import os
import random
import re
import runpy
import signal
import subprocess
import sys
import time

import pytest
import torch
from toy_training import FULL, TEST, TRAIN, assert_same_tensors, train, trained_weights

from irstd_d2.engine.hooks import cut_metrics


@pytest.mark.parametrize("optimizer", ["SGD", "ADAMW", "DADAPT_ADAM"])
def test_a_resumed_training_ends_with_the_same_weights(toy_config, optimizer):
    options = {"SOLVER.OPTIMIZER": optimizer}
    if optimizer == "DADAPT_ADAM":
        options["SOLVER.BASE_LR"] = 1.0
    whole = train(toy_config("whole", **options))
    cfg = toy_config("parts", **options)
    train(cfg, stop_after=5)
    parts = train(cfg, resume=True)
    assert parts.start_iter == 5
    assert_same_tensors(whole.model.state_dict(), parts.model.state_dict())
    assert_same_tensors(whole.ema.average.state_dict(), parts.ema.average.state_dict())
    assert whole.scheduler.last_epoch == parts.scheduler.last_epoch == 12
    assert whole.scheduler.get_last_lr() == parts.scheduler.get_last_lr()


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_mixed_precision_trains_and_resumes_on_the_cpu(toy_config, dtype):
    options = {"SOLVER.AMP.ENABLED": True, "SOLVER.AMP.DTYPE": dtype}
    whole = train(toy_config("whole", **options))
    assert whole.iter == 12
    assert all(torch.isfinite(p).all() for p in whole.model.parameters())
    assert whole._trainer.scaler.is_enabled() == (dtype == "float16")
    cfg = toy_config("parts", **options)
    train(cfg, stop_after=7)
    parts = train(cfg, resume=True)
    assert_same_tensors(whole.model.state_dict(), parts.model.state_dict())
    assert whole._trainer.scaler.state_dict() == parts._trainer.scaler.state_dict()


def final_state(folder):
    """What must not depend on interruptions: last and best checkpoint, and the log without times."""
    final, best = (torch.load(folder / f"model_{n}.pth", weights_only=True) for n in ("final", "best"))
    rows = [json.loads(line) for line in (folder / "metrics.json").read_text().splitlines()]
    rows = [str({k: v for k, v in row.items() if "time" not in k and k != "eta_seconds"}) for row in rows]
    predictions = (folder / "inference" / TEST / "coco_instances_results.json").read_text()
    return final, best, rows, predictions


def assert_same_runs(a, b):
    (final_a, best_a, rows_a, predictions_a), (final_b, best_b, rows_b, predictions_b) = final_state(a), final_state(b)
    assert_same_tensors(final_a["model"], final_b["model"])
    assert_same_tensors(trained_weights(final_a), trained_weights(final_b))
    assert_same_tensors(best_a["model"], best_b["model"])
    assert final_a["iteration"] == final_b["iteration"]
    assert best_a["iteration"] == best_b["iteration"]
    assert final_a["trainer"]["hooks"]["BestCheckpointer"] == final_b["trainer"]["hooks"]["BestCheckpointer"]
    assert rows_a == rows_b
    assert predictions_a == predictions_b


def train_and_die_at_write(cfg, number, after):
    """Train; end the process, without any clean-up, at the ``number``-th file that is written."""
    from irstd_d2 import files

    real, count = files.os.fsync, 0

    def fsync(descriptor):
        nonlocal count
        count += 1
        if count == number and not after:
            os._exit(3)
        real(descriptor)
        if count == number:
            os._exit(3)

    files.os.fsync = fsync
    train(cfg, resume=True)
    os._exit(0)


def in_a_fork(function, *args):
    process = multiprocessing.get_context("fork").Process(target=function, args=args)
    process.start()
    return process


@pytest.mark.slow
def test_a_crash_at_any_file_that_is_written_changes_nothing(toy_config, tmp_path):
    train(toy_config("whole", **FULL))
    cfg = toy_config("crashed", **FULL)
    rng = random.Random(0)
    crashes = 0
    for _ in range(200):
        process = in_a_fork(train_and_die_at_write, cfg, rng.randint(1, 8), rng.random() < 0.5)
        process.join()
        if process.exitcode == 0:
            break
        assert process.exitcode == 3
        crashes += 1
    assert process.exitcode == 0
    assert crashes >= 20
    assert_same_runs(tmp_path / "whole", tmp_path / "crashed")


@pytest.mark.slow
def test_thirty_sigkills_at_random_moments_change_nothing(toy_config, tmp_path):
    options = {**FULL, "SOLVER.MAX_ITER": 400}
    train(toy_config("whole", **options))
    cfg = toy_config("killed", **options)
    rng = random.Random(0)
    kills = 0
    for _ in range(90):
        process = in_a_fork(train, cfg, True)
        process.join(rng.uniform(0.02, 0.3))
        if process.is_alive():
            os.kill(process.pid, signal.SIGKILL)
            kills += 1
        process.join()
        if kills == 30:
            break
    process = in_a_fork(train, cfg, True)
    process.join()
    assert process.exitcode == 0
    assert kills == 30
    assert_same_runs(tmp_path / "whole", tmp_path / "killed")


def test_resuming_a_finished_training_changes_nothing(toy_config, tmp_path):
    cfg = toy_config(**FULL)
    train(cfg)
    before = final_state(tmp_path / "run")
    again = train(cfg, resume=True)
    assert again.start_iter == again.iter == 44
    after = final_state(tmp_path / "run")
    assert_same_tensors(before[0]["model"], after[0]["model"])
    assert before[2:] == after[2:]


def test_seeds_change_the_training(toy_config):
    a = train(toy_config("a", **{"SOLVER.MAX_ITER": 2})).model.state_dict()
    b = train(toy_config("b", **{"SOLVER.MAX_ITER": 2, "SEED": 8})).model.state_dict()
    assert not torch.equal(a["net.0.weight"], b["net.0.weight"])


def test_without_a_seed_training_runs(toy_config):
    assert train(toy_config(SEED=-1, **{"SOLVER.MAX_ITER": 2, "SOLVER.EMA.ENABLED": False})).iter == 2


def test_precise_batch_norm_runs(toy_config):
    plain = {"SOLVER.EMA.ENABLED": False}
    trainer = train(toy_config(**plain, **{"TEST.PRECISE_BN.ENABLED": True, "TEST.PRECISE_BN.NUM_ITER": 3}))
    loose = train(toy_config("other", **plain))
    assert not torch.equal(trainer.model.net[1].running_mean, loose.model.net[1].running_mean)
    torch.testing.assert_close(trainer.model.net[0].weight, loose.model.net[0].weight, rtol=0, atol=0)


def test_detectron2s_own_trainer_with_what_the_documentation_overrides(toy_config, repo_root, tmp_path):
    text = (repo_root / "docs" / "components.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"```python\n([^`]*class Trainer\(.*?)```", text, re.DOTALL)
    (tmp_path / "plain_trainer.py").write_text(code)
    cfg = toy_config(**{"SOLVER.OPTIMIZER": "ADAMW", "SOLVER.MAX_ITER": 2})
    trainer = runpy.run_path(str(tmp_path / "plain_trainer.py"))["Trainer"](cfg)
    trainer.resume_or_load(False)
    trainer.train()
    assert isinstance(trainer._trainer.optimizer, torch.optim.AdamW)
    (sample,) = next(iter(trainer.build_test_loader(trainer.cfg, TEST)))
    assert sample["metadata"] == {"width": 64, "height": 64, "platform": "Air"}


def test_metrics_are_cut_back_to_complete_lines(tmp_path):
    path = tmp_path / "metrics.json"
    cut_metrics(path, 4)
    assert not path.exists()
    good = ['{"iteration": 3, "loss": NaN}\n', '{"iteration": 4}\n']
    path.write_text("".join([*good, '{"iteration": 5}\n', '{"loss": 1}\n', '{"iteration": 2, "lo']))
    cut_metrics(path, 4)
    assert path.read_text() == "".join(good)
    path.write_text("".join(good).rstrip("\n"))  # the last line may be a part
    cut_metrics(path, 4)
    assert path.read_text() == good[0]


def test_the_log_of_an_earlier_run_is_put_aside(toy_config, tmp_path):
    for steps in (2, 3):
        train(toy_config(), stop_after=steps)
    rows = {}
    for name in ("metrics_before", "metrics"):
        lines = (tmp_path / "run" / f"{name}.json").read_text().splitlines()
        rows[name] = [json.loads(line)["iteration"] for line in lines]
    assert rows == {"metrics_before": [1], "metrics": [2]}


TINY = [
    "--config-file", "configs/baselines/tiny/retinanet_tiny.yaml", "SOLVER.MAX_ITER", "60", "SOLVER.IMS_PER_BATCH", "2",
    "SOLVER.CHECKPOINT_PERIOD", "4", "INPUT.FIXED_SIZE", "(64, 64)", "DATALOADER.NUM_WORKERS", "1",
    "DATASETS.TEST", "()",
]  # fmt: skip


RUNNER = """
import pathlib, runpy, sys
sys.path[:0] = [{tests!r}, {root!r}]
import toy_training
toy_training.register(pathlib.Path({folder!r}))
sys.argv = ["train_net.py", *{arguments!r}]
runpy.run_path({script!r}, run_name="__main__")
"""


@pytest.mark.slow
def test_sigkill_of_a_real_detector_and_resume_equal_an_uninterrupted_training(tmp_path, repo_root):
    def command(name, *more):
        arguments = [*TINY[:2], *more, *TINY[2:], "DATASETS.TRAIN", str((TRAIN,)), "OUTPUT_DIR", str(tmp_path / name)]
        code = RUNNER.format(
            tests=str(repo_root / "tests"),
            root=str(repo_root),
            folder=str(tmp_path),
            arguments=arguments,
            script=str(repo_root / "tools" / "train_net.py"),
        )
        return [sys.executable, "-c", code]

    def run(name, *more):
        subprocess.run(command(name, *more), cwd=repo_root, check=True, capture_output=True, timeout=300)

    env = {"cwd": repo_root, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    run("whole")
    process = subprocess.Popen(command("killed"), start_new_session=True, **env)
    deadline = time.monotonic() + 200
    while process.poll() is None and time.monotonic() < deadline and not list((tmp_path / "killed").glob("model_0*")):
        time.sleep(0.01)
    time.sleep(random.uniform(0, 0.3))
    assert process.poll() is None, "it ended before it could be killed"
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    run("killed", "--resume")
    whole, killed = (torch.load(tmp_path / n / "model_final.pth", weights_only=True) for n in ("whole", "killed"))
    assert_same_tensors(whole["model"], killed["model"])
    assert whole["iteration"] == killed["iteration"] == 59
    last = [json.loads((tmp_path / n / "metrics.json").read_text().splitlines()[-1]) for n in ("whole", "killed")]
    for key in ("iteration", "lr", "total_loss", "loss_cls", "loss_box_reg"):
        assert last[0][key] == last[1][key], key
