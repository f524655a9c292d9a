"""AuxDet: metadata-conditioned detection of infrared small targets. Importing registers its parts."""

from irstd_d2 import System, Tap, register_system

from . import data, modeling
from .checkpoint import AUXDET_NAMES, CASCADE_RPN_NAMES
from .config import add_auxdet_config
from .metadata import (
    ImagingMetadata,
    MetadataBatch,
    MetadataVocabulary,
    NumericField,
    Vocabulary,
    collate_metadata,
    remark_on_metadata,
)

register_system(
    System(
        __name__,
        add_auxdet_config,
        checkpoint_names={"auxdet": AUXDET_NAMES, "cascade_rpn": CASCADE_RPN_NAMES},
        export_module=f"{__name__}.export",
        equality_module=f"{__name__}.equality",
        # What the paper shows: features before and after metadata and edges.
        feature_taps=(
            Tap(modeling.FeatureRefinement, "before M2DM", "input"),
            Tap(modeling.M2DM, "after M2DM"),
            Tap(modeling.LEEM, "edges by LEEM"),
            Tap(modeling.FeatureRefinement, "after LEEM"),
        ),
        metadata_remark=remark_on_metadata,
    )
)

__all__ = [
    "ImagingMetadata",
    "MetadataBatch",
    "MetadataVocabulary",
    "NumericField",
    "Vocabulary",
    "add_auxdet_config",
    "collate_metadata",
    "data",
    "modeling",
]
