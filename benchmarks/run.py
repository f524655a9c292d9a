#!/usr/bin/env python3
"""One table of the project's speed: each part beside a slow reference, each detector beside what people use.

python benchmarks/run.py --threads 2 --output benchmarks/results/performance_table.md
python benchmarks/run.py --cases parts data        # some of them
python benchmarks/run.py --quick                   # everything once, on small inputs
"""

from __future__ import annotations

import argparse
import os
import platform
import subprocess
import sys
import tempfile
import time
import warnings
from datetime import date
from importlib.metadata import version
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
CASES = ("parts", "targets", "data", "detectors")
PACKAGES = ("torch", "torchvision", "numpy", "opencv-python-headless", "detectron2")


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", nargs="+", default=list(CASES), choices=CASES)
    parser.add_argument("--threads", type=int, default=1, help="of torch and OpenMP; also pins the process to as many")
    parser.add_argument("--device", default="cpu", help="of models and tensors, e.g. cuda")
    parser.add_argument(
        "--clock",
        default="wall",
        choices=("wall", "cpu"),
        help="cpu: time that the process computed, for one thread on a machine that others use as well",
    )
    parser.add_argument("--seconds", type=float, default=4.0, help="per comparison; three pairs are run at least")
    parser.add_argument("--quick", action="store_true", help="small inputs, one pair each: no figures, only a check")
    parser.add_argument("--output", type=Path, help="a Markdown file to write beside printing")
    args = parser.parse_args(argv)
    if args.clock == "cpu" and (args.threads != 1 or args.device != "cpu"):
        parser.error("--clock cpu adds up the time of all threads and sees no GPU: use it with --threads 1 on the CPU")
    return args


def pin(threads: int) -> None:
    """Keep this process on so many cores; must come before torch is imported."""
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ[name] = str(threads)
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:threads])


def header(args: argparse.Namespace) -> str:
    import torch
    from harness import matrix_rate

    installed = []
    for package in PACKAGES:
        try:
            installed.append(f"{package} {version(package)}")
        except ModuleNotFoundError:
            continue
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=False
    ).stdout.strip()
    device = torch.device(args.device)
    machine = torch.cuda.get_device_name(device) if device.type == "cuda" else f"{platform.machine()} CPU"
    rates = [
        f"{matrix_rate(device, dtype):.0f} GFLOP/s in {str(dtype).removeprefix('torch.')}"
        for dtype in (torch.float32, torch.bfloat16)
    ]
    return "\n".join(
        [
            f"    python benchmarks/run.py {' '.join(args.command)}",
            "",
            f"{date.today()}, commit {commit or 'unknown'}, {machine}, {args.threads} thread(s), {args.clock} time, "
            f"load average {os.getloadavg()[0]:.1f} at the start. Python {platform.python_version()}, "
            f"{', '.join(installed)}. "
            f"Product of two 2048x2048 matrices: {', '.join(rates)}.",
        ]
    )


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    args.command = sys.argv[1:] if argv is None else argv
    pin(args.threads)
    sys.path.insert(0, str(Path(__file__).resolve().parent))
    warnings.filterwarnings("ignore")
    import cv2
    import harness
    import torch
    from cases import data, detectors, parts, targets

    if args.clock == "cpu":
        harness.CLOCK = time.process_time
    torch.set_num_threads(args.threads)
    cv2.setNumThreads(args.threads)
    modules = {"parts": parts, "targets": targets, "data": data, "detectors": detectors}
    title = "# A quick check: inputs are too small for figures" if args.quick else "# Speed"
    text = [title, "", header(args), ""]
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        bench = harness.Bench(Path(folder), torch.device(args.device), args.quick, args.seconds)
        for name in args.cases:
            torch.manual_seed(0)
            done = len(bench.rows)
            modules[name].run(bench)
            for row in bench.rows[done:]:
                print(f"{name}: {row.case}: {row.ratio:.3g} {row.verdict}", file=sys.stderr, flush=True)
    text += [bench.table(), "", f"Measured in {time.perf_counter() - start:.0f} s.", ""]
    print("\n".join(text))
    if args.output:
        args.output.parent.mkdir(parents=True, exist_ok=True)
        args.output.write_text("\n".join(text), encoding="utf-8")


if __name__ == "__main__":
    main()
