"""What a model computes on one image: its feature maps before and after chosen modules, its detections, its sky mask.

Modules are watched by forward hooks, so that any model can be looked into without changing it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from detectron2.modeling import build_model
from torch import Tensor, nn

from ..config import choose_device, get_config
from ..data import build_mapper
from ..engine.checkpoint import IRSTDCheckpointer
from ..errors import DatasetError
from ..systems import Tap
from .run import Run, weights_of

SMALLEST_MAP = 4  # cells along the shorter side; coarser maps show nothing


BACKBONE = Tap(None, "neck: what the heads see")


@dataclass(frozen=True)
class FeatureMap:
    """Mean absolute activation over channels.

    Attributes:
        level: name of the pyramid level or stage.
        values: (h, w)
        covered: shares of height and width that lie on the image; the rest is padding.
    """

    level: str
    values: np.ndarray
    covered: tuple[float, float]


@dataclass(frozen=True)
class Insight:
    """A model's work on one image.

    Attributes:
        rows: title of the tap -> maps, finest first; taps without a module in the model are left out.
        sky: (H, W) bool in the size of the original image, or ``None`` from a model without such a task.
    """

    rows: dict[str, list[FeatureMap]]
    sky: np.ndarray | None


class Lens:
    """A trained model whose feature maps are watched.

    Args:
        run: its folder holds the configuration and the weights.
        taps: what to watch, in the order of the rows.

    Raises:
        DatasetError: the run has no configuration or no weights.
        ConfigError: the configuration does not fit this version.
    """

    def __init__(self, run: Run, taps: Sequence[Tap]):
        weights = weights_of(run)
        if not run.settings:
            raise DatasetError(
                run.folder, "run", "config.yaml is missing or cannot be read", "give the folder of a run"
            )
        if weights is None:
            raise DatasetError(run.folder, "run", "the folder has no checkpoint", "train or copy one there")
        # A model works without the sets it was trained on, also where another run's set has the name of one.
        cfg = get_config(run.folder / "config.yaml", ["MODEL.WEIGHTS", "", "DATASETS.OWN", "()"])
        choose_device(cfg)
        self.model = build_model(cfg).eval()
        IRSTDCheckpointer(self.model).load(str(weights))
        self.weights: Path = weights
        self._mapper = build_mapper(cfg, is_train=False)
        self._taps = tuple(taps)

    @torch.no_grad()
    def __call__(self, record: dict[str, Any]) -> Insight:
        """Run the model on one record of a data set."""
        sample = self._mapper(record)
        with watch(self.model, self._taps) as seen:
            result = self.model([sample])[0]
        height, width = sample["image"].shape[-2:]
        divisor = max(1, getattr(getattr(self.model, "backbone", None), "size_divisibility", 1))
        covered = tuple(n / (math.ceil(n / divisor) * divisor) for n in (height, width))
        rows = {}
        for tap, maps in seen.items():
            maps = [(level, x) for level, x in maps if min(x.shape[-2:]) >= SMALLEST_MAP]
            if maps:
                rows[tap.title] = [
                    FeatureMap(level, x[0].float().abs().mean(0).cpu().numpy(), (covered[0], covered[1]))
                    for level, x in maps
                ]
        sky = result.get("sem_seg")
        return Insight(rows, None if sky is None else (sky.argmax(0) == 1).cpu().numpy())


@contextmanager
def watch(model: nn.Module, taps: Sequence[Tap]) -> Iterator[dict[Tap, list[tuple[str, Tensor]]]]:
    """Collect feature maps while the block runs the model.

    Yields:
        tap -> (level, (N, C, h, w)) in the order of the calls. The level is the key of a dict of maps, else the last
        part of the module's name, else the number of the call.
    """
    seen: dict[Tap, list[tuple[str, Tensor]]] = {tap: [] for tap in taps}

    def hook(tap: Tap, name: str, several: bool):
        def record(_module: nn.Module, inputs: tuple[Any, ...], outputs: Any) -> None:
            level = name.rpartition(".")[2] if several else f"level {len(seen[tap]) + 1}"
            seen[tap] += _feature_maps(inputs if tap.side == "input" else outputs, tap, level)

        return record

    with ExitStack() as stack:
        for tap in taps:
            modules = _modules(model, tap)
            for name, module in modules:
                handle = module.register_forward_hook(hook(tap, name, len(modules) > 1))
                stack.callback(handle.remove)
        yield seen


def _modules(model: nn.Module, tap: Tap) -> list[tuple[str, nn.Module]]:
    if tap.module is None:
        backbone = getattr(model, "backbone", None)
        return [("backbone", backbone)] if isinstance(backbone, nn.Module) else []
    return [(name, module) for name, module in model.named_modules() if isinstance(module, tap.module)]


def _feature_maps(value: Any, tap: Tap, level: str) -> list[tuple[str, Tensor]]:
    if isinstance(value, Tensor):
        value = (value,)
    if isinstance(value, Mapping):
        return [(str(key), x) for key, x in value.items() if isinstance(x, Tensor) and x.ndim == 4]
    chosen = value[tap.index] if isinstance(value, Sequence) and tap.index < len(value) else None
    if isinstance(chosen, Mapping):
        return _feature_maps(chosen, tap, level)
    return [(level, chosen)] if isinstance(chosen, Tensor) and chosen.ndim == 4 else []


def target_ratio(feature_map: FeatureMap, boxes: np.ndarray, image_size: tuple[int, int]) -> float:
    """Mean activation of the cells at the targets' centres over the mean of all other cells on the image.

    Args:
        boxes: (G, 4) x1 y1 x2 y2 of the targets in pixels of the original image.
        image_size: (height, width) of the original image.

    Returns:
        NaN without targets, or without any other cell.
    """
    cells = np.array(feature_map.values.shape)
    covered = np.array(feature_map.covered) * cells
    used = feature_map.values[: math.ceil(covered[0]), : math.ceil(covered[1])]
    centres = (boxes[:, [1, 0]] + boxes[:, [3, 2]]) / 2 / np.array(image_size) * covered
    y, x = np.clip(centres.astype(int), 0, np.array(used.shape) - 1).T
    at_target = np.zeros(used.shape, bool)
    at_target[y, x] = True
    if not at_target.any() or at_target.all():
        return math.nan
    return float(used[at_target].mean() / max(float(used[~at_target].mean()), 1e-12))
