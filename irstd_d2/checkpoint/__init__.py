"""Conversion between published checkpoints and this project's."""

from .efficientnet import EFFICIENTNET_LITE0_NAMES
from .files import load_plain, read_state_dict, with_versions, write_checkpoint
from .naming import RESNET_NAMES, NameMap, NamingError, Renamed, fpn_rules, resnet_rules

__all__ = [
    "EFFICIENTNET_LITE0_NAMES",
    "RESNET_NAMES",
    "NameMap",
    "NamingError",
    "Renamed",
    "fpn_rules",
    "load_plain",
    "read_state_dict",
    "resnet_rules",
    "with_versions",
    "write_checkpoint",
]
