"""Charts of a report as inline SVG, drawn by matplotlib without a display.

Ink is ``currentColor``, so that a chart follows the page into the dark, and text stays text. Runs are told apart by
colour and dashes; their names stand in the page's key (``swatch``), never in a chart.
"""

from __future__ import annotations

import hashlib
import io
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_pdf import FigureCanvasPdf
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from ..evaluation.average_precision import PrecisionRecall
from ..evaluation.detection_probability import OperatingCurve
from ..evaluation.mask_metrics import PixelCurves
from ..evaluation.results import format_number
from ..files import write_atomically

# Between light and dark, so that they show on both, and told apart with any colour vision.
COLOURS = ("#3a86d0", "#e0662a", "#1f9e77", "#b56bb5", "#c59a12", "#5bb6d9", "#8d8d8d")
DASHES = ("solid", (0, (5, 1.5)), (0, (1.5, 1.5)), (0, (5, 1.5, 1.5, 1.5)))
_INK = "#010203"  # becomes currentColor
_STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "report",
    "font.family": "sans-serif",
    "font.size": 9,
    **{f"{part}color": _INK for part in ("text.", "xtick.", "ytick.", "axes.label", "axes.edge", "grid.")},
    "figure.facecolor": "none",
    "axes.facecolor": "none",
}


@dataclass(frozen=True)
class Chart:
    """One chart.

    Attributes:
        title: shown above it.
        text: what it shows, for those who cannot see it.
        svg: markup without a reference to anything outside.
        figure: the same for files.
        runs: numbers of the runs that it shows.
    """

    title: str
    text: str
    svg: str
    figure: Figure
    runs: tuple[int, ...]


def colour_of(run: int) -> str:
    """Colour of the ``run``-th run of a report."""
    return COLOURS[run % len(COLOURS)]


def swatch(run: int) -> str:
    """The line of the ``run``-th run as a small SVG for the key."""
    dashes = ("", "5 1.5", "1.5 1.5", "5 1.5 1.5 1.5")[run % len(DASHES)]
    return (
        '<svg class="swatch" viewBox="0 0 22 8" width="22" height="8" aria-hidden="true">'
        f'<line x1="0" y1="4" x2="22" y2="4" stroke="{colour_of(run)}" stroke-width="3" stroke-dasharray="{dashes}"/>'
        "</svg>"
    )


def _figure(x: str, y: str, height: float = 3.0) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(4.8, height), layout="constrained")
    axes = figure.add_subplot()
    axes.set(xlabel=x, ylabel=y)
    axes.grid(alpha=0.18, linewidth=0.7)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_alpha(0.5)
    return figure, axes


def _svg(figure: Figure) -> str:
    buffer = io.StringIO()
    FigureCanvasSVG(figure).print_svg(buffer, metadata={"Date": None})
    text = buffer.getvalue()
    text = re.sub(r"<metadata>.*?</metadata>|<!--.*?-->", "", text[text.index("<svg") :], flags=re.DOTALL)
    text = re.sub(r"<svg [^>]*?viewBox=\"([^\"]*)\"[^>]*>", r'<svg viewBox="\1" aria-hidden="true">', text, count=1)
    # Several charts share a page: names inside one must not be found by another.
    prefix = "c" + hashlib.sha256(text.encode()).hexdigest()[:8]
    text = re.sub(r'( id="|url\(#|href="#)', rf"\1{prefix}-", text)
    return text.replace(_INK, "currentColor")


def _chart(title: str, text: str, figure: Figure, runs: Iterable[int]) -> Chart:
    return Chart(title, text, _svg(figure), figure, tuple(runs))


def write_pdf(chart: Chart, path: Path, names: Mapping[int, str]) -> None:
    """Write a chart as PDF for a paper, with its title and a key; ``names`` are those of the runs by number."""
    lines = [Line2D([], [], **_line_style(run)) for run in chart.runs]
    figure = chart.figure
    figure.suptitle(chart.title.replace("$", r"\$"), fontsize=10)
    labels = [names[run].replace("$", r"\$") for run in chart.runs]
    figure.legend(lines, labels, loc="outside lower center", ncols=min(len(lines), 3), frameon=False, fontsize=8)
    with mpl.rc_context(_STYLE):
        write_atomically(path, lambda file: FigureCanvasPdf(figure).print_pdf(file, metadata={"CreationDate": None}))


def _line_style(run: int) -> dict[str, Any]:
    return {"color": colour_of(run), "linestyle": DASHES[run % len(DASHES)], "linewidth": 1.6}


def precision_recall_chart(curves: Mapping[int, PrecisionRecall]) -> Chart:
    """Precision against recall at IoU 0.5, one line per run; keys here and below are the runs' numbers."""
    with mpl.rc_context(_STYLE):
        figure, axes = _figure("recall", "precision")
        for run, curve in curves.items():
            axes.plot(curve.recall, curve.precision, **_line_style(run))
        axes.set(xlim=(0, 1), ylim=(0, 1.02))
        reached = ", ".join(f"{curve.max_recall:.2f}" for curve in curves.values())
        title = "Precision and recall (IoU 0.5, exact boxes)"
        return _chart(title, f"Curves that reach a recall of {reached}", figure, curves)


def operating_charts(curves: Mapping[int, OperatingCurve]) -> list[Chart]:
    """Pd against Fa, and FROC: Pd against false alarms per image."""
    best = ", ".join(f"{100 * curve.best_f1()[0]:.1f}" for curve in curves.values())
    kinds = (
        ("Pd and Fa (centres within 3 pixels)", "false pixels per million", lambda c: 1e6 * c.fa_pixels, 1.0),
        ("FROC", "false alarms per image", lambda c: c.false_alarms / max(c.num_images, 1), 0.01),
    )
    charts = []
    for title, x_label, x_of, linear_until in kinds:
        with mpl.rc_context(_STYLE):
            figure, axes = _figure(x_label, "Pd")
            for run, curve in curves.items():
                axes.step(x_of(curve), curve.pd, where="post", **_line_style(run))
            axes.set_xscale("symlog", linthresh=linear_until)
            axes.set_xlim(left=0)
            axes.set_ylim(0, 1.02)
            charts.append(_chart(title, f"Curves of all thresholds; the best F1 is {best} percent", figure, curves))
    return charts


def pixel_charts(curves: Mapping[int, PixelCurves]) -> list[Chart]:
    """Precision and recall of pixels, and their ROC, over the thresholds of probability maps."""
    with mpl.rc_context(_STYLE):
        figure, axes = _figure("recall of pixels", "precision of pixels")
        for run, curve in curves.items():
            some = (curve.true_rate > 0) | (curve.false_rate > 0)
            axes.plot(curve.true_rate[some], curve.precision[some], **_line_style(run))
        axes.set(xlim=(0, 1), ylim=(0, 1.02))
        areas = ", ".join(f"{100 * curve.pr_area:.1f}" for curve in curves.values())
        precision = _chart("Precision and recall of pixels", f"Areas of {areas} percent", figure, curves)
    with mpl.rc_context(_STYLE):
        figure, axes = _figure("false pixels per million", "recall of pixels")
        for run, curve in curves.items():
            axes.plot(1e6 * curve.false_rate, curve.true_rate, **_line_style(run))
        axes.set_xscale("symlog", linthresh=1.0)
        axes.set_xlim(left=0)
        axes.set_ylim(0, 1.02)
        areas = ", ".join(f"{100 * curve.roc_area:.1f}" for curve in curves.values())
        return [precision, _chart("ROC of pixels", f"Areas of {areas} percent", figure, curves)]


def score_chart(scores: Mapping[int, tuple[np.ndarray, np.ndarray]]) -> Chart:
    """How many detections have each score: finds above the line, false alarms below it, one outline per run.

    Args:
        scores: run -> scores of its finds, of its false alarms.
    """
    bins = np.linspace(0, 1, 21)
    with mpl.rc_context(_STYLE):
        figure, axes = _figure("score", "false alarms | finds")
        texts = []
        for run, parts in scores.items():
            for sign, values in zip((1, -1), parts):
                axes.stairs(sign * np.histogram(np.clip(values, 0, 1), bins)[0], bins, **_line_style(run))
            texts.append(f"{len(parts[0])} finds and {len(parts[1])} false alarms")
        axes.axhline(0, color=_INK, linewidth=0.7)
        axes.set_yscale("symlog", linthresh=10)
        axes.yaxis.set_major_formatter(lambda value, _: f"{abs(value):g}")
        axes.set_xlim(0, 1)
        return _chart("Scores of finds and of false alarms", f"Histograms of {'; '.join(texts)}", figure, scores)


def series_chart(series: Mapping[int, tuple[Sequence[float], Sequence[float]]], title: str) -> Chart:
    """A logged scalar against the iteration, one line per run; long logs are thinned to 500 points.

    Values that are not finite leave a gap.
    """
    with mpl.rc_context(_STYLE):
        figure, axes = _figure("iteration", "")
        ends = []
        for run, (x, values) in series.items():
            step = max(1, math.ceil(len(x) / 500))
            y = np.array(values, float)[::step]
            y[~np.isfinite(y)] = np.nan
            axes.plot(x[::step], y, marker="o" if len(y) < 3 else None, markersize=5, **_line_style(run))
            ends.append(f"{values[-1]:.4g} at iteration {x[-1]:.0f}")
        return _chart(title, f"Last values: {'; '.join(ends)}", figure, series)


def group_chart(groups: Mapping[str, Mapping[int, float]], title: str) -> Chart:
    """Horizontal bars: one cluster per group, one bar per run; a missing value is a dash.

    Args:
        groups: label (may have several lines) -> run -> value.
        title: with the metric and its unit.
    """
    labels = list(groups)
    runs = sorted({run for row in groups.values() for run in row})
    thickness = 0.8 / max(len(runs), 1)
    with mpl.rc_context(_STYLE):
        figure, axes = _figure("", "", height=0.5 + len(labels) * max(0.42, 0.2 * len(runs) + 0.1))
        top = 0.0
        for i, run in enumerate(runs):
            y = np.arange(len(labels)) + (i - (len(runs) - 1) / 2) * thickness
            values = np.array([groups[label].get(run, math.nan) for label in labels], float)
            values[~np.isfinite(values)] = math.nan
            bars = axes.barh(y, np.nan_to_num(values), thickness * 0.92, color=colour_of(run))
            axes.bar_label(bars, [format_number(v, decimals=1) for v in values], fontsize=8, padding=2)
            top = max(top, float(np.nan_to_num(values).max(initial=0)))
        axes.set_yticks(np.arange(len(labels)), [label.replace("$", r"\$") for label in labels], fontsize=8)
        axes.invert_yaxis()
        axes.set_xlim(0, 1.18 * top or 1)
        axes.grid(visible=False, axis="y")
        rows = []
        for label in labels:
            shown = (format_number(groups[label].get(run, math.nan), decimals=1) for run in runs)
            rows.append(f"{' '.join(label.split())}: {', '.join(shown)}")
        text = "; ".join(rows)
        return _chart(title, text, figure, runs)
