"""The Markdown and the figure of an ablation."""

import cv2
import pytest

from irstd_d2 import get_config
from irstd_d2.ablation import Claim, Metric, Outcome, Recipe, Row, Table, collect, draw, make_job, markdown

TABLE = Table(
    "bafe-4",
    "what it varies",
    (Metric("AP", "voc_paper/AP"), Metric("R", "voc_paper/R")),
    (
        Row("a", "Alpha", "a.yaml", {"AP": 20.0, "R": 30.0}, 42.5),
        Row("b", "Cost in $", "b.yaml", {"AP": 22.5, "R": 31.0}),
        Row("c", "Gamma", "", {"AP": 1.0, "R": 1.0}),
        Row("d", "Delta", "d.yaml"),
    ),
    "a",
    (Claim("b", "a"),),
    note="A note.",
)
FIGURES = {("a", 0): 50.0, ("a", 1): 52.0, ("b", 0): 55.0, ("b", 1): 56.0}


@pytest.fixture
def jobs(tmp_path):
    return [
        make_job(TABLE, TABLE.row(name), seed, get_config(None, ["SEED", seed]), tmp_path)
        for seed in (0, 1)
        for name in "abd"
    ]


def outcome(job):
    if (job.row.name, job.seed) not in FIGURES:
        return Outcome("failed", {}, reason="exit status 1: boom")
    ap = FIGURES[job.row.name, job.seed]
    return Outcome("finished", {"voc_paper/AP": ap, "voc_paper/R": ap + 10})


def test_markdown_holds_ours_beside_the_paper(jobs):
    text = markdown(
        TABLE, jobs, [outcome(job) for job in jobs], facts=["FACT"], parameters={"a": 42_526_543}, figure="x.png"
    )
    assert text.startswith("# BAFE-Net, Table IV: what it varies\n\nFACT\n\nA note.\n")
    assert "| Alpha | 20.0 | 51.0 ± 1.4 (2) | 30.0 | 61.0 ± 1.4 (2) | +0.0 / +0.0 | 42.500 / 42.527 |" in text
    assert "| Cost in $ | 22.5 | 55.5 ± 0.7 (2) | 31.0 | 65.5 ± 0.7 (2) | +2.5 / +4.5 | - / - |" in text
    assert "| Gamma | 1.0 | - | 1.0 | - | -19.0 / - | - / - |" in text
    assert "| Delta | - | - | - | - | - / - | - / - |" in text
    assert "| b | a | AP | +2.5 | +4.5 | 1.6 | holds |" in text
    assert "Of the 1 conclusions: 1 holds. Of all 1 pairs" in text
    assert "1 of the pairs share two seeds or more: 1 of their differences exceed the spread" in text
    assert "- d, seed 1: failed; exit status 1: boom" in text
    assert "Not available in this project: Gamma." in text
    assert "![Ours beside the paper's figures](x.png)" in text


def test_one_seed_says_that_a_sign_proves_nothing(jobs):
    text = markdown(TABLE, jobs[:2], [outcome(job) for job in jobs[:2]], facts=[])
    assert "| Alpha | 20.0 | 50.0 (1) |" in text
    assert "1 same sign" in text
    assert "a sign alone proves nothing" in text
    assert "Not finished" not in text


def test_nothing_finished(jobs):
    text = markdown(TABLE, jobs, [Outcome("pending", {}, reason="no time left")] * len(jobs), facts=[])
    assert "nothing to compare" in text
    assert text.count("pending; no time left") == len(jobs)


@pytest.mark.parametrize("finished", [True, False])
def test_figure(jobs, tmp_path, finished):
    figures = collect(jobs, [outcome(job) for job in jobs]) if finished else {}
    draw(TABLE, figures, tmp_path / "figure.png")
    image = cv2.imread(str(tmp_path / "figure.png"))
    assert image.shape[1] > 900
    blue = (image[..., 0] > 150) & (image[..., 2] < 60)  # our bars
    assert (blue.sum() > 1000) == finished


def test_collect_takes_finished_jobs_only(jobs):
    figures = collect(jobs, [outcome(job) for job in jobs])
    assert figures == {
        "a": {"AP": {0: 50.0, 1: 52.0}, "R": {0: 60.0, 1: 62.0}},
        "b": {"AP": {0: 55.0, 1: 56.0}, "R": {0: 65.0, 1: 66.0}},
    }


OWN = Table(
    "beyond-bafe",
    "additions",
    (Metric("AP", "voc_paper/AP"),),
    (Row("a", "Alpha", "a.yaml"), Row("b", "Beta", "", small=Recipe("b.yaml")), Row("d", "Delta", "d.yaml")),
    "a",
    (Claim("b", "a"), Claim("d", "a")),
)


@pytest.mark.parametrize("seeds", [1, 2])
def test_a_table_of_our_own_has_no_column_of_the_paper(tmp_path, seeds):
    jobs = [
        make_job(OWN, OWN.row(name), seed, get_config(None, ["SEED", seed]), tmp_path)
        for seed in range(seeds)
        for name in "ab"
    ]
    outcomes = [outcome(job) for job in jobs]
    text = markdown(OWN, jobs, outcomes, facts=["FACT"], figure="x.png")
    assert text.startswith("# BAFE-Net, beyond the paper: additions\n\nFACT\n")
    assert "| row | AP | difference |" in text
    assert "paper /" not in text
    assert "![Our figures](x.png)" in text
    assert "Not available" not in text
    if seeds == 1:
        assert "| Beta | 55.0 (1) | +5.0 |" in text
        assert "| b | a | AP | +5.0 | - | one seed |" in text
        assert "Of the 2 comparisons: 1 one seed, 1 not run. With one seed the noise is unknown" in text
    else:
        assert "| Beta | 55.5 ± 0.7 (2) | +4.5 |" in text
        assert "| b | a | AP | +4.5 | 1.6 | better |" in text
        assert "With one seed" not in text
    draw(OWN, collect(jobs, outcomes), tmp_path / "figure.png")
    image = cv2.imread(str(tmp_path / "figure.png"))
    grey = (image == 0x99).all(2).sum()  # beyond stray pixels of letters: the legend's patch of the paper
    assert grey < 50
