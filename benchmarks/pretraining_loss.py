#!/usr/bin/env python3
"""Losses of trained detectors on the same random crops of their test set: a cheap look where whole images are dear.

    DETECTRON2_DATASETS=... python benchmarks/pretraining_loss.py output/pretraining/lite0_*_0 --crops 256

Each folder is that of a run of benchmarks/pretraining.py whose training ended. Norms keep their statistics.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from detectron2.data import get_detection_dataset_dicts
from detectron2.modeling import build_model
from detectron2.utils.events import EventStorage
from torch.nn.modules.batchnorm import _BatchNorm

import auxdet_d2  # noqa: F401  registers
import bafe_d2  # noqa: F401  registers
from irstd_d2 import get_config
from irstd_d2.data import build_mapper
from irstd_d2.engine.checkpoint import IRSTDCheckpointer

BATCH = 8


def mean_losses(folder: Path, crops: int) -> dict[str, float]:
    """Mean losses of the final model of a run on crops that depend on their number alone."""
    cfg = get_config(folder / "config.yaml")
    model = build_model(cfg).train()
    for module in model.modules():
        if isinstance(module, _BatchNorm):
            module.eval()
    IRSTDCheckpointer(model).load(str(folder / "model_final.pth"))
    mapper = build_mapper(cfg, is_train=True)
    dicts = get_detection_dataset_dicts(cfg.DATASETS.TEST, filter_empty=False, check_consistency=False)
    np.random.seed(0)  # detectron2's augmentations draw from it
    totals: dict[str, float] = {}
    with torch.no_grad(), EventStorage():
        for start in range(0, crops, BATCH):
            batch = [mapper(dicts[i % len(dicts)]) for i in range(start, min(start + BATCH, crops))]
            for name, loss in model(batch).items():
                totals[name] = totals.get(name, 0.0) + loss.item() * len(batch) / crops
    return {**totals, "total": sum(totals.values())}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path)
    parser.add_argument("--crops", type=int, default=256)
    args = parser.parse_args()
    for folder in args.runs:
        losses = mean_losses(folder, args.crops)
        print(folder.name, " ".join(f"{name} {value:.3f}" for name, value in losses.items()), flush=True)


if __name__ == "__main__":
    main()
