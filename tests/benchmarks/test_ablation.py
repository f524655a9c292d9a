"""The papers' tables as data, their judgement, and the command that trains them."""

import fcntl
import json
import math
import os
import re
import signal
import statistics
import subprocess
import sys

import ablate
import cv2
import pytest
from ablation.compare import Difference, difference, judge_claims
from ablation.report import draw, markdown
from ablation.runner import CONFIG, RESULT, NotFinishedError, Trainer, finished, make_job, run_jobs
from ablation.tables import load_tables, resolve

from irstd_d2 import get_config
from irstd_d2.errors import ConfigError, DatasetError
from irstd_d2.synthetic import SceneConfig, dense_config

TABLES = load_tables()
ROMAN = ("I", "II", "III", "IV", "V", "VI", "VII", "VIII", "IX")
NUMBERS_OF_ROWS = {
    **{f"auxdet-{n}": rows for n, rows in zip(range(1, 10), (4, 4, 6, 3, 4, 9, 7, 8, 12))},
    **{f"bafe-{n}": rows for n, rows in zip(range(2, 10), (3, 6, 4, 4, 4, 4, 9, 4))},
}


# --- the data


def test_all_tables_are_there():
    assert {name: len(table.rows) for name, table in TABLES.items() if table.printed} == NUMBERS_OF_ROWS
    assert [name for name, table in TABLES.items() if not table.printed] == ["beyond-auxdet", "beyond-bafe"]
    headings = {name: TABLES[name].heading for name in ("auxdet-5", "bafe-4", "beyond-bafe")}
    assert list(headings.values()) == ["AuxDet, Table 5", "BAFE-Net, Table IV", "BAFE-Net, beyond the paper"]
    assert TABLES["bafe-9"].claims[-1] == ("c_r50", "d_r101", "mAP12")
    assert list(TABLES["beyond-bafe"].metrics) == ["mAP07", "mAP12", "recall07"]


def section(papers_dir, name):
    """The text of a printed table, from its caption to the next one's."""
    paper, number = name.split("-")
    if paper == "auxdet":
        text, word, numbers = (papers_dir / "auxdet_paper.txt").read_text(), "Table", [str(n) for n in range(1, 11)]
    else:
        text, word, numbers = (papers_dir / "bafe_net_paper.txt").read_text(), "TABLE", list(ROMAN)
        number = ROMAN[int(number) - 1]
    captions = [m for m in re.finditer(rf"^{word} (\w+):", text, re.M) if m[1] in numbers]
    at = [m[1] for m in captions].index(number)
    end = captions[at + 1].start() if at + 1 < len(captions) else len(text)
    return text[captions[at].start() : end]


def test_figures_are_the_papers_in_its_order(papers_dir):
    for name in NUMBERS_OF_ROWS:
        text, position = section(papers_dir, name), 0
        for row in TABLES[name].rows.values():
            if not row.figures:
                continue
            digits = (lambda v: f"{v:.1f}") if name.startswith("auxdet") else (lambda v: f"{v / 100:.3f}")
            printed = [digits(value) for value in row.figures.values()]
            found = re.compile(r"(?: \([^)]*\))? ".join(map(re.escape, printed))).search(text, position)
            assert found, f"{name} {row.name}: {printed} is not printed after character {position} of the table"
            if not math.isnan(row.parameters):
                around = text[text.rindex("\n", 0, found.start()) : text.index("\n", found.end())]
                assert re.search(rf"\b{row.parameters:g}0?(M| |$)", around), (row.name, around)
            position = found.end()


def test_every_row_resolves_at_every_size_of_its_model():
    for table in TABLES.values():
        largest = {size.models: (scale, size) for scale, size in table.scales.items()}
        for scale, size in largest.values():  # one for each size of the models
            for row in table.trainable(scale):
                cfg = resolve(table, row, scale, seed=4, iterations=80)
                assert (*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST) == size.data
                assert (cfg.SEED, cfg.SOLVER.MAX_ITER, cfg.SOLVER.MAX_EPOCHS) == (4, 80, 0)
                assert all(step < 80 for step in cfg.SOLVER.STEPS)


def test_depth_weights_and_a_schedule_in_iterations():
    table = TABLES["auxdet-8"]
    cfg = resolve(table, table.rows["r101_auxdet"], "wide", options=["MODEL.WEIGHTS", "w/r{depth}.pth"])
    assert (cfg.MODEL.RESNETS.DEPTH, cfg.MODEL.WEIGHTS, cfg.MODEL.RESNETS.NORM_EVAL) == (101, "w/r101.pth", True)
    cfg = resolve(table, table.rows["r101_auxdet"], "synthetic")
    assert (cfg.MODEL.RESNETS.DEPTH, cfg.MODEL.RESNETS.WIDTH_PER_GROUP) == (101, 16)
    cfg = resolve(table, table.rows["r18_auxdet"], "wide", iterations=1200)
    assert (cfg.SOLVER.STEPS, cfg.SOLVER.WARMUP_ITERS, cfg.MODEL.RESNETS.NORM_EVAL) == ((800, 1100), 150, False)
    with pytest.raises(ConfigError, match=r"cannot be trained at scale 'wide'; use one of \['synthetic'"):
        resolve(TABLES["beyond-auxdet"], TABLES["beyond-auxdet"].rows["swin"], "wide")


def test_parameters_are_those_that_the_papers_print():
    """BAFE-Net's differ: docs/model_zoo.md."""
    for name in ("auxdet-1", "auxdet-3", "auxdet-4", "auxdet-5"):
        counts = ablate.count_parameters(TABLES[name])
        printed = {row.name: row.parameters for row in TABLES[name].rows.values()}
        assert {row: round(count / 1e6, 3) for row, count in counts.items()} == printed


def test_a_claim_about_a_row_that_is_not_there_is_refused(tmp_path):
    text = "paper: X\nmetrics: {AP: x/AP}\nscales: {}\nsystems: {s: {}}\n"
    text += "tables: {x-1: {title: t, rows: {a: %s}, claims: [%s]}}"
    for row, claim, message in (("{label: A}", "b > a", "no rows"), ("{label: A, system: z}", "a > a", "unknown sys")):
        (tmp_path / "x.yaml").write_text(text % (row, claim))
        with pytest.raises(ConfigError, match=message):
            load_tables(tmp_path)


# --- the judgement


def test_the_interval_is_that_of_paired_differences():
    a, b = {0: 50.0, 1: 60.0, 2: 40.0, 7: 99.0}, {0: 49.0, 1: 58.5, 2: 39.5, 9: 0.0}
    found = difference(a, b)
    pairs = [1.0, 1.5, 0.5]  # the rows spread by ten points, their differences by half a point
    assert (found.mean, found.count) == (1.0, 3)
    assert found.half == pytest.approx(4.303 * statistics.stdev(pairs) / math.sqrt(3))
    assert found.verdict(0.3) == "not decided"
    more = difference({seed: 50.0 + seed for seed in range(4)}, {seed: 49.0 + 0.99 * seed for seed in range(4)})
    assert more.half == pytest.approx(3.182 * statistics.stdev([1.0, 1.01, 1.02, 1.03]) / 2)
    verdicts = [more.verdict(published) for published in (0.3, -0.3, 0.0, math.nan)]
    assert verdicts == ["holds", "contradicted", "a tie in the paper", "better"]
    assert Difference(-2.0, 1.0, 3).verdict() == "worse"
    many = difference(dict.fromkeys(range(30), 1.0) | {0: 2.0}, dict.fromkeys(range(30), 0.0))
    assert many.half == pytest.approx(2.262 * statistics.stdev([2.0] + [1.0] * 29) / math.sqrt(30))


def test_fewer_than_three_common_seeds_decide_nothing():
    for seeds in ({0: 90.0}, {0: 90.0, 1: 91.0}):
        assert difference(seeds, {0: 1.0, 1: 1.0, 2: 1.0}).verdict(5.0) == "too few seeds"
    assert difference({0: 1.0}, {1: 1.0}).verdict(5.0) == "not run"


FIGURES = {
    "a_none": {"mAP07": {0: 50.0, 1: 52.0, 2: 51.0}, "recall07": {0: 1.0, 1: 2.0, 2: 3.0}},
    "b_seg_head": {"mAP07": {0: 55.0, 1: 57.5, 2: 55.5}},
    "c_exchange": {"mAP07": {0: 30.0, 1: 30.5, 2: 30.0}},
    "d_adapter": {"mAP07": {0: 10.0, 1: 90.0}},
}


def unpadded(page):
    return re.sub(" +", " ", page)


def test_the_page_holds_ours_beside_the_paper(tmp_path):
    table = TABLES["bafe-4"]
    assert [j.verdict for j in judge_claims(table, FIGURES)] == ["holds", "contradicted", "too few seeds"]
    text = markdown(table, FIGURES, facts=["FACT"], parameters={"a_none": 42_526_543}, unfinished=["d, seed 2: late"])
    text = unpadded(text)
    assert text.startswith("# BAFE-Net, Table IV: Segmentation head, feature exchange and adapter\n\nFACT\n\nTrained")
    assert (
        "| none | 22.5 | 51.0 ± 1.0 (3) | 31.1 | 2.0 ± 1.0 (3) | 18.0 | - | 31.4 | - | +0.0 / +0.0 | - / 42.527 |"
        in text
    )
    assert "| b_seg_head | a_none | mAP07 | +2.1 | +5.0 ± 1.2 | 3 | holds |" in text
    assert "| d_adapter | c_exchange | mAP07 | +0.8 | +19.8 | 2 | too few seeds |" in text
    assert "Of the 3 comparisons: 1 holds, 1 contradicted, 1 too few seeds." in text
    assert "- d, seed 2: late" in text
    own = markdown(TABLES["beyond-bafe"], {"fcos": FIGURES["a_none"]}, facts=[], parameters={}, unfinished=[])
    assert "| FCOS, our recipe | 51.0 ± 1.0 (3) | - | 2.0 ± 1.0 (3) | +0.0 |" in unpadded(own)
    assert "paper /" not in own
    for name, figures in (("bafe-4", FIGURES), ("beyond-bafe", {})):
        draw(TABLES[name], figures, tmp_path / "figure.png")
        blue = (cv2.imread(str(tmp_path / "figure.png")) == (0xB2, 0x72, 0x00)).all(2).sum()
        assert (blue > 1000) == bool(figures)


# --- the trainings


def jobs(output, rows=("a_none", "b_seg_head", "c_exchange"), seed=0, rate=None):
    table = TABLES["bafe-4"]
    rates = rate or {name: 1.0 + number for number, name in enumerate(rows)}
    return [
        make_job(table, table.rows[name], seed, get_config(None, ["SEED", seed, "SOLVER.BASE_LR", rates[name]]), output)
        for name in rows
    ]


class Stub:
    """Writes an evaluation as a training does."""

    def __init__(self, fail="", stop="", silent=""):
        self.fail, self.stop, self.silent, self.trained = fail, stop, silent, []

    def __call__(self, job, seconds):
        assert str(job.folder) == get_config(job.folder / CONFIG).OUTPUT_DIR
        self.trained.append(job.row.name)
        if job.row.name == self.stop:
            raise NotFinishedError("interrupted")
        if job.row.name == self.fail:
            (job.folder / "stdout.txt").write_text("Traceback\nboom: what went wrong\n\n")
            raise subprocess.CalledProcessError(3, "train")
        figures = dict.fromkeys(job.table.metrics.values(), 1.0)
        rows = [figures, dict.fromkeys(figures, 40.0) | {"lr": 2}, {"iteration": 10}]
        if job.row.name != self.silent:
            (job.folder / "metrics.json").write_text("\n".join(map(json.dumps, rows)) + "\n")


def test_rows_train_once_failures_and_interruptions_are_tried_again(tmp_path):
    outcomes = run_jobs(jobs(tmp_path), Stub(fail="b_seg_head", stop="c_exchange"))
    assert [outcome.state for outcome in outcomes] == ["finished", "failed", "pending"]
    assert outcomes[0].metrics == dict.fromkeys(TABLES["bafe-4"].metrics.values(), 40.0)
    assert outcomes[1].reason.startswith("exit status 3: boom: what went wrong; see ")
    assert outcomes[2].reason == "interrupted"
    again = Stub()
    assert [outcome.state for outcome in run_jobs(jobs(tmp_path), again)] == ["finished"] * 3
    assert again.trained == ["b_seg_head", "c_exchange"]
    assert run_jobs(jobs(tmp_path, ["a_none"], seed=1), Stub(silent="a_none"))[0].reason.endswith("no evaluation")


def test_time_runs_out_and_equal_configurations_are_one_training(tmp_path):
    assert {outcome.reason for outcome in run_jobs(jobs(tmp_path), Stub(), limit=0)} == {"no time left"}
    stub = Stub()
    same = jobs(tmp_path, rate={"a_none": 1.0, "b_seg_head": 2.0, "c_exchange": 1.0})
    outcomes = run_jobs(same, stub)
    assert stub.trained == ["a_none", "b_seg_head"]
    assert outcomes[0] == outcomes[2]
    (later,) = jobs(tmp_path, ["c_exchange"], rate={"c_exchange": 1.0})
    assert later.folder == same[0].folder  # found by its fingerprint
    changed = make_job(later.table, later.row, 0, get_config(None, ["SOLVER.BASE_LR", 9.0]), tmp_path)
    other_data = make_job(later.table, later.row, 0, later.cfg, tmp_path, data="(600, 200)")
    assert len({later.folder, changed.folder, other_data.folder}) == 3


@pytest.mark.parametrize("text", ["{", "[]", '{"metrics": {}}', '{"metrics": 3, "seconds": "x"}'])
def test_a_broken_record_is_named(tmp_path, text):
    (job,) = jobs(tmp_path, ["a_none"])
    job.folder.mkdir(parents=True)
    (job.folder / RESULT).write_text(text)
    with pytest.raises(DatasetError, match="is not a result"):
        finished(job)


# --- the command


@pytest.fixture
def script(tmp_path, monkeypatch):
    """Put a shell script in Python's place, so that a training is what the test says; sets are of a few images."""
    small = {"TRAIN": 6, "VAL": 3, "OMNI": SceneConfig(size=(64, 64)), "DENSE": dense_config(size=(64, 64))}
    for name, value in small.items():
        monkeypatch.setattr(ablate, name, value)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")

    def use(text):
        path = tmp_path / "python"
        path.write_text(f"#!/bin/sh\n{text}\n")
        path.chmod(0o755)
        monkeypatch.setattr(sys, "executable", str(path))

    return use


def test_a_training_gets_its_configuration_data_and_folder(tmp_path, script):
    (job,) = jobs(tmp_path, ["a_none"])
    job.folder.mkdir(parents=True)
    script('echo "$@"; echo "$DETECTRON2_DATASETS $OMP_NUM_THREADS"; exit 7')
    with pytest.raises(subprocess.CalledProcessError) as error:
        Trainer(tmp_path / "data")(job, math.inf)
    said = (job.folder / "stdout.txt").read_text()
    assert error.value.returncode == 7
    assert re.search(r"tools/train_net\.py --config-file .*/ablation\.yaml OUTPUT_DIR ", said)
    assert said.splitlines()[-1] == f"{tmp_path / 'data'} 1"
    script("exec sleep 60")
    with pytest.raises(NotFinishedError, match="no time left"):
        Trainer(tmp_path)(job, 0.3)
    with (job.folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(NotFinishedError, match="another process"):
            Trainer(tmp_path)(job, math.inf)
    script("sleep 30 & echo $!")  # the child outlives its parent and has inherited the lock
    Trainer(tmp_path)(job, math.inf)
    child = int((job.folder / "stdout.txt").read_text().splitlines()[-1])
    with pytest.raises(NotFinishedError, match="another process"):
        Trainer(tmp_path)(job, math.inf)
    os.kill(child, signal.SIGKILL)


def test_stopping_the_command_stops_the_training(tmp_path, script, caplog):
    script(f"echo $$ > {tmp_path}/child; sleep 1; kill -INT $PPID; exec sleep 60")  # what Ctrl-C sends
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        assert ablate.main(["bafe-4", "--rows", "a_none", "--output", str(tmp_path / "out")]) == 130
    finally:
        signal.signal(signal.SIGINT, before)
    assert "the same command goes on" in caplog.text
    with pytest.raises(ProcessLookupError):
        os.kill(int((tmp_path / "child").read_text()), 0)


def test_a_run_reports_failures_and_succeeds_later(tmp_path, script, caplog):
    evaluation = '{"iteration": 1, "voc_paper/AP50_11point": 20, "voc_paper/AP50_area": 10, "voc_paper/recall50": 30}'
    broken = tmp_path / "broken"
    broken.touch()
    # OUTPUT_DIR is the last argument; the segmentation head's training fails as long as the file is there.
    script(
        f"""for folder; do :; done
case $folder in *b_seg_head*) test -e {broken} && echo "no luck" && exit 1;; esac
echo '{evaluation}' > $folder/metrics.json"""
    )
    out = tmp_path / "out"
    arguments = ["bafe-4", "--rows", "a_none", "b_seg_head", "--seeds", "3", "--output", str(out)]
    assert ablate.main([*arguments, "--report"]) == 1
    page = out / "ablation_bafe_4_synthetic.md"
    assert page.read_text().count("pending; no time left") == 6
    assert ablate.main(arguments) == 1
    assert page.read_text().count("failed; exit status 1: no luck") == 3
    text = unpadded(page.read_text())
    assert "| none | 22.5 | 20.0 ± 0.0 (3) | 31.1 | 30.0 ± 0.0 (3) | 18.0 | 10.0 ± 0.0 (3) |" in text
    broken.unlink()
    assert ablate.main(arguments) == 0
    assert "Not finished" not in page.read_text()
    assert "| b_seg_head | a_none | mAP07 | +2.1 | +0.0 ± 0.0 | 3 | not decided |" in unpadded(page.read_text())
    assert "6 trainings of 300 iterations of 8 images" in page.read_text()
    assert page.with_suffix(".png").stat().st_size > 5000
    images = sorted((out / "data/synthetic_dense/SIRSTdevkit/PNGImages").iterdir())
    assert len(images) == 9


def test_list_configurations_and_errors(tmp_path, monkeypatch, capsys, caplog):
    assert ablate.main(["--list"]) == 0
    text = capsys.readouterr().out
    assert all(f"{table.name}: {table.title}" in text for table in TABLES.values())
    folder = tmp_path / "configs"
    assert ablate.main(["bafe-4", "--rows", "c_exchange", "--scale", "dense", "--write-configs", str(folder)]) == 0
    cfg = get_config(folder / "bafe-4_c_exchange_0.yaml")
    assert (cfg.MODEL.BAFE.EXCHANGE.ADAPTER_WIDTH, cfg.INPUT.BAG_CP.ENABLED) == (0, False)
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path / "nothing"))
    for arguments, message in [
        ([], "known are auxdet-1"),
        (["auxdet-10"], "auxdet-10"),
        (["bafe-4", "--seeds", "0"], "--seeds is 0"),
        (["bafe-4", "--rows", "nonsense"], "nonsense"),
        (["bafe-4", "--scale", "wide"], "cannot be trained at scale 'wide'"),
        (["bafe-4", "--scale", "dense-cpu"], "SIRSTdevkit"),
        (["beyond-bafe", "--scale", "dense", "--rows", "ema"], "ema"),
        (["auxdet-5", "--scale", "omni"], "set DETECTRON2_DATASETS"),
    ]:
        caplog.clear()
        assert ablate.main([*arguments, "--output", str(tmp_path / "out")]) == 2
        assert message in caplog.text


@pytest.mark.slow
def test_two_rows_train_and_are_not_trained_again(tmp_path, script, caplog):
    caplog.set_level("INFO")
    options = ["DATALOADER.NUM_WORKERS", "0", "INPUT.FIXED_SIZE", "(64, 64)", "SOLVER.IMS_PER_BATCH", "2"]
    arguments = ["bafe-4", "--rows", "a_none", "d_adapter", "--iterations", "3", "--output", str(tmp_path)]
    arguments += ["--opts", *options]
    assert ablate.main(arguments) == 0, [path.read_text()[-3000:] for path in tmp_path.rglob("stdout.txt")]
    weights = sorted(tmp_path.glob("runs/*/model_final.pth"))
    assert len(weights) == 2
    before = [path.stat().st_mtime_ns for path in weights]
    assert ablate.main(arguments) == 0
    assert [path.stat().st_mtime_ns for path in weights] == before
