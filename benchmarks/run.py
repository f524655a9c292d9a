#!/usr/bin/env python3
"""One table of the project's speed: each part beside a slow reference, each detector beside what people use.

python benchmarks/run.py --threads 2 --output benchmarks/results/performance_table.md
python benchmarks/run.py --cases parts data        # some of them
python benchmarks/run.py --cases detectors --only "AuxDet R50, 512x512, training"
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
# Seconds on two quiet cores, for the estimate of what remains.
USUAL_SECONDS = {"parts": 120, "targets": 25, "data": 90, "detectors": 330}
PACKAGES = ("torch", "torchvision", "numpy", "opencv-python-headless", "detectron2")


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", nargs="+", default=list(CASES), choices=CASES)
    parser.add_argument("--only", nargs="+", default=[], metavar="TEXT", help="cases whose names have one of the texts")
    parser.add_argument("--threads", type=int, default=1, help="of torch and OpenMP; also pins the process to as many")
    parser.add_argument("--device", default="cpu", help="of models and tensors, e.g. cuda")
    parser.add_argument(
        "--clock",
        default="wall",
        choices=("wall", "cpu"),
        help="cpu: time that the process computed, for one thread on a machine that others use as well",
    )
    parser.add_argument("--seconds", type=float, default=4.0, help="per comparison; three pairs are run at least")
    parser.add_argument(
        "--patience", type=float, default=90.0, help="seconds after which a comparison ends with fewer pairs than three"
    )
    parser.add_argument(
        "--return-memory",
        action="store_true",
        help="return freed memory to the system, as PyTorch does by itself; by default it is kept, as in train_net.py",
    )
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


def header(args: argparse.Namespace, kept: bool) -> str:
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
            f"{', '.join(installed)}. Freed memory is {'kept' if kept else 'returned to the system'}. "
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

    from irstd_d2.memory import keep_freed_memory

    kept = not args.return_memory and torch.device(args.device).type == "cpu" and keep_freed_memory()
    if args.clock == "cpu":
        harness.CLOCK = time.process_time
    torch.set_num_threads(args.threads)
    cv2.setNumThreads(args.threads)
    modules = {"parts": parts, "targets": targets, "data": data, "detectors": detectors}
    title = "# A quick check: inputs are too small for figures" if args.quick else "# Speed"
    top = [title, "", header(args, kept), ""]
    start = time.perf_counter()

    def page(state: str) -> str:
        return "\n".join([*top, bench.table(), "", f"{state} {time.perf_counter() - start:.0f} s.", ""])

    def progress(row: harness.Row) -> None:
        """Show the row and keep the table so far: an interrupted run loses nothing."""
        spent = time.perf_counter() - start
        print(f"{spent:5.0f} s  {name}: {row.case}: {row.ratio:.3g} {row.verdict}", file=sys.stderr, flush=True)
        write(args.output, page("Not complete: measured for"))

    with tempfile.TemporaryDirectory() as folder:
        bench = harness.Bench(
            Path(folder), torch.device(args.device), args.quick, args.seconds, args.patience, args.only, progress
        )
        for number, name in enumerate(args.cases):
            if not (args.quick or args.only):
                print(remaining(args.cases, number, time.perf_counter() - start), file=sys.stderr, flush=True)
            torch.manual_seed(0)
            modules[name].run(bench)
    if not bench.rows:
        sys.exit(f"no case of {', '.join(args.cases)} has {' or '.join(map(repr, args.only))} in its name")
    text = page("Measured in")
    print(text)
    write(args.output, text)


def remaining(cases: list[str], done: int, spent: float) -> str:
    """Say how long the other cases take, at the pace of those that are done."""
    usual = sum(USUAL_SECONDS[name] for name in cases[:done])
    left = sum(USUAL_SECONDS[name] for name in cases[done:])
    pace = spent / usual if usual else 1.0
    return f"{spent:5.0f} s  {cases[done]}; about {left * pace / 60:.0f} min remain" + (
        "" if usual else " if the machine is quiet"
    )


def write(path: Path | None, text: str) -> None:
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
