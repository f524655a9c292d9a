"""Metadata predicted from the image, as an auxiliary task and in place of what is missing.

N images, C channels, V names of a vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from irstd_d2.errors import ConfigError

from ..metadata import UNKNOWN_INDEX, MetadataBatch, MetadataVocabulary
from .metadata_encoder import MetadataGuess

FILLS = ("none", "hard", "soft")
_MAX_LOG_RATIO = 6.0  # sizes from 1/400 to 400 times the scale


class MetadataPrediction(NamedTuple):
    """What the image says about its metadata, float32.

    Attributes:
        platform: (N, V) logits.
        band: likewise.
        log_size: (N, 2), logarithm of width and height in units of the size scale.
    """

    platform: Tensor
    band: Tensor
    log_size: Tensor

    def losses(self, metadata: MetadataBatch, size_scale: float) -> dict[str, Tensor]:
        """Cross entropy of the names and smooth L1 of the sizes, each the mean over the images where it is known."""
        known = (metadata.size > 0).all(dim=1)
        target = (metadata.size.clamp(min=1) / size_scale).log()
        error = F.smooth_l1_loss(self.log_size, target, beta=0.1, reduction="none").mean(dim=1)
        return {
            "platform": _cross_entropy(self.platform, metadata.platform),
            "band": _cross_entropy(self.band, metadata.band),
            "size": (error * known).sum() / known.sum().clamp(min=1),
        }

    def accuracies(self, metadata: MetadataBatch) -> dict[str, float]:
        """Share of correct platforms and bands among the known ones; fields without any are left out."""
        counts = []
        for logits, index in ((self.platform, metadata.platform), (self.band, metadata.band)):
            counts += [(logits.argmax(dim=1) == index).sum(), (index != UNKNOWN_INDEX).sum()]
        values = torch.stack(counts).tolist()  # one transfer
        pairs = {"platform": values[:2], "band": values[2:]}
        return {name: correct / known for name, (correct, known) in pairs.items() if known}

    def describe(self, vocabulary: MetadataVocabulary, size_scale: float) -> list[dict[str, Any]]:
        """Return the likeliest metadata of each image in plain words, with the probabilities of the names."""
        columns: dict[str, list[Any]] = {}
        fields = {"platform": (self.platform, vocabulary.platforms), "band": (self.band, vocabulary.bands)}
        for name, (logits, vocabulary_of_field) in fields.items():
            score, index = logits.softmax(dim=1).max(dim=1)
            columns[name] = [vocabulary_of_field.names[i] for i in index.tolist()]
            columns[f"{name}_score"] = score.tolist()
        columns["width"], columns["height"] = (self.log_size.exp() * size_scale).T.tolist()
        return [dict(zip(columns, values)) for values in zip(*columns.values())]


def _cross_entropy(logits: Tensor, index: Tensor) -> Tensor:
    total = F.cross_entropy(logits, index, ignore_index=UNKNOWN_INDEX, reduction="sum")
    return total / (index != UNKNOWN_INDEX).sum().clamp(min=1)


class MetadataPredictor(nn.Module):
    """Predict platform, band and original size from pooled feature maps.

    M2DM and LEEM need metadata, so a prediction cannot come from the maps that they refine. It need not: they act on
    laterals, or on the outputs of a backbone, all of which are there before the first of them is refined. The
    prediction takes the spatial means of all those maps, whose deepest have seen the whole image: no second pass, no
    encoder of its own, two linear layers.

    The detection losses do not reach the predictor (what it fills in is detached), so it stays a prediction; its own
    losses train the backbone too.

    Args:
        in_features: C, channels of all maps together.
        num_platforms, num_bands: V of the vocabularies.
        hidden: width of the layer between.
        fill: what stands in for unknown fields, in training (where metadata dropout makes them) as at test time:
            "none", "hard": the likeliest name, or "soft": the probabilities, which give the expected embedding. The
            size has one prediction.
        doubt: at test time, a given name counts as unknown where the predicted probability of it is below this; 0
            believes everything.
        loss_weight: of the auxiliary losses.
        size_scale: pixels, unit of the predicted sizes.

    Raises:
        ConfigError: for an unknown fill, a doubt that is no probability, or without a loss.
    """

    def __init__(
        self,
        in_features: int,
        *,
        num_platforms: int = 3,
        num_bands: int = 3,
        hidden: int = 64,
        fill: str = "soft",
        doubt: float = 0.0,
        loss_weight: float = 0.1,
        size_scale: float = 2048.0,
    ):
        super().__init__()
        if fill not in FILLS:
            raise ConfigError(f"MODEL.AUXDET.PREDICT.FILL is {fill!r}; known are {list(FILLS)}")
        if not 0 <= doubt < 1:
            raise ConfigError(f"MODEL.AUXDET.PREDICT.DOUBT is {doubt}; give a probability of 0 or more, below 1")
        if not loss_weight > 0:
            raise ConfigError(
                f"MODEL.AUXDET.PREDICT.LOSS_WEIGHT is {loss_weight}, which trains no prediction; give a positive weight"
            )
        self.fill, self.doubt, self.loss_weight, self.size_scale = fill, doubt, loss_weight, size_scale
        self.widths = (num_platforms, num_bands, 2)
        self.norm = nn.LayerNorm(in_features)
        self.hidden = nn.Linear(in_features, hidden)
        self.outputs = nn.Linear(hidden, sum(self.widths))
        self._recorded: list[tuple[MetadataPrediction, MetadataBatch]] | None = None

    def predict(self, features: Mapping[str, Tensor]) -> MetadataPrediction:
        """Predict from maps of (N, C_i, H_i, W_i)."""
        pooled = torch.cat([x.mean(dim=(2, 3)) for x in features.values()], dim=1)
        outputs = self.outputs(F.relu(self.hidden(self.norm(pooled)))).float()
        platform, band, log_size = outputs.split(self.widths, dim=1)
        return MetadataPrediction(platform, band, log_size.clamp(-_MAX_LOG_RATIO, _MAX_LOG_RATIO))

    def guess(self, prediction: MetadataPrediction) -> MetadataGuess | None:
        """Return what stands in for unknown fields, without gradient; ``None`` for nothing."""
        if self.fill == "none":
            return None
        platform, band, log_size = (tensor.detach() for tensor in prediction)
        platform, band = platform.softmax(dim=1), band.softmax(dim=1)
        if self.fill == "hard":
            platform, band = (F.one_hot(p.argmax(dim=1), p.shape[1]).to(p.dtype) for p in (platform, band))
        return MetadataGuess(platform, band, log_size.exp() * self.size_scale)

    def believe(self, prediction: MetadataPrediction, metadata: MetadataBatch) -> MetadataBatch:
        """Return the metadata without the names that the prediction holds for unlikely."""
        believed = []
        for logits, index in ((prediction.platform, metadata.platform), (prediction.band, metadata.band)):
            probability = logits.softmax(dim=1).gather(1, index.clamp(min=0)[:, None])[:, 0]
            believed.append(torch.where(probability < self.doubt, UNKNOWN_INDEX, index))
        return metadata._replace(platform=believed[0], band=believed[1])

    def forward(
        self, features: Mapping[str, Tensor], metadata: MetadataBatch
    ) -> tuple[MetadataBatch, MetadataGuess | None]:
        """Return what is believed of the metadata, and what stands in for unknown fields.

        Args:
            features: unrefined maps, see ``predict``.
            metadata: what is given of the images; it does not enter the prediction.
        """
        prediction = self.predict(features)
        if self._recorded is not None:
            self._recorded.append((prediction, metadata))
        if self.doubt and not self.training:
            metadata = self.believe(prediction, metadata)
        return metadata, self.guess(prediction)

    @contextmanager
    def recording(self) -> Iterator[list[tuple[MetadataPrediction, MetadataBatch]]]:
        """Collect the predictions of the forward passes inside, with the metadata that was given."""
        recorded: list[tuple[MetadataPrediction, MetadataBatch]] = []
        self._recorded = recorded
        try:
            yield recorded
        finally:
            self._recorded = None
