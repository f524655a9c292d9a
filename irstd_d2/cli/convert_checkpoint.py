"""Convert checkpoints between their published names and this project's.

    irstd convert-checkpoint auxdet best.pth auxdet_r50.pth
    irstd convert-checkpoint bafe published.pth bafe_r50.pth
    irstd convert-checkpoint cascade_rpn published.pth baseline.pth
    irstd convert-checkpoint resnet resnet50.pth backbone.pth     torchvision's ResNet as MODEL.WEIGHTS
    irstd convert-checkpoint efficientnet_lite0 IN OUT    ImageNet weights, see docs/components.md
    irstd convert-checkpoint auxdet auxdet_r50.pth published.pth --reverse

Every tensor is used, or reported with its size. Files are read as plain tensors; none can run code.
"""

from __future__ import annotations

import argparse
import logging
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import ConfigError, check_known
from .options import named_faults, new_parser

if TYPE_CHECKING:
    from ..checkpoint import NameMap

logger = logging.getLogger(__name__)


def known_names() -> dict[str, NameMap]:
    """Names of tensors by model: of the backbones, and what the systems add."""
    from ..checkpoint import EFFICIENTNET_LITE0_NAMES, RESNET_NAMES
    from ..systems import registered_systems

    known = {"efficientnet_lite0": EFFICIENTNET_LITE0_NAMES, "resnet": RESNET_NAMES}
    return known | {model: names for system in registered_systems() for model, names in system.checkpoint_names.items()}


def convert(model: str, source: str, target: str, *, reverse: bool = False) -> None:
    """Convert one file of a model of :func:`known_names` to another file.

    It becomes ``{"model": ...}`` for detectron2, or with ``reverse`` ``{"state_dict": ...}`` of published names.
    """
    from ..checkpoint import read_state_dict, with_versions, write_checkpoint
    from ..checkpoint.safe import SUFFIX

    if Path(source).resolve() == Path(target).resolve():
        raise ConfigError(f"{target} would replace the file that is read; give another name for the result")
    if target.endswith(SUFFIX):
        raise ConfigError(f"{target} would be a file of torch.save with the suffix of another kind; call it .pth")
    known = known_names()
    check_known("MODEL", model, sorted(known))
    names = known[model]
    state = read_state_dict(source)
    if reverse:
        # Not weights: the constants of pixel normalisation live in the configuration.
        state = {name: tensor for name, tensor in state.items() if not name.startswith("pixel_")}
        renamed = names.to_published(state)
        write_checkpoint({"state_dict": with_versions(renamed.values), "meta": {}}, target)
        if added := len(renamed.values) - len(state):
            logger.info("added %d tensors that never run, which the published code asks for", added)
    else:
        renamed = names.to_ours(state)
        write_checkpoint({"model": renamed.values, "__author__": "irstd-d2"}, target)
    if renamed.dropped:
        total = sum(tensor.numel() for tensor in renamed.dropped.values())
        logger.info("left out %d tensors with %d numbers that never run: %s", len(renamed.dropped), total,
                    ", ".join(f"{name} {tuple(t.shape)}" for name, t in renamed.dropped.items()))  # fmt: skip
    logger.info("%d tensors written to %s", len(renamed.values), target)


def get_parser() -> argparse.ArgumentParser:
    parser = new_parser(__doc__)
    parser.add_argument("model", help="e.g. resnet, efficientnet_lite0, or one of a detection system")
    parser.add_argument("source", metavar="IN")
    parser.add_argument("target", metavar="OUT")
    parser.add_argument("--reverse", action="store_true", help="from this project's names to the published ones")
    return parser


def run(args: argparse.Namespace) -> int:
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    with named_faults():
        convert(args.model, args.source, args.target, reverse=args.reverse)
    return 0
