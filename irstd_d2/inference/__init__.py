"""Inference beyond one image at the training size."""

from .tiling import TiledPredictor, tile_grid

__all__ = ["TiledPredictor", "tile_grid"]
