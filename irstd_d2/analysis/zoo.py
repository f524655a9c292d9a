"""The table of all configurations: cost as counted here, cost and quality as the papers print them, measurements."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from detectron2.config import CfgNode

from ..ablation import TABLES, Metric, Row
from ..config import get_config
from .complexity import Complexity, analyze, build_on_cpu

# Multiply-adds that the papers print, in G: AuxDet's Table 1 at 1024x1024, BAFE-Net's Table II at 512x512.
PUBLISHED_GIGA: Mapping[str, float] = {
    "auxdet/auxdet_r50_fpn.yaml": 215,
    "auxdet/cascade_rpn_r50_fpn.yaml": 190,
    "auxdet/ablation/table9_faster_rcnn.yaml": 200,
    "auxdet/ablation/table9_cascade_rcnn.yaml": 228,
    "bafe/bafe_r18_fpn.yaml": 57.654,
    "bafe/bafe_r50_fpn.yaml": 71.639,
    "bafe/fcos_r50_fpn.yaml": 50.291,
}
SECTIONS = (
    ("AuxDet", "auxdet/"),
    ("BAFE-Net", "bafe/"),
    ("Both together", ""),
    ("Baselines", "baselines/"),
)
COLUMNS = ("configuration", "parameters, M (paper)", "multiply-adds, G (paper)", "at", "the paper's figures", "results")
HEADER = f"| {' | '.join(COLUMNS)} |\n|{'---|' * len(COLUMNS)}"
_MENTION = re.compile(r"configs/([\w/.-]+\.yaml)")


@dataclass(frozen=True)
class ModelEntry:
    """A row of the table.

    Attributes:
        config: relative to ``configs/``.
        complexity: of its model.
        size: (height, width) of a square image at test time.
        parameters: as the paper prints them, in M; NaN if it does not.
        giga: multiply-adds as the paper prints them; NaN if it does not.
        quality: the paper's figures, e.g. "AP50 77.9"; empty for none.
        results: files under ``benchmarks/results`` whose command names the configuration.
    """

    config: str
    complexity: Complexity
    size: tuple[int, int]
    parameters: float
    giga: float
    quality: str
    results: tuple[str, ...] = ()

    def markdown(self) -> str:
        """The row as Markdown, with links as seen from ``docs/``."""
        links = ", ".join(f"[{Path(name).stem}](../benchmarks/results/{name})" for name in self.results)
        count = self.complexity.parameters[""] / 1e6
        giga = self.complexity.multiply_adds(self.size) / 1e9
        cells = [
            f"[{self.config}](../configs/{self.config})",
            _beside(count, self.parameters),
            _beside(giga, self.giga),
            f"{self.size[1]}x{self.size[0]}",
            self.quality,
            links,
        ]
        return "| " + " | ".join(cells) + " |"


def _beside(ours: float, paper: float) -> str:
    return f"{ours:.3f}" + ("" if math.isnan(paper) else f" ({paper:g})")


def square_size(cfg: CfgNode) -> tuple[int, int]:
    """(height, width) that a square image has at test time; one of 512x512 pixels where its own size decides."""
    if cfg.INPUT.RESIZE_MODE == "fixed":
        height, width = cfg.INPUT.FIXED_SIZE
        return height, width
    side = round(512 * cfg.INPUT.SCALE) if cfg.INPUT.RESIZE_MODE == "scale" else cfg.INPUT.MIN_SIZE_TEST
    return side, side


def configurations(folder: Path) -> list[str]:
    """Names of all configurations below ``configs/``, without those that others build on."""
    paths = sorted(folder.rglob("*.yaml"))
    return [path.relative_to(folder).as_posix() for path in paths if not path.name.startswith("Base-")]


def describe_model(
    config: str, folder: Path, results: Path, count: Callable[[CfgNode], Complexity] | None = None
) -> ModelEntry:
    """Build one configuration and put together its row.

    Args:
        config: relative to ``folder``.
        folder: ``configs/``.
        results: ``benchmarks/results``.
        count: replaces building and counting, e.g. by something that remembers equal models.
    """
    cfg = get_config(folder / config)
    complexity = count(cfg) if count else analyze(build_on_cpu(cfg))
    published = _published(config)
    return ModelEntry(
        config=config,
        complexity=complexity,
        size=square_size(cfg),
        parameters=next((row.parameters for row, _ in published if not math.isnan(row.parameters)), math.nan),
        giga=PUBLISHED_GIGA.get(config, math.nan),
        quality=_quality(published),
        results=tuple(
            path.name
            for path in sorted(results.glob("*.md"))
            if config in _MENTION.findall(path.read_text(encoding="utf-8"))
        ),
    )


def _published(config: str) -> list[tuple[Row, tuple[Metric, ...]]]:
    return [(row, table.metrics) for table in TABLES.values() for row in table.rows if row.config == config]


def _quality(published: Sequence[tuple[Row, tuple[Metric, ...]]]) -> str:
    for row, metrics in published:
        if row.published:
            return ", ".join(f"{metric.name} {row.published[metric.name]:g}" for metric in metrics)
    return ""


def entries(names: Iterable[str], folder: Path, results: Path) -> list[ModelEntry]:
    """Rows of many configurations; equal models are counted once."""
    known: dict[str, Complexity] = {}

    def count(cfg: CfgNode) -> Complexity:
        key = cfg.MODEL.dump()
        if key not in known:
            known[key] = analyze(build_on_cpu(cfg))
        return known[key]

    return [describe_model(name, folder, results, count) for name in names]


def render_zoo(rows: Sequence[ModelEntry], introduction: str) -> str:
    """The page with all rows, in sections.

    Args:
        rows: of all configurations.
        introduction: Markdown that stands before the tables.
    """
    parts = [introduction.rstrip()]
    for title, prefix in SECTIONS:
        inside = [row for row in rows if (row.config.startswith(prefix) if prefix else "/" not in row.config)]
        for heading, chosen in (
            (title, [row for row in inside if "/ablation/" not in row.config]),
            (f"{title}: the paper's tables", [row for row in inside if "/ablation/" in row.config]),
        ):
            if chosen:
                parts.append(f"## {heading}\n\n{HEADER}\n" + "\n".join(map(ModelEntry.markdown, chosen)))
    return "\n\n".join(parts) + "\n"


def module_table(complexity: Complexity, size: tuple[int, int], depth: int = 2) -> str:
    """Parameters and multiply-adds of every module down to a depth, as Markdown."""
    lines = ["| module | parameters | multiply-adds, G | share |", "|---|---|---|---|"]
    total = complexity.multiply_adds(size)
    for name in ["", *complexity.modules(depth)]:
        giga = complexity.multiply_adds(size, name) / 1e9
        if complexity.parameters[name] or giga:
            lines.append(
                f"| {name or 'all'} | {complexity.parameters[name]:,} | {giga:.3f} | {1e11 * giga / total:.1f} % |"
            )
    return "\n".join(lines)
