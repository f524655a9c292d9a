"""Lightweight edge enhancement: a residual of learned second differences (Sec. 3.4).

N images, C channels, H x W cells.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from irstd_d2.errors import check_known
from irstd_d2.modeling.fast_paths import eager_on_cpu

SECOND_DIFFERENCE = (0.25, -0.5, 0.25)  # Eq. 16
EPS = 1e-5  # guards flat maps


def normalize_std(x: Tensor, eps: float | Tensor = EPS) -> Tensor:
    """Standardise each channel of each image (N, C, H, W) with its unbiased deviation: (x - mean) / (std + eps).

    A single cell has no deviation and gives zero.
    """
    places = x.shape[2] * x.shape[3]
    if eager_on_cpu(x) and not torch.is_grad_enabled():
        # Faster there; the gradient of the scale, a sum of terms that cancel, would lose a digit.
        centred = x - x.mean(dim=(2, 3), keepdim=True)
        variance = (centred * centred).sum(dim=(2, 3), keepdim=True) / max(1, places - 1)
        return centred / (variance.sqrt() + eps)
    std, mean = torch.std_mean(x, dim=(2, 3), correction=min(1, places - 1), keepdim=True)
    return (x - mean) / (std + eps)


def normalize_instance(x: Tensor, eps: float | Tensor = EPS) -> Tensor:
    """Standardise each channel of each image with its population variance: (x - mean) / sqrt(var + eps) (Eq. 18)."""
    var, mean = torch.var_mean(x, dim=(2, 3), correction=0, keepdim=True)
    return (x - mean) * (var + eps).rsqrt()


class LEEM(nn.Module):
    """Compute the normalised edge response of a feature map.

    Args:
        channels: C.
        kernel: "1d" (published): a vertical, then a horizontal convolution with a ReLU between; "3x3": one
            convolution instead (Table 4).
        connection: "dense" (published): every channel sees every channel; "depthwise": each channel sees itself.
        init: "laplacian" (published): second differences between all pairs of channels; "laplacian_identity" (Eq.
            16): only from each channel to itself; "xavier": no prior, which is how the released weights were trained.
        norm: "std" (published): ``normalize_std`` and one scale; "instance" (Eq. 18): ``normalize_instance`` and one
            scale per channel.
        initial_scale: what the scale starts from: 1 (published); 0 begins as the network without LEEM.

    Raises:
        ConfigError: for an unknown option.
    """

    def __init__(
        self,
        channels: int,
        *,
        kernel: str = "1d",
        connection: str = "dense",
        init: str = "laplacian",
        norm: str = "std",
        initial_scale: float = 1.0,
    ):
        super().__init__()
        check_known("MODEL.AUXDET.LEEM.KERNEL", kernel, ("1d", "3x3"))
        check_known("MODEL.AUXDET.LEEM.CONNECTION", connection, ("dense", "depthwise"))
        check_known("MODEL.AUXDET.LEEM.INIT", init, ("laplacian", "laplacian_identity", "xavier"))
        check_known("MODEL.AUXDET.LEEM.NORM", norm, ("std", "instance"))
        groups = channels if connection == "depthwise" else 1
        if kernel == "1d":
            self.vertical: nn.Conv2d | None = nn.Conv2d(
                channels, channels, (3, 1), padding=(1, 0), groups=groups, bias=False
            )
            self.horizontal = nn.Conv2d(channels, channels, (1, 3), padding=(0, 1), groups=groups, bias=False)
        else:
            self.vertical = None
            self.square = nn.Conv2d(channels, channels, 3, padding=1, groups=groups, bias=False)
        # The gate of Eq. 15. The normalisation behind it cancels it but for eps, which it divides; kept, as checkpoints
        # hold it.
        self.response_gate = nn.Parameter(torch.tensor(0.1))
        self.scale = nn.Parameter(torch.full((1 if norm == "std" else channels,), float(initial_scale)))
        self.norm = norm
        self._init_weights(init)

    def _init_weights(self, init: str) -> None:
        for conv in self.modules():
            if isinstance(conv, nn.Conv2d):
                if init == "xavier":
                    nn.init.xavier_uniform_(conv.weight)
                else:
                    with torch.no_grad():
                        conv.weight.copy_(_laplacian_weight(conv, identity=init == "laplacian_identity"))

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, C, H, W) to its edge response of the same shape, to be added to it."""
        edges, eps = self._edges(x)
        normalized = normalize_std(edges, eps) if self.norm == "std" else normalize_instance(edges, eps)
        return (normalized * self.scale[:, None, None]).to(x.dtype)

    def _edges(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return the response before the gate of Eq. 15, in float32, and the eps that stands for the gate."""
        edges = self.square(x) if self.vertical is None else self.horizontal(F.relu(self.vertical(x), inplace=True))
        # g e / (std(g e) + eps) = e / (std(e) + eps / g): one number in place of a map is multiplied.
        gate = self.response_gate.float().sigmoid()
        # Half precision would lose the small deviations of flat maps.
        return edges.float(), EPS / (gate if self.norm == "std" else gate.square())


def _laplacian_weight(conv: nn.Conv2d, identity: bool) -> Tensor:
    """Second differences along every axis of the kernel that is longer than one (Eqs. 16, 17)."""
    line = torch.tensor(SECOND_DIFFERENCE)
    height, width = conv.kernel_size
    kernel = (line if height == 3 else torch.ones(1))[:, None] * (line if width == 3 else torch.ones(1))
    pairs = torch.ones(conv.weight.shape[:2])
    if identity and conv.groups == 1:
        pairs = torch.eye(conv.out_channels)
    return pairs[:, :, None, None] * kernel


class ResidualGate(nn.Module):
    """Strength of the edge residual, one scalar in 0..1 per image, from its auxiliary features (A)."""

    def __init__(self, aux_features: int):
        super().__init__()
        self.hidden = nn.Linear(aux_features, aux_features // 2)
        self.score = nn.Linear(aux_features // 2, 1)

    def forward(self, aux: Tensor) -> Tensor:
        """Map (..., A) to (..., 1)."""
        return self.score(F.relu(self.hidden(aux))).sigmoid()
