"""A trained model as a function of one image: a file, pixels in memory, or a file too large for either."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from os import PathLike, fspath
from typing import Any

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.modeling import build_model
from detectron2.structures import Instances
from detectron2.utils.logger import log_first_n
from PIL.Image import Image

from .. import model_zoo
from ..config import choose_device, get_config
from ..data import build_mapper
from ..data.classes import ClassTable, check_num_classes, num_classes_of
from ..data.datasets import configured_classes
from ..data.image_io import open_raw, to_float_image
from ..data.pixel_values import value_limits
from ..data.sidecar import find_misspelt
from ..data.transforms import ResizeTransform
from ..engine.checkpoint import load_weights
from ..errors import ConfigError
from ..memory import keep_freed_memory
from .detections import Detections
from .inputs import to_array
from .merging import nms_thresh_of
from .optimization import optimize
from .test_time_augmentation import DetectorWithTTA
from .tiling import TiledPredictor, tile_grid

Progress = Callable[[Sequence[Any]], Iterator[Any]]


class Predictor:
    """Read, resize and detect as the evaluation of the same configuration does.

    An image that is larger than a tile is cut into tiles. Each carries the metadata and the size of the whole image,
    and is enlarged or reduced by the factor of a full tile. Pixels of more than 8 bits are stretched alike in all.
    With ``TEST.AUG.ENABLED`` the model sees several views of each image or tile.

    Args:
        model: the name of a model of the zoo (:mod:`irstd_d2.model_zoo`), the file of a checkpoint that has the
            ``config.yaml`` of its training beside it, or a configuration, whose ``MODEL.WEIGHTS`` are loaded.
        tile: edge of a tile in pixels of the image; 0: every image as a whole; ``None``: images with an edge of more
            than twice the network's input in tiles of the size of that input.
        overlap: of neighbouring tiles, in pixels; ``None``: 64, of small tiles a quarter.
        batch_size: tiles per call of the model.
        score_thresh: detections below it are left out; ``None``: the default of a model of the zoo, else none are.
        device: to run on; ``None``: for a name or file the GPU if there is one, for a configuration what it says.

    Attributes:
        classes: names and ids of what the model detects.

    Raises:
        ConfigError: no such model; weights that are none, of another model, or of another number of classes.
    """

    def __init__(
        self,
        model: str | PathLike | CfgNode,
        *,
        tile: int | None = None,
        overlap: int | None = None,
        batch_size: int = 4,
        score_thresh: float | None = None,
        device: str | None = None,
    ):
        known = not isinstance(model, CfgNode) and fspath(model) in model_zoo.names()
        cfg = model.clone() if isinstance(model, CfgNode) else read_config(model)
        if device is not None:
            cfg.MODEL.DEVICE = device
        if score_thresh is None:
            score_thresh = model_zoo.entry(str(model)).score_thresh if known else 0.0
        self.score_thresh = score_thresh
        detector = build_model(cfg)
        loaded = load_weights(detector, cfg)
        classes = loaded or configured_classes(cfg)
        if classes is None:  # nobody knows more of them than their number
            classes = ClassTable.from_names(f"class{index}" for index in range(num_classes_of(detector)[0]))
        self.classes = classes
        check_num_classes(detector, self.classes, f"weights {cfg.MODEL.WEIGHTS}")
        self._takes_metadata = any(hasattr(module, "vocabulary") for module in detector.modules())
        self.model = optimize(detector)
        self._mapper = build_mapper(cfg, is_train=False)
        self._format, self._high_bit_depth = cfg.INPUT.FORMAT, cfg.INPUT.HIGH_BIT_DEPTH
        self.tile = _network_size(cfg) if tile is None else tile
        # Edge above which an image is cut.
        self.largest_whole = 2 * self.tile if tile is None else self.tile or float("inf")
        if overlap is None:
            overlap = min(64, self.tile // 4)
        self._grid: dict[str, Any] = {"tile": self.tile, "overlap": overlap, "align": _stride(self.model)}
        self._batch_size, self._nms_thresh = batch_size, nms_thresh_of(cfg, self.model)
        if cfg.TEST.AUG.ENABLED:
            self.model = DetectorWithTTA(cfg, self.model)
        if self.tile:
            tile_grid(self.tile, self.tile, **self._grid)  # refuses an impossible overlap here
            self._factors = self._tile_factors(self.tile)

    def __call__(
        self,
        image: str | PathLike | np.ndarray | torch.Tensor | Image,
        metadata: Mapping[str, Any] | None = None,
        progress: Progress | None = None,
    ) -> Detections:
        """Detect the targets of one image.

        Args:
            image: an image file; its pixels as OpenCV reads them, gray (H, W) or BGR (H, W, 3), 8 to 32 bits or float;
                a PIL image; or a tensor, gray (H, W) or RGB (1 or 3, H, W).
            metadata: what is known of the image: ``platform``, ``band``; ``width`` and ``height`` where they are not
                those of the image itself.
            progress: wraps the batches of tiles, e.g. ``tqdm.tqdm``.

        Returns:
            The detections of at least ``score_thresh``, best first, in pixels of the image, on the CPU.

        Raises:
            DatasetError: the file cannot be read, or the pixels are of no kind that an image has.
            ConfigError: a field of the metadata is misspelt.
        """
        self._check_metadata(metadata or {})
        name = fspath(image) if isinstance(image, str | PathLike) else "image in memory"
        raw = open_raw(image) if isinstance(image, str | PathLike) else to_array(image)
        found = self._detect(raw, name, dict(metadata or {}), progress)
        found = found[found.scores >= self.score_thresh]
        return Detections(found, raw, name, self.classes, self._high_bit_depth)

    def _detect(self, raw: np.ndarray, name: str, metadata: dict[str, Any], progress: Progress | None) -> Instances:
        if max(raw.shape[:2]) > self.largest_whole:
            limits = value_limits(raw, name, self._high_bit_depth)
            prepare = partial(self._prepare, name=name, limits=limits)
            tiled = TiledPredictor(
                self.model,
                **self._grid,
                batch_size=self._batch_size,
                nms_thresh=self._nms_thresh,
                prepare=prepare,
                whole=self._mapper.of_whole_image(
                    raw, lambda rows: to_float_image(rows, name, self._format, self._high_bit_depth, limits)
                ),
            )
            return tiled(raw, metadata, progress)
        pixels = to_float_image(raw, name, self._format, self._high_bit_depth)
        sample = self._mapper({"file_name": name, "image": pixels, "metadata": metadata})
        with torch.no_grad():
            return self.model([sample])[0]["instances"].to("cpu")

    def _check_metadata(self, metadata: Mapping[str, Any]) -> None:
        misspelt = find_misspelt(metadata)
        if misspelt is not None:
            raise ConfigError(f"the metadata has {misspelt[0]!r}; write {misspelt[1]!r}")
        given = [field for field in ("platform", "band") if metadata.get(field)]
        if given and not self._takes_metadata:
            message = f"This model takes no metadata: {' and '.join(given)} are not used"
            log_first_n(logging.WARNING, message, key="message")

    def _prepare(self, crop: np.ndarray, *, name: str, limits: tuple[float, float]) -> torch.Tensor:
        """From a crop of the image to the network's input, enlarged or reduced like a full tile."""
        pixels = to_float_image(crop, name, self._format, self._high_bit_depth, limits)
        height, width = pixels.shape[:2]
        new_size = round(height * self._factors[0]), round(width * self._factors[1])
        if new_size != (height, width):
            pixels = ResizeTransform(height, width, *(max(1, side) for side in new_size)).apply_image(pixels)
        return torch.from_numpy(np.ascontiguousarray(pixels.transpose(2, 0, 1)))

    def _tile_factors(self, tile: int) -> tuple[float, float]:
        """By how much the configuration enlarges a full tile, vertically and horizontally."""
        blank = np.zeros((tile, tile, 3), np.float32)
        height, width = self._mapper({"file_name": "tile", "image": blank, "metadata": {}})["image"].shape[1:]
        return height / tile, width / tile


def read_config(
    weights: str | PathLike, config_file: str | PathLike | None = None, opts: Sequence[str] = ()
) -> CfgNode:
    """The configuration of a model of the zoo or a checkpoint, on the CPU where there is no GPU.

    Raises:
        ConfigError: a file is missing, no configuration belongs to the weights, or ``opts`` ask for a missing GPU.
    """
    resolved = model_zoo.resolve_weights(weights)
    path = model_zoo.find_config(config_file) if config_file else model_zoo.config_of(weights)
    cfg = get_config(path, ["MODEL.WEIGHTS", resolved, *opts])
    choose_device(cfg, opts)
    if cfg.MODEL.DEVICE == "cpu":
        keep_freed_memory()
    return cfg


def _network_size(cfg: CfgNode) -> int:
    """Edge of the images that the network sees, hence of a tile that is neither enlarged nor reduced."""
    if cfg.INPUT.RESIZE_MODE == "fixed":
        return int(min(cfg.INPUT.FIXED_SIZE))
    if cfg.INPUT.RESIZE_MODE == "shortest_edge" and cfg.INPUT.MIN_SIZE_TEST:
        return int(cfg.INPUT.MIN_SIZE_TEST)
    return 512


def _stride(model: torch.nn.Module) -> int:
    """The coarsest stride of a detector's backbone; 1 where it does not say."""
    backbone: Any = getattr(model, "backbone", None)
    shapes = backbone.output_shape() if backbone is not None else {}
    return max((shape.stride or 1 for shape in shapes.values()), default=1)
