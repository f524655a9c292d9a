"""Lightweight edge enhancement: a residual of learned second differences (Sec. 3.4).

N images, C channels, H x W cells.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from irstd_d2.errors import check_known
from irstd_d2.modeling.fast_paths import eager_on_cpu, in_graph

SECOND_DIFFERENCE = (0.25, -0.5, 0.25)  # Eq. 16
EPS = 1e-5  # guards flat maps


def normalize_std(x: Tensor, eps: float | Tensor = EPS, window: int = 0) -> Tensor:
    """Standardise each channel of each image (N, C, H, W) with its unbiased deviation: (x - mean) / (std + eps).

    With a ``window`` the mean and the deviation are those around each cell (``window_moments``). A single cell has no
    deviation and gives zero.
    """
    count = x.shape[2] * x.shape[3]
    if _has_windows(x, window):
        centred, variance, count = window_moments(x, window)
        unbiased = variance * (count / (count - 1 + (count == 1)))  # count is a symbol in a graph: no branch
        return centred / (unbiased.sqrt() + eps)
    if eager_on_cpu(x) and not torch.is_grad_enabled():
        # Faster there; the gradient of the scale, a sum of terms that cancel, would lose a digit.
        centred = x - x.mean(dim=(2, 3), keepdim=True)
        variance = (centred * centred).sum(dim=(2, 3), keepdim=True) / max(1, count - 1)
        return centred / (variance.sqrt() + eps)
    std, mean = torch.std_mean(x, dim=(2, 3), correction=min(1, count - 1), keepdim=True)
    return (x - mean) / (std + eps)


def normalize_instance(x: Tensor, eps: float | Tensor = EPS, window: int = 0) -> Tensor:
    """Standardise each channel of each image with its population variance: (x - mean) / sqrt(var + eps) (Eq. 18).

    ``window`` as for ``normalize_std``.
    """
    if _has_windows(x, window):
        centred, variance, _ = window_moments(x, window)
        return centred * (variance + eps).rsqrt()
    var, mean = torch.var_mean(x, dim=(2, 3), correction=0, keepdim=True)
    return (x - mean) * (var + eps).rsqrt()


def _has_windows(x: Tensor, window: int) -> bool:
    """Whether moments differ from cell to cell; a graph is for maps of any size."""
    return window > 0 and (in_graph() or max(x.shape[2:]) > window)


def window_moments(x: Tensor, window: int) -> tuple[Tensor, Tensor, int]:
    """Moments of square windows, evenly spaced from edge to edge, interpolated linearly between their centres.

    Windows are at most an eighth of their edge apart. A map that is smaller than the window has one of its own size, so
    a map of the window's size has the moments of the whole.

    Returns:
        x minus the mean, and the population variance, both (N, C, H, W), and the number of cells in a window.
    """
    height, average_rows, between_rows = _windows(x, 2, window)
    width, average_columns, between_columns = _windows(x, 3, window)
    with torch.autocast(x.device.type, enabled=False):  # the variance is a difference of means
        x = x - x.mean(dim=(2, 3), keepdim=True)
        mean = average_rows @ (x @ average_columns.T)
        variance = (average_rows @ (x.square() @ average_columns.T) - mean.square()).clamp(min=0)
        mean, variance = ((between_rows @ moment) @ between_columns.T for moment in (mean, variance))
    return x - mean, variance, height * width


def _windows(x: Tensor, dim: int, window: int) -> tuple[int, Tensor, Tensor]:
    """Windows along one dimension of S cells.

    Returns:
        the cells in each; the matrix (windows, S) that averages them; the matrix (S, windows) that interpolates. Built
        without a branch on the size, which is a symbol in a graph.
    """
    size = x.shape[dim]
    rest = size - window
    rest = (rest + abs(rest)) // 2  # cells that one window leaves
    step = max(1, window // 8)
    gaps = (rest + step - 1) // step
    length = size - rest
    cells = torch.arange(size, device=x.device, dtype=torch.float64)
    spacing = rest / (gaps + 1e-9)
    first = torch.arange(gaps + 1, device=x.device, dtype=torch.float64)[:, None] * spacing
    average = (torch.minimum(cells + 1, first + length) - torch.maximum(cells, first)).clamp(0, 1) / length
    places = (cells + 0.5).clamp(min=length / 2).clamp(max=size - length / 2)
    between = (1 - (places[:, None] - (first[:, 0] + length / 2)).abs() / (spacing + 1e-9)).clamp(min=0)
    return length, average.to(x.dtype), between.to(x.dtype)


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
        window: the moments are those of squares of this many cells (``window_moments``); 0 (published): of the whole
            map, so that a target's response depends on how much of the scene is in the image.

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
        window: int = 0,
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
        self.scale = nn.Parameter(torch.ones(1 if norm == "std" else channels))
        self.norm, self.window = norm, window
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
        normalize = normalize_std if self.norm == "std" else normalize_instance
        return (normalize(edges, eps, self.window) * self.scale[:, None, None]).to(x.dtype)

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
