"""Seeded synthetic infrared scenes of several platforms and bands, with targets, look-alikes and sky masks."""

from .domains import ImagingDomain
from .scene import Scene, SceneConfig, SceneGenerator, dense_config
from .writer import write_densesirst, write_wideirstd

__all__ = [
    "ImagingDomain",
    "Scene",
    "SceneConfig",
    "SceneGenerator",
    "dense_config",
    "write_densesirst",
    "write_wideirstd",
]
