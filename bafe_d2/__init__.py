"""BAFE-Net: detection of infrared small targets with background semantics. Importing registers its parts."""

from irstd_d2 import System, Tap, register_system

from . import data, modeling
from .checkpoint import BAFE_NAMES
from .config import add_bafe_config

register_system(
    System(
        __name__,
        add_bafe_config,
        checkpoint_names={"bafe": BAFE_NAMES},
        export_module=f"{__name__}.export",
        equality_module=f"{__name__}.equality",
        # What the paper shows: features of both tasks before and after their exchange.
        feature_taps=(
            Tap(modeling.FeatureExchange, "background, before exchange", "input", 0),
            Tap(modeling.FeatureExchange, "background, after exchange", "output", 0),
            Tap(modeling.FeatureExchange, "classification, before exchange", "input", 1),
            Tap(modeling.FeatureExchange, "classification, after exchange", "output", 1),
        ),
    )
)

__all__ = ["add_bafe_config", "data", "modeling"]
