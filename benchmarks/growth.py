#!/usr/bin/env python3
"""How time and memory grow with the size of an image, the batch, the number of targets and of metadata fields.

python benchmarks/growth.py                        # writes benchmarks/results/growth.md and docs/images/growth.png
python benchmarks/growth.py --largest 4096         # needs some 10 GB of memory
"""

from __future__ import annotations

import argparse
import os
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "growth.md"
PLOT = ROOT / "docs" / "images" / "growth.png"
sys.path.insert(0, str(Path(__file__).resolve().parent))


@dataclass(frozen=True)
class Curve:
    """One measured quantity.

    Attributes:
        panel: what grows.
        name: what is measured.
        x: sizes.
        seconds: per size, the least of some runs.
        megabytes: additional memory per size, empty where it is not measured.
    """

    panel: str
    name: str
    x: tuple[float, ...]
    seconds: tuple[float, ...]
    megabytes: tuple[float, ...] = ()

    def exponent(self) -> float:
        """Slope of log time over log size, over the upper three octaves at most."""
        return growth_exponent(self.x, self.seconds)


def growth_exponent(x: Sequence[float], y: Sequence[float]) -> float:
    """p of the best y = a x^p, over the points from an eighth of the largest x; small x have fixed costs."""
    import numpy as np

    points = [(a, b) for a, b in zip(x, y) if a >= max(x) / 8]
    logs = np.log(np.array(points, float))
    return float(np.polyfit(logs[:, 0], logs[:, 1], 1)[0])


def measure(
    panel: str, name: str, x: Sequence[float], work: Callable[[float], Callable[[], object]], memory: bool = False
) -> Curve:
    """Time ``work(size)`` for every size, the sizes in turn, three times; keep the least of each."""
    import torch
    from harness import peak_memory, timed

    device = torch.device("cpu")
    works = [work(size) for size in x]
    best = [float("inf")] * len(works)
    megabytes = []
    for number, one in enumerate(works):
        if memory:
            megabytes.append(peak_memory(one, device) / 2**20)
        else:
            one()
        best[number] = timed(one, device)
    for _ in range(2):
        for number, one in enumerate(works):
            calls = max(1, min(50, round(0.01 / max(best[number], 1e-7))))
            best[number] = min(best[number], timed(one, device, calls))
    curve = Curve(panel, name, tuple(x), tuple(best), tuple(megabytes))
    print(f"{panel}: {name}: exponent {curve.exponent():.2f}", file=sys.stderr, flush=True)
    return curve


def image_size(largest: int, smallest: int, batches: Sequence[int], tiny: bool) -> list[Curve]:
    import torch
    from cases.detectors import build, inference
    from cases.scenes import sample

    edges = [smallest * 2**i for i in range(20) if smallest * 2**i <= largest]
    curves = []
    for name, config in (("AuxDet", "auxdet/tiny/auxdet_tiny.yaml"), ("BAFE-Net", "bafe/tiny/bafe_tiny.yaml")):
        if not tiny:
            config = {"AuxDet": "auxdet/auxdet_r18_fpn.yaml", "BAFE-Net": "bafe/bafe_r18_fpn.yaml"}[name]
        model = build(config, torch.device("cpu"))

        def one_image(pixels: float, model: torch.nn.Module = model) -> Callable[[], object]:
            return inference(model, [sample(round(pixels**0.5))])

        def batch(count: float, model: torch.nn.Module = model) -> Callable[[], object]:
            return inference(model, [sample(smallest) for _ in range(int(count))])

        curves.append(measure("pixels", f"{name} R18", [edge**2 for edge in edges], one_image, memory=True))
        curves.append(measure("images in a batch", f"{name} R18, {smallest}x{smallest}", batches, batch, memory=True))
    return curves


def targets(counts: Sequence[int], size: int) -> list[Curve]:
    import numpy as np
    import torch
    from cases.scenes import small_boxes

    from auxdet_d2.modeling.anchor_targets import assign_by_iou, assign_by_region, grid_anchors
    from bafe_d2.data import BAGCopyPaste, TargetLibrary
    from irstd_d2.data import IRSTDAugInput
    from irstd_d2.modeling.fcos_targets import all_points, assign_targets

    cpu = torch.device("cpu")
    sizes = [(size // 4, size // 4), (size // 8, size // 8)]
    anchors = torch.cat([grid_anchors(s, t, 8.0 * t, cpu) for s, t in zip(sizes, (4, 8))])[None]
    points = all_points(
        [(size // s, size // s) for s in (8, 16, 32)], [8, 16, 32], [(-1, 64), (64, 128), (128, 256)], cpu
    )
    library = TargetLibrary.from_crops([np.ones((3, 3))] * 20)
    image, sky = np.zeros((size, size, 3), np.float32), np.ones((size, size), np.uint8)
    augmentation = BAGCopyPaste(library)
    boxes = {count: small_boxes(count, size)[None] for count in counts}

    def paste(count: float) -> Callable[[], object]:
        array = boxes[int(count)][0].numpy()
        return lambda: augmentation(IRSTDAugInput(image, boxes=array, sem_seg=sky))

    def classes(count: float) -> torch.Tensor:
        return torch.zeros((1, int(count)), dtype=torch.int64)

    panel = "targets in an image"
    name = f"{size}x{size}"
    return [
        measure(
            panel,
            f"region targets, {name}",
            counts,
            lambda n: lambda: assign_by_region(sizes, [4, 8], boxes[int(n)], anchor_scale=8.0),
        ),
        measure(panel, f"IoU targets, {name}", counts, lambda n: lambda: assign_by_iou(anchors, boxes[int(n)])),
        measure(
            panel,
            f"FCOS targets, {name}",
            counts,
            lambda n: lambda: assign_targets(points, boxes[int(n)], classes(n), 1),
        ),
        measure(panel, f"BAG-CP, {name}", counts, paste),
    ]


def metadata_fields(batch: int) -> list[Curve]:
    import torch

    from auxdet_d2.metadata import MetadataBatch
    from auxdet_d2.modeling.metadata_encoder import FIELDS, AuxiliaryEncoder

    metadata = MetadataBatch.unknown(batch, torch.device("cpu"))
    hints = [torch.randn(batch, 256) for _ in range(2)]

    def encode(count: float) -> Callable[[], object]:
        encoder = AuxiliaryEncoder(num_stages=2, fields=FIELDS[: int(count)], visual_channels=256).eval()

        def work() -> object:
            with torch.inference_mode():
                return encoder(metadata, hints)

        return work

    return [measure("metadata fields", f"auxiliary encoder, {batch} images", [1, 2, 3], encode)]


def table(curves: Sequence[Curve]) -> str:
    from harness import show_time

    lines = ["| grows | measured | time | memory | exponent of time |", "|---|---|---|---|---|"]
    for curve in curves:
        times = ", ".join(f"{x:g}: {show_time(s)}" for x, s in zip(curve.x, curve.seconds))
        memory = ", ".join(f"{x:g}: {m:.0f} MB" for x, m in zip(curve.x, curve.megabytes))
        lines.append(f"| {curve.panel} | {curve.name} | {times} | {memory} | {curve.exponent():.2f} |")
    return "\n".join(lines)


def plot(curves: Sequence[Curve], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    panels = list(dict.fromkeys(curve.panel for curve in curves))
    figure, axes = plt.subplots(1, len(panels), figsize=(4 * len(panels), 3.4), layout="constrained", squeeze=False)
    for axis, panel in zip(axes[0], panels):
        for curve in curves:
            if curve.panel == panel:
                axis.plot(curve.x, curve.seconds, "o-", label=f"{curve.name} ({curve.exponent():.2f})", markersize=4)
        axis.set(xscale="log", yscale="log", xlabel=panel, ylabel="seconds")
        axis.grid(alpha=0.3)
        axis.legend(fontsize=7)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=80)
    plt.close(figure)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--largest", type=int, default=2048, help="edge of the largest image in pixels")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--clock", default="wall", choices=("wall", "cpu"), help="see benchmarks/run.py")
    parser.add_argument("--quick", action="store_true", help="small inputs and models, to see that everything works")
    parser.add_argument("--output", type=Path, default=RESULTS)
    parser.add_argument("--plot", type=Path, default=PLOT)
    args = parser.parse_args(argv)
    os.environ["OMP_NUM_THREADS"] = str(args.threads)
    warnings.filterwarnings("ignore")
    import harness
    import torch

    torch.set_num_threads(args.threads)
    if args.clock == "cpu":
        harness.CLOCK = time.process_time
    torch.manual_seed(0)
    if args.quick:
        curves = image_size(128, 64, (1, 2), tiny=True) + targets((1, 10, 20), 128) + metadata_fields(2)
    else:
        curves = image_size(args.largest, 256, (1, 2, 4, 8), tiny=False)
        curves += targets((1, 10, 100, 500, 1000, 2000), 1024) + metadata_fields(64)
    command = " ".join(sys.argv[1:] if argv is None else argv)
    steepest = max((c for c in curves if c.panel.startswith("targets")), key=Curve.exponent)
    text = "\n".join(
        [
            "# How cost grows",
            "",
            f"    python benchmarks/growth.py {command}".rstrip(),
            "",
            f"{date.today()}, {args.threads} thread(s) of a CPU, {args.clock} time, torch {torch.__version__}. "
            "The least of three runs each; the exponent is fitted to the points from an eighth of the largest size.",
            "",
            table(curves),
            "",
            f"In the number of targets the steepest is {steepest.name}: exponent {steepest.exponent():.2f}.",
            "",
        ]
    )
    print(text)
    args.output.parent.mkdir(parents=True, exist_ok=True)
    args.output.write_text(text, encoding="utf-8")
    plot(curves, args.plot)


if __name__ == "__main__":
    main()
