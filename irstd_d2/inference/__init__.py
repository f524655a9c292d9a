"""Inference: images, videos, and images beyond the training size."""

from .predictor import Predictor
from .tiling import TiledPredictor, tile_grid

__all__ = ["Predictor", "TiledPredictor", "tile_grid"]
