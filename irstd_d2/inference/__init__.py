"""Inference: images, videos, images beyond the training size, and several views of each."""

from .detections import Detections
from .optimization import optimize
from .predictor import Predictor
from .test_time_augmentation import DetectorWithTTA
from .tiling import TiledPredictor, tile_grid

__all__ = ["Detections", "DetectorWithTTA", "Predictor", "TiledPredictor", "optimize", "tile_grid"]
