"""A detector made fast for inference, with the same detections up to rounding.

Batch norm that keeps its statistics is one multiplication and one addition per channel: it goes into the weights of the
convolution before it. Convolutions and everything element by element are then faster with the channels innermost, and
on a CPU some layers by another way of computing the same.
"""

from __future__ import annotations

import copy
import logging
from collections import Counter
from collections.abc import Sequence
from itertools import pairwise
from typing import Any, TypeGuard

import torch
from detectron2.layers import Conv2d, FrozenBatchNorm2d, ROIAlign
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils.fusion import fuse_conv_bn_weights

from ..errors import check_known
from ..modeling.fast_paths import in_graph
from ..modeling.fcos import ConvTower
from .roi_align import RowROIAlign
from .winograd import WinogradConv2d

logger = logging.getLogger(__name__)

# What "equal detections" means: pixels, and probability.
BOX_TOLERANCE, SCORE_TOLERANCE = 0.02, 1e-4
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def optimize(model: nn.Module, example: Sequence[dict[str, Any]] | None = None, *, dtype: str = "float32") -> nn.Module:
    """Return a copy of a detector for inference alone that is faster and detects the same.

    Batch norms are folded into their convolutions, weights lie channels-last, nothing has a gradient; on a CPU wide 3x3
    convolutions run by ``WinogradConv2d`` and regions are pooled by ``RowROIAlign``. The copy has the
    class and the attributes of the model, but its weights have other names: save those of the model.

    Args:
        model: any detector, in any mode; it is left as it is.
        example: samples on which copy and model are compared, so that a model that this does not suit is found out.
        dtype: "float32"; "bfloat16" or "float16" run convolutions and matrix products in half precision (autocast),
            which is faster where the processor has units for it, and moves scores by some thousandths.

    Raises:
        ConfigError: for an unknown ``dtype``.
        RuntimeError: the detections in ``example`` differ, in float32 by more than 0.02 pixels or 1e-4.
    """
    check_known("the type", dtype, DTYPES)
    fast = copy.deepcopy(model).eval().requires_grad_(False)
    folded = fold_batch_norms(fast)
    fast = fast.to(memory_format=torch.channels_last)
    if next(fast.parameters()).device.type == "cpu":
        _exchange_layers(fast)
    logger.debug("folded %d batch norms into their convolutions", folded)
    if example is not None:
        _compare(model, fast, example)
    if dtype != "float32":
        device = next(fast.parameters()).device.type
        fast.forward = torch.autocast(device, DTYPES[dtype])(fast.forward)  # type: ignore[method-assign]
    return fast


class LevelTowers(nn.ModuleList):
    """A ``ConvTower`` whose levels have convolutions of their own, into which their batch norms can be folded."""

    def __init__(self, tower: ConvTower):
        super().__init__()
        for norms in zip(*(conv.norm for conv in tower)):
            copies = copy.deepcopy(tower)
            for conv, norm in zip(copies, norms):
                conv.norm = norm
            self.append(nn.Sequential(*copies))

    def forward(self, x: Tensor, level: int = 0) -> Tensor:
        """(N, C, H, W) -> (N, C, H, W)"""
        return self[level](x)


def fold_batch_norms(model: nn.Module) -> int:
    """Fold the batch norms of a model in evaluation mode into the convolutions before them, in place.

    Those that detectron2's ``Conv2d`` holds, and those that follow a convolution in an ``nn.Sequential``; a convolution
    that stands in several places is left alone there.

    Returns:
        the number of batch norms that are gone.
    """
    for parent in list(model.modules()):
        for name, child in parent.named_children():
            if isinstance(child, ConvTower) and all(isinstance(conv.norm, nn.ModuleList) for conv in child):
                setattr(parent, name, LevelTowers(child))
    places = Counter(id(module) for _, module in model.named_modules(remove_duplicate=False))
    folded = 0
    for module in model.modules():
        if isinstance(module, Conv2d) and _can_be_folded(module.norm):
            _fold(module, module.norm)
            module.norm = None
            folded += 1
        elif isinstance(module, nn.Sequential):
            for (_, first), (name, second) in pairwise(list(module.named_children())):
                if _ends_linear(first) and places[id(first)] == 1 and _can_be_folded(second):
                    _fold(first, second)
                    setattr(module, name, nn.Identity())
                    folded += 1
    return folded


def _ends_linear(module: nn.Module) -> TypeGuard[nn.Conv2d]:
    """Whether a module is a convolution and nothing behind it."""
    behind = (getattr(module, "norm", None), getattr(module, "activation", None))
    return type(module) in (nn.Conv2d, Conv2d) and behind == (None, None)


def _can_be_folded(norm: nn.Module | None) -> bool:
    if isinstance(norm, FrozenBatchNorm2d):
        return True
    return isinstance(norm, _BatchNorm) and not norm.training and norm.running_mean is not None


def _fold(conv: nn.Conv2d, norm: Any) -> None:
    conv.weight, conv.bias = fuse_conv_bn_weights(
        conv.weight, conv.bias, norm.running_mean, norm.running_var, norm.eps, norm.weight, norm.bias
    )


class ChannelsLastGroupNorm(nn.Module):
    """``nn.GroupNorm`` for inference on a CPU with the channels innermost.

    There PyTorch sums all places one after another, and is wrong by 3e-5 on a map of 128 x 128, which scores show. Sums
    of sums are not.

    Args:
        norm: whose weights are taken over.
    """

    def __init__(self, norm: nn.GroupNorm):
        super().__init__()
        self.num_groups, self.eps = norm.num_groups, norm.eps
        self.weight, self.bias = norm.weight, norm.bias

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, C, H, W)"""
        if x.dtype != torch.float32 or in_graph():
            return nn.functional.group_norm(x, self.num_groups, self.weight, self.bias, self.eps)
        mean = self._over_groups(x.sum((2, 3)), x)
        centered = x - mean
        variance = self._over_groups((centered * centered).sum((2, 3)), x)
        scale = self.weight[:, None, None] * (variance + self.eps).rsqrt()
        return torch.addcmul(self.bias[:, None, None], centered, scale)

    def _over_groups(self, sums: Tensor, x: Tensor) -> Tensor:
        """Sums over the places of every channel (N, C) to means over the groups (N, C, 1, 1)."""
        size = x[0].numel() // self.num_groups
        means = sums.unflatten(1, (self.num_groups, -1)).sum(2) / size
        return means.repeat_interleave(x.shape[1] // self.num_groups, dim=1)[:, :, None, None]


def _exchange_layers(model: nn.Module) -> None:
    """Put layers that are faster or more exact on a CPU in the place of others."""
    exchanged: dict[nn.Module, nn.Module] = {}  # a layer that stands in several places stays one
    for parent in reversed(list(model.modules())):  # a convolution after the norm that it holds
        for name, child in parent.named_children():
            if child not in exchanged:
                exchanged[child] = _layer_for_cpu(child)
            setattr(parent, name, exchanged[child])
    for module in model.modules():  # detectron2's FPN runs its convolutions from lists beside their names
        for name, value in vars(module).items():
            if isinstance(value, list) and any(isinstance(item, nn.Module) for item in value):
                vars(module)[name] = [exchanged.get(item, item) for item in value]


def _layer_for_cpu(layer: nn.Module) -> nn.Module:
    if type(layer) is nn.GroupNorm and layer.affine:
        return ChannelsLastGroupNorm(layer)
    if type(layer) is ROIAlign:
        return RowROIAlign(layer)
    return WinogradConv2d(layer) if WinogradConv2d.suits(layer) else layer


def _compare(model: nn.Module, fast: nn.Module, example: Sequence[dict[str, Any]]) -> None:
    was_training = model.training
    try:
        with torch.no_grad():
            expected, found = model.eval()(list(example)), fast(list(example))
    finally:
        model.train(was_training)
    for number, (first, second) in enumerate(zip(expected, found, strict=True)):
        a, b = first["instances"], second["instances"]
        boxes = scores = float("inf")
        if len(a) == len(b):
            # Detections of almost equal scores may change places; the nearest box is the partner.
            distance = (a.pred_boxes.tensor[:, None] - b.pred_boxes.tensor[None]).abs().amax(2)
            distance = distance + (a.pred_classes[:, None] != b.pred_classes[None]) * 1e6
            boxes, partner = (part.tolist() for part in distance.min(1)) if len(a) else ([0.0], [])
            scores = float((a.scores - b.scores[partner]).abs().max()) if len(a) else 0.0
            boxes = max(boxes)
        if boxes > BOX_TOLERANCE or scores > SCORE_TOLERANCE:
            raise RuntimeError(
                f"the optimised {type(model).__name__} detects otherwise in example {number}: {len(a)} and {len(b)} "
                f"detections, boxes up to {boxes:.3g} pixels and scores up to {scores:.2g} apart"
            )
