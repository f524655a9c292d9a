#!/usr/bin/env python3
"""Judge saved predictions again, without the model: every protocol, broken down, with intervals, runs side by side.

PREDICTIONS is a coco_instances_results.json or the folder of a run. Examples:

    tools/evaluate.py output/bafe --dataset densesirst_v2_test --group-by size contrast sky
    tools/evaluate.py output/fcos output/bafe --dataset densesirst_v2_test --compare --output comparison
    tools/evaluate.py mine.json --dataset wideirstd_val --group-by platform resolution --bootstrap 1000
    tools/evaluate.py output/own --dataset mine_val --config-file output/own/config.yaml
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import auxdet_d2  # noqa: F401  registers
import bafe_d2  # noqa: F401  registers
from irstd_d2 import get_config
from irstd_d2.data.datasets import check_registered
from irstd_d2.errors import ConfigError
from irstd_d2.evaluation.rescoring import resample, rescore, to_json, to_markdown
from irstd_d2.files import write_atomically

EVALUATORS = ("coco", "voc", "voc_paper", "pd_fa", "centre")


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("predictions", nargs="+", metavar="PREDICTIONS", help="files or run folders")
    parser.add_argument("--dataset", required=True, metavar="NAME", help="registered data set that they are of")
    parser.add_argument("--config-file", metavar="FILE", help="registers the set, if it is in its DATASETS.OWN")
    parser.add_argument("--evaluators", nargs="+", default=EVALUATORS, metavar="NAME", help="default: %(default)s")
    parser.add_argument(
        "--group-by", nargs="+", default=(), metavar="KEY", help="platform, band, resolution, size, contrast, sky"
    )
    parser.add_argument("--score-threshold", type=float, default=0.5, help="for Pd and Fa (%(default)s)")
    parser.add_argument("--max-detections", type=int, default=100, help="per image, for COCO's metrics (%(default)s)")
    parser.add_argument("--bootstrap", type=int, default=0, metavar="N", help="intervals from N draws of images")
    parser.add_argument(
        "--compare", action="store_true", help="test the others against the first; N is 1000 if not given"
    )
    parser.add_argument("--output", type=Path, metavar="STEM", help="write STEM.json and STEM.md")
    args = parser.parse_args(argv)
    if args.compare and len(args.predictions) < 2:
        parser.error("--compare needs at least two PREDICTIONS")
    if args.bootstrap < 0:
        parser.error("--bootstrap: give the number of draws")
    return args


def main(argv: list[str] | None = None) -> int:
    args = parse_args(argv)
    options = {
        "TEST.EVALUATORS": tuple(args.evaluators),
        "TEST.GROUP_BY": tuple(args.group_by),
        "TEST.SCORE_THRESHOLD": args.score_threshold,
        "TEST.DETECTIONS_PER_IMAGE": args.max_detections,
    }
    try:
        cfg = get_config(args.config_file, [item for pair in options.items() for item in pair])
        check_registered("--dataset", [args.dataset])
        runs = rescore(args.predictions, args.dataset, cfg)
    except (ConfigError, KeyError, ValueError) as error:  # names the file or image, and what to do
        print(f"Fault: {error.args[0] if isinstance(error, KeyError) else error}", file=sys.stderr)
        return 1
    resampled = None
    if args.compare or args.bootstrap:
        resampled = resample(
            runs,
            draws=args.bootstrap or 1000,
            compare=args.compare,
            score_threshold=args.score_threshold,
            max_detections=args.max_detections,
        )
    text = to_markdown(runs, resampled)
    print(text)
    if args.output:
        document = json.dumps(to_json(args.dataset, runs, resampled), indent=1, allow_nan=False)
        for suffix, content in ((".json", document), (".md", text)):
            path = args.output.with_name(args.output.name + suffix)
            write_atomically(path, lambda file, content=content: file.write(f"{content}\n".encode()))
            print(f"Wrote {path}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
