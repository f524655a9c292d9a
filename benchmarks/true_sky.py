#!/usr/bin/env python3
"""The bound of what knowing the sky can give: detections whose scores fall where the true mask says that no sky is.

    python benchmarks/true_sky.py output/context/fcos_0 output/context/fcos_1 output/context/fcos_2 \
        --dataset densesirst_v2_test --output output/true_sky

Writes the detections of every run anew, as COCO results, and prints what ``irstd evaluate`` needs to judge them.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from detectron2.data import DatasetCatalog

import bafe_d2  # noqa: F401  registers the data sets
from irstd_d2.data.image_io import read_sky_mask
from irstd_d2.evaluation.rescoring import find_predictions


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path, help="folders of trainings, with the detections of their test")
    parser.add_argument("--dataset", required=True, help="with sky masks")
    parser.add_argument("--factor", type=float, default=0.02, help="of scores outside the sky")
    parser.add_argument("--output", type=Path, required=True)
    args = parser.parse_args(arguments)
    records = DatasetCatalog.get(args.dataset)
    skies = {record["image_id"]: read_sky_mask(record["sem_seg_file_name"]) for record in records}
    files = []
    for run in args.runs:
        rows = json.loads(find_predictions(run, args.dataset).read_text())
        for row in rows:
            sky, (x, y, width, height) = skies[row["image_id"]], row["bbox"]
            column, line = min(int(x + width / 2), sky.shape[1] - 1), min(int(y + height / 2), sky.shape[0] - 1)
            row["score"] *= args.factor if sky[line, column] == 0 else 1.0  # 255 is unknown
        files.append(args.output / f"{run.name}.json")
        files[-1].parent.mkdir(parents=True, exist_ok=True)
        files[-1].write_text(json.dumps(rows))
    print("irstd evaluate", *files, "--dataset", args.dataset, "--evaluators voc_paper pd_fa")
    return 0


if __name__ == "__main__":
    sys.exit(main())
