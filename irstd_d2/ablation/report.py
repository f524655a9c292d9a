"""An ablation as Markdown and as a figure, ours beside the published one."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from ..files import write_atomically
from .compare import Figures, Judgement, Summary, difference, judge, sign_agreement, summarize
from .runner import Job, Outcome
from .tables import Row, Table

_PUBLISHED, _OURS = "#999999", "#0072B2"


def collect(jobs: Sequence[Job], outcomes: Sequence[Outcome]) -> dict[str, dict[str, dict[int, float]]]:
    """Return the figures of finished jobs of one table: row -> metric -> seed -> percent."""
    figures: dict[str, dict[str, dict[int, float]]] = {}
    for job, outcome in zip(jobs, outcomes):
        if outcome.state == "finished":
            for metric in job.table.metrics:
                cell = figures.setdefault(job.row.name, {}).setdefault(metric.name, {})
                cell[job.seed] = outcome.metrics[metric.key]
    return figures


def markdown(
    table: Table,
    jobs: Sequence[Job],
    outcomes: Sequence[Outcome],
    *,
    facts: Sequence[str],
    parameters: Mapping[str, int] | None = None,
    figure: str = "",
) -> str:
    """Write the report of one table.

    Args:
        table: the table.
        jobs, outcomes: of its rows and seeds.
        facts: how the figures were made (command, data, hardware, limits), one paragraph each.
        parameters: row -> number of parameters of its published configuration.
        figure: file name of the figure, relative to the report.
    """
    figures = collect(jobs, outcomes)
    parts = [f"# {table.heading}: {table.title}", *facts]
    if table.note:
        parts.append(table.note)
    parts.append(
        "Percent. Ours: mean and standard deviation over the seeds (their number in brackets). "
        f"Difference: {table.metrics[0].name} minus that of `{table.reference}`, "
        f"{'paper / ours ' if table.printed else ''}over common seeds."
    )
    parts.append(_figures_table(table, figures, parameters or {}))
    if figure:
        caption = "Ours beside the paper's figures" if table.printed else "Our figures"
        parts.append(f"![{caption}]({figure})")
    heading = "What the paper concludes" if table.printed else "What the additions change"
    parts.append(f"## {heading}\n\n" + _claims_table(table, judge(table, figures)))
    parts.append(_statement(table, figures) if table.printed else _own_statement(judge(table, figures)))
    if unfinished := [_unfinished(job, outcome) for job, outcome in zip(jobs, outcomes) if outcome.state != "finished"]:
        parts.append("## Not finished\n\n" + "\n".join(unfinished))
    if absent := [row.label for row in table.rows if row not in table.trainable]:
        parts.append(f"Not available in this project: {', '.join(absent)}.")
    return "\n\n".join(parts) + "\n"


def _figures_table(table: Table, figures: Figures, parameters: Mapping[str, int]) -> str:
    header = ["row"]
    for metric in table.metrics:
        header += [f"{metric.name}, paper", "ours"] if table.printed else [metric.name]
    header.append("difference")
    with_parameters = any(not math.isnan(row.parameters) for row in table.rows)
    if with_parameters:
        header.append("parameters at full scale, M")
    lines = [_line(header), "|" + "---|" * len(header)]
    leading = table.metrics[0].name
    for row in table.rows:
        cells = [row.label]
        for metric in table.metrics:
            published = [_number(row.published.get(metric.name, math.nan))] if table.printed else []
            cells += [*published, _cell(_summary(figures, row.name, metric.name))]
        ours = difference(*(figures.get(name, {}).get(leading, {}) for name in (row.name, table.reference)))
        cells.append(_signed(ours.mean))
        if table.printed:
            theirs = row.published.get(leading, math.nan) - table.row(table.reference).published[leading]
            cells[-1] = f"{_signed(theirs)} / {cells[-1]}"
        if with_parameters:
            count = parameters.get(row.name)
            cells.append(f"{_number(row.parameters, 3)} / {'-' if count is None else f'{count / 1e6:.3f}'}")
        lines.append(_line(cells))
    return "\n".join(lines)


def _claims_table(table: Table, judgements: Sequence[Judgement]) -> str:
    printed = table.printed
    header = ["better", "than", "metric", "paper", "ours"] if printed else ["row", "against", "metric", "difference"]
    header += ["spread of single trainings", "verdict"]
    lines = [_line(header), "|" + "---|" * len(header)]
    for judgement in judgements:
        claim, ours = judgement.claim, judgement.ours
        cells = [claim.better, claim.worse, judgement.metric, *([_signed(judgement.published)] if printed else [])]
        lines.append(_line([*cells, _signed(ours.mean), _number(ours.spread), judgement.verdict]))
    return "\n".join(lines)


def _own_statement(judgements: Sequence[Judgement]) -> str:
    verdicts = [judgement.verdict for judgement in judgements]
    counted = ", ".join(f"{verdicts.count(v)} {v}" for v in dict.fromkeys(verdicts))
    text = f"Of the {len(verdicts)} comparisons: {counted}."
    if "one seed" in verdicts:
        text += " With one seed the noise is unknown, and a difference proves nothing."
    return text + " A difference within the spread is noise as far as these seeds can tell."


def _statement(table: Table, figures: Figures) -> str:
    verdicts = [judgement.verdict for judgement in judge(table, figures)]
    agreement = sign_agreement(table, figures)
    if not agreement.pairs:
        return "No two rows were trained from a common seed, so there is nothing to compare."
    counted = ", ".join(f"{verdicts.count(v)} {v}" for v in dict.fromkeys(verdicts))
    text = [
        f"Of the {len(verdicts)} conclusions: {counted}. Of all {agreement.pairs} pairs of rows that differ in the "
        f"paper, {agreement.same} have the paper's sign in {table.metrics[0].name} and {agreement.opposite} the "
        "opposite one.",
    ]
    if agreement.repeated:
        text.append(
            f"{agreement.repeated} of the pairs share two seeds or more: {agreement.clear} of their differences exceed "
            f"the spread of single trainings, {agreement.clear_same} of these with the paper's sign. A difference "
            "within the spread is noise as far as these seeds can tell, whatever its sign."
        )
    if agreement.repeated < agreement.pairs:
        text.append("With one seed the noise is unknown: a sign alone proves nothing. Use `--seeds 3` or more.")
    text.append("The paper prints one figure per row and no spread, so the noise of its differences is unknown too.")
    return " ".join(text)


def _unfinished(job: Job, outcome: Outcome) -> str:
    return f"- {job.row.name}, seed {job.seed}: {outcome.state}; {outcome.reason}"


def draw(table: Table, figures: Figures, path: Path) -> None:
    """Draw the leading metric of every row, ours beside the published one, and its change against the reference row.

    Args:
        table: the table.
        figures: from :func:`collect`.
        path: a PNG file.
    """
    metric = table.metrics[0].name
    rows = table.trainable
    canvas = Figure(figsize=(9.5, 1.2 + 0.42 * len(rows)), layout="constrained")
    FigureCanvasAgg(canvas)
    values, changes = canvas.subplots(1, 2, sharey=True)
    places = np.arange(len(rows))
    summaries = [_summary(figures, row.name, metric) for row in rows]
    published = np.array([row.published.get(metric, math.nan) for row in rows])
    ours = np.array([summary.mean for summary in summaries])
    spread = np.array([summary.std for summary in summaries])
    reference = [row.name for row in rows].index(table.reference)
    for axes, theirs, mine in (
        (values, published, ours),
        (changes, published - published[reference], ours - ours[reference]),
    ):
        if table.printed:
            axes.barh(places - 0.2, np.nan_to_num(theirs), 0.36, color=_PUBLISHED, label="paper")
        axes.barh(places + 0.2, np.nan_to_num(mine), 0.36, xerr=spread, color=_OURS, label="ours", capsize=2)
        axes.axvline(0, color="black", linewidth=0.6)
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(axis="x", alpha=0.25)
    values.set_yticks(places, [_plain(row) for row in rows], fontsize=8)
    values.invert_yaxis()
    values.set_xlabel(f"{metric}, percent (bars: standard deviation over seeds)", fontsize=8)
    changes.set_xlabel(f"change against {table.row(table.reference).label}, points", fontsize=8)
    canvas.legend(*values.get_legend_handles_labels(), loc="outside upper center", ncols=2, frameon=False, fontsize=8)
    write_atomically(path, lambda file: canvas.savefig(file, format="png", dpi=110, metadata={"Software": None}))


def _plain(row: Row) -> str:
    return row.label.replace("$", r"\$")


def _summary(figures: Figures, row: str, metric: str) -> Summary:
    return summarize(figures.get(row, {}).get(metric, {}))


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def _number(value: float, digits: int = 1) -> str:
    return "-" if math.isnan(value) else f"{value:.{digits}f}"


def _signed(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:+.1f}"


def _cell(summary: Summary) -> str:
    if not summary.count:
        return "-"
    spread = "" if summary.count == 1 else f" ± {summary.std:.1f}"
    return f"{summary.mean:.1f}{spread} ({summary.count})"
