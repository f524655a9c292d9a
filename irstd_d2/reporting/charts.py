"""Charts of a report as SVG text, drawn by matplotlib without a display."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

from ..evaluation.average_precision import PrecisionRecall
from ..evaluation.detection_probability import OperatingCurve

# Okabe and Ito's colours, told apart with any colour vision.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")


def _plain(name: str) -> str:
    """A run's name as text: a dollar sign would start mathematics."""
    return name.replace("$", r"\$")


def _figure(title: str, x: str, y: str, width: float = 4.6) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(width, 3.2), layout="constrained")
    axes = figure.add_subplot()
    axes.set(title=title, xlabel=x, ylabel=y)
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _svg(figure: Figure, *, legend: bool) -> str:
    if legend:
        for axes in figure.axes:
            if axes.get_legend_handles_labels()[0]:
                axes.legend(frameon=False, fontsize=8)
    buffer = io.StringIO()
    FigureCanvasSVG(figure).print_svg(buffer, metadata={"Date": None})
    text = buffer.getvalue()
    return text[text.index("<svg") :]


def precision_recall_chart(curves: Mapping[str, PrecisionRecall], title: str) -> str:
    """Precision against recall, one line per run."""
    figure, axes = _figure(title, "recall", "precision")
    for (name, curve), colour in zip(curves.items(), np.resize(COLOURS, len(curves))):
        axes.plot(curve.recall, curve.precision, color=colour, label=_plain(name), linewidth=1.5)
    axes.set(xlim=(0, 1), ylim=(0, 1.02))
    return _svg(figure, legend=True)


def detection_probability_chart(curves: Mapping[str, OperatingCurve]) -> str:
    """Pd against false pixels per million, one line per run."""
    figure, axes = _figure("Pd against Fa", "false pixels per million", "Pd")
    for (name, curve), colour in zip(curves.items(), np.resize(COLOURS, len(curves))):
        axes.step(curve.fa_pixels * 1e6, curve.pd, where="post", color=colour, label=_plain(name), linewidth=1.5)
    axes.set_xscale("symlog", linthresh=1)
    axes.set_xlim(left=0)
    axes.set_ylim(0, 1.02)
    return _svg(figure, legend=True)


def series_chart(series: Mapping[str, tuple[Sequence[float], Sequence[float]]], title: str, y: str) -> str:
    """A logged scalar against the iteration, one line per run; long logs are thinned to 500 points."""
    figure, axes = _figure(title, "iteration", y)
    for (name, (x, values)), colour in zip(series.items(), np.resize(COLOURS, len(series))):
        step = max(1, len(x) // 500)
        marker = "o" if len(x) < 3 else None
        axes.plot(x[::step], values[::step], color=colour, label=_plain(name), linewidth=1.2, marker=marker)
    return _svg(figure, legend=True)


def group_chart(groups: Mapping[str, Mapping[str, float]], title: str, y: str) -> str:
    """Grouped bars: one cluster per group, one bar per run; a missing value leaves a gap with a dash."""
    names = list(groups)
    runs = list(dict.fromkeys(run for row in groups.values() for run in row))
    figure, axes = _figure(title, "", y, width=max(4.6, 1.0 + 0.35 * len(names) * max(len(runs), 1)))
    width = 0.8 / max(len(runs), 1)
    for i, run in enumerate(runs):
        x = np.arange(len(names)) + (i - (len(runs) - 1) / 2) * width
        values = np.array([groups[name].get(run, np.nan) for name in names], float)
        bars = axes.bar(x, np.nan_to_num(values), width, color=COLOURS[i % len(COLOURS)], label=_plain(run))
        labels = ["–" if np.isnan(v) else f"{v:.1f}" for v in values]
        axes.bar_label(bars, labels, fontsize=7)
    axes.set_xticks(np.arange(len(names)), names, fontsize=8)
    axes.margins(y=0.25 if len(runs) > 1 else 0.05)  # the legend lies above the bars
    return _svg(figure, legend=len(runs) > 1)
