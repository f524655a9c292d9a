"""Detectors whose backbone is conditioned on the metadata of their images.

A meta-architecture calls ``backbone(tensor)`` somewhere inside its forward pass. ``conditioned_on`` makes the metadata
of the batch known to the backbone for exactly as long as that pass lasts, so that RetinaNet, FCOS, Cascade R-CNN or a
third party's model can use a conditioned backbone without knowing of metadata.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any, cast

from detectron2.config import CfgNode, configurable
from detectron2.modeling import META_ARCH_REGISTRY, GeneralizedRCNN
from torch import nn

from irstd_d2.errors import ConfigError

from ..metadata import MetadataVocabulary, collate_metadata
from .backbone import conditioned_on, conditioned_parts
from .metadata_encoder import AuxiliaryEncoder


def condition_on_batch(
    vocabulary: MetadataVocabulary, batched_inputs: Sequence[dict[str, Any]]
) -> AbstractContextManager[None]:
    """``conditioned_on`` with the metadata of detectron2's samples (``metadata``; missing is unknown).

    Raises:
        ValueError: for metadata that cannot be read; names the file.
    """
    metadata = [sample.get("metadata") for sample in batched_inputs]
    files = [str(sample.get("file_name", f"image {i} of the batch")) for i, sample in enumerate(batched_inputs)]
    return conditioned_on(collate_metadata(metadata, vocabulary, files=files))


def check_conditioned(model: nn.Module, vocabulary: MetadataVocabulary) -> None:
    """Refuse a model none of whose parts takes metadata, or whose parts know other names than the vocabulary.

    Raises:
        ConfigError
    """
    if not conditioned_parts(model):
        raise ConfigError(
            f"the backbone of {type(model).__name__} takes no metadata; MODEL.BACKBONE.NAME "
            "build_auxdet_resnet_fpn_backbone is one that does"
        )
    expected = (len(vocabulary.platforms), len(vocabulary.bands), vocabulary.extra_sizes)
    for encoder in model.modules():
        if not isinstance(encoder, AuxiliaryEncoder):
            continue
        found = (encoder.num_platforms, encoder.num_bands, encoder.extra)
        if found != expected:
            raise ConfigError(
                "the backbone and the vocabulary differ in the number of platforms, bands or further fields: "
                f"{found} and {expected}; build both from the same MODEL.METADATA"
            )


@META_ARCH_REGISTRY.register()
class AuxDet(GeneralizedRCNN):
    """``GeneralizedRCNN`` whose backbone takes the metadata of the images, in each sample's ``metadata``.

    The ``vocabulary`` turns names into indices, by default platforms and bands of WideIRSTD. The ``backbone`` is a
    ``MetadataConditionedBackbone`` or holds one.

    Raises:
        ConfigError: see ``check_conditioned``.
    """

    @configurable
    def __init__(self, *, vocabulary: MetadataVocabulary | None = None, **rcnn: Any):
        super().__init__(**rcnn)
        self.vocabulary = vocabulary or MetadataVocabulary()
        check_conditioned(self, self.vocabulary)

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        return {**super().from_config(cfg), "vocabulary": MetadataVocabulary.from_config(cfg)}

    def forward(self, batched_inputs: list[dict[str, Any]]) -> Any:
        """Return the losses in training, else one dict per image with ``instances``."""
        if not self.training:
            return self.inference(batched_inputs)
        with condition_on_batch(self.vocabulary, batched_inputs):
            return super().forward(batched_inputs)

    def inference(self, batched_inputs: list[dict[str, Any]], *args: Any, **kwargs: Any) -> Any:
        """Detect; see ``GeneralizedRCNN.inference``, which detectron2's test-time augmentation calls directly."""
        with condition_on_batch(self.vocabulary, batched_inputs):
            return super().inference(batched_inputs, *args, **kwargs)


@META_ARCH_REGISTRY.register()
class MetadataConditionedModel(nn.Module):
    """Any meta-architecture, which need not know of metadata, on a backbone that takes it.

    It wraps the model, takes over its attributes, and its weights have the same names as without the wrapper. From a
    configuration the model is ``MODEL.METADATA.META_ARCHITECTURE``, any registered name. The ``vocabulary`` turns names
    into indices, by default platforms and bands of WideIRSTD.

    Raises:
        ConfigError: see ``check_conditioned``; a model that takes metadata itself.
    """

    @configurable
    def __init__(self, model: nn.Module, *, vocabulary: MetadataVocabulary | None = None):
        super().__init__()
        if isinstance(model, AuxDet | MetadataConditionedModel):
            raise ConfigError(
                f"MODEL.METADATA.META_ARCHITECTURE is {type(model).__name__!r}, which takes metadata itself; "
                "set MODEL.META_ARCHITECTURE to it"
            )
        self.model = model
        self.vocabulary = vocabulary or MetadataVocabulary()
        check_conditioned(model, self.vocabulary)

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        name = cfg.MODEL.METADATA.META_ARCHITECTURE
        if name == cls.__name__:
            raise ConfigError(f"MODEL.METADATA.META_ARCHITECTURE is {name!r}, which takes metadata itself")
        return {"model": META_ARCH_REGISTRY.get(name)(cfg), "vocabulary": MetadataVocabulary.from_config(cfg)}

    def forward(self, batched_inputs: list[dict[str, Any]], *args: Any, **kwargs: Any) -> Any:
        """Call the model; its backbone sees the metadata of the batch."""
        with condition_on_batch(self.vocabulary, batched_inputs):
            return self.model(batched_inputs, *args, **kwargs)

    def inference(self, batched_inputs: list[dict[str, Any]], *args: Any, **kwargs: Any) -> Any:
        """Call the model's ``inference``, which test-time augmentation uses; its backbone sees the metadata."""
        with condition_on_batch(self.vocabulary, batched_inputs):
            return cast(Callable[..., Any], self.model.inference)(batched_inputs, *args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            if name == "model":  # not there yet, while it is built or unpickled
                raise
            return getattr(self.model, name)

    def state_dict(self, *args: Any, **kwargs: Any) -> Any:
        """The model's own, so that its checkpoints are those of the model without metadata."""
        return self.model.state_dict(*args, **kwargs)

    def load_state_dict(self, *args: Any, **kwargs: Any) -> Any:
        """See ``state_dict``."""
        return self.model.load_state_dict(*args, **kwargs)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        """Torch's step for a part of another module, such as DDP's: the names are those of ``state_dict``."""
        for name in [name for name in state_dict if name.startswith(prefix)]:
            state_dict[f"{prefix}model.{name.removeprefix(prefix)}"] = state_dict.pop(name)
        super()._load_from_state_dict(state_dict, prefix, *args)
