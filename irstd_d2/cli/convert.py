"""Convert a data set between Pascal VOC, COCO, target masks and YOLO, and say what gets lost.

    irstd convert mine.json mine_voc --to voc --image-root images
    irstd convert IRSTD-1K irstd1k_voc --from mask --to voc --to-layout wideirstd --band LWIR
    irstd convert synthetic_omni_val omni_yolo --to yolo

SOURCE is a folder, a COCO file, or the name of a registered set; its format is found out where --from does not say.
OUTPUT appears when it is complete. Targets in masks are their 8-connected components.
"""

from __future__ import annotations

import argparse
import logging
from pathlib import Path
from typing import TYPE_CHECKING

from .options import DATASET_FORMATS, LAYOUTS, MASK_VALUES, add_set_options, new_parser, real_number

if TYPE_CHECKING:
    from ..data.convert import DetectionSet


def parse_split(text: str) -> tuple[str, str]:
    """Read ``NAME=FILE``."""
    name, separator, file = text.partition("=")
    if not (name and separator and file):
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME=FILE, for example train=img_idx/train.txt")
    return name, file


def get_parser() -> argparse.ArgumentParser:
    parser = new_parser(__doc__)
    parser.add_argument("source", metavar="SOURCE", help="folder, COCO file, or name of a registered set")
    parser.add_argument("output", metavar="OUTPUT", type=Path, help="folder to make")
    parser.add_argument("--from", dest="source_format", choices=DATASET_FORMATS, help="found out by default")
    parser.add_argument("--to", dest="target_format", choices=DATASET_FORMATS, required=True)
    parser.add_argument("--to-layout", choices=LAYOUTS, default="voc_png", help="of a VOC folder (%(default)s)")
    parser.add_argument("--platform", help="of the images that have none: Air, Space or Land")
    parser.add_argument("--band", help="of the images that have none: LWIR, NIR, SWIR or another, such as MWIR")
    parser.add_argument("--link", action="store_true", help="symbolic links to the images in place of copies")
    parser.add_argument("--overwrite", action="store_true", help="replace OUTPUT if it exists")
    add_set_options(parser)
    parser.add_argument("--skip-bad", action="store_true", help="leave faulty images out")
    masks = parser.add_argument_group("reading masks")
    masks.add_argument("--images", default="images", metavar="DIR", help="folder of the images (%(default)s)")
    masks.add_argument("--masks", default="masks", metavar="DIR", help="folder of the masks (%(default)s)")
    masks.add_argument(
        "--split", nargs="+", type=parse_split, metavar="NAME=FILE", help="lists of names; by default SOURCE/*.txt"
    )
    masks.add_argument("--class-name", default="Target", help="of all targets (%(default)s)")
    masks.add_argument(
        "--threshold", type=real_number(0, 1), default=0.5, help="share of a mask's highest value (%(default)s)"
    )
    masks.add_argument(
        "--mask-values",
        choices=MASK_VALUES,
        default="auto",
        help="values other than 0: labels (a number or colour for each target) or gray levels; found out by default",
    )
    return parser


def read(args: argparse.Namespace) -> DetectionSet:
    """Read the source as the arguments say."""
    from detectron2.data import DatasetCatalog

    from ..data.convert import detect_format, read_coco, read_masks, read_registered, read_voc, read_yolo

    if args.source_format is None and args.source in DatasetCatalog.list():
        return read_registered(args.source)
    source_format = args.source_format or detect_format(args.source)
    if source_format == "coco":
        return read_coco(args.source, image_root=args.image_root, skip_bad=args.skip_bad, class_names=args.classes)
    if source_format == "yolo":
        return read_yolo(args.source, sidecar=args.sidecar, skip_bad=args.skip_bad)
    if source_format == "voc":
        return read_voc(
            args.source,
            layout=args.layout,
            sidecar=args.sidecar,
            skip_bad=args.skip_bad,
            class_names=args.classes,
            box_convention=args.box_convention,
        )
    return read_masks(
        args.source,
        images=args.images,
        masks=args.masks,
        splits=dict(args.split) if args.split else None,
        class_name=args.class_name,
        sidecar=args.sidecar,
        threshold=args.threshold,
        values=args.mask_values,
        skip_bad=args.skip_bad,
    )


def run(args: argparse.Namespace) -> int:
    from ..data.convert import describe_boxes, with_metadata, write_set

    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    source = with_metadata(read(args), args.platform, args.band)
    report = write_set(
        source,
        args.output,
        args.target_format,
        layout=args.to_layout,
        link=args.link,
        overwrite=args.overwrite,
        skip_bad=args.skip_bad,
    )
    print("\n".join([f"Wrote {args.output}: {report}", *describe_boxes(source)]))
    return 0
