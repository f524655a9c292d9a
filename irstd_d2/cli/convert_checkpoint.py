#!/usr/bin/env python3
"""Convert checkpoints between their published names and this project's.

    python tools/convert_checkpoint.py auxdet best.pth auxdet_r50.pth
    python tools/convert_checkpoint.py bafe published.pth bafe_r50.pth
    python tools/convert_checkpoint.py cascade_rpn published.pth baseline.pth
    python tools/convert_checkpoint.py resnet resnet50.pth backbone.pth     torchvision's ResNet as MODEL.WEIGHTS
    python tools/convert_checkpoint.py efficientnet_lite0 IN OUT    ImageNet weights, see docs/components.md
    python tools/convert_checkpoint.py auxdet auxdet_r50.pth published.pth --reverse

Every tensor is used, or reported with its size. Files are read as plain tensors; none can run code.
"""

from __future__ import annotations

import argparse
import logging

from auxdet_d2.checkpoint import AUXDET_NAMES, CASCADE_RPN_NAMES
from bafe_d2.checkpoint import BAFE_NAMES
from irstd_d2.checkpoint import EFFICIENTNET_LITE0_NAMES, RESNET_NAMES, NameMap, read_state_dict, write_checkpoint

logger = logging.getLogger("convert_checkpoint")

MODELS: dict[str, NameMap] = {
    "auxdet": AUXDET_NAMES,
    "bafe": BAFE_NAMES,
    "cascade_rpn": CASCADE_RPN_NAMES,
    "efficientnet_lite0": EFFICIENTNET_LITE0_NAMES,
    "resnet": RESNET_NAMES,
}


def convert(model: str, source: str, target: str, *, reverse: bool = False) -> None:
    """Convert one file.

    Args:
        model: a key of ``MODELS``.
        source: file to read.
        target: file to write: ``{"model": ...}`` for detectron2, ``{"state_dict": ...}`` in reverse.
        reverse: from this project's names to the published ones.
    """
    names = MODELS[model]
    state = read_state_dict(source)
    if reverse:
        # Not weights: the constants of pixel normalisation live in the configuration.
        state = {name: tensor for name, tensor in state.items() if not name.startswith("pixel_")}
        renamed = names.to_published(state)
        write_checkpoint({"state_dict": renamed.values, "meta": {}}, target)
    else:
        renamed = names.to_ours(state)
        write_checkpoint({"model": renamed.values, "__author__": "irstd-d2"}, target)
    if renamed.dropped:
        total = sum(tensor.numel() for tensor in renamed.dropped.values())
        logger.info("left out %d tensors with %d numbers that never run: %s", len(renamed.dropped), total,
                    ", ".join(f"{name} {tuple(t.shape)}" for name, t in renamed.dropped.items()))  # fmt: skip
    logger.info("%d tensors written to %s", len(renamed.values), target)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", choices=sorted(MODELS))
    parser.add_argument("source", metavar="IN")
    parser.add_argument("target", metavar="OUT")
    parser.add_argument("--reverse", action="store_true", help="from this project's names to the published ones")
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        convert(args.model, args.source, args.target, reverse=args.reverse)
    except (KeyError, ValueError) as error:
        parser.exit(1, f"error: {error}\n")


if __name__ == "__main__":
    main()
