"""A detector as a function of tensors alone: what is traced into a file.

``build_graph`` takes any model of this project. What differs between meta-architectures are small functions that are
chosen by the type of the model (``functools.singledispatch``); a model of another project registers its own:

    @candidates.register(MyDetector)
    def _(model, features, image_size): ...

Letters in shapes: N images, (H, W) size of the padded batch, T candidates, D detections.
"""

# ruff: noqa: ARG001  functions of one interface: not every model uses every argument
from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import singledispatch
from importlib import import_module
from typing import Any, NamedTuple, cast

import torch
from detectron2.modeling import GeneralizedRCNN, RetinaNet
from detectron2.modeling.backbone import SwinTransformer, ViT
from detectron2.modeling.meta_arch.dense_detector import permute_to_N_HWA_K
from detectron2.modeling.poolers import ROIPooler, assign_boxes_to_levels
from detectron2.modeling.proposal_generator import RPN
from detectron2.modeling.roi_heads import CascadeROIHeads, StandardROIHeads
from detectron2.modeling.roi_heads.fast_rcnn import FastRCNNOutputLayers
from detectron2.structures import Boxes
from torch import Tensor, nn

from ..errors import ConfigError
from ..modeling.decoding import INVALID, clip_boxes, take, top_candidates
from ..modeling.fcos import IRSTDFCOS
from ..systems import registered_systems
from .candidates import keep_best, nms_mask

# Their windows and positions are numbers in Python, which a trace keeps as they were.
_OF_ONE_SIZE = (SwinTransformer, ViT)
Features = dict[str, Tensor]
NMS = Callable[[Tensor, Tensor, Tensor, int, float], Tensor]


class Candidates(NamedTuple):
    """Boxes before the last non-maximum suppression.

    Attributes:
        boxes: (N, T, 4) x1 y1 x2 y2 in network pixels, clipped to the image.
        scores: (N, T) by which they are ranked; ``INVALID`` below the model's threshold.
        classes: (N, T) int64.
        extra: further outputs by name.
    """

    boxes: Tensor
    scores: Tensor
    classes: Tensor
    extra: dict[str, Tensor] = {}  # noqa: RUF012  never written to


class Suppression(NamedTuple):
    """The last non-maximum suppression of a model."""

    num_classes: int
    threshold: float
    max_detections: int


@singledispatch
def extract_features(model: nn.Module, images: Tensor, image_size: Tensor) -> Features:
    """What ``candidates`` gets: the features of the backbone, and what else a model takes from its input.

    ``images`` are (N, 3, H, W), normalised and padded, ``image_size`` is (N, 2).
    """
    return cast(nn.Module, model.backbone)(images)


@singledispatch
def candidates(model: nn.Module, features: Features, image_size: Tensor, suppress: NMS) -> Candidates:
    """The candidates of a batch, from what ``extract_features`` gave.

    ``image_size`` (N, 2) is height and width of each image without padding; ``suppress`` runs a non-maximum suppression
    inside the model (proposals), see ``nms_mask``.
    """
    raise _unknown(model)


@singledispatch
def suppression(model: nn.Module) -> Suppression:
    """What to do with the candidates of a model."""
    raise _unknown(model)


@singledispatch
def extra_outputs(model: nn.Module) -> tuple[str, ...]:
    """Names of what ``candidates`` returns as ``extra``, in order."""
    return ()


@singledispatch
def metadata_vocabulary(model: nn.Module) -> dict[str, Any] | None:
    """The names that a model tells apart, for the facts of a file; ``None`` for a model without metadata.

    ``platforms`` and ``bands``, lists in the order of the indices, and ``aliases``, other spellings -> name.
    """
    return None


@singledispatch
def conditioned(model: nn.Module, platform: Tensor, band: Tensor, size: Tensor) -> AbstractContextManager[None]:
    """Within its block the backbone of a model, whose ``metadata_vocabulary`` is not ``None``, sees this metadata."""
    raise _unknown(model)


@singledispatch
def proposals(generator: nn.Module, features: Features, image_size: Tensor, suppress: NMS) -> tuple[Tensor, Tensor]:
    """The proposals of a two-stage detector: boxes (N, R, 4) and scores (N, R), ``INVALID`` where there is none."""
    raise _unknown(generator)


@singledispatch
def region_candidates(
    heads: nn.Module, features: Features, boxes: Tensor, present: Tensor, image_size: Tensor
) -> Candidates:
    """The second stage: boxes (N, R, 4), of which those of ``present`` (N, R) count, to candidates."""
    raise _unknown(heads)


@singledispatch
def region_suppression(heads: nn.Module) -> Suppression:
    """What to do with the candidates of region-of-interest heads."""
    raise _unknown(heads)


def _unknown(module: nn.Module) -> ConfigError:
    return ConfigError(
        f"{type(module).__name__} has no exported form; irstd_d2/export/graphs.py says how to register one"
    )


class DetectionGraph(nn.Module):
    """A detector as a function of tensors.

    Args:
        model: in evaluation mode.
        with_nms: end with non-maximum suppression and the best detections; else return all candidates.
        suppress: implementation of non-maximum suppression.
    """

    def __init__(self, model: nn.Module, *, with_nms: bool = True, suppress: NMS = nms_mask):
        super().__init__()
        self.model: Any = model
        self.with_nms, self.suppress = with_nms, suppress
        self.final = suppression(model)
        self.extra_names = extra_outputs(model)
        self.takes_metadata = metadata_vocabulary(model) is not None

    def forward(self, image: Tensor, image_size: Tensor, *metadata: Tensor) -> tuple[Tensor, ...]:
        """Detect.

        Args:
            image: (N, 3, H, W) float32 in 0..255, padded at the right and below with anything; H and W are multiples
                of the model's ``size_divisibility``.
            image_size: (N, 2) float32, height and width of each image without padding.
            metadata: for models that take it: platform (N,) int64, band (N,) int64, -1 unknown, and original size
                (N, 2) float32, width and height in pixels, 0 unknown.

        Returns:
            Boxes (N, D, 4), scores (N, D), classes (N, D), in descending order, with the score -1 behind the last; D is
            the number of candidates without NMS. Then the ``extra_outputs``.
        """
        with conditioned(self.model, *metadata) if self.takes_metadata else nullcontext():
            features = extract_features(self.model, self._normalize(image, image_size), image_size)
        found = candidates(self.model, features, image_size, self.suppress)
        boxes, scores, classes = found.boxes, found.scores, found.classes
        if self.with_nms:
            kept = self.suppress(boxes, scores, classes, self.final.num_classes, self.final.threshold)
            scores, index = keep_best(scores, kept, self.final.max_detections)
            boxes, classes = take(boxes, index), classes.gather(1, index)
        return boxes, scores, classes, *(found.extra[name] for name in self.extra_names)

    def _normalize(self, image: Tensor, image_size: Tensor) -> Tensor:
        """Normalise, and set what lies outside an image to zero as detectron2's padding does."""
        y = torch.arange(image.shape[2], device=image.device)
        x = torch.arange(image.shape[3], device=image.device)
        inside = (y < image_size[:, :1])[:, None, :, None] & (x < image_size[:, 1:])[:, None, None]
        normalized = (image - self.model.pixel_mean) / self.model.pixel_std
        return torch.where(inside, normalized, torch.zeros_like(normalized))


def input_names(graph: DetectionGraph) -> list[str]:
    """Names of the inputs of a graph, in order."""
    return ["image", "image_size", *(("platform", "band", "original_size") if graph.takes_metadata else ())]


def example_inputs(graph: DetectionGraph, size: tuple[int, int], num_images: int = 2) -> tuple[Tensor, ...]:
    """Random inputs of a graph, for tracing: ``num_images`` of ``size`` (height, width)."""
    generator = torch.Generator().manual_seed(0)
    image = torch.rand(num_images, 3, *size, generator=generator) * 255
    sizes = torch.tensor([size] * num_images, dtype=torch.float32)
    if not graph.takes_metadata:
        return image, sizes
    known = torch.arange(num_images) % 2 - 1  # unknown and the first name in turns
    # Tensors of their own: an exporter takes one that comes twice for one input.
    return image, sizes, known, known.flip(0), sizes.flip(1)


def build_graph(model: nn.Module, *, with_nms: bool = True, suppress: NMS = nms_mask) -> DetectionGraph:
    """Put a model into its exported form, in evaluation mode.

    Raises:
        ConfigError: for a model, or a part of one, that has no exported form.
    """
    for system in registered_systems():
        if system.export_module:
            import_module(system.export_module)
    for module in model.modules():
        if isinstance(module, _OF_ONE_SIZE):
            raise ConfigError(
                f"MODEL.BACKBONE: {type(module).__name__} cannot be exported, as tracing would fix its windows and "
                "positions to one size of images; export a model on a ResNet or EfficientNet-Lite0"
            )
    return DetectionGraph(model.eval(), with_nms=with_nms, suppress=suppress).eval()


# --- dense detectors


@candidates.register
def _(model: IRSTDFCOS, features: Features, image_size: Tensor, suppress: NMS) -> Candidates:
    return Candidates(*model.decode(model.head([features[name] for name in model.head_in_features]), image_size))


@suppression.register
def _(model: IRSTDFCOS) -> Suppression:
    return Suppression(model.num_classes, model.test_nms_thresh, model.max_detections_per_image)


@candidates.register
def _(model: RetinaNet, features: Features, image_size: Tensor, suppress: NMS) -> Candidates:
    levels = [features[name] for name in model.head_in_features]
    columns = []
    for anchors, logits, deltas in zip(model.anchor_generator(levels), *model.head(levels)):
        class_scores = permute_to_N_HWA_K(logits, model.num_classes).sigmoid()
        scores, place, classes = top_candidates(class_scores, model.test_topk_candidates)
        chosen = take(permute_to_N_HWA_K(deltas, 4), place).flatten(0, 1)
        boxes = model.box2box_transform.apply_deltas(chosen, anchors.tensor[place.flatten()])
        boxes = boxes.view(place.shape[0], -1, 4)
        columns.append((boxes, _where_above(scores, model.test_score_thresh, scores), classes))
    boxes, scores, classes = (torch.cat(column, dim=1) for column in zip(*columns))
    # detectron2 suppresses RetinaNet's boxes before it clips them.
    return Candidates(boxes, scores, classes)


@suppression.register
def _(model: RetinaNet) -> Suppression:
    return Suppression(model.num_classes, model.test_nms_thresh, model.max_detections_per_image)


def _where_above(compared: Tensor, threshold: float, scores: Tensor) -> Tensor:
    return torch.where(compared > threshold, scores, torch.full_like(scores, INVALID))


# --- two-stage detectors


@candidates.register
def _(model: GeneralizedRCNN, features: Features, image_size: Tensor, suppress: NMS) -> Candidates:
    boxes, scores = proposals(model.proposal_generator, features, image_size, suppress)
    return region_candidates(model.roi_heads, features, boxes, scores >= 0, image_size)


@suppression.register
def _(model: GeneralizedRCNN) -> Suppression:
    return region_suppression(model.roi_heads)


@proposals.register
def _(generator: RPN, features: Features, image_size: Tensor, suppress: NMS) -> tuple[Tensor, Tensor]:
    levels = [features[name] for name in generator.in_features]
    columns = []
    for anchors, logits, deltas in zip(generator.anchor_generator(levels), *generator.rpn_head(levels)):
        # Scores must not be negative.
        scores, place, _ = top_candidates(permute_to_N_HWA_K(logits, 1).sigmoid(), generator.pre_nms_topk[False])
        chosen = take(permute_to_N_HWA_K(deltas, 4), place).flatten(0, 1)
        boxes = generator.box2box_transform.apply_deltas(chosen, anchors.tensor[place.flatten()])
        columns.append((boxes.view(place.shape[0], -1, 4), scores))
    return best_proposals(
        columns, image_size, suppress, generator.nms_thresh, generator.post_nms_topk[False], generator.min_box_size
    )


def best_proposals(
    levels: list[tuple[Tensor, Tensor]],
    image_size: Tensor,
    suppress: NMS,
    threshold: float,
    count: int,
    min_size: float = 0.0,
) -> tuple[Tensor, Tensor]:
    """Suppress the proposals of every level and take the best over all levels.

    Args:
        levels: per level boxes (N, T, 4) and scores (N, T).
        image_size, suppress: see ``proposals``.
        threshold: IoU, within a level.
        count: R, the boxes (N, R, 4) and scores (N, R) that are returned.
        min_size: sides must be longer, in pixels.
    """
    groups = torch.cat([torch.full_like(s, i, dtype=torch.int64) for i, (_, s) in enumerate(levels)], dim=1)
    boxes, scores = (torch.cat(column, dim=1) for column in zip(*levels))
    boxes = clip_boxes(boxes, image_size)
    solid = ((boxes[..., 2:] - boxes[..., :2]) > min_size).all(-1)
    scores = torch.where(solid, scores, torch.full_like(scores, INVALID))
    boxes = torch.where(solid[..., None], boxes, torch.zeros_like(boxes))  # one that is not a number harms the others
    scores, index = keep_best(scores, suppress(boxes, scores, groups, len(levels), threshold), count)
    return take(boxes, index), scores


@region_candidates.register
def _(heads: StandardROIHeads, features: Features, boxes: Tensor, present: Tensor, image_size: Tensor) -> Candidates:
    levels = [features[name] for name in heads.box_in_features]
    logits, deltas = heads.box_predictor(heads.box_head(pool(heads.box_pooler, levels, boxes, present)))
    decoded = heads.box_predictor.box2box_transform.apply_deltas(deltas, boxes.flatten(0, 1))
    return _of_regions(heads.box_predictor, logits.softmax(-1), decoded, present, image_size)


@region_candidates.register
def _(heads: CascadeROIHeads, features: Features, boxes: Tensor, present: Tensor, image_size: Tensor) -> Candidates:
    levels = [features[name] for name in heads.box_in_features]
    probabilities = []
    for stage, predictor in enumerate(heads.box_predictor):
        if stage:
            boxes = clip_boxes(boxes, image_size)
        logits, deltas = predictor(heads.box_head[stage](pool(heads.box_pooler, levels, boxes, present)))
        decoded = predictor.box2box_transform.apply_deltas(deltas, boxes.flatten(0, 1))
        boxes = decoded.view(boxes.shape)
        probabilities.append(logits.softmax(-1))
    mean = torch.stack(probabilities).mean(0)
    return _of_regions(heads.box_predictor[-1], mean, decoded, present, image_size)


def _of_regions(
    predictor: FastRCNNOutputLayers, probabilities: Tensor, decoded: Tensor, present: Tensor, image_size: Tensor
) -> Candidates:
    """Class probabilities (N R, K + 1) and boxes (N R, 4 or 4 K) to candidates, T = R K."""
    num_classes, num_images = probabilities.shape[1] - 1, present.shape[0]
    scores = probabilities[:, :-1]
    boxes = decoded.unflatten(1, (-1, 4)).expand(-1, num_classes, -1)
    finite = boxes.isfinite().all(-1) & scores.isfinite() & present.flatten()[:, None]
    scores = _where_above(torch.where(finite, scores, INVALID), predictor.test_score_thresh, scores)
    boxes = torch.where(finite[..., None], boxes, 0.0)
    classes = torch.arange(num_classes, device=boxes.device).expand(present.shape[0], present.shape[1], -1)
    clipped = clip_boxes(boxes.reshape(num_images, -1, 4), image_size)
    return Candidates(clipped, scores.reshape(num_images, -1), classes.flatten(1))


@region_suppression.register
def _(heads: StandardROIHeads) -> Suppression:
    predictor = heads.box_predictor[-1] if isinstance(heads, CascadeROIHeads) else heads.box_predictor
    return Suppression(heads.num_classes, predictor.test_nms_thresh, predictor.test_topk_per_image)


def pool(pooler: ROIPooler, levels: list[Tensor], boxes: Tensor, present: Tensor) -> Tensor:
    """Pool ``boxes`` (N, R, 4) from the level (N, C, H, W) that fits their size: (N R, C, S, S).

    Every level pools every region, but as an empty one where it does not fit, or is not ``present`` (N, R): the shapes
    do not depend on the boxes.
    """
    num_images, per_image = present.shape
    flat = boxes.flatten(0, 1)
    image = torch.arange(num_images, device=boxes.device)[:, None].expand(-1, per_image).reshape(-1, 1).to(boxes.dtype)
    assigned = torch.zeros_like(present.flatten(), dtype=torch.int64)
    if len(levels) > 1:
        assigned = assign_boxes_to_levels(
            [Boxes(flat)], pooler.min_level, pooler.max_level, pooler.canonical_box_size, pooler.canonical_level
        )
    pooled = []
    for level, (features, align) in enumerate(zip(levels, pooler.level_poolers)):
        mine = (present.flatten() & (assigned == level))[:, None]
        regions = align(features, torch.cat([image, torch.where(mine, flat, 0.0)], dim=1))
        pooled.append(torch.where(mine[..., None, None], regions, 0.0))
    return torch.stack(pooled).sum(0)
