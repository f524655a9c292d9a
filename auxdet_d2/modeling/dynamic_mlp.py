"""An MLP whose weights are predicted per image from auxiliary features (Eq. 8).

The layers are those of "Dynamic MLP for Fine-Grained Image Classification by Leveraging Geographical and Temporal
Information" (CVPR 2022), variants A to C.

N images, C channels, A auxiliary features, I inputs and O outputs of a dynamic layer.
"""

from __future__ import annotations

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from irstd_d2.errors import ConfigError, check_number


def per_sample_linear(x: Tensor, weights: Tensor) -> Tensor:
    """Multiply each image's vector (N, I) by its own matrix, (N, I * O) row by row: (N, O)."""
    return torch.bmm(x[:, None], weights.unflatten(1, (x.shape[1], -1)))[:, 0]


class DynamicLayer(nn.Module):
    """Variant A: the auxiliary features (A) give the weights of a layer from I to O by one linear map."""

    def __init__(self, in_features: int, out_features: int, aux_features: int):
        super().__init__()
        self.weights = nn.Linear(aux_features, in_features * out_features)
        self.norm = nn.LayerNorm(out_features)

    def forward(self, x: Tensor, aux: Tensor) -> Tensor:
        """Map (N, I) under (N, A) to (N, O)."""
        return F.relu(self.norm(per_sample_linear(x, self.weights(aux))))


class DeepDynamicLayer(nn.Module):
    """Variants B and C: two-layer MLPs prepare the input and give the weights, and a plain layer follows.

    With ``joint`` both MLPs see input and auxiliary features (C) instead of one each (B).
    """

    def __init__(self, in_features: int, out_features: int, aux_features: int, joint: bool = False):
        super().__init__()
        self.joint = joint
        both = in_features + aux_features
        self.prepare = nn.Sequential(
            nn.Linear(both if joint else in_features, in_features),
            nn.ReLU(inplace=True),
            nn.Linear(in_features, in_features),
        )
        self.weights = nn.Sequential(
            nn.Linear(both if joint else aux_features, in_features),
            nn.ReLU(inplace=True),
            nn.Linear(in_features, in_features * out_features),
        )
        self.norm = nn.LayerNorm(out_features)
        self.output = nn.Sequential(
            nn.Linear(out_features, out_features, bias=False), nn.LayerNorm(out_features), nn.ReLU(inplace=True)
        )

    def forward(self, x: Tensor, aux: Tensor) -> Tensor:
        """Map (N, I) under (N, A) to (N, O)."""
        if self.joint:
            x = aux = torch.cat([x, aux], dim=1)
        return self.output(F.relu(self.norm(per_sample_linear(self.prepare(x), self.weights(aux)))))


def build_dynamic_layer(variant: str, in_features: int, out_features: int, aux_features: int) -> nn.Module:
    """Build a dynamic layer of variant "A" (published in AuxDet), "B" or "C"."""
    if variant == "A":
        return DynamicLayer(in_features, out_features, aux_features)
    if variant in ("B", "C"):
        return DeepDynamicLayer(in_features, out_features, aux_features, joint=variant == "C")
    raise ConfigError(f"MODEL.AUXDET.DYNAMIC_MLP.VARIANT is {variant!r}; known are 'A', 'B', 'C'")


class DynamicMLP(nn.Module):
    """Fuse pooled image features with auxiliary features through dynamic layers (Eq. 8).

    A linear bottleneck, dynamic layers that narrow and widen again, a residual sum at the width of the input, and a
    projection to the modulation vector.

    Args:
        channels: C.
        aux_features: A.
        out_features: width of the result; ``None`` leaves the projection out and gives C.
        bottleneck: width in front of and behind the dynamic layers (D of Eq. 8); by default C / 2.
        hidden: width between the dynamic layers.
        num_layers: dynamic layers, at least one.
        variant: see ``build_dynamic_layer``.
    """

    def __init__(
        self,
        channels: int,
        aux_features: int,
        out_features: int | None = None,
        *,
        bottleneck: int | None = None,
        hidden: int = 32,
        num_layers: int = 2,
        variant: str = "A",
    ):
        super().__init__()
        check_number("MODEL.AUXDET.DYNAMIC_MLP.NUM_LAYERS", num_layers, 1)
        check_number("MODEL.AUXDET.DYNAMIC_MLP.HIDDEN", hidden, 1)
        check_number("MODEL.AUXDET.DYNAMIC_MLP.BOTTLENECK", bottleneck or 0, 0)
        bottleneck = bottleneck or channels // 2
        widths = [bottleneck] + [hidden] * (num_layers - 1) + [bottleneck]
        self.reduce = nn.Linear(channels, bottleneck)
        self.layers = nn.ModuleList(build_dynamic_layer(variant, i, o, aux_features) for i, o in pairwise(widths))
        self.expand = nn.Linear(bottleneck, channels)
        self.expand_norm = nn.LayerNorm(channels)
        self.project: nn.Linear | None = None
        if out_features is not None:
            self.project = nn.Linear(channels, out_features)
            self.project_norm = nn.LayerNorm(out_features)

    def forward(self, x: Tensor, aux: Tensor) -> Tensor:
        """Map (N, C) under (N, A) to (N, out_features)."""
        y = self.reduce(x)
        for layer in self.layers:
            y = layer(y, aux)
        y = self.expand_norm(self.expand(y)) + x
        return y if self.project is None else self.project_norm(self.project(y))
