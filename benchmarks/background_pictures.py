#!/usr/bin/env python3
"""Show what background semantics does: image and true sky, predicted sky, and the false alarms of two trainings.

    python benchmarks/background_pictures.py output/fcos_fine output/bafe_fine --dataset densesirst_v2_test \
        --output background.png

One row per image. Each detector is shown at the score at which it finds the same share of the targets of these images,
so that the numbers of false alarms compare. False alarms are orange, hits blue, targets green.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import torch
from detectron2.data import DatasetCatalog
from detectron2.modeling import build_model
from detectron2.structures import BoxMode
from torch import Tensor, nn
from torchvision.ops import box_iou
from tqdm import tqdm

import auxdet_d2  # noqa: F401  registers
import bafe_d2  # noqa: F401  registers
from irstd_d2 import get_config
from irstd_d2.data import build_mapper
from irstd_d2.data.image_io import read_image, read_sky_mask
from irstd_d2.engine.checkpoint import IRSTDCheckpointer
from irstd_d2.reporting.pictures import sky_picture
from irstd_d2.visualization import contact_sheet, draw_detections, with_caption, write_picture

IOU = 0.5
EDGE = 420  # of one picture


def load(run: Path) -> tuple[Any, nn.Module]:
    """The test-time mapper and the model of a finished training."""
    cfg = get_config(run / "config.yaml", ["MODEL.DEVICE", "cpu"])
    model = build_model(cfg).eval()
    IRSTDCheckpointer(model).load(str(run / "model_final.pth"))
    return build_mapper(cfg, is_train=False), model


def targets_of(record: dict[str, Any]) -> Tensor:
    boxes = [BoxMode.convert(x["bbox"], x["bbox_mode"], BoxMode.XYXY_ABS) for x in record["annotations"]]
    return torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4)


def score_at_recall(results: list[dict[str, Any]], targets: list[Tensor], recall: float) -> float:
    """The highest score at which detections of at least this share of the targets remain; 0 if there never is."""
    best = []
    for result, boxes in zip(results, targets):
        found = result["instances"]
        hit = box_iou(boxes, found.pred_boxes.tensor) >= IOU
        scores = torch.where(hit, found.scores, 0.0)
        best.append(scores.amax(1) if scores.shape[1] else scores.new_zeros(len(boxes)))
    ranked = torch.cat(best).sort(descending=True).values
    needed = int(np.ceil(recall * len(ranked)))
    return float(ranked[needed - 1]) if 0 < needed <= len(ranked) else 0.0


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs=2, type=Path, help="folders of two trainings, the second with background")
    parser.add_argument("--names", nargs=2, default=("FCOS", "BAFE-Net"))
    parser.add_argument("--dataset", default="densesirst_v2_test")
    parser.add_argument("--images", nargs="+", help="image ids; by default three with the sky share nearest to a half")
    parser.add_argument("--recall", type=float, default=0.8)
    parser.add_argument("--output", type=Path, required=True)
    options = parser.parse_args(argv)

    records = {str(r["image_id"]): r for r in DatasetCatalog.get(options.dataset) if "sem_seg_file_name" in r}
    if options.images:
        if unknown := [name for name in options.images if name not in records]:
            parser.error(f"{options.dataset} has no image with a sky mask named {', '.join(unknown)}")
        chosen = [records[name] for name in options.images]
    else:
        share = {name: (read_sky_mask(r["sem_seg_file_name"]) == 1).mean() for name, r in records.items()}
        chosen = [records[name] for name in sorted(share, key=lambda name: abs(share[name] - 0.5))[:3]]
    targets = [targets_of(record) for record in chosen]
    results: list[list[dict[str, Any]]] = []
    for run in options.runs:
        mapper, model = load(run)
        with torch.no_grad():
            results.append([model([mapper(record)])[0] for record in tqdm(chosen, desc=run.name)])
    thresholds = [score_at_recall(found, targets, options.recall) for found in results]

    pictures = []
    for i, (record, boxes) in enumerate(zip(chosen, targets)):
        image, sky = read_image(record["file_name"]), read_sky_mask(record["sem_seg_file_name"])
        pictures.append(
            with_caption(draw_detections(image, targets=boxes.numpy(), sky=sky == 1, edge=EDGE, insets=0), "true sky")
        )
        size = pictures[-1].shape[0] - 20, pictures[-1].shape[1]
        predicted = results[1][i]["sem_seg"].argmax(0).numpy() == 1
        pictures.append(with_caption(sky_picture(image, predicted, size, sky), "predicted sky (errors orange)"))
        for name, found, threshold in zip(options.names, results, thresholds):
            instances = found[i]["instances"]
            instances = instances[instances.scores >= threshold]
            overlap = box_iou(instances.pred_boxes.tensor, boxes)
            right = overlap.amax(1) >= IOU if len(boxes) else torch.zeros(len(instances), dtype=torch.bool)
            picture = draw_detections(
                image, boxes=instances.pred_boxes.tensor.numpy(), correct=right.numpy(), edge=EDGE, insets=0
            )
            text = f"{name}: {int((~right).sum())} false alarms at score {threshold:.2f}"
            pictures.append(with_caption(picture, text))
    write_picture(options.output, contact_sheet(pictures, columns=4))


if __name__ == "__main__":
    main()
