"""Resume, skip, failure and the time limit, with a stub in place of the training."""

import json

import pytest

from irstd_d2 import get_config
from irstd_d2.ablation import Metric, NotFinishedError, Row, Table, make_job, run_jobs
from irstd_d2.ablation.runner import CONFIG, RESULT, last_evaluation
from irstd_d2.errors import DatasetError

TABLE = Table(
    "bafe-4",
    "title",
    (Metric("AP", "voc_paper/AP"),),
    tuple(Row(name, name, f"{name}.yaml", {"AP": 1.0}) for name in "abc"),
    "a",
    (),
)


def jobs(output, rows="abc", seeds=1, same=""):
    """Jobs that differ in the learning rate by row; those of ``same`` do not."""
    made = []
    for seed in range(seeds):
        for name in rows:
            rate = 1.0 if name in same else float(ord(name))
            cfg = get_config(None, ["SEED", seed, "SOLVER.BASE_LR", rate])
            made.append(make_job(TABLE, TABLE.row(name), seed, cfg, output))
    return made


class Stub:
    """Writes an evaluation as a training does; ``fail`` gives exit status 3, ``stop`` interrupts."""

    def __init__(self, fail="", stop="", silent="", clock=None):
        self.fail, self.stop, self.silent, self.clock = fail, stop, silent, clock
        self.trained, self.limits = [], []

    def __call__(self, job, seconds):
        assert str(job.folder) == get_config(job.folder / CONFIG).OUTPUT_DIR
        self.trained.append((job.row.name, job.seed))
        self.limits.append(seconds)
        if self.clock:
            self.clock.now += 10
        if job.row.name in self.stop:
            raise NotFinishedError("interrupted")
        if job.row.name in self.fail:
            (job.folder / "stdout.txt").write_text("Traceback\nboom: what went wrong\n\n")
            return 3
        rows = [{"iteration": 5, "voc_paper/AP": 1.0}, {"iteration": 9, "voc_paper/AP": 40.0 + job.seed, "lr": 2}]
        if job.row.name not in self.silent:
            (job.folder / "metrics.json").write_text("\n".join(map(json.dumps, [*rows, {"iteration": 10}])) + "\n")
        return 0


class Clock:
    now = 0.0

    def __call__(self):
        return self.now


def test_rows_train_once_and_give_their_last_evaluation(tmp_path):
    stub = Stub()
    outcomes = run_jobs(jobs(tmp_path, seeds=2), stub)
    assert stub.trained == [(name, seed) for seed in (0, 1) for name in "abc"]
    assert [o.metrics for o in outcomes] == [{"voc_paper/AP": 40.0}] * 3 + [{"voc_paper/AP": 41.0}] * 3
    again = Stub()
    assert [o.metrics for o in run_jobs(jobs(tmp_path, seeds=2), again)] == [o.metrics for o in outcomes]
    assert again.trained == []


def test_one_failure_does_not_stop_the_others_and_is_tried_again(tmp_path, caplog):
    with caplog.at_level("INFO", "irstd_d2"):
        outcomes = run_jobs(jobs(tmp_path), Stub(fail="b"))
    assert [o.state for o in outcomes] == ["finished", "failed", "finished"]
    assert outcomes[1].reason == "exit status 3: boom: what went wrong"
    assert outcomes[1].metrics == {}
    again = Stub()
    assert [o.state for o in run_jobs(jobs(tmp_path), again)] == ["finished"] * 3
    assert again.trained == [("b", 0)]


def test_a_training_without_an_evaluation_has_failed(tmp_path):
    (outcome,) = run_jobs(jobs(tmp_path, "a"), Stub(silent="a"))
    assert outcome.state == "failed"
    assert "holds no evaluation" in outcome.reason


def test_an_interrupted_row_goes_on_in_its_folder(tmp_path):
    clock = Clock()
    first = jobs(tmp_path)
    outcomes = run_jobs(first, Stub(stop="b", clock=clock), clock=clock)
    assert [(o.state, o.seconds) for o in outcomes] == [("finished", 10), ("pending", 10), ("finished", 10)]
    second = jobs(tmp_path)
    assert [job.folder for job in second] == [job.folder for job in first]
    stub = Stub(clock=clock)
    assert [(o.state, o.seconds) for o in run_jobs(second, stub, clock=clock)][1] == ("finished", 20)
    assert stub.trained == [("b", 0)]


def test_time_runs_out(tmp_path):
    clock = Clock()
    stub = Stub(clock=clock)
    outcomes = run_jobs(jobs(tmp_path), stub, time_limit=15, clock=clock)
    assert [o.state for o in outcomes] == ["finished", "finished", "pending"]
    assert stub.limits == [15, 5]
    assert outcomes[2].reason == "no time left"


def test_equal_configurations_are_one_training(tmp_path):
    stub = Stub()
    outcomes = run_jobs(jobs(tmp_path, same="ac"), stub)
    assert stub.trained == [("a", 0), ("b", 0)]
    assert outcomes[0] == outcomes[2]
    later = jobs(tmp_path, "c", same="c")
    assert later[0].folder.name.startswith("bafe-4-a-0-")


def test_a_changed_configuration_gets_a_folder_of_its_own(tmp_path):
    run_jobs(jobs(tmp_path, "a"), Stub())
    stub = Stub()
    run_jobs(jobs(tmp_path, "a", same="a"), stub)
    assert stub.trained == [("a", 0)]
    assert len(list((tmp_path / "runs").iterdir())) == 2


def strip_key(path, key):
    """Make a training's file one from before a key was added."""
    lines = path.read_text().splitlines(keepends=True)
    (line,) = [line for line in lines if line.strip().startswith(f"{key}:")]
    path.write_text("".join(text for text in lines if text != line))


def test_a_training_from_before_a_key_was_added_is_found(tmp_path):
    (job,) = jobs(tmp_path, "a")
    run_jobs([job], Stub())
    old = job.folder.rename(job.folder.with_name("bafe-4-a-0-0123456789ab"))
    strip_key(old / CONFIG, "REPEAT_DATASET")
    stub = Stub()
    (found,) = jobs(tmp_path, "a")
    assert found.folder == old
    assert [outcome.state for outcome in run_jobs([found], stub)] == ["finished"]
    assert stub.trained == []
    # With another value than the default, on other data, or with a key that is no more, it is another training.
    others = [
        make_job(TABLE, found.row, 0, get_config(None, ["SEED", 0, "SOLVER.BASE_LR", 97.0, *options]), tmp_path, data)
        for options, data in ((["SOLVER.REPEAT_DATASET", 2], ""), ([], "other data"))
    ]
    assert all(other.folder != old for other in others)
    with (old / CONFIG).open("a") as file:
        file.write("NO_SUCH_KEY: 1\n")
    assert jobs(tmp_path, "a")[0].folder != old


def test_the_data_of_a_training_are_kept_in_its_file(tmp_path):
    cfg = get_config(None, ["SEED", 3])
    run_jobs([make_job(TABLE, TABLE.row("a"), 3, cfg, tmp_path, "(600, 200)")], Stub())
    (folder,) = (tmp_path / "runs").iterdir()
    renamed = folder.rename(folder.with_name("bafe-4-a-3-0123456789ab"))
    assert make_job(TABLE, TABLE.row("a"), 3, cfg, tmp_path, "(600, 200)").folder == renamed
    assert make_job(TABLE, TABLE.row("a"), 3, cfg, tmp_path, "").folder != renamed


def test_a_broken_result_is_named(tmp_path):
    (job,) = jobs(tmp_path, "a")
    run_jobs([job], Stub())
    (job.folder / RESULT).write_text("{}")
    with pytest.raises(DatasetError, match=r"result\.json"):
        run_jobs([job], Stub())


def test_the_last_complete_evaluation_counts(tmp_path):
    assert last_evaluation(tmp_path, ["bbox/AP"]) is None
    rows = [{"bbox/AP": 1.0, "sky/x": 2.0, "loss": 3.0}, {"sky/x": 9.0}]
    (tmp_path / "metrics.json").write_text("\n".join(map(json.dumps, rows)))
    assert last_evaluation(tmp_path, ["bbox/AP"]) == {"bbox/AP": 1.0, "sky/x": 2.0}
    assert last_evaluation(tmp_path, ["voc_paper/AP"]) is None


def test_progress_tells_the_time_left(tmp_path, caplog):
    clock = Clock()
    with caplog.at_level("INFO", "irstd_d2"):
        run_jobs(jobs(tmp_path, seeds=2), Stub(clock=clock), clock=clock)
    lines = [record.getMessage() for record in caplog.records if "left" in record.getMessage()]
    assert lines[0] == "[1/6] bafe-4 a, seed 0: finished after 10 s (AP 40.0); about 1 min left"
    assert lines[-1].endswith("about 0 min left")
