#!/usr/bin/env python3
"""End-to-end demo: detect in real images with the models of the zoo, then train both systems and their baselines.

    python tools/run_demo.py [--output demo_output] [--quick]

About eight minutes on two cores. Every step that is done is skipped when the demo runs again, and a training that was
interrupted goes on where it stopped; remove the output folder to start anew.
"""

from __future__ import annotations

import argparse
import json
import logging
import math
import os
import re
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
ZOO = ROOT / "irstd_d2" / "model_zoo" / "index.json"
PROGRESS_SECONDS = 15
logger = logging.getLogger("demo")


@dataclass(frozen=True)
class System:
    """One training of the demo, on a synthetic data set's ``_train`` split, evaluated on its ``_val`` split."""

    name: str
    config: str
    data: str
    iterations: int

    @property
    def data_set(self) -> str:
        return f"{self.data}_val"

    def options(self, iterations: int) -> list[str]:
        """Settings on top of the configuration."""
        return [
            *("DATASETS.TRAIN", f"('{self.data}_train',)", "DATASETS.TEST", f"('{self.data_set}',)"),
            *("TEST.EVALUATORS", "('coco','voc','pd_fa')"),
            *("SOLVER.MAX_ITER", str(iterations), "SOLVER.CHECKPOINT_PERIOD", "50"),
        ]


SYSTEMS = (
    System("cascade_rpn", "configs/auxdet/tiny/cascade_rpn_tiny.yaml", "synthetic_omni", 300),
    System("auxdet", "configs/auxdet/tiny/auxdet_tiny.yaml", "synthetic_omni", 300),
    System("fcos", "configs/bafe/tiny/fcos_fine.yaml", "synthetic_dense", 200),
    System("bafe_net", "configs/bafe/tiny/bafe_fine.yaml", "synthetic_dense", 200),
)


def run(title: str, command: list[str], log: Path, environment: dict[str, str]) -> None:
    """Run a step with its output in a log file, showing the last line of progress."""
    started = time.monotonic()
    logger.info("%s (log: %s)", title, log)
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("ab") as file:
        start = file.tell()
        process = subprocess.Popen([sys.executable, *command], cwd=ROOT, env=environment, stdout=file, stderr=file)  # noqa: S603
        while process.poll() is None:
            try:
                process.wait(PROGRESS_SECONDS)
            except subprocess.TimeoutExpired:
                show_progress(log, start)
        code = process.returncode
    if code:
        tail = log.read_text(errors="replace").splitlines()[-15:]
        raise SystemExit("\n".join([*tail, f"error: '{title}' failed with exit code {code}; see {log}"]))
    logger.info("    done in %.0f s", time.monotonic() - started)


def show_progress(log: Path, start: int) -> None:
    """Show the last estimate of the remaining time that a step wrote since ``start``."""
    text = log.read_bytes()[start:].decode(errors="replace")
    found = re.findall(r"eta: ([\d:]+) +iter: (\d+)|ETA=([\d:]+)|<(\d[\d:]+),", text)
    if found:
        eta, iteration, inference, bar = found[-1]
        logger.info("    %sabout %s left", f"iteration {iteration}, " if iteration else "", eta or inference or bar)


def detect_real_images(output: Path, environment: dict[str, str]) -> list[str]:
    """Detect in the real images of examples/images with the zoo's models of such data; return what was found."""
    zoo = json.loads(ZOO.read_text(encoding="utf-8")) if ZOO.is_file() else {}
    models = [name for name, entry in zoo.items() if "spaceir_train" in entry["data"]]
    lines = []
    for name in models:
        folder = output / "detections" / name
        run(
            f"detecting in real satellite images with {name}",
            ["tools/demo.py", str(ROOT / "examples" / "images"), "--weights", name, "--platform", "Space",
             "--output", str(folder)],
            output / "logs" / f"detect_{name}.log",
            environment,
        )  # fmt: skip
        rows = json.loads((folder / "detections.json").read_text(encoding="utf-8"))
        lines.append(f"{name}: {len(rows)} targets in {len({row['image_id'] for row in rows})} images; {folder}")
    return lines or ["no model of satellite images in the zoo yet: irstd zoo add RUN --name NAME --license LICENSE"]


def read_metrics(folder: Path) -> dict[str, float]:
    """Last evaluation in a run's metrics.json."""
    rows = [json.loads(line) for line in (folder / "metrics.json").read_text().splitlines()]
    return [row for row in rows if "bbox/AP50" in row][-1]


def best_threshold(metrics: dict[str, float]) -> float:
    """Score at which F1 is best; 0.5 where nothing was found."""
    score = metrics["pd_fa/F1_threshold"]
    return score if math.isfinite(score) else 0.5


def markdown_table(results: dict[str, dict[str, float]]) -> str:
    """The results of all systems as a Markdown table."""
    columns = {"bbox/AP50": "AP50", "bbox/recall50": "recall50", "voc_exact/AP50_area": "VOC AP50", "pd_fa/F1": "F1"}
    lines = ["| system | data set | " + " | ".join(columns.values()) + " |", "|" + "---|" * (len(columns) + 2)]
    for system in SYSTEMS:
        values = " | ".join(f"{results[system.name][key]:.1f}" for key in columns)
        lines.append(f"| {system.name} | {system.data_set} | {values} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=ROOT / "demo_output")
    parser.add_argument("--quick", action="store_true", help="a few iterations only, to see that everything runs")
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    output = args.output.resolve()
    data = output / "data"
    environment = {
        **os.environ,
        "DETECTRON2_DATASETS": str(data),
        "PYTHONWARNINGS": "ignore",
        "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", str(os.cpu_count() or 1)),
    }
    detected = detect_real_images(output, environment)
    train, val = ("40", "20") if args.quick else ("300", "100")
    run(
        f"data: {train} training and {val} validation images of two kinds",
        ["tools/make_synthetic.py", "--output", str(data), "--layout", "both", "--train", train, "--val", val],
        output / "logs" / "data.log",
        environment,
    )
    results = {}
    for system in SYSTEMS:
        folder = output / system.name
        iterations = 10 if args.quick else system.iterations
        if (folder / "finished").exists():
            logger.info("training %s: done before", system.name)
        else:
            resume = ["--resume"] if list(folder.glob("model_*.pth")) else []
            options = [*system.options(iterations), "OUTPUT_DIR", str(folder)]
            run(
                f"training {system.name}: {iterations} iterations",
                ["tools/train_net.py", "--config-file", system.config, *resume, *options],
                output / "logs" / f"{system.name}.log",
                environment,
            )
            (folder / "finished").touch()
        results[system.name] = read_metrics(folder)

    pictures = {}
    for system in SYSTEMS:
        picture = output / f"{system.name}.png"
        predictions = output / system.name / "inference" / system.data_set / "coco_instances_results.json"
        run(
            f"pictures of {system.name}",
            ["tools/visualize.py", "--dataset", system.data_set, "--predictions", str(predictions),
             "--count", "6", "--threshold", f"{best_threshold(results[system.name]):.3f}", "--output", str(picture)],
            output / "logs" / "pictures.log",
            environment,
        )  # fmt: skip
        pictures[system.name] = picture
    report = output / "report.html"
    run(
        "report",
        ["tools/report.py", *(str(output / s.name) for s in SYSTEMS), "--output", str(report), "--title", "Demo",
         "--gallery", "6"],
        output / "logs" / "report.log",
        environment,
    )  # fmt: skip
    table = markdown_table(results)
    (output / "results.md").write_text(table + "\n", encoding="utf-8")
    listing = "\n".join(f"  {path}" for path in [*pictures.values(), report, output / "results.md"])
    logger.info("results, in percent:\n\n%s\n\npictures and report:\n%s", table, listing)
    logger.info(
        "found in real images:\n%s\n\nThe trainings above are short and on synthetic images: they show that every step "
        "works; the models of the zoo are those to use.\nNext: .venv/bin/python -m irstd_d2 zoo, then "
        ".venv/bin/python -m irstd_d2 detect YOUR_IMAGES --weights NAME",
        "\n".join(f"  {line}" for line in detected),
    )


if __name__ == "__main__":
    main()
