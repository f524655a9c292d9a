#!/usr/bin/env python3
"""Write one self-contained HTML report about one or several runs.

    python tools/report.py output/fcos output/bafe --output report.html
    python tools/report.py output/fcos output/bafe --features 4     # runs the models: feature maps, predicted skies

The data sets are found as in training, by $DETECTRON2_DATASETS. What a run lacks is said on the page.
"""

from __future__ import annotations

import argparse
import logging
import sys

from auxdet_d2.modeling import LEEM, M2DM, FeatureRefinement
from bafe_d2.modeling import FeatureExchange
from irstd_d2.errors import DatasetError
from irstd_d2.reporting import Options, Tap, write_report

# What the two papers show: features before and after metadata and edges, before and after the exchange of tasks.
TAPS = (
    Tap(FeatureRefinement, "before M2DM", "input"),
    Tap(M2DM, "after M2DM"),
    Tap(LEEM, "edges by LEEM"),
    Tap(FeatureRefinement, "after LEEM"),
    Tap(FeatureExchange, "background, before exchange", "input", 0),
    Tap(FeatureExchange, "background, after exchange", "output", 0),
    Tap(FeatureExchange, "classification, before exchange", "input", 1),
    Tap(FeatureExchange, "classification, after exchange", "output", 1),
)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", help="run folders (OUTPUT_DIR of a training); the first is the baseline")
    parser.add_argument("--output", default="report.html", help="file to write (default: %(default)s)")
    parser.add_argument("--title", default="Infrared small-target detection")
    parser.add_argument("--gallery", type=int, default=12, help="worst misses and false alarms of each run, 0 for none")
    parser.add_argument("--examples", type=int, default=4, help="images with all runs side by side, 0 for none")
    parser.add_argument("--features", type=int, default=0, help="of these, images to run the models on (default: 0)")
    parser.add_argument("--draws", type=int, default=1000, help="bootstrap draws, 0 for none")
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    logging.getLogger("faster_coco_eval").setLevel(logging.WARNING)
    options = Options(args.gallery, args.examples, args.features, args.draws, TAPS)
    try:
        path = write_report(args.runs, args.output, title=args.title, options=options)
    except (DatasetError, OSError) as error:
        logging.error("error: %s", error)
        return 2
    logging.info("%s", path)
    return 0


if __name__ == "__main__":
    sys.exit(main())
