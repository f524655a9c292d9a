"""Meta-architectures whose backbone is conditioned on the metadata of the images.

Every detectron2 meta-architecture calls its own ``preprocess_image(batched_inputs)`` before ``backbone(tensor)``. There
``MetadataConditioned`` hands the metadata of the batch to the backbone, so that RetinaNet, FCOS, Cascade R-CNN or a
third party's model can use a conditioned backbone without knowing of metadata.
"""

from __future__ import annotations

from functools import cache
from typing import Any

from detectron2.config import CfgNode
from detectron2.modeling import META_ARCH_REGISTRY, GeneralizedRCNN
from detectron2.structures import ImageList
from detectron2.utils.events import get_event_storage
from torch import nn

from irstd_d2.errors import ConfigError

from ..metadata import MetadataVocabulary, collate_metadata
from .backbone import conditioned_parts
from .metadata_prediction import MetadataPredictor

_REPORT_PERIOD = 20  # iterations; the host waits for the device


class MetadataConditioned(nn.Module):
    """Mixin, to stand before a meta-architecture: conditions ``self.backbone`` on the metadata of each batch.

    ``vocabulary`` turns names into indices; the default knows AuxDet's platforms and bands.
    """

    backbone: nn.Module  # the meta-architecture's
    vocabulary = MetadataVocabulary.from_names(("Air", "Space", "Land"), ("LWIR", "NIR", "SWIR"))

    def preprocess_image(self, batched_inputs: list[dict[str, Any]]) -> ImageList:
        """Condition the backbone, then prepare the images as the meta-architecture does."""
        images = super().preprocess_image(batched_inputs)  # type: ignore[misc]
        parts = conditioned_parts(self.backbone)
        if not parts:
            raise ConfigError(
                f"{type(self).__name__} needs a backbone that takes metadata, not {type(self.backbone).__name__}; "
                "MODEL.BACKBONE.NAME build_auxdet_resnet_fpn_backbone is one"
            )
        metadata = [sample.get("metadata") for sample in batched_inputs]
        files = [str(sample.get("file_name", f"image {i} of the batch")) for i, sample in enumerate(batched_inputs)]
        batch = collate_metadata(metadata, self.vocabulary, images.tensor.device, files)
        for part in parts:
            part.condition_on(batch)
        return images

    def forward(self, batched_inputs: list[dict[str, Any]]) -> Any:
        """Run the meta-architecture, and give what is predicted of metadata with its results.

        In training that is a loss per field, ``loss_metadata_FIELD``; now and then the accuracies go to the
        ``EventStorage``, as ``metadata/FIELD_accuracy``. At test time the dictionary of each image gets ``metadata``:
        the predicted ``platform`` and ``band`` with ``platform_score`` and ``band_score``, ``width`` and ``height``.
        """
        predictors = [part for part in self.backbone.modules() if isinstance(part, MetadataPredictor)]
        if not predictors:
            return super().forward(batched_inputs)
        (predictor,) = predictors
        with predictor.recording() as predictions:
            outputs = super().forward(batched_inputs)
        ((prediction, truth),) = predictions
        if not self.training:
            described = prediction.describe(self.vocabulary, predictor.size_scale)
            return [{**output, "metadata": words} for output, words in zip(outputs, described)]
        storage = get_event_storage()
        if storage.iter % _REPORT_PERIOD == 0:
            for name, accuracy in prediction.accuracies(truth).items():
                storage.put_scalar(f"metadata/{name}_accuracy", accuracy)
        losses = prediction.losses(truth, predictor.size_scale)
        return {**outputs, **{f"loss_metadata_{name}": predictor.loss_weight * loss for name, loss in losses.items()}}


@cache
def condition_on_metadata(meta_arch: type[nn.Module]) -> type[nn.Module]:
    """Return a subclass of a meta-architecture that conditions its backbone on metadata.

    Args:
        meta_arch: a class with ``preprocess_image`` and ``backbone``.
    """
    if issubclass(meta_arch, MetadataConditioned):
        return meta_arch
    return type(f"MetadataConditioned{meta_arch.__name__}", (MetadataConditioned, meta_arch), {})


def build_metadata_conditioned(
    meta_arch: type[nn.Module] = GeneralizedRCNN, *, vocabulary: MetadataVocabulary | None = None, **arguments: Any
) -> nn.Module:
    """Build a meta-architecture whose backbone takes metadata, from Python alone.

    Args:
        meta_arch: a class with ``preprocess_image`` and ``backbone``.
        vocabulary: of the metadata's names; by default AuxDet's.
        arguments: of the class.
    """
    model: Any = condition_on_metadata(meta_arch)(**arguments)  # type: ignore[arg-type]  # a class is hashable
    if vocabulary is not None:
        model.vocabulary = vocabulary
    return model


def _build(meta_arch: type[nn.Module], cfg: CfgNode) -> nn.Module:
    model: Any = meta_arch(cfg)
    model.vocabulary = MetadataVocabulary.from_config(cfg)
    return model


@META_ARCH_REGISTRY.register()
def AuxDet(cfg: CfgNode) -> nn.Module:  # noqa: N802  registered under the model's name
    """Build a two-stage detector (``GeneralizedRCNN``) whose backbone takes metadata."""
    return _build(condition_on_metadata(GeneralizedRCNN), cfg)


@META_ARCH_REGISTRY.register()
def MetadataConditionedModel(cfg: CfgNode) -> nn.Module:  # noqa: N802
    """Build ``MODEL.METADATA.META_ARCHITECTURE``, any registered name, with a backbone that takes metadata."""
    name = cfg.MODEL.METADATA.META_ARCHITECTURE
    meta_arch = META_ARCH_REGISTRY.get(name)
    if not isinstance(meta_arch, type):
        raise ConfigError(f"MODEL.METADATA.META_ARCHITECTURE is {name!r}, which takes metadata itself; name a class")
    return _build(condition_on_metadata(meta_arch), cfg)
