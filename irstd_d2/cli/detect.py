"""Detect targets in images, folders, patterns and videos; write pictures and files with all detections.

    irstd detect --config-file configs/bafe/bafe_r18_fpn.yaml --weights model_best.pth \\
        --input image.png folder/ 'runs/*/*.tif' clip.avi --output detections [--platform Air --band LWIR]

The pictures show detections in blue brackets with zoomed parts beside the image; of a video one annotated video is
written. `detections.json` is a list of COCO results, `bbox` as x, y, width and height in pixels of the file, with
`file_name` in place of numbers; --save adds `detections.csv` and `voc/NAME.xml`.

What is known of an image comes from --platform and --band (all images), from a table (--metadata), from XML files
(--xml), or stays unknown. Large images are cut into tiles that carry the size of the whole (--tile). A run that was
interrupted goes on where it stopped; files that did not change are not read again.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from .options import new_parser


def parse_tile(text: str) -> int | None:
    """Read ``auto`` (``None``), ``none`` (0) or a number of pixels."""
    if text == "auto":
        return None
    if text == "none":
        return 0
    if not (text.isdecimal() and int(text) > 0):
        raise argparse.ArgumentTypeError(f"{text!r} is not auto, none or a number of pixels")
    return int(text)


def get_parser() -> argparse.ArgumentParser:
    parser = new_parser(__doc__)
    parser.add_argument("--config-file", required=True)
    parser.add_argument("--weights", required=True, help="checkpoint of that configuration")
    parser.add_argument("--input", nargs="+", required=True, help="images, videos, folders of them, or patterns")
    parser.add_argument("--output", type=Path, required=True, help="folder for pictures and files")
    parser.add_argument("--threshold", type=float, default=0.3, help="detections below this score are left out")
    parser.add_argument(
        "--save", nargs="+", choices=("pictures", "coco", "csv", "voc"), default=("pictures", "coco"),
        help="what to write (pictures coco)",
    )  # fmt: skip
    parser.add_argument("--platform", help="Air, Space or Land, of all images; unknown by default")
    parser.add_argument("--band", help="LWIR, NIR or SWIR, of all images; unknown by default")
    parser.add_argument("--metadata", metavar="FILE", help="table (CSV or TSV) with a line per image")
    parser.add_argument("--xml", metavar="DIR", help="XML files with <view> and <band_type>, one per image")
    parser.add_argument(
        "--tile", type=parse_tile, default=None,
        help="edge of the tiles that larger images are cut into; none: never; auto (default): images of more than "
        "twice the network's input, in tiles of that input",
    )  # fmt: skip
    parser.add_argument("--overlap", type=int, help="of neighbouring tiles, in pixels (64, of small tiles a quarter)")
    parser.add_argument("--tile-batch", type=int, default=4, help="tiles at a time (%(default)s)")
    parser.add_argument("--opts", nargs=argparse.REMAINDER, default=[], help="configuration: KEY VALUE ...")
    return parser


def run(args: argparse.Namespace) -> int:
    from ..inference.detection import detect

    return detect(args)
