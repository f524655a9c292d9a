#!/usr/bin/env python3
"""The bound of what knowing the sky can give: detections whose scores fall where the true mask says that no sky is.

    python benchmarks/true_sky.py output/context/fcos_0 output/context/fcos_1 output/context/fcos_2 \
        --dataset densesirst_v2_test --output output/true_sky

Writes the detections of every run anew, as COCO results, and prints what ``irstd evaluate`` needs to judge them.
"""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

import bafe_d2  # noqa: F401  registers the data sets
from irstd_d2.data.datasets import check_registered
from irstd_d2.evaluation.breakdown import TARGET_KEYS
from irstd_d2.evaluation.collection import PredictionsWriter
from irstd_d2.evaluation.ground_truth import GroundTruth
from irstd_d2.evaluation.predictions import read_any_predictions
from irstd_d2.evaluation.rescoring import find_predictions, run_name, unique_names

SKY = TARGET_KEYS["sky"]
GROUND = SKY.names.index("non-sky")  # what the mask leaves open is neither


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path, help="folders of trainings, with the detections of their test")
    parser.add_argument("--dataset", required=True, help="with sky masks")
    parser.add_argument("--factor", type=float, default=0.02, help="of scores outside the sky")
    parser.add_argument("--output", type=Path, required=True)
    args = parser.parse_args(arguments)
    check_registered("--dataset", [args.dataset])
    truth = GroundTruth.from_dataset(args.dataset)
    if not any(files.sky_mask for files in truth.files):
        parser.error(f"--dataset {args.dataset} has no sky masks")
    files = dict(zip(truth.image_ids, truth.files))
    sources = [find_predictions(run, args.dataset) for run in args.runs]
    folders = [args.output / name for name in unique_names([run_name(source, args.dataset) for source in sources])]
    for source, folder in zip(sources, folders):
        writer = PredictionsWriter(truth, folder)
        for image_id, (boxes, scores, classes) in read_any_predictions(source, truth).boxes.items():
            places, _ = SKY.measure(files[image_id], boxes)
            writer.add(image_id, boxes, np.where(places == GROUND, args.factor, 1.0) * scores, classes)
        writer.evaluate()
    print("irstd evaluate", shlex.join(map(str, folders)), "--dataset", args.dataset, "--evaluators voc_paper pd_fa")
    return 0


if __name__ == "__main__":
    sys.exit(main())
