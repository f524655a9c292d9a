"""Parameters and multiply-adds of a model, per module.

Counted are the multiply-adds of convolutions, matrix products, norms and interpolations inside modules, as fvcore
counts them; a deformable convolution counts as a convolution of its size. Element-wise operations, pooling of regions,
decoding and non-maximum suppression count nothing.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.modeling import build_model
from fvcore.nn import FlopCountAnalysis
from torch import Tensor, nn

from irstd_d2.export.graphs import DetectionGraph, build_graph, example_inputs

SMALLEST_PROBE = 64  # pixels


@dataclass(frozen=True)
class Complexity:
    """Cost of a model, in total and per module.

    Attributes:
        parameters: name of a module -> parameters in it and below; the empty name is the whole model.
        fixed: name -> multiply-adds that do not depend on the size of the image.
        per_pixel: name -> multiply-adds per pixel of the batch.
    """

    parameters: dict[str, int]
    fixed: dict[str, float]
    per_pixel: dict[str, float]

    def multiply_adds(self, size: tuple[int, int], module: str = "") -> float:
        """Of one image of (height, width) pixels, in a module and below."""
        return self.fixed[module] + self.per_pixel[module] * size[0] * size[1]

    def modules(self, depth: int) -> list[str]:
        """Names of at most ``depth`` parts, in the order of the model."""
        return [name for name in self.parameters if name and name.count(".") < depth]


def deformable_multiply_adds(inputs: list[Any], outputs: list[Any]) -> Counter:
    """Multiply-adds of ``torchvision::deform_conv2d``, from shapes that fvcore reads from a trace."""
    weight, output = inputs[1].type().sizes(), outputs[0].type().sizes()
    return Counter({"deform_conv": int(np.prod(output) * np.prod(weight[1:]))})


def count_parameters(model: nn.Module) -> dict[str, int]:
    """Parameters in every module and below, by its name."""
    return {name: sum(p.numel() for p in module.parameters()) for name, module in model.named_modules()}


class _EveryOutput(nn.Module):
    """A graph that also returns what its layers compute, so that tracing does not drop what no output needs."""

    def __init__(self, graph: nn.Module):
        super().__init__()
        self.graph = graph

    def forward(self, *inputs: Tensor) -> list[Tensor]:
        outputs: list[Tensor] = []
        layers = [module for module in self.graph.modules() if isinstance(module, nn.Conv2d | nn.Linear)]
        hooks = [layer.register_forward_hook(lambda *call: outputs.append(call[2])) for layer in layers]
        try:
            return [*self.graph(*inputs), *outputs]
        finally:
            for hook in hooks:
                hook.remove()


def analyze(model: nn.Module) -> Complexity:
    """Count a model; it is run twice on small images.

    Their sides are multiples of the coarsest stride, so that counts are exactly linear in the number of pixels.

    Args:
        model: any that can be exported (``irstd_d2.export``), on the CPU.

    Raises:
        ConfigError: for a model that has no exported form.
    """
    graph = build_graph(model)
    backbone: Any = model.backbone
    side = max(SMALLEST_PROBE, *(shape.stride for shape in backbone.output_shape().values()))
    counts = [_count(graph, probe) for probe in (side, 2 * side)]
    areas = [side**2, 4 * side**2]
    names = list(count_parameters(model))
    slope = {name: (counts[1][name] - counts[0][name]) / (areas[1] - areas[0]) for name in names}
    fixed = {name: counts[0][name] - slope[name] * areas[0] for name in names}
    return Complexity(count_parameters(model), fixed, slope)


def _count(graph: DetectionGraph, side: int) -> dict[str, float]:
    """Multiply-adds by module of the model inside an exported form."""
    with torch.no_grad():
        inputs = example_inputs(graph, (side, side), num_images=1)
        analysis = FlopCountAnalysis(_EveryOutput(graph), inputs)
        analysis.unsupported_ops_warnings(False).uncalled_modules_warnings(False).tracer_warnings("none")
        analysis.set_op_handle("torchvision::deform_conv2d", deformable_multiply_adds)
        counts = analysis.by_module()
    prefix = "graph.model."
    inside: dict[str, float] = defaultdict(float)
    inside.update({name.removeprefix(prefix): count for name, count in counts.items() if name.startswith(prefix)})
    # What the exported form does itself, such as scaling the sky up, is no part of the network.
    inside[""] = sum(inside[name] for name, _ in graph.model.named_children())
    return inside


def build_on_cpu(cfg: CfgNode) -> nn.Module:
    """Build a model without weights on the CPU."""
    cfg = cfg.clone()
    cfg.defrost()
    cfg.MODEL.DEVICE, cfg.MODEL.WEIGHTS = "cpu", ""
    return build_model(cfg).eval()
