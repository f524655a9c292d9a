"""Auxiliary features: imaging metadata and a visual hint, fused into one vector per image and stage (Eqs. 1-7).

N images, C channels, S stages, E embedding width of one field, F fields, V names of a vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from irstd_d2.errors import ConfigError, check_known, check_number

from ..metadata import FIELDS, UNKNOWN_INDEX, MetadataBatch


def encode_names(index: Tensor, num_names: int, unknown: str = "zero") -> Tensor:
    """One-hot code (Eqs. 1, 2) of a vocabulary position (N,) int64, -1 unknown: (N, V) float32.

    ``unknown`` "zero" codes unknown as all zeros; "learned" gives it a class of its own, behind the others: (N, V + 1).
    """
    classes = torch.arange(num_names + (unknown == "learned"), device=index.device)
    classes = torch.where(classes == num_names, UNKNOWN_INDEX, classes)
    return (index[:, None] == classes).float()


def encode_sizes(size: Tensor, scale: float = 2048.0, unknown: str = "zero") -> Tensor:
    """Periodic code of the original image size (Eq. 3).

    ``size`` (N, 2) float32 are width and height in pixels, (0, 0) unknown; ``scale`` pixels make one radian.
    ``unknown`` "zero" codes unknown as all zeros, which no size gives; "learned" appends a flag.

    Returns:
        (N, 6) float32: the sines, then the cosines, of width / scale, height / scale and width / height; (N, 7) for
        "learned".
    """
    width, height = size.float().unbind(dim=1)
    angles = torch.stack([width / scale, height / scale, width / (height + 1e-6)], dim=1)
    known = (size > 0).all(dim=1, keepdim=True)
    code = torch.cat([angles.sin(), angles.cos()], dim=1) * known
    return torch.cat([code, (~known).to(code.dtype)], dim=1) if unknown == "learned" else code


def encode_numbers(position: Tensor, unknown: str = "zero") -> Tensor:
    """Periodic code of a number, as that of a size: half a turn from one end of its range to the other.

    ``position`` (N,) float32 is the place in the range, 0..1, NaN unknown; ``unknown`` as for ``encode_sizes``.

    Returns:
        (N, 2) float32: sine and cosine, zeros for unknown; (N, 3) for "learned".
    """
    missing = position.isnan()
    angle = math.pi * torch.where(missing, 0.0, position)
    code = torch.stack([angle.sin(), angle.cos()], dim=1) * ~missing[:, None]
    return torch.cat([code, missing[:, None].to(code.dtype)], dim=1) if unknown == "learned" else code


class MetadataBatchNorm(nn.BatchNorm1d):
    """``BatchNorm1d`` that survives a training batch of one image, which has no batch statistics.

    Such a batch is normalised with the running statistics and leaves them as they are.

    Args:
        num_features: C.
        uses: how often the published model runs this norm on the same input per step, once per stage. Here it runs
            once, with the momentum of that many updates: the running statistics move as far.
    """

    def __init__(self, num_features: int, uses: int = 1):
        super().__init__(num_features, momentum=1 - (1 - 0.1) ** uses)

    def forward(self, x: Tensor) -> Tensor:
        if self.training and x.shape[0] == 1:
            return F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, False, 0.0, self.eps)
        return super().forward(x)


class EmbeddingMLP(nn.Sequential):
    """Linear, ReLU, norm: the embedding of one input.

    ``norm`` is "BN" (published), whose ``uses`` see ``MetadataBatchNorm``, or "LN", which does not depend on the other
    images of a batch.
    """

    def __init__(self, in_features: int, out_features: int, norm: str = "BN", uses: int = 1):
        super().__init__()
        self.linear = nn.Linear(in_features, out_features)
        self.activation = nn.ReLU(inplace=True)
        if norm == "BN":
            self.norm: nn.Module = MetadataBatchNorm(out_features, uses)
        elif norm == "LN":
            self.norm = nn.LayerNorm(out_features)
        else:
            raise ConfigError(f"MODEL.AUXDET.ENCODER.NORM is {norm!r}; known are 'BN', 'LN'")


class ResidualMLP(nn.Module):
    """x + relu(W2 dropout(relu(W1 x))), all of one width."""

    def __init__(self, features: int, dropout: float = 0.5):
        super().__init__()
        self.fc1 = nn.Linear(features, features)
        self.dropout = nn.Dropout(dropout)
        self.fc2 = nn.Linear(features, features)

    def forward(self, x: Tensor) -> Tensor:
        return x + F.relu(self.fc2(self.dropout(F.relu(self.fc1(x)))))


class AuxiliaryEncoder(nn.Module):
    """Embed the metadata fields and the visual hint of every stage, and fuse them (Eqs. 1-4, 6, 7).

    The fields are embedded once for all stages; the stages then differ in the visual hint alone.

    Args:
        num_platforms, num_bands: V of the two vocabularies.
        num_stages: S, how many stages one call serves.
        fields: the metadata in use, a subset of ``FIELDS`` (Table 6).
        extra: K further fields, all in use, in the order of ``MetadataBatch.extra``: name -> V, 0 for a number.
        visual_channels: C of the visual hint; 0 for none (Table 2).
        embed_dim: E.
        num_metadata_layers: residual MLPs over the embedded fields.
        num_fusion_layers: residual MLPs over fields and visual hint.
        dropout: probability inside the residual MLPs.
        norm: "BN" or "LN", see ``EmbeddingMLP``.
        unknown: "zero" or "learned", see ``encode_names``.
        size_scale: pixels, see ``encode_sizes``.

    Raises:
        ConfigError: for an unknown option, or if there is nothing to encode.
    """

    def __init__(
        self,
        *,
        num_platforms: int = 3,
        num_bands: int = 3,
        num_stages: int = 2,
        fields: Sequence[str] = FIELDS,
        extra: Mapping[str, int] | None = None,
        visual_channels: int = 256,
        embed_dim: int = 32,
        num_metadata_layers: int = 1,
        num_fusion_layers: int = 3,
        dropout: float = 0.5,
        norm: str = "BN",
        unknown: str = "zero",
        size_scale: float = 2048.0,
    ):
        super().__init__()
        check_known("MODEL.AUXDET.ENCODER.FIELDS", fields, FIELDS)
        self.extra = dict(extra or {})
        if not fields and not self.extra and not visual_channels:
            raise ConfigError(
                "MODEL.AUXDET.ENCODER has neither FIELDS nor VISUAL, so there are no auxiliary features; "
                "set one of them, or empty M2DM.STAGES and set LEEM.GATED False"
            )
        check_known("MODEL.AUXDET.ENCODER.UNKNOWN", unknown, ("zero", "learned"))
        check_number("MODEL.AUXDET.ENCODER.EMBED_DIM", embed_dim, 1)
        check_number("MODEL.AUXDET.ENCODER.NUM_METADATA_LAYERS", num_metadata_layers, 0)
        check_number("MODEL.AUXDET.ENCODER.NUM_FUSION_LAYERS", num_fusion_layers, 0)
        check_number("MODEL.AUXDET.ENCODER.DROPOUT", dropout, 0, 1)
        check_number("MODEL.AUXDET.ENCODER.SIZE_SCALE", size_scale, 0, open_ends=True)
        self.num_platforms, self.num_bands, self.num_stages = num_platforms, num_bands, num_stages
        self.unknown, self.size_scale = unknown, size_scale
        widths = {"platform": num_platforms, "band": num_bands, "size": 6}
        widths = {name: widths[name] for name in FIELDS if name in fields}
        widths |= {name: num_names or 2 for name, num_names in self.extra.items()}
        flag = int(unknown == "learned")
        self.fields = nn.ModuleDict(
            {name: EmbeddingMLP(width + flag, embed_dim, norm, uses=num_stages) for name, width in widths.items()}
        )
        metadata_dim = embed_dim * len(self.fields)
        self.metadata_fusion = nn.Sequential(
            *(ResidualMLP(metadata_dim, dropout) for _ in range(num_metadata_layers if metadata_dim else 0))
        )
        self.visual = EmbeddingMLP(visual_channels, embed_dim, norm) if visual_channels else None
        self.out_features = metadata_dim + (embed_dim if visual_channels else 0)
        self.fusion = nn.Sequential(*(ResidualMLP(self.out_features, dropout) for _ in range(num_fusion_layers)))

    def embed_metadata(self, metadata: MetadataBatch) -> Tensor:
        """Return the embedded fields side by side, (N, F * E)."""
        codes = {
            "platform": partial(encode_names, metadata.platform, self.num_platforms, self.unknown),
            "band": partial(encode_names, metadata.band, self.num_bands, self.unknown),
            "size": partial(encode_sizes, metadata.size, self.size_scale, self.unknown),
        }
        extra = metadata.extra
        if not extra.shape[1]:
            extra = extra.new_full((metadata.num_images, len(self.extra)), math.nan)
        for (name, num_names), position in zip(self.extra.items(), extra.unbind(dim=1)):
            codes[name] = partial(self._encode_extra, position, num_names)
        dtype = next(self.fields.parameters()).dtype  # a model cast to half precision as a whole
        return torch.cat([embed(codes[name]().to(dtype)) for name, embed in self.fields.items()], dim=1)

    def _encode_extra(self, position: Tensor, num_names: int) -> Tensor:
        if not num_names:
            return encode_numbers(position, self.unknown)
        index = torch.where(position.isnan(), UNKNOWN_INDEX, position).long()
        return encode_names(index, num_names, self.unknown)

    def forward(self, metadata: MetadataBatch, visual: Sequence[Tensor] = ()) -> Tensor:
        """Encode the metadata of N images for all stages: (S, N, out_features).

        ``visual`` is the visual hint of each stage, S of (N, C); empty if the encoder has none.
        """
        parts = []
        if len(self.fields):
            embedded = self.embed_metadata(metadata)
            # The stages share the embedding, not the dropout.
            parts.append(self.metadata_fusion(embedded.expand(self.num_stages, *embedded.shape)))
        if self.visual is not None:
            # One call per stage: each has its own batch statistics.
            parts.append(torch.stack([self.visual(hint) for hint in visual]))
        return self.fusion(torch.cat(parts, dim=-1))


class DetailCompensation(nn.Module):
    """What a shallow feature holds beyond the deepest one, pooled to a vector (Eq. 5).

    Args:
        in_channels: channels of the shallow feature.
        out_channels: C, channels of the deepest feature.
        stride: how much coarser the deepest feature is.
        groups: groups of the convolution; where the channels are too few, their greatest common divisor.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int, groups: int = 32):
        super().__init__()
        self.conv = nn.Conv2d(
            in_channels, out_channels, 3, stride=stride, padding=1, groups=math.gcd(in_channels, out_channels, groups)
        )
        nn.init.xavier_uniform_(self.conv.weight)
        nn.init.zeros_(self.conv.bias)  # type: ignore[arg-type]

    def forward(self, shallow: Tensor, pooled_deepest: Tensor) -> Tensor:
        """The pooled difference (N, C) of the aligned shallow feature (N, in_channels, H, W) and the deepest one.

        ``pooled_deepest`` (N, C) is the spatial mean of the deepest feature.
        """
        return self.conv(shallow).mean(dim=(2, 3)) - pooled_deepest
