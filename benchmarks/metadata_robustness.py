#!/usr/bin/env python3
"""What do missing and wrong metadata cost? AuxDet with and without metadata dropout, and the visual-only baseline.

    python benchmarks/metadata_robustness.py --output output/auxdet_metadata

Data, baseline and AuxDet are those of auxdet_metadata.py (its finished runs in the same folder are used); a third
system trains with metadata dropout. Each is then tested while a growing share of the test images has no metadata, and
while a growing share has a platform and band that are not its own. Finished runs and results are kept.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import date
from pathlib import Path

import auxdet_metadata as plain
import numpy as np
import torch

ROOT = Path(__file__).resolve().parents[1]
ROBUST = "AuxDet, dropout"
SYSTEMS = {**plain.SYSTEMS, ROBUST: "configs/auxdet/tiny/auxdet_tiny_robust.yaml"}
SHARES = (0.0, 0.25, 0.5, 0.75, 1.0)
FIELDS = ("platform", "band", "width", "height")


def without(dicts: list[dict], share: float) -> list[dict]:
    """Take the metadata from a share of the images, the same ones for every system and nested from share to share."""
    rank = np.random.default_rng(1).permutation(len(dicts))
    return [{**d, "metadata": dict.fromkeys(FIELDS)} if r < share * len(dicts) else d for d, r in zip(dicts, rank)]


def wrong(dicts: list[dict], share: float) -> list[dict]:
    """Give a share of the images a platform and band that are not theirs."""
    rng = np.random.default_rng(2)
    rank = rng.permutation(len(dicts))
    domains = sorted({(d["metadata"]["platform"], d["metadata"]["band"]) for d in dicts})
    changed = []
    for d, r in zip(dicts, rank):
        own = (d["metadata"]["platform"], d["metadata"]["band"])
        others = [domain for domain in domains if domain != own]
        name, band = others[rng.integers(len(others))]
        metadata = {**d["metadata"], "platform": name, "band": band}
        changed.append({**d, "metadata": metadata} if r < share * len(dicts) else d)
    return changed


def evaluate(name: str, seed: int, output: Path) -> dict[str, float]:
    """AP50 (COCO, percent) of a run by kind and share of changed images."""
    from detectron2.data import DatasetCatalog, MetadataCatalog

    import auxdet_d2  # noqa: F401  registers
    from irstd_d2 import get_config
    from irstd_d2.engine import IRSTDCheckpointer, IRSTDTrainer

    folder = output / f"{name}_{seed}"
    weights = folder / "model_final.pth"
    kept = folder / "robustness.json"
    if kept.exists() and kept.stat().st_mtime > weights.stat().st_mtime:
        return json.loads(kept.read_text())
    truth = DatasetCatalog.get("synthetic_omni_val")
    changes: dict[str, tuple[Callable, float]] = {"true": (without, 0.0)}
    if name != "baseline":
        changes |= {f"missing {s:.0%}": (without, s) for s in SHARES[1:]}
        changes |= {f"wrong {s:.0%}": (wrong, s) for s in SHARES[1:]}
    results = {}
    for label, (change, share) in changes.items():
        data_set = f"synthetic_omni_val_{label}"
        if data_set not in DatasetCatalog.list():
            dicts = change(truth, share)
            DatasetCatalog.register(data_set, lambda dicts=dicts: dicts)
            MetadataCatalog.get(data_set).set(thing_classes=MetadataCatalog.get("synthetic_omni_val").thing_classes)
        options = ["MODEL.DEVICE", "cpu", "DATASETS.TEST", (data_set,), "OUTPUT_DIR", str(folder)]
        cfg = get_config(ROOT / SYSTEMS[name], [*options, "TEST.EVALUATORS", ("coco",), "DATALOADER.NUM_WORKERS", 0])
        model = IRSTDTrainer.build_model(cfg)
        IRSTDCheckpointer(model).load(str(weights))
        results[label] = IRSTDTrainer.test(cfg, model)["bbox"]["AP50"]
    kept.write_text(json.dumps(results, indent=1))
    return results


def report(results: dict[str, list[dict[str, float]]], seeds: int, iterations: int) -> str:
    """The tables as Markdown."""
    lines = [
        "# Missing and wrong metadata, synthetic benchmark",
        "",
        f"`python benchmarks/metadata_robustness.py --seeds {seeds} --iterations {iterations}`",
        "",
        f"{date.today()}, {platform.machine()} CPU, one thread per run, torch {torch.__version__}. AP50 (COCO, exact "
        f"boxes), percent, mean and standard deviation of {seeds} seeds. All three platforms are synthetic.",
        f"The baseline, which sees no metadata, has {_cell(results['baseline'], 'true')}.",
    ]
    for kind in ("missing", "wrong"):
        lines += ["", f"| share of test images with {kind} metadata | " + " | ".join(f"{s:.0%}" for s in SHARES) + " |"]
        lines.append("|" + "---|" * (len(SHARES) + 1))
        for name in ("AuxDet", ROBUST):
            labels = ["true", *(f"{kind} {s:.0%}" for s in SHARES[1:])]
            lines.append(f"| {name} | " + " | ".join(_cell(results[name], label) for label in labels) + " |")
    return "\n".join(lines) + "\n"


def _cell(runs: list[dict[str, float]], label: str) -> str:
    values = [run[label] for run in runs]
    return f"{statistics.mean(values):.1f} +- {statistics.stdev(values) if len(values) > 1 else float('nan'):.1f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=ROOT / "output" / "auxdet_metadata")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--iterations", type=int, default=400)
    parser.add_argument("--jobs", type=int, default=2, help="trainings at a time")
    args = parser.parse_args()
    output = args.output.resolve()
    plain.SYSTEMS = SYSTEMS
    plain.make_data(output / "data")
    runs = [(name, seed) for seed in range(args.seeds) for name in SYSTEMS]
    with ThreadPoolExecutor(args.jobs) as pool:
        list(pool.map(lambda run: plain.train(*run, args.iterations, output), runs))
    os.environ.update(plain.environment(output / "data"))
    results: dict[str, list[dict[str, float]]] = {}
    for name, seed in runs:
        results.setdefault(name, []).append(evaluate(name, seed, output))
    text = report(results, args.seeds, args.iterations)
    (ROOT / "benchmarks" / "results" / "metadata_robustness.md").write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
