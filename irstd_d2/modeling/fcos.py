"""FCOS as a registered meta-architecture: the baseline of BAFE-Net and the part it extends.

detectron2 has an FCOS of its own, without a configuration and with other losses; this one follows the variant that the
paper compares with (``fcos_targets``), for any pyramid levels and strides.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from detectron2.config import CfgNode, configurable
from detectron2.layers import Conv2d, ShapeSpec, batched_nms, get_norm
from detectron2.modeling import META_ARCH_REGISTRY, build_backbone
from detectron2.modeling.backbone import Backbone
from detectron2.modeling.meta_arch.dense_detector import DenseDetector
from detectron2.structures import Boxes, ImageList, Instances
from detectron2.utils import comm
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from ..errors import ConfigError, check_known, check_number
from .box_loss import BoxLoss
from .decoding import INVALID, clip_boxes, take, top_candidates, without_empty
from .fcos_targets import (
    Points,
    Targets,
    all_points,
    assign_targets,
    distances_to_boxes,
    fcos_losses,
    log_iou_loss,
    pad_instances,
)
from .receptive_field import ReceptiveFieldAssigner, theoretical_fields

Predictions = dict[str, list[Tensor]]

NORMS = ("", "BN", "FrozenBN", "GN", "LN", "SyncBN", "nnSyncBN", "naiveSyncBN", "naiveSyncBN_N")  # of ``get_norm``


class ConvTower(nn.ModuleList):
    """``num_convs`` x (3x3 convolution, norm, ReLU) at constant width, shared by the levels of a pyramid.

    Batch norm normalises every level by itself in training. So it keeps the statistics of every level apart, and only
    the weights in common, as detectron2's ``RetinaNetHead`` does: else the model that is tested is not the one that was
    trained. Older files, with statistics in common, still load.

    Args:
        channels: of input and output.
        norm: as ``detectron2.layers.get_norm`` knows it; with a norm the convolutions have no bias.
        num_levels: levels that share the tower.
    """

    def __init__(self, channels: int, num_convs: int, norm: str = "GN", num_levels: int = 1):
        super().__init__(
            Conv2d(
                channels,
                channels,
                3,
                padding=1,
                bias=not norm,
                norm=_norm_of_levels(norm, channels, num_levels),
                activation=nn.ReLU(inplace=True),
            )
            for _ in range(num_convs)
        )

    def forward(self, x: Tensor, level: int = 0) -> Tensor:
        """Features (N, C, H, W) of a level -> the same shape."""
        conv: Any  # detectron2's Conv2d
        for conv in self:
            if isinstance(conv.norm, nn.ModuleList):
                x = conv.activation(conv.norm[level](nn.functional.conv2d(x, conv.weight, conv.bias, padding=1)))
            else:
                x = conv(x)
        return x

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        for number, conv in enumerate(self):
            if isinstance(conv.norm, nn.ModuleList):
                for name in conv.norm[0].state_dict():
                    common = state_dict.pop(f"{prefix}{number}.norm.{name}", None)
                    if common is not None:
                        names = (f"{prefix}{number}.norm.{level}.{name}" for level in range(len(conv.norm)))
                        state_dict.update(dict.fromkeys(names, common))
        super()._load_from_state_dict(state_dict, prefix, *args)


def _norm_of_levels(norm: str, channels: int, num_levels: int) -> nn.Module | None:
    first = get_norm(norm, channels)
    if num_levels == 1 or not isinstance(first, _BatchNorm):
        return first
    norms = nn.ModuleList([first, *(get_norm(norm, channels) for _ in range(num_levels - 1))])
    for other in norms[1:]:
        other.weight, other.bias = first.weight, first.bias
    return norms


def init_head(module: nn.Module) -> None:
    """Initialise the convolutions of a dense head: normal of 0.01, bias 0."""
    for part in module.modules():
        if isinstance(part, nn.Conv2d):
            nn.init.normal_(part.weight, std=0.01)
            if part.bias is not None:
                nn.init.zeros_(part.bias)


class FCOSHead(nn.Module):
    """Two towers shared by all levels: classification with centerness, and side distances with a scale per level.

    ``num_convs`` and ``norm`` are of the towers; ``prior_prob`` is the initial class probability of every point.
    """

    def __init__(
        self,
        in_channels: int,
        *,
        num_levels: int,
        num_classes: int,
        num_convs: int = 4,
        norm: str = "GN",
        prior_prob: float = 0.01,
    ):
        super().__init__()
        self.cls_tower = ConvTower(in_channels, num_convs, norm, num_levels)
        self.box_tower = ConvTower(in_channels, num_convs, norm, num_levels)
        self.cls_logits = Conv2d(in_channels, num_classes, 3, padding=1)
        self.box_distances = Conv2d(in_channels, 4, 3, padding=1)
        self.centerness = Conv2d(in_channels, 1, 3, padding=1)
        self.scales = nn.ParameterList([nn.Parameter(torch.ones(())) for _ in range(num_levels)])
        init_head(self)
        nn.init.constant_(self.cls_logits.bias, -math.log((1 - prior_prob) / prior_prob))

    def forward(self, features: list[Tensor]) -> Predictions:
        """Predict on every level, of features (N, C, H, W).

        Returns:
            ``logits`` (N, K, H, W), ``distances`` (N, 4, H, W) in network pixels, ``centerness`` (N, 1, H, W), a list
            over levels each.
        """
        cls_features = [self.cls_tower(x, level) for level, x in enumerate(features)]
        return self.predict(cls_features, features)

    def predict(self, cls_features: list[Tensor], features: list[Tensor]) -> Predictions:
        """Apply the predictors to the classification features and to the box tower of ``features``."""
        # One convolution for both: of so few channels, each would cost as much.
        weight = torch.cat([self.cls_logits.weight, self.centerness.weight])
        bias = torch.cat([self.cls_logits.bias, self.centerness.bias])
        both = [nn.functional.conv2d(x, weight, bias, padding=1).split([len(weight) - 1, 1], 1) for x in cls_features]
        return {
            "logits": [logits for logits, _ in both],
            "distances": [
                (scale * self.box_distances(self.box_tower(x, level))).float().exp()
                for level, (x, scale) in enumerate(zip(features, self.scales))
            ],
            "centerness": [centerness for _, centerness in both],
        }


def flatten_level(x: Tensor) -> Tensor:
    """(N, C, H, W) -> (N, H * W, C)"""
    return x.flatten(2).transpose(1, 2)


def decode_fcos(
    points: Points,
    logits: Sequence[Tensor],
    distances: Sequence[Tensor],
    quality: Sequence[Tensor],
    image_sizes: Tensor,
    *,
    score_thresh: float,
    topk: int,
    score_mode: str = "product",
) -> tuple[Tensor, Tensor, Tensor]:
    """From the predictions of a batch to candidates for non-maximum suppression.

    Letters in shapes: N images, K classes, (H, W) of a level, T candidates over all levels.

    Args:
        points: of all levels.
        logits: per level (N, K, H, W).
        distances: per level (N, 4, H, W) in network pixels.
        quality: per level (N, H * W), what multiplies the class probability.
        image_sizes: (N, 2) height and width without padding.
        score_thresh: on the class probability.
        topk: candidates per level, by class probability.
        score_mode: see ``IRSTDFCOS``.

    Returns:
        Boxes (N, T, 4), clipped to the images, scores (N, T) and classes (N, T). The score is ``decoding.INVALID``
        for what lies below the threshold and for boxes without area.
    """
    columns: list[tuple[Tensor, ...]] = []
    start = 0
    for level_logits, level_distances, level_quality in zip(logits, distances, quality):
        probability = flatten_level(level_logits).float().sigmoid()
        class_scores, place, classes = top_candidates(probability, topk)
        end = start + probability.shape[1]
        boxes = distances_to_boxes(points.center[start:end][place], take(flatten_level(level_distances), place))
        scores = class_scores * level_quality.gather(1, place)
        if score_mode == "sqrt":
            scores = scores.clamp(min=0).sqrt()
        columns.append((boxes, torch.where(class_scores > score_thresh, scores, INVALID), classes))
        start = end
    boxes, scores, classes = (torch.cat(column, dim=1) for column in zip(*columns))
    boxes = clip_boxes(boxes, image_sizes.to(boxes.dtype))
    return boxes, without_empty(boxes, scores), classes


@META_ARCH_REGISTRY.register()
class IRSTDFCOS(DenseDetector):
    """FCOS for any levels of any backbone.

    Args:
        backbone: gives the levels of ``head_in_features``.
        head: see ``FCOSHead``.
        head_in_features: names of the levels, finest first.
        pixel_mean, pixel_std: in the channel order of the input.
        num_classes: K.
        regress_ranges: per level the smallest and largest side distance in network pixels.
        center_sampling_radius: points within so many strides of a target's centre are positive; 0: all inside it.
        assigner: in place of the two above, gives points, boxes, classes and K their targets as ``assign_targets``
            does.
        box_loss: of predicted and of target side distances (..., 4) each: (...,).
        focal_loss_alpha, focal_loss_gamma: of the classification loss.
        test_score_thresh: on the class probability.
        test_topk_candidates: per level, by class probability.
        test_nms_thresh: IoU.
        max_detections_per_image: best first.
        score_mode: ``product`` of class probability and centerness (BAFE-Net) or its square root, ``sqrt``.
    """

    @configurable
    def __init__(
        self,
        backbone: Backbone,
        head: nn.Module,
        head_in_features: Sequence[str],
        *,
        pixel_mean: Sequence[float],
        pixel_std: Sequence[float],
        num_classes: int,
        regress_ranges: Sequence[tuple[float, float]],
        center_sampling_radius: float = 0.0,
        assigner: Callable[[Points, Tensor, Tensor, int], Targets] | None = None,
        box_loss: Callable[[Tensor, Tensor], Tensor] = log_iou_loss,
        focal_loss_alpha: float = 0.25,
        focal_loss_gamma: float = 2.0,
        test_score_thresh: float = 0.05,
        test_topk_candidates: int = 1000,
        test_nms_thresh: float = 0.5,
        max_detections_per_image: int = 100,
        score_mode: str = "product",
    ):
        super().__init__(backbone, head, list(head_in_features), pixel_mean=pixel_mean, pixel_std=pixel_std)
        if len(regress_ranges) != len(head_in_features):
            raise ConfigError(
                f"MODEL.FCOS.REGRESS_RANGES has {len(regress_ranges)} entries for {len(head_in_features)} levels "
                f"({', '.join(head_in_features)})"
            )
        for low, high in regress_ranges:
            check_number("MODEL.FCOS.REGRESS_RANGES, the end of a range,", high, low)
        check_known("MODEL.FCOS.SCORE_MODE", score_mode, ("product", "sqrt"))
        shapes = backbone.output_shape()
        self.strides = [int(shapes[name].stride or 0) for name in head_in_features]
        self.num_classes = num_classes
        self.regress_ranges = [(float(low), float(high)) for low, high in regress_ranges]
        self.center_sampling_radius, self.assigner, self.box_loss = center_sampling_radius, assigner, box_loss
        self.focal_loss_alpha, self.focal_loss_gamma = focal_loss_alpha, focal_loss_gamma
        self.test_score_thresh, self.test_topk_candidates = test_score_thresh, test_topk_candidates
        self.test_nms_thresh, self.max_detections_per_image = test_nms_thresh, max_detections_per_image
        self.score_mode = score_mode

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        backbone = build_backbone(cfg)
        fcos = cfg.MODEL.FCOS
        shapes = backbone.output_shape()
        if missing := [name for name in fcos.IN_FEATURES if name not in shapes]:
            raise ConfigError(f"MODEL.FCOS.IN_FEATURES has {missing}; the backbone gives {sorted(shapes)}")
        return {
            "backbone": backbone,
            "head": cls.build_head(cfg, [shapes[name] for name in fcos.IN_FEATURES]),
            "head_in_features": fcos.IN_FEATURES,
            "pixel_mean": cfg.MODEL.PIXEL_MEAN,
            "pixel_std": cfg.MODEL.PIXEL_STD,
            "num_classes": fcos.NUM_CLASSES,
            "regress_ranges": fcos.REGRESS_RANGES,
            "center_sampling_radius": fcos.CENTER_SAMPLING_RADIUS,
            "assigner": cls.build_assigner(cfg, backbone),
            "box_loss": BoxLoss(fcos.BBOX_REG_LOSS_TYPE, fcos.NWD_LOSS_SHARE, cfg.MODEL.NWD_SCALE),
            "focal_loss_alpha": fcos.FOCAL_LOSS_ALPHA,
            "focal_loss_gamma": fcos.FOCAL_LOSS_GAMMA,
            "test_score_thresh": fcos.SCORE_THRESH_TEST,
            "test_topk_candidates": fcos.TOPK_CANDIDATES_TEST,
            "test_nms_thresh": fcos.NMS_THRESH_TEST,
            "max_detections_per_image": cfg.TEST.DETECTIONS_PER_IMAGE,
            "score_mode": fcos.SCORE_MODE,
        }

    @classmethod
    def build_head(cls, cfg: CfgNode, shapes: Sequence[ShapeSpec]) -> nn.Module:
        """Build the head from the configuration; subclasses with another head override it."""
        return FCOSHead(**head_arguments(cfg, shapes))

    @staticmethod
    def build_assigner(cfg: CfgNode, backbone: Backbone) -> ReceptiveFieldAssigner | None:
        """Build what ``MODEL.FCOS.ASSIGNMENT`` names; ``None`` for points inside of targets."""
        fcos, rfla = cfg.MODEL.FCOS, cfg.MODEL.FCOS.RFLA
        check_known("MODEL.FCOS.ASSIGNMENT", fcos.ASSIGNMENT, ("inside", "rfla"))
        if fcos.ASSIGNMENT == "inside":
            return None
        fields = tuple(float(width) for width in rfla.FIELD_WIDTHS)
        if not fields:
            shapes = backbone.output_shape()
            strides = [int(shapes[name].stride or 0) for name in fcos.IN_FEATURES]
            fields = tuple(width / 2 for width in theoretical_fields(backbone, strides))
        if len(fields) != len(fcos.IN_FEATURES):
            raise ConfigError(
                f"MODEL.FCOS.RFLA.FIELD_WIDTHS has {len(fields)} entries for {len(fcos.IN_FEATURES)} levels "
                f"({', '.join(fcos.IN_FEATURES)})"
            )
        return ReceptiveFieldAssigner(fields, rfla.DISTANCE, tuple(rfla.TOPK), rfla.DECAY)

    def points(self, predictions: Predictions) -> Points:
        """The points of these predictions, all levels."""
        sizes = [(x.shape[-2], x.shape[-1]) for x in predictions["logits"]]
        return all_points(sizes, self.strides, self.regress_ranges, predictions["logits"][0].device)

    def forward_training(  # type: ignore[override]
        self,
        images: ImageList,  # noqa: ARG002
        features: list[Tensor],  # noqa: ARG002
        predictions: Predictions,
        gt_instances: list[Instances],
    ) -> dict[str, Tensor]:
        """Compute the training losses of the head's predictions, see ``fcos_losses``; the others are not used."""
        points = self.points(predictions)
        boxes, classes = pad_instances(gt_instances)
        if self.assigner is None:
            targets = assign_targets(points, boxes, classes, self.num_classes, self.center_sampling_radius)
        else:
            targets = self.assigner(points, boxes, classes, self.num_classes)
        logits, distances, centerness = (
            torch.cat([flatten_level(x).float() for x in predictions[name]], dim=1)
            for name in ("logits", "distances", "centerness")
        )
        return fcos_losses(
            logits,
            distances,
            centerness.squeeze(-1),
            targets,
            alpha=self.focal_loss_alpha,
            gamma=self.focal_loss_gamma,
            box_loss=self.box_loss,
            mean_over_processes=comm.get_world_size() > 1,
        )

    def forward_inference(  # type: ignore[override]
        self,
        images: ImageList,
        features: list[Tensor],  # noqa: ARG002
        predictions: Predictions,
    ) -> list[Instances]:
        """Decode predictions into the detections of each image, in network pixels, best first."""
        sizes = torch.tensor(images.image_sizes, device=self.device)
        results = []
        for boxes, scores, classes, size in zip(*self.decode(predictions, sizes), images.image_sizes):
            present = scores >= 0
            boxes, scores, classes = boxes[present], scores[present], classes[present]
            keep = batched_nms(boxes, scores, classes, self.test_nms_thresh)[: self.max_detections_per_image]
            results.append(
                Instances(size, pred_boxes=Boxes(boxes[keep]), scores=scores[keep], pred_classes=classes[keep])
            )
        return results

    def decode(self, predictions: Predictions, image_sizes: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """From predictions to candidates, for a model and its exported form alike; see ``decode_fcos``."""
        return decode_fcos(
            self.points(predictions),
            predictions["logits"],
            predictions["distances"],
            [self.quality(predictions, level) for level in range(len(self.strides))],
            image_sizes,
            score_thresh=self.test_score_thresh,
            topk=self.test_topk_candidates,
            score_mode=self.score_mode,
        )

    def quality(self, predictions: Predictions, level: int) -> Tensor:
        """What multiplies the class probability of every point of a level: centerness, (N, H * W)."""
        return flatten_level(predictions["centerness"][level]).float().sigmoid().squeeze(-1)


def head_arguments(cfg: CfgNode, shapes: Sequence[ShapeSpec]) -> dict[str, Any]:
    """The arguments of ``FCOSHead`` from ``MODEL.FCOS``."""
    channels = {shape.channels for shape in shapes}
    if len(channels) != 1:
        raise ConfigError(f"MODEL.FCOS.IN_FEATURES have {sorted(channels)} channels; they must be equal")
    fcos = cfg.MODEL.FCOS
    check_known("MODEL.FCOS.NORM", fcos.NORM, NORMS)
    check_number("MODEL.FCOS.NUM_CLASSES", fcos.NUM_CLASSES, 1)
    check_number("MODEL.FCOS.PRIOR_PROB", fcos.PRIOR_PROB, 0, 1, open_ends=True)
    check_number("MODEL.FCOS.CENTER_SAMPLING_RADIUS", fcos.CENTER_SAMPLING_RADIUS, 0)
    return {
        "in_channels": channels.pop(),
        "num_levels": len(shapes),
        "num_classes": fcos.NUM_CLASSES,
        "num_convs": fcos.NUM_CONVS,
        "norm": fcos.NORM,
        "prior_prob": fcos.PRIOR_PROB,
    }
