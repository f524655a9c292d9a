#!/usr/bin/env python3
"""What do missing and wrong metadata cost? AuxDet and its robust forms, and the visual-only baseline.

    python benchmarks/metadata_robustness.py --output output/auxdet_metadata

Data, baseline and AuxDet are those of auxdet_metadata.py (its finished runs in the same folder are used). A third
system trains with metadata dropout. Each is tested while a growing share of the test images has no metadata, and while
a growing share has a platform and band that are not its own. In the benchmark's images nothing tells the domain; all is
therefore done a second time with images in which every domain has its own faint stripes, as sensors have. Finished runs
and results are kept.
"""

from __future__ import annotations

import json
import os
import platform
import statistics
from collections.abc import Sequence
from datetime import date
from pathlib import Path

import auxdet_metadata as plain
import cv2
import matplotlib.pyplot as plt
import numpy as np
import torch

RESULTS = plain.ROOT / "benchmarks" / "results"
TINY = "configs/auxdet/tiny"
SYSTEMS = {
    **plain.SYSTEMS,
    "AuxDet, dropout": f"{TINY}/auxdet_tiny_robust.yaml",
}
# Name -> the system whose weights it has, and its options at test time.
TESTED: dict[str, tuple[str, list]] = {name: (name, []) for name in SYSTEMS}
CONDITIONED = list(TESTED)[1:]
SCENES = {"plain": "images that do not tell their domain", "stripes": "images with the stripes of their domain"}
SHARES = (0.0, 0.25, 0.5, 0.75, 1.0)
FIELDS = ("platform", "band", "width", "height")
STRIPES = 6.0  # amplitude, gray levels of 255
# Domain -> (axis along which the image varies, period in pixels).
PATTERNS = {("Air", "LWIR"): (0, 3), ("Space", "NIR"): (0, 5), ("Land", "LWIR"): (1, 3), ("Space", "SWIR"): (1, 5)}


def without(dicts: list[dict]) -> list[dict]:
    """Take the metadata away."""
    return [{**d, "metadata": dict.fromkeys(FIELDS)} for d in dicts]


def wrong(dicts: list[dict]) -> list[dict]:
    """Give every image a platform and band that are not its own."""
    rng = np.random.default_rng(2)
    domains = sorted({(d["metadata"]["platform"], d["metadata"]["band"]) for d in dicts})
    changed = []
    for d in dicts:
        others = [domain for domain in domains if domain != (d["metadata"]["platform"], d["metadata"]["band"])]
        name, band = others[rng.integers(len(others))]
        changed.append({**d, "metadata": {**d["metadata"], "platform": name, "band": band}})
    return changed


CHANGES = {"missing": without, "wrong": wrong}


def add_stripes(data: Path) -> None:
    """Write the stripes of its domain into every image of a set, once."""
    from irstd_d2.data import load_voc

    root = data / "synthetic_omni"
    mark = root / "striped.txt"
    if mark.exists():
        return
    for split in ("train", "val"):
        for sample in load_voc(root, split, layout="wideirstd"):
            axis, period = PATTERNS[sample["metadata"]["platform"], sample["metadata"]["band"]]
            image = cv2.imread(sample["file_name"], cv2.IMREAD_UNCHANGED)
            wave = STRIPES * np.sin(2 * np.pi * np.arange(image.shape[axis]) / period)
            striped = image + (wave[:, None] if axis == 0 else wave[None])
            cv2.imwrite(sample["file_name"], np.rint(striped.clip(0, 255)).astype(np.uint8))
    mark.touch()


def evaluate(name: str, seed: int, output: Path) -> dict[str, float]:
    """AP50 (COCO, percent) of a run by kind and share of changed images.

    Images do not depend on each other, so each kind of change runs once over all images; a share takes the detections
    of its images from there.
    """
    from detectron2.data import DatasetCatalog

    import auxdet_d2  # noqa: F401  registers

    system, options = TESTED[name]
    weights = output / f"{system}_{seed}" / "model_final.pth"
    kept = weights.with_name(f"{name}.json")
    if kept.exists() and kept.stat().st_mtime > weights.stat().st_mtime:
        return json.loads(kept.read_text())
    truth = DatasetCatalog.get("synthetic_omni_val")
    options = [*options, "MODEL.DEVICE", "cpu", "MODEL.WEIGHTS", str(weights)]
    outputs = {"true": detect(SYSTEMS[system], options, truth)}
    results = {"true": average_precision(outputs["true"])}
    for kind, change in CHANGES.items() if name in CONDITIONED else ():
        outputs[kind] = detect(SYSTEMS[system], options, change(truth))
        rank = np.random.default_rng(1).permutation(len(truth))
        for share in SHARES[1:]:
            taken = rank < share * len(truth)
            mixed = [outputs[kind if other else "true"][i] for i, other in enumerate(taken)]
            results[f"{kind} {share:.0%}"] = average_precision(mixed)
    kept.write_text(json.dumps(results, indent=1))
    return results


def detect(config: str, options: Sequence, dicts: list[dict]) -> list[dict]:
    """What a trained model returns for every image, with its ``image_id``."""
    from detectron2.modeling import build_model

    import bafe_d2  # noqa: F401  registers
    from irstd_d2 import get_config
    from irstd_d2.data import build_mapper
    from irstd_d2.engine import IRSTDCheckpointer

    cfg = get_config(plain.ROOT / config, options)
    model, mapper = build_model(cfg).eval(), build_mapper(cfg, is_train=False)
    IRSTDCheckpointer(model).load(cfg.MODEL.WEIGHTS)
    found = []
    with torch.no_grad():
        for start in range(0, len(dicts), 20):
            samples = [mapper(d) for d in dicts[start : start + 20]]
            found += [{**output, "image_id": s["image_id"]} for s, output in zip(samples, model(samples))]
    return found


def average_precision(outputs: list[dict]) -> float:
    """AP50 of the detections of all images."""
    from irstd_d2.evaluation.coco_evaluation import IRSTDCOCOEvaluator

    evaluator = IRSTDCOCOEvaluator("synthetic_omni_val")
    evaluator.reset()
    evaluator.process(outputs, outputs)
    return evaluator.evaluate()["bbox"]["AP50"]


def report(results: dict[str, dict[str, list[dict[str, float]]]], command: str) -> str:
    """The tables as Markdown."""
    lines = [
        "# Missing and wrong metadata, synthetic benchmark",
        "",
        f"`{command}`",
        "",
        f"{date.today()}, {platform.machine()} CPU, one thread per run, torch {torch.__version__}. AP50 (COCO, exact "
        "boxes), percent, mean and standard deviation over the seeds. All three platforms are synthetic.",
        "",
        "![AP50 against the share of images with missing and with wrong metadata](metadata_robustness.png)",
    ]
    for scene, by_system in results.items():
        lines += ["", f"## {SCENES[scene].capitalize()}", ""]
        lines += [f"The baseline, which sees no metadata, has {_cell(by_system['baseline'], 'true')}."]
        predicting = by_system[CONDITIONED[-1]]
        fields = [f"{field} {_cell(predicting, f'accuracy of {field}')} %" for field in ("platform", "band")]
        lines += [f"Images whose predicted metadata is right: {', '.join(fields)}."]
        for kind in CHANGES:
            lines += ["", f"| share of images with {kind} metadata | " + " | ".join(f"{s:.0%}" for s in SHARES) + " |"]
            lines.append("|" + "---|" * (len(SHARES) + 1))
            for name in CONDITIONED:
                cells = [_cell(by_system[name], label) for label in _labels(kind)]
                lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def draw(results: dict[str, dict[str, list[dict[str, float]]]], path: Path) -> None:
    """AP50 against the share of changed images, one panel per kind of change and of images."""
    size = (8, 3.2 * len(results))
    figure, axes = plt.subplots(len(results), len(CHANGES), figsize=size, sharex=True, sharey=True, squeeze=False)
    percent = [100 * share for share in SHARES]
    for row, (scene, by_system) in zip(axes, results.items()):
        for axis, kind in zip(row, CHANGES):
            for name in CONDITIONED:
                values = [[run[label] for run in by_system[name]] for label in _labels(kind)]
                axis.plot(percent, [statistics.mean(v) for v in values], marker="o", markersize=3, label=name)
                axis.fill_between(percent, [min(v) for v in values], [max(v) for v in values], alpha=0.15)
            visual = statistics.mean(run["true"] for run in by_system["baseline"])
            axis.axhline(visual, color="black", linestyle="--", linewidth=1, label="baseline, no metadata")
            axis.set_title(SCENES[scene], fontsize=9)
            axis.set_xlabel(f"images with {kind} metadata (%)")
            axis.grid(alpha=0.3)
        row[0].set_ylabel("AP50 (%)")
    axes[0, 0].legend(fontsize=7)
    figure.tight_layout()
    figure.savefig(path, dpi=90)
    plt.close(figure)


def _labels(kind: str) -> list[str]:
    return ["true", *(f"{kind} {share:.0%}" for share in SHARES[1:])]


def _cell(runs: list[dict[str, float]], label: str) -> str:
    values = [run[label] for run in runs]
    spread = f" +- {statistics.stdev(values):.1f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.1f}{spread}"


def main() -> None:
    parser = plain.make_parser(__doc__)
    parser.add_argument("--scenes", nargs="+", choices=SCENES, default=list(SCENES), help="default: %(default)s")
    args = parser.parse_args()
    results: dict[str, dict[str, list[dict[str, float]]]] = {}
    for scene in args.scenes:
        output = args.output if scene == "plain" else args.output / scene
        plain.make_data(output / "data")
        if scene == "stripes":
            add_stripes(output / "data")
        plain.train_all(SYSTEMS, args, output)
        os.environ.update(plain.environment(output / "data"))
        results[scene] = {name: [evaluate(name, seed, output) for seed in range(args.seeds)] for name in TESTED}
    command = f"--seeds {args.seeds} --iterations {args.iterations} --scenes {' '.join(args.scenes)}"
    text = report(results, f"python benchmarks/metadata_robustness.py {command}")
    (RESULTS / "metadata_robustness.md").write_text(text, encoding="utf-8")
    draw(results, RESULTS / "metadata_robustness.png")
    print(text)


if __name__ == "__main__":
    main()
