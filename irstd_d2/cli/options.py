"""What the arguments of several commands share. Nothing heavy is imported here."""

from __future__ import annotations

import argparse

# Names of the library, here again so that --help need not import it.
LAYOUTS = ("densesirst", "sirstv2", "wideirstd", "voc", "voc_png")
HIGH_BIT_DEPTH_MODES = ("auto", "full_range", "minmax", "percentile")
DATASET_FORMATS = ("voc", "coco", "mask", "yolo")
STRATA = ("platform", "band", "resolution", "empty")
BOX_CONVENTIONS = ("half_open", "one_based", "inclusive", "paper")
MASK_VALUES = ("auto", "labels", "levels")
EXPORT_FORMATS = ("torchscript", "onnx")


def new_parser(description: str | None) -> argparse.ArgumentParser:
    """A parser that shows a module's docstring as it is written."""
    return argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
