"""The plots of a data set: section III-C of the DenseSIRST paper and figure 1 of the AuxDet paper."""

from __future__ import annotations

from collections import Counter
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullLocator, PercentFormatter

from .statistics import UNKNOWN, DatasetStatistics

_INK, _MUTED, _GRID = "#1f2933", "#5f6b7a", "#e3e7ec"
_BLUE = "#2f6fab"
_BARS: dict[str, Any] = {"color": _BLUE, "edgecolor": "white", "lw": 0.4}
_PALETTE = ("#2f6fab", "#d9822b", "#3d8b5f", "#8a5a9e", "#b5495b", "#6b7785")
_MAX_SIDE = 20  # pixels; larger targets gather in the last row and column of the size plot
_CONTRAST_LIMIT = 6.0


def write_plots(statistics: DatasetStatistics, output_dir: str | PathLike, title: str) -> list[Path]:
    """Write ``targets.png`` (sizes, contrast, brightness) and ``domains.png`` (contrast, bands, sizes by platform).

    Returns:
        The files written; none when the set has no target.
    """
    if statistics.num_targets == 0:
        return []
    folder = Path(output_dir)
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for name, draw in (("targets", draw_targets), ("domains", draw_domains)):
        path = folder / f"{name}.png"
        draw(statistics, title).savefig(path, dpi=150)
        written.append(path)
    return written


def draw_targets(statistics: DatasetStatistics, title: str) -> Figure:
    """Section III-C of the DenseSIRST paper: target sizes, local contrast, brightness."""
    figure, (sizes, contrast, brightness) = _three_panels(title)
    _draw_sizes(sizes, statistics)
    values = statistics.contrast()
    edges = np.linspace(0, _CONTRAST_LIMIT, 49)
    _draw_shares(contrast, np.minimum(values, _CONTRAST_LIMIT - 1e-9), edges, **_BARS)
    contrast.axvline(1, color=_MUTED, linewidth=1, linestyle="--")
    _heading(contrast, f"(b) Local contrast, {(values < 2).mean():.0%} below 2")
    ratio = f"mean of target / mean of surroundings (last bar: {_CONTRAST_LIMIT:g} and more)"
    contrast.set(xlabel=ratio, ylabel="share of targets")
    shares = statistics.brightness()
    _draw_shares(brightness, shares, np.linspace(0, 1, 41), **_BARS)
    _heading(brightness, f"(c) Brightness, {(shares >= 1 - 1e-6).mean():.0%} the brightest of their image")
    brightness.set(xlabel="peak of target / peak of image", ylabel="share of targets")
    return figure


def draw_domains(statistics: DatasetStatistics, title: str) -> Figure:
    """Figure 1 of the AuxDet paper: contrast by platform, platform and band, resolution by platform."""
    figure, (contrast, joint, resolution) = _three_panels(title)
    platforms = [name for name, _ in Counter(image.platform for image in statistics.images).most_common()]
    colours = dict(zip(platforms, _PALETTE * (len(platforms) // len(_PALETTE) + 1)))
    _draw_contrast_by_platform(contrast, statistics, platforms, colours)
    _draw_joint(joint, statistics, platforms)
    _draw_resolutions(resolution, statistics, platforms, colours)
    return figure


def _three_panels(title: str) -> tuple[Figure, list[Axes]]:
    figure = Figure(figsize=(13.5, 4.4), layout="constrained")
    panels = list(figure.subplots(1, 3))
    figure.suptitle(title, fontsize=11, color=_INK, x=0.01, ha="left")
    for axes in panels:
        axes.spines[["top", "right"]].set_visible(False)
        axes.spines[["left", "bottom"]].set_color(_MUTED)
        axes.tick_params(colors=_MUTED, labelsize=8)
        axes.xaxis.label.set(fontsize=9, color=_INK)
        axes.yaxis.label.set(fontsize=9, color=_INK)
        axes.set_axisbelow(True)
    return figure, panels


def _heading(axes: Axes, text: str) -> None:
    axes.set_title(text, fontsize=10, color=_INK, loc="left")


def _draw_sizes(axes: Axes, statistics: DatasetStatistics) -> None:
    sizes: Counter[tuple[int, int]] = Counter()
    for (width, height), count in statistics.sizes().items():
        sizes[min(width, _MAX_SIDE), min(height, _MAX_SIDE)] += count
    x, y = np.array(list(sizes)).T
    counts = np.array(list(sizes.values()))
    axes.scatter(x, y, s=4 + 330 * counts / counts.max(), color=_BLUE, alpha=0.55, linewidth=0)
    axes.grid(color=_GRID)
    (width, height), count = statistics.sizes().most_common(1)[0]
    axes.annotate(
        f"{width}x{height}: {count} targets",
        (min(width, _MAX_SIDE), min(height, _MAX_SIDE)),
        (0.45, 0.08),
        textcoords="axes fraction",
        fontsize=9,
        color=_INK,
        arrowprops={"arrowstyle": "-", "color": _MUTED},
    )
    ticks = [1, 5, 10, 15, _MAX_SIDE]
    labels = FuncFormatter(lambda value, _: f"{value:g}+" if value == _MAX_SIDE else f"{value:g}")
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(FixedLocator(ticks))
        axis.set_major_formatter(labels)
    axes.set(xlim=(0, _MAX_SIDE + 1), ylim=(0, _MAX_SIDE + 1), xlabel="width (pixels)", ylabel="height (pixels)")
    _heading(axes, "(a) Target sizes (area of a dot: number of targets)")


def _draw_shares(axes: Axes, values: np.ndarray, edges: np.ndarray, **style: Any) -> None:
    weights = np.full(len(values), 1 / max(len(values), 1))
    axes.hist(values, bins=edges.tolist(), weights=weights, **style)
    axes.yaxis.set_major_locator(MaxNLocator(nbins=7, steps=[1, 2, 5, 10]))
    axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    axes.grid(axis="y", color=_GRID)
    axes.set_xlim(edges[0], edges[-1])


def _draw_contrast_by_platform(
    axes: Axes, statistics: DatasetStatistics, platforms: list[str], colours: dict[str, str]
) -> None:
    edges = np.linspace(0, _CONTRAST_LIMIT, 31)
    for platform in platforms:
        parts = [image.contrast for image in statistics.images if image.platform == platform]
        values = np.minimum(np.concatenate(parts), _CONTRAST_LIMIT - 1e-9)
        _draw_shares(axes, values, edges, histtype="step", color=colours[platform], lw=1.8, label=platform)
    axes.set_ylabel("share of the platform's targets")
    axes.set_xlabel(f"mean of target / mean of surroundings (last: {_CONTRAST_LIMIT:g} and more)")
    axes.legend(frameon=False, fontsize=8)
    _heading(axes, "(a) Local contrast by platform")


def _draw_joint(axes: Axes, statistics: DatasetStatistics, platforms: list[str]) -> None:
    counts = Counter((image.platform, image.band) for image in statistics.images)
    bands = sorted({band for _, band in counts}, key=lambda band: (band == UNKNOWN, band))
    table = np.array([[counts[platform, band] for band in bands] for platform in platforms])
    axes.imshow(table / table.sum(), cmap="Blues", vmin=0, vmax=1.3, aspect="auto")
    for row, column in np.ndindex(*table.shape):
        share = table[row, column] / table.sum()
        text = f"{table[row, column]}\n{share:.1%}" if table[row, column] else "0"
        axes.text(column, row, text, ha="center", va="center", fontsize=9, color="white" if share > 0.6 else _INK)
    axes.set_xticks(range(len(bands)), bands)
    axes.set_yticks(range(len(platforms)), platforms)
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0)
    _heading(axes, "(b) Images by platform and band")


def _draw_resolutions(axes: Axes, statistics: DatasetStatistics, platforms: list[str], colours: dict[str, str]) -> None:
    most = max(Counter((image.platform, image.width, image.height) for image in statistics.images).values())
    for platform in platforms:
        sizes = Counter((image.width, image.height) for image in statistics.images if image.platform == platform)
        x, y = np.array(list(sizes)).T
        area = 12 + 400 * np.array(list(sizes.values())) / most
        axes.scatter(x, y, s=area, color=colours[platform], alpha=0.5, linewidth=0)
    axes.set(xscale="log", yscale="log", xlabel="width (pixels)", ylabel="height (pixels)")
    sides = np.array([(image.width, image.height) for image in statistics.images])
    limits = 2 ** (np.floor(np.log2(sides.min())) - 0.3), 2 ** (np.ceil(np.log2(sides.max())) + 0.3)
    axes.set(xlim=limits, ylim=limits)
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(FixedLocator([1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192]))
        axis.set_minor_locator(NullLocator())
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.grid(color=_GRID)
    dots = [Line2D([], [], marker="o", linestyle="", color=colours[name], alpha=0.7, label=name) for name in platforms]
    axes.legend(handles=dots, frameon=False, fontsize=8, loc="upper left")
    _heading(axes, "(c) Resolutions (area of a dot: number of images)")
