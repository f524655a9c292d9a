"""Draw images of a data set with targets and, given a predictions file, detections.

    irstd visualize --dataset densesirst_v2_test --output sheet.png
    irstd visualize --dataset mine --output sheet.png
    irstd visualize --dataset mine_val --config-file output/own/config.yaml --output sheet.png
    irstd visualize --dataset densesirst_v2_test --output pictures/ --images Misc_304 S2_26 \
        --predictions output/bafe/inference/densesirst_v2_test/coco_instances_results.json

An output that ends in .png is one sheet of all pictures; else it is a folder with one picture per image.
Green brackets: targets. Blue: detections that found one. Red: false alarms. Pale blue line: skyline. The numbered parts
are shown below each image with every pixel, stretched to their own range of values.
"""

from __future__ import annotations

import argparse
import mimetypes
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import ConfigError, DatasetError
from .options import add_score_thresh, named_faults, new_parser, whole_number

if TYPE_CHECKING:
    import numpy as np

INSETS = 3


def get_parser() -> argparse.ArgumentParser:
    parser = new_parser(__doc__)
    parser.add_argument(
        "--dataset", required=True, help="registered name, folder in a VOC layout, or COCO file (images beside it)"
    )
    parser.add_argument("--config-file", metavar="FILE", help="registers the set, if it is in its DATASETS.OWN")
    parser.add_argument("--predictions", type=Path, help="COCO results as the evaluation saves them")
    parser.add_argument("--output", type=Path, required=True, help="PNG file of a sheet, or a folder")
    parser.add_argument("--count", type=whole_number(1), default=9, help="images, spread evenly over the set")
    parser.add_argument("--images", nargs="+", default=[], help="these images instead, by file name without suffix")
    add_score_thresh(parser, "detections below are left out (%(default)s)", 0.3)
    parser.add_argument(
        "--edge", type=whole_number(1), default=588, help="width of a picture in pixels; 784 enlarges insets by 8"
    )
    parser.add_argument("--columns", type=whole_number(1), default=3, help="of a sheet")
    return parser


def choose(dicts: list[dict[str, Any]], args: argparse.Namespace) -> list[int]:
    """Indices of the images to draw.

    Raises:
        DatasetError: the data set has no image of a given name.
    """
    import numpy as np

    if not args.images:
        return np.unique(np.linspace(0, len(dicts) - 1, args.count).astype(int)).tolist() if dicts else []
    index: dict[str, list[int]] = {}
    for i, record in enumerate(dicts):
        index.setdefault(Path(record["file_name"]).stem, []).append(i)
    if absent := [name for name in args.images if name not in index]:
        known = ", ".join(list(index)[:3])
        raise DatasetError(args.dataset, "--images", f"has no {', '.join(absent)}", f"give names such as {known}")
    return [i for name in args.images for i in index[name]]


def draw(args: argparse.Namespace) -> dict[str, np.ndarray]:
    """Pictures by the names of their images."""
    from detectron2.data import DatasetCatalog
    from tqdm import tqdm

    from ..data import read_image
    from ..data.image_io import read_sky_mask
    from ..evaluation.ground_truth import GroundTruth
    from ..evaluation.predictions import Predictions, read_any_predictions
    from ..evaluation.rescoring import score_predictions
    from ..files import free_name
    from ..visualization import INSET_PIXELS, draw_detections, with_caption

    dicts = DatasetCatalog.get(args.dataset)
    truth = GroundTruth.from_dataset(args.dataset)
    predictions = read_any_predictions(args.predictions, truth) if args.predictions else Predictions(Path(), "none")
    run = score_predictions("", predictions, truth, [])
    if args.predictions and predictions.coverage:
        print(f"{args.predictions}: {predictions.coverage}")
    detections = run.detections
    pictures: dict[str, np.ndarray] = {}
    for index in tqdm(choose(dicts, args), desc="images"):
        record = dicts[index]
        mine = (detections.image == index) & (detections.scores >= args.score_thresh)
        hits, false = run.verdicts.true[mine], run.verdicts.false[mine]
        sky = read_sky_mask(record["sem_seg_file_name"]) == 1 if record.get("sem_seg_file_name") else None
        targets = truth.targets.boxes[truth.targets.image == index]
        picture = draw_detections(
            read_image(record["file_name"]),
            targets=targets,
            boxes=detections.boxes[mine],
            scores=detections.scores[mine],
            correct=hits,
            sky=sky,
            edge=args.edge,
            insets=INSETS,
            inset_zoom=max(1, (args.edge // INSETS - 4) // INSET_PIXELS),
            below=True,
        )
        name = free_name(Path(record["file_name"]).stem, pictures.__contains__)
        count = f"{len(targets)} targets" + (f", {hits.sum()} found, {false.sum()} false" if args.predictions else "")
        pictures[name] = with_caption(picture, f"{name}: {count}")
    return pictures


def run(args: argparse.Namespace) -> int:
    from ..config import get_config
    from ..data.datasets import check_registered, register_own_sets
    from ..visualization import contact_sheet, write_picture

    kind, _ = mimetypes.guess_type(args.output)
    if kind not in (None, "image/png") and not args.output.is_dir():
        raise ConfigError(f"--output: {args.output} is neither a .png nor a folder; end it in .png for one sheet")
    get_config(args.config_file)
    if Path(args.dataset).exists():
        images = str(Path(args.dataset).parent) if args.dataset.endswith(".json") else ""
        register_own_sets([(args.dataset, args.dataset, images)])
    check_registered("--dataset", [args.dataset])
    with named_faults():
        pictures = draw(args)
    if args.output.suffix.lower() == ".png":
        write_picture(args.output, contact_sheet(list(pictures.values()), args.columns))
    else:
        args.output.mkdir(parents=True, exist_ok=True)
        for name, picture in pictures.items():
            write_picture(args.output / f"{name}.png", picture)
    print(args.output)
    return 0
