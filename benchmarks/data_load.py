#!/usr/bin/env python3
"""A day's worth of data loading: time, memory and open files over many samples.

python benchmarks/data_load.py                     # 100,000 samples: reads the annotations, then one pass, 2 workers
python benchmarks/data_load.py --samples 2000 --workers 1

Makes a set of small images in a temporary folder and prints a table. Memory of a worker is what it does not share with
the others (private pages), because workers start as copies of the main process.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
import warnings
from multiprocessing import active_children
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
XML = (
    "<annotation><filename>{name}.png</filename><size><width>48</width><height>48</height><depth>1</depth></size>"
    "<view>Air</view><band_type>LWIR</band_type><object><name>Target</name><difficult>0</difficult><bndbox>"
    "<xmin>{x}</xmin><ymin>{y}</ymin><xmax>{x2}</xmax><ymax>{y2}</ymax></bndbox></object></annotation>"
)
# A file may have some 65,000 names.
NAMES_PER_FILE = 20_000


def write_set(folder: Path, samples: int) -> None:
    """Write a set in VOC's layout whose images are names of a few files."""
    import cv2
    import numpy as np

    images, annotations, splits = (folder / name for name in ("PNGImages", "Annotations", "ImageSets/Main"))
    for part in (images, annotations, splits):
        part.mkdir(parents=True)
    names = [f"{i:06d}" for i in range(samples)]
    for i, name in enumerate(names):
        x, y = i % 40, i // 40 % 40
        (annotations / f"{name}.xml").write_text(XML.format(name=name, x=x, y=y, x2=x + 3, y2=y + 3))
        if i % NAMES_PER_FILE == 0:
            pixels = np.random.default_rng(i).integers(0, 99, (48, 48), dtype=np.uint8)
            first = images / f"{name}.png"
            cv2.imwrite(str(first), pixels)
        else:
            os.link(first, images / f"{name}.png")
    (splits / "train.txt").write_text("\n".join(names))


def private_megabytes(pid: int) -> float:
    """Memory that a process shares with no other, in MB (Linux)."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return sum(int(line.split()[1]) for line in lines if line.startswith("Private_")) * 1024 / 1e6


def open_files(pid: int) -> int:
    return len(list(Path(f"/proc/{pid}/fd").iterdir()))


def measure(samples: int, workers: int, folder: Path) -> None:
    """Print the table."""
    import torch
    from detectron2.data import DatasetCatalog

    import auxdet_d2  # noqa: F401  registers
    import bafe_d2  # noqa: F401  registers
    from irstd_d2 import get_config
    from irstd_d2.data import register_voc_folder
    from irstd_d2.engine import IRSTDTrainer

    torch.set_num_threads(1)
    write_set(folder / "set", samples)
    register_voc_folder("data_load", folder / "set", "train", layout="voc_png")
    print(f"{samples:,} samples, {workers} workers, batches of 8, {os.cpu_count()} CPU cores\n")
    print("| step | seconds |\n|---|---|")
    start = time.perf_counter()
    count = len(DatasetCatalog.get("data_load"))
    print(f"| annotations | {time.perf_counter() - start:.1f} |", flush=True)
    assert count == samples
    options = {
        "MODEL.DEVICE": "cpu",
        "DATASETS.TRAIN": ("data_load",),
        "INPUT.FIXED_SIZE": (64, 64),
        "SOLVER.IMS_PER_BATCH": 8,
        "DATALOADER.NUM_WORKERS": workers,
    }
    config = ROOT / "configs/bafe/tiny/fcos_tiny.yaml"
    cfg = get_config(config, [item for pair in options.items() for item in pair])
    batches = iter(IRSTDTrainer.build_train_loader(cfg))
    print("\n| samples read | seconds | main process, MB | each worker, MB | open files, main and workers |")
    print("|---|---|---|---|---|")
    start, report_at = time.perf_counter(), [samples * part // 10 for part in (1, 2, 4, 6, 8, 10)]
    read = 0
    while report_at:
        read += len(next(batches))
        if read >= report_at[0]:
            report_at.pop(0)
            pids = [child.pid for child in active_children() if child.pid]
            memory = ", ".join(f"{private_megabytes(pid):.1f}" for pid in pids)
            files = ", ".join(str(open_files(pid)) for pid in (os.getpid(), *pids))
            main_memory = private_megabytes(os.getpid())
            print(
                f"| {read:,} | {time.perf_counter() - start:.0f} | {main_memory:.1f} | {memory} | {files} |", flush=True
            )


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=100_000)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--folder", type=Path, help="for the set; by default the system's temporary folder")
    args = parser.parse_args(argv)
    warnings.filterwarnings("ignore")
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        measure(args.samples, args.workers, Path(folder))
    return 0


if __name__ == "__main__":
    sys.exit(main())
