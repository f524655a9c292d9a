"""Seeded synthetic infrared scenes of several platforms and bands, with targets, look-alikes and sky masks."""

from .config import BackgroundChoice, ClusterRule, DomainRule, SceneConfig, dense_config
from .domains import ImagingDomain
from .preview import contact_sheet
from .scene import Scene, SceneGenerator
from .writer import write_densesirst, write_wideirstd

__all__ = [
    "BackgroundChoice",
    "ClusterRule",
    "DomainRule",
    "ImagingDomain",
    "Scene",
    "SceneConfig",
    "SceneGenerator",
    "contact_sheet",
    "dense_config",
    "write_densesirst",
    "write_wideirstd",
]
