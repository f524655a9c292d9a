#!/usr/bin/env python3
"""Draw images of a registered data set with targets and, given a predictions file, detections.

    python tools/visualize.py --dataset densesirst_v2_test --output sheet.png
    python tools/visualize.py --dataset densesirst_v2_test --output sheet.png \
        --predictions output/bafe/inference/densesirst_v2_test/coco_instances_results.json

Green brackets: targets. Blue: detections that found one. Red: false alarms. Pale blue line: skyline.
"""

from __future__ import annotations

import argparse
import logging
from pathlib import Path

import numpy as np
from detectron2.data import DatasetCatalog, MetadataCatalog
from tqdm import tqdm

import irstd_d2  # noqa: F401  registers the data sets
from irstd_d2.data import read_image
from irstd_d2.data.image_io import read_sky_mask
from irstd_d2.evaluation.detection_probability import match_by_centre
from irstd_d2.evaluation.ground_truth import GroundTruth
from irstd_d2.evaluation.matching import NO_TARGET, detection_table
from irstd_d2.evaluation.table_evaluation import TableEvaluator, add_predictions_file
from irstd_d2.visualization import contact_sheet, draw_detections, write_picture


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset", required=True, help="registered name")
    parser.add_argument("--predictions", type=Path, help="COCO results as the evaluation saves them")
    parser.add_argument("--output", type=Path, required=True, help="PNG file of a contact sheet")
    parser.add_argument("--count", type=int, default=9, help="images, spread evenly over the set")
    parser.add_argument("--threshold", type=float, default=0.3, help="detections below this score are left out")
    parser.add_argument("--edge", type=int, default=384, help="images are enlarged to about this many pixels")
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")

    dicts = DatasetCatalog.get(args.dataset)
    truth = GroundTruth.from_dicts(dicts, MetadataCatalog.get(args.dataset).thing_classes)
    detections = detection_table([], [])
    if args.predictions:
        collector = TableEvaluator(truth, distributed=False)
        add_predictions_file(collector, args.predictions)
        detections = collector.detections()
    matched, _ = match_by_centre(detections, truth.targets)
    pictures = []
    for index in tqdm(np.unique(np.linspace(0, len(dicts) - 1, args.count).astype(int)), desc="images"):
        record = dicts[index]
        mine = (detections.image == index) & (detections.scores >= args.threshold)
        sky = read_sky_mask(record["sem_seg_file_name"]) == 1 if record.get("sem_seg_file_name") else None
        pictures.append(
            draw_detections(
                read_image(record["file_name"]),
                targets=truth.targets.boxes[truth.targets.image == index],
                boxes=detections.boxes[mine],
                scores=detections.scores[mine],
                correct=matched[mine] != NO_TARGET,
                sky=sky,
                edge=args.edge,
            )
        )
    args.output.parent.mkdir(parents=True, exist_ok=True)
    write_picture(args.output, contact_sheet(pictures))
    logging.info("%s", args.output)


if __name__ == "__main__":
    main()
