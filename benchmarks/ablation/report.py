"""An ablation as Markdown and as a figure, ours beside the published one."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from irstd_d2.evaluation.results import format_number, format_table
from irstd_d2.files import write_atomically

from .compare import MIN_SEEDS, Figures, difference, judge_claims
from .tables import Table

_PUBLISHED, _OURS = "#999999", "#0072B2"


def markdown(
    table: Table, figures: Figures, *, facts: Sequence[str], parameters: Mapping[str, int], unfinished: Sequence[str]
) -> str:
    """Write the report of one table.

    Args:
        figures: of what is finished.
        facts: how the figures were made (command, data, hardware, limits), one paragraph each.
        parameters: row -> number of parameters at the published scale.
        unfinished: one line for each training that is not.
    """
    leading = next(iter(table.metrics))
    parts = [f"# {table.heading}: {table.title}", *facts, *([table.note] if table.note else [])]
    parts.append(
        "Percent. Ours: mean and standard deviation over the seeds (their number in brackets). Difference: "
        f"{leading} minus that of `{table.reference}`, {'paper / ours, ' if table.printed else ''}over common seeds."
    )
    parts.append(_rows(table, figures, parameters))
    parts.append(f"## {'What the paper concludes' if table.printed else 'What the additions change'}")
    parts.append(_claims(table, figures))
    verdicts = [judgement.verdict for judgement in judge_claims(table, figures)]
    counted = ", ".join(f"{verdicts.count(verdict)} {verdict}" for verdict in dict.fromkeys(verdicts))
    parts.append(
        f"Of the {len(verdicts)} comparisons: {counted}. A comparison is decided when the 95 % interval of its mean "
        f"paired difference (Student's t over common seeds, {MIN_SEEDS} at least) leaves out zero."
        + (" The paper prints one figure per row and no spread." if table.printed else "")
    )
    if unfinished:
        parts.append("## Not finished\n\n" + "\n".join(f"- {line}" for line in unfinished))
    if absent := [row.label for row in table.rows.values() if not row.system]:
        parts.append(f"Not available in this project: {', '.join(absent)}.")
    return "\n\n".join(parts) + "\n"


def _rows(table: Table, figures: Figures, parameters: Mapping[str, int]) -> str:
    leading = next(iter(table.metrics))
    header = ["row"]
    for metric in table.metrics:
        header += [f"{metric}, paper", "ours"] if table.printed else [metric]
    header += ["difference", *(["parameters at full scale, M"] if parameters else [])]
    lines = []
    for row in table.rows.values():
        cells = [row.label]
        for metric in table.metrics:
            printed = [format_number(row.figures.get(metric, math.nan), decimals=1)] if table.printed else []
            cells += [*printed, _cell(figures.get(row.name, {}).get(metric, {}))]
        ours = difference(*(figures.get(name, {}).get(leading, {}) for name in (row.name, table.reference)))
        theirs = row.figures.get(leading, math.nan) - table.rows[table.reference].figures.get(leading, math.nan)
        printed = f"{_signed(theirs)} / " if table.printed else ""
        cells.append(printed + _signed(ours.mean))
        if parameters:
            count = parameters.get(row.name, math.nan) / 1e6
            cells.append(" / ".join(format_number(value, decimals=3) for value in (row.parameters, count)))
        lines.append(cells)
    return format_table(lines, header)


def _claims(table: Table, figures: Figures) -> str:
    header = ["better", "than", "metric", "paper", "ours, 95 % interval", "seeds", "verdict"]
    lines = []
    for claim in judge_claims(table, figures):
        ours = claim.ours
        interval = f" ± {ours.half:.1f}" if math.isfinite(ours.half) else ""
        cells = [claim.better, claim.worse, claim.metric, _signed(claim.published)]
        lines.append([*cells, _signed(ours.mean) + interval, str(ours.count), claim.verdict])
    return format_table(lines, header)


def draw(table: Table, figures: Figures, path: Path) -> None:
    """Draw the leading metric of every row, ours beside the published one, as a PNG file."""
    metric = next(iter(table.metrics))
    rows = [row for row in table.rows.values() if row.system]
    canvas = Figure(figsize=(7, 1.2 + 0.42 * len(rows)), layout="constrained")
    FigureCanvasAgg(canvas)
    axes = canvas.subplots()
    places = np.arange(len(rows))
    cells = [list(figures.get(row.name, {}).get(metric, {}).values()) for row in rows]
    if table.printed:
        printed = [row.figures.get(metric, 0) for row in rows]
        axes.barh(places - 0.2, printed, 0.36, color=_PUBLISHED, label="paper")
    axes.barh(
        places + 0.2, [statistics.fmean(cell) if cell else 0 for cell in cells], 0.36, color=_OURS, label="ours",
        xerr=[statistics.stdev(cell) if len(cell) > 1 else 0 for cell in cells], capsize=2,
    )  # fmt: skip
    axes.set_yticks(places, [row.label.replace("$", r"\$") for row in rows], fontsize=8)
    axes.invert_yaxis()
    axes.set_xlabel(f"{metric}, percent (bars: standard deviation over seeds)", fontsize=8)
    axes.legend(frameon=False, fontsize=8)
    write_atomically(path, lambda file: canvas.savefig(file, format="png", dpi=110, metadata={"Software": None}))


_signed = partial(format_number, signed=True, decimals=1)


def _cell(values: Mapping[int, float]) -> str:
    numbers = list(values.values())
    spread = f" ± {statistics.stdev(numbers):.1f}" if len(numbers) > 1 else ""
    return f"{statistics.fmean(numbers):.1f}{spread} ({len(numbers)})" if numbers else "-"
