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
from detectron2.modeling.postprocessing import detector_postprocess
from detectron2.structures import Boxes, ImageList, Instances
from detectron2.utils import comm
from torch import Tensor, nn

from ..errors import ConfigError
from .box_loss import BoxLoss
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

ASSIGNMENTS = ("inside", "rfla")
Predictions = dict[str, list[Tensor]]


class ConvTower(nn.Sequential):
    """``num_convs`` x (3x3 convolution, norm, ReLU) at constant width.

    Args:
        channels: of input and output.
        num_convs: number of convolutions.
        norm: as ``detectron2.layers.get_norm`` knows it; with a norm the convolutions have no bias.
    """

    def __init__(self, channels: int, num_convs: int, norm: str = "GN"):
        super().__init__(
            *(
                Conv2d(
                    channels,
                    channels,
                    3,
                    padding=1,
                    bias=not norm,
                    norm=get_norm(norm, channels),
                    activation=nn.ReLU(inplace=True),
                )
                for _ in range(num_convs)
            )
        )


def init_head(module: nn.Module) -> None:
    """Initialise the convolutions of a dense head: normal of 0.01, bias 0."""
    for part in module.modules():
        if isinstance(part, nn.Conv2d):
            nn.init.normal_(part.weight, std=0.01)
            if part.bias is not None:
                nn.init.zeros_(part.bias)


class FCOSHead(nn.Module):
    """Two towers shared by all levels: classification with centreness, and side distances.

    Args:
        in_channels: channels of every level.
        num_levels: levels, each with its own distance scale.
        num_classes: K.
        num_convs: convolutions of a tower.
        norm: of the towers.
        prior_prob: initial class probability of every point.
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
        self.cls_tower = ConvTower(in_channels, num_convs, norm)
        self.box_tower = ConvTower(in_channels, num_convs, norm)
        self.cls_logits = Conv2d(in_channels, num_classes, 3, padding=1)
        self.box_distances = Conv2d(in_channels, 4, 3, padding=1)
        self.centerness = Conv2d(in_channels, 1, 3, padding=1)
        self.scales = nn.ParameterList([nn.Parameter(torch.ones(())) for _ in range(num_levels)])
        init_head(self)
        nn.init.constant_(self.cls_logits.bias, -math.log((1 - prior_prob) / prior_prob))

    def forward(self, features: list[Tensor]) -> Predictions:
        """Predict on every level.

        Args:
            features: per level (N, C, H, W).

        Returns:
            ``logits`` (N, K, H, W), ``distances`` (N, 4, H, W) in network pixels, ``centerness`` (N, 1, H, W), a list
            over levels each.
        """
        cls_features = [self.cls_tower(x) for x in features]
        return self.predict(cls_features, features)

    def predict(self, cls_features: list[Tensor], features: list[Tensor]) -> Predictions:
        """Apply the predictors to the classification features and to the box tower of ``features``."""
        return {
            "logits": [self.cls_logits(x) for x in cls_features],
            "distances": [
                (scale * self.box_distances(self.box_tower(x))).float().exp() for x, scale in zip(features, self.scales)
            ],
            "centerness": [self.centerness(x) for x in cls_features],
        }


def flatten_level(x: Tensor) -> Tensor:
    """(N, C, H, W) -> (N, H * W, C)"""
    return x.flatten(2).transpose(1, 2)


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
        centre_radius: centre sampling in strides; 0 for none.
        assigner: in place of the two above, gives points, boxes, classes and K their targets as ``assign_targets``
            does.
        box_loss: of predicted and of target side distances (..., 4) each: (...,).
        focal_alpha, focal_gamma: of the classification loss.
        score_threshold: on the class probability, at test time.
        topk_candidates: per level, by class probability.
        nms_threshold: IoU.
        max_detections: per image.
        score_mode: ``product`` of class probability and centreness (BAFE-Net) or its square root, ``sqrt``.
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
        centre_radius: float = 0.0,
        assigner: Callable[[Points, Tensor, Tensor, int], Targets] | None = None,
        box_loss: Callable[[Tensor, Tensor], Tensor] = log_iou_loss,
        focal_alpha: float = 0.25,
        focal_gamma: float = 2.0,
        score_threshold: float = 0.05,
        topk_candidates: int = 1000,
        nms_threshold: float = 0.5,
        max_detections: int = 100,
        score_mode: str = "product",
    ):
        super().__init__(backbone, head, list(head_in_features), pixel_mean=pixel_mean, pixel_std=pixel_std)
        if len(regress_ranges) != len(head_in_features):
            raise ConfigError(
                f"MODEL.FCOS.REGRESS_RANGES has {len(regress_ranges)} entries for {len(head_in_features)} levels "
                f"({', '.join(head_in_features)})"
            )
        if score_mode not in ("product", "sqrt"):
            raise ConfigError(f"MODEL.FCOS.SCORE_MODE is {score_mode!r}; known are 'product' and 'sqrt'")
        shapes = backbone.output_shape()
        self.strides = [int(shapes[name].stride or 0) for name in head_in_features]
        self.num_classes = num_classes
        self.regress_ranges = [(float(low), float(high)) for low, high in regress_ranges]
        self.centre_radius, self.assigner, self.box_loss = centre_radius, assigner, box_loss
        self.focal_alpha, self.focal_gamma = focal_alpha, focal_gamma
        self.score_threshold, self.topk_candidates = score_threshold, topk_candidates
        self.nms_threshold, self.max_detections, self.score_mode = nms_threshold, max_detections, score_mode

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
            "centre_radius": fcos.CENTER_SAMPLING_RADIUS,
            "assigner": cls.build_assigner(cfg, backbone),
            "box_loss": BoxLoss(fcos.BBOX_REG_LOSS_TYPE, fcos.NWD_LOSS_SHARE, cfg.MODEL.NWD_SCALE),
            "focal_alpha": fcos.FOCAL_LOSS_ALPHA,
            "focal_gamma": fcos.FOCAL_LOSS_GAMMA,
            "score_threshold": fcos.SCORE_THRESH_TEST,
            "topk_candidates": fcos.TOPK_CANDIDATES_TEST,
            "nms_threshold": fcos.NMS_THRESH_TEST,
            "max_detections": cfg.TEST.DETECTIONS_PER_IMAGE,
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
        if fcos.ASSIGNMENT not in ASSIGNMENTS:
            raise ConfigError(f"MODEL.FCOS.ASSIGNMENT is {fcos.ASSIGNMENT!r}; known are {ASSIGNMENTS}")
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

    def forward(self, batched_inputs: list[dict[str, Any]]) -> dict[str, Tensor] | list[dict[str, Any]]:
        """Return the losses in training, else one dict per image with ``instances`` in original pixels."""
        images = self.preprocess_image(batched_inputs)
        predictions = self.predict(images, batched_inputs)
        points = self.points(predictions)
        if self.training:
            return self.losses(points, predictions, batched_inputs)
        return self.outputs(points, predictions, images, batched_inputs)

    def predict(self, images: ImageList, batched_inputs: list[dict[str, Any]]) -> Predictions:  # noqa: ARG002
        """Apply backbone and head; subclasses whose head needs more of the samples override it."""
        features = self.backbone(images.tensor)
        return self.head([features[name] for name in self.head_in_features])

    def points(self, predictions: Predictions) -> Points:
        """The points of these predictions, all levels."""
        sizes = [(x.shape[-2], x.shape[-1]) for x in predictions["logits"]]
        return all_points(sizes, self.strides, self.regress_ranges, predictions["logits"][0].device)

    def losses(
        self, points: Points, predictions: Predictions, batched_inputs: list[dict[str, Any]]
    ) -> dict[str, Tensor]:
        """Compute the training losses; the samples carry ``instances`` with ``gt_boxes`` and ``gt_classes``."""
        instances = [sample["instances"].to(self.device) for sample in batched_inputs]
        boxes, classes = pad_instances(instances)
        if self.assigner is None:
            targets = assign_targets(points, boxes, classes, self.num_classes, self.centre_radius)
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
            alpha=self.focal_alpha,
            gamma=self.focal_gamma,
            box_loss=self.box_loss,
            mean_over_processes=comm.get_world_size() > 1,
        )

    def outputs(
        self,
        points: Points,
        predictions: Predictions,
        images: ImageList,
        batched_inputs: list[dict[str, Any]],
    ) -> list[dict[str, Any]]:
        """Decode predictions into one dict per image."""
        candidates = self.candidates(points, predictions)
        results = []
        for i, (sample, size) in enumerate(zip(batched_inputs, images.image_sizes)):
            instances = self.select(*(column[i] for column in candidates), image_size=size)
            height, width = sample.get("height", size[0]), sample.get("width", size[1])
            results.append({"instances": detector_postprocess(instances, height, width)})
        return results

    def candidates(self, points: Points, predictions: Predictions) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Take the best points of every level, for all images at once.

        Returns:
            boxes (N, T, 4), class scores (N, T), final scores (N, T), classes (N, T)
        """
        columns: list[tuple[Tensor, ...]] = []
        start = 0
        for level, (logits, distances) in enumerate(zip(predictions["logits"], predictions["distances"])):
            class_scores = flatten_level(logits).float().sigmoid()
            num_points = class_scores.shape[1]
            count = min(self.topk_candidates, class_scores[0].numel())
            scores, index = class_scores.flatten(1).topk(count)
            point = index.div(self.num_classes, rounding_mode="floor")
            quality = self.quality(predictions, level).gather(1, point)
            box_distances = flatten_level(distances).gather(1, point[..., None].expand(-1, -1, 4))
            boxes = distances_to_boxes(points.centre[start : start + num_points][point], box_distances)
            final = scores * quality
            columns.append((boxes, scores, final.sqrt() if self.score_mode == "sqrt" else final,
                            index % self.num_classes))  # fmt: skip
            start += num_points
        boxes, class_scores, final, classes = (torch.cat(column, 1) for column in zip(*columns))
        return boxes, class_scores, final, classes

    def quality(self, predictions: Predictions, level: int) -> Tensor:
        """What multiplies the class probability of every point of a level: centreness, (N, H * W)."""
        return flatten_level(predictions["centerness"][level]).float().sigmoid().squeeze(-1)

    def select(
        self, boxes: Tensor, class_scores: Tensor, scores: Tensor, classes: Tensor, *, image_size: tuple[int, int]
    ) -> Instances:
        """Threshold, clip and suppress the candidates of one image.

        Args:
            boxes: (T, 4) in network pixels.
            class_scores: (T,) compared with the threshold.
            scores: (T,) rank the detections.
            classes: (T,)
            image_size: (height, width) without padding.
        """
        kept = class_scores > self.score_threshold
        instances = Instances(image_size)
        instances.pred_boxes = Boxes(boxes[kept])
        instances.scores, instances.pred_classes = scores[kept], classes[kept]
        instances.pred_boxes.clip(image_size)
        keep = batched_nms(instances.pred_boxes.tensor, instances.scores, instances.pred_classes, self.nms_threshold)
        return instances[keep[: self.max_detections]]


def head_arguments(cfg: CfgNode, shapes: Sequence[ShapeSpec]) -> dict[str, Any]:
    """The arguments of ``FCOSHead`` from ``MODEL.FCOS``."""
    channels = {shape.channels for shape in shapes}
    if len(channels) != 1:
        raise ConfigError(f"MODEL.FCOS.IN_FEATURES have {sorted(channels)} channels; they must be equal")
    return {
        "in_channels": channels.pop(),
        "num_levels": len(shapes),
        "num_classes": cfg.MODEL.FCOS.NUM_CLASSES,
        "num_convs": cfg.MODEL.FCOS.NUM_CONVS,
        "norm": cfg.MODEL.FCOS.NORM,
        "prior_prob": cfg.MODEL.FCOS.PRIOR_PROB,
    }
