"""Cascade RPN: proposals refined over stages, each looking where the stage before put its boxes.

Source: Vu et al., "Cascade RPN: Delving into High-Quality Region Proposal Network with Adaptive Convolution"
(NeurIPS 2019), with the constants of AuxDet (section "Implementation details").

Letters in shapes: N images, A anchors of all levels, H and W cells of a level.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import torch
from detectron2.config import CfgNode, configurable
from detectron2.layers import Conv2d, ShapeSpec, batched_nms
from detectron2.modeling.proposal_generator import PROPOSAL_GENERATOR_REGISTRY
from detectron2.structures import Boxes, ImageList, Instances
from torch import Tensor, nn
from torch.nn import functional as F

from irstd_d2.errors import ConfigError
from irstd_d2.modeling.gaussian_distance import wasserstein_similarities, wasserstein_similarity

from .box_transform import BoundedBox2BoxTransform
from .deformable import deformable_conv2d
from .region_targets import IGNORED, NEGATIVE, assign_by_iou, assign_by_region

ADAPTATIONS = ("dilation", "offset")
ASSIGNMENTS = ("region", "iou", "nwd")
BOX_LOSSES = ("iou", "nwd")


def grid_anchors(size: tuple[int, int], stride: int, edge: float, device: torch.device) -> Tensor:
    """One square anchor per cell, centred at (column * stride, row * stride): (height * width, 4)."""
    y, x = torch.meshgrid(
        torch.arange(size[0], device=device) * float(stride),
        torch.arange(size[1], device=device) * float(stride),
        indexing="ij",
    )
    centre = torch.stack([x, y], dim=-1).reshape(-1, 2)
    return torch.cat([centre - edge / 2, centre + edge / 2], dim=1)


def adaptive_offsets(anchors: Tensor, size: tuple[int, int], stride: int, kernel: int = 3) -> Tensor:
    """Offsets that spread the taps of a convolution evenly over each cell's anchor.

    Args:
        anchors: (N, H * W, 4) in pixels.
        size: (H, W)
        stride: of the level.
        kernel: odd edge of the kernel.

    Returns:
        (N, 2 * kernel ** 2, H, W) in cells, y before x for every tap, as ``torchvision.ops.deform_conv2d`` takes them.
    """
    height, width = size
    device, dtype = anchors.device, anchors.dtype
    taps = torch.arange(kernel, device=device, dtype=dtype) - kernel // 2
    boxes = (anchors / stride).view(-1, height, width, 1, 4)
    spread = (boxes[..., 2:] - boxes[..., :2]) / (kernel - 1) - 1  # x, y
    centre = (boxes[..., :2] + boxes[..., 2:]) / 2
    x = torch.arange(width, device=device, dtype=dtype).view(1, 1, width, 1)
    y = torch.arange(height, device=device, dtype=dtype).view(1, height, 1, 1)
    offset_x = spread[..., 0] * taps.repeat(kernel) + (centre[..., 0] - x)
    offset_y = spread[..., 1] * taps.repeat_interleave(kernel) + (centre[..., 1] - y)
    offsets = torch.stack([offset_y, offset_x], dim=-1).flatten(3).permute(0, 3, 1, 2)
    # The operator reads memory at the place that an offset names; one that is not a number must not reach it.
    return offsets.nan_to_num(0.0, 0.0, 0.0).contiguous()


class AdaptiveConv(nn.Module):
    """3x3 convolution that adapts to the anchors by its dilation or by an offset per tap.

    Args:
        channels: of input and output.
        adaptation: "dilation" or "offset".
        dilation: of the first kind.
    """

    def __init__(self, channels: int, adaptation: str, dilation: int = 3):
        super().__init__()
        if adaptation not in ADAPTATIONS:
            raise ConfigError(f"MODEL.CASCADE_RPN.ADAPTATION has {adaptation!r}; known are {ADAPTATIONS}")
        self.uses_offsets = adaptation == "offset"
        self.dilation = 1 if self.uses_offsets else dilation
        self.weight = nn.Parameter(torch.empty(channels, channels, 3, 3))
        self.bias = None if self.uses_offsets else nn.Parameter(torch.zeros(channels))
        nn.init.normal_(self.weight, std=0.01)

    def forward(self, x: Tensor, offsets: Tensor | None = None) -> Tensor:
        """(N, C, H, W), and (N, 18, H, W) offsets for that kind -> (N, C, H, W)"""
        if self.uses_offsets:
            if offsets is None:
                raise ValueError("this convolution adapts by offsets; give them")
            # Half precision would move the taps, by whole cells far from the anchor's own, and torchvision has no
            # bfloat16 kernel.
            with torch.autocast(x.device.type, enabled=False):
                return deformable_conv2d(x.float(), offsets.float(), self.weight.float()).to(x.dtype)
        return F.conv2d(x, self.weight, self.bias, padding=self.dilation, dilation=self.dilation)


class CascadeRPNStage(nn.Module):
    """One stage: adaptive convolution, box deltas, and class logits in the last stage.

    Args:
        channels: of every level.
        adaptation, dilation: see ``AdaptiveConv``.
        with_logits: whether the stage classifies.
    """

    def __init__(self, channels: int, *, adaptation: str, dilation: int, with_logits: bool):
        super().__init__()
        self.conv = AdaptiveConv(channels, adaptation, dilation)
        self.uses_offsets = self.conv.uses_offsets
        self.deltas = Conv2d(channels, 4, 1)
        self.logits = Conv2d(channels, 1, 1) if with_logits else None
        for layer in (self.deltas, self.logits):
            if layer is not None:
                nn.init.normal_(layer.weight, std=0.01)
                nn.init.zeros_(layer.bias)

    def forward(self, x: Tensor, offsets: Tensor | None) -> tuple[Tensor, Tensor, Tensor | None]:
        """(N, C, H, W) -> bridged features (N, C, H, W), deltas (N, 4, H, W), logits (N, 1, H, W) or ``None``"""
        x = self.conv(x, offsets).relu()
        return x, self.deltas(x), None if self.logits is None else self.logits(x)


def first_n(candidates: Tensor, count: Tensor) -> Tensor:
    """Keep the first ``count`` true entries of each row, in order. Args: (N, A) bool, (N,). Returns: (N, A) bool."""
    return candidates & (candidates.cumsum(1) <= count[:, None])


def sample(positive: Tensor, negative: Tensor, batch_size: int, positive_fraction: float) -> tuple[Tensor, Tensor]:
    """Draw at random from the positives and fill up with negatives, per image.

    Args:
        positive, negative: (N, A) bool.
        batch_size: drawn per image, if there are enough.
        positive_fraction: upper share of positives.

    Returns:
        (N, A) bool each.
    """
    order = torch.rand(positive.shape, device=positive.device).argsort(1)
    back = order.argsort(1)
    limit = torch.full((len(positive),), int(batch_size * positive_fraction), device=positive.device)
    kept_positive = first_n(positive.gather(1, order), limit)
    kept_negative = first_n(negative.gather(1, order), batch_size - kept_positive.sum(1))
    return kept_positive.gather(1, back), kept_negative.gather(1, back)


def paired_iou(a: Tensor, b: Tensor) -> Tensor:
    """IoU of paired boxes (..., 4): (...,)."""
    low, high = torch.maximum(a[..., :2], b[..., :2]), torch.minimum(a[..., 2:], b[..., 2:])
    intersection = (high - low).clamp(min=0).prod(-1)
    union = (a[..., 2:] - a[..., :2]).prod(-1) + (b[..., 2:] - b[..., :2]).prod(-1) - intersection
    return intersection / union.clamp(min=1e-6)


@PROPOSAL_GENERATOR_REGISTRY.register()
class CascadeRPN(nn.Module):
    """Proposal generator of any number of stages, one anchor per cell.

    Args:
        in_features: levels, finest first.
        channels: of every level.
        strides: of every level.
        anchor_scale: edge of an anchor in strides.
        adaptation: per stage, "dilation" or "offset" (which looks at the boxes of the stage before).
        assignment: per stage, "region", "iou", or "nwd" in place of IoU.
        box_loss: 1 - "iou" or 1 - "nwd", which also moves boxes that do not overlap their target.
        nwd_scale: C of both in network pixels; see ``irstd_d2.modeling.gaussian_distance``.
        delta_stds: per stage, standard deviations of the four deltas.
        dilation: of stages that adapt by it.
        centre_ratio, ignore_ratio: of region assignment.
        positive_iou, negative_iou, low_quality_iou: of assignment by IoU or NWD.
        batch_size, positive_fraction: anchors drawn per image for stages with such assignment.
        region_loss_divisor: stages with region assignment divide their loss by the number of anchors / this.
        loss_weights: of classification and of boxes.
        pre_nms_topk, post_nms_topk: (training, test); the first per level.
        nms_threshold: IoU, per level.
        valid_divisor: anchors outside the image padded to a multiple of this take no part; 0: all take part.
    """

    @configurable
    def __init__(
        self,
        *,
        in_features: Sequence[str],
        channels: int,
        strides: Sequence[int],
        anchor_scale: float = 8.0,
        adaptation: Sequence[str] = ADAPTATIONS,
        assignment: Sequence[str] = ("region", "iou"),
        box_loss: str = "iou",
        nwd_scale: float = 12.8,
        delta_stds: Sequence[Sequence[float]] = ((0.1, 0.1, 0.5, 0.5), (0.05, 0.05, 0.1, 0.1)),
        dilation: int = 3,
        centre_ratio: float = 0.2,
        ignore_ratio: float = 0.5,
        positive_iou: float = 0.7,
        negative_iou: float = 0.7,
        low_quality_iou: float = 0.3,
        batch_size: int = 256,
        positive_fraction: float = 0.5,
        region_loss_divisor: float = 200.0,
        loss_weights: tuple[float, float] = (0.7, 7.0),
        pre_nms_topk: tuple[int, int] = (2000, 1000),
        post_nms_topk: tuple[int, int] = (300, 300),
        nms_threshold: float = 0.8,
        valid_divisor: int = 32,
    ):
        super().__init__()
        if not len(adaptation) == len(assignment) == len(delta_stds) > 0:
            raise ConfigError(
                f"MODEL.CASCADE_RPN.ADAPTATION, ASSIGNMENT and DELTA_STDS have {len(adaptation)}, {len(assignment)} "
                f"and {len(delta_stds)} entries; give one per stage"
            )
        if unknown := set(assignment) - set(ASSIGNMENTS):
            raise ConfigError(f"MODEL.CASCADE_RPN.ASSIGNMENT has {sorted(unknown)}; known are {ASSIGNMENTS}")
        if box_loss not in BOX_LOSSES:
            raise ConfigError(f"MODEL.CASCADE_RPN.BOX_LOSS is {box_loss!r}; known are {BOX_LOSSES}")
        if nwd_scale <= 0:
            raise ConfigError(f"MODEL.NWD_SCALE is {nwd_scale}; it must be positive")
        if centre_ratio > ignore_ratio:
            raise ConfigError(
                f"MODEL.CASCADE_RPN.CENTER_RATIO is {centre_ratio}, IGNORE_RATIO {ignore_ratio}; the centre of a "
                "target must lie in its ignored part, so the first must not be the larger"
            )
        self.in_features, self.strides, self.anchor_scale = list(in_features), list(strides), anchor_scale
        self.assignment, self.box_loss, self.nwd_scale = list(assignment), box_loss, nwd_scale
        last = len(adaptation) - 1
        self.stages = nn.ModuleList(
            CascadeRPNStage(channels, adaptation=kind, dilation=dilation, with_logits=i == last)
            for i, kind in enumerate(adaptation)
        )
        self.transforms = [
            BoundedBox2BoxTransform(tuple(1 / s for s in stds), scale_clamp=math.log(1000 / 16)) for stds in delta_stds
        ]
        self.region = {"anchor_scale": anchor_scale, "centre_ratio": centre_ratio, "ignore_ratio": ignore_ratio}
        self.iou: dict[str, Any] = {
            "positive_iou": positive_iou,
            "negative_iou": negative_iou,
            "low_quality_iou": low_quality_iou,
        }
        self.batch_size, self.positive_fraction = batch_size, positive_fraction
        self.region_loss_divisor, self.loss_weights = region_loss_divisor, loss_weights
        self.pre_nms_topk, self.post_nms_topk, self.nms_threshold = pre_nms_topk, post_nms_topk, nms_threshold
        self.valid_divisor = valid_divisor

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: Mapping[str, ShapeSpec]) -> dict[str, Any]:
        rpn = cfg.MODEL.CASCADE_RPN
        shapes = [input_shape[name] for name in rpn.IN_FEATURES]
        channels = {shape.channels for shape in shapes}
        if len(channels) != 1:
            raise ConfigError(f"MODEL.CASCADE_RPN.IN_FEATURES have {sorted(channels)} channels; they must be equal")
        return {
            "in_features": rpn.IN_FEATURES,
            "channels": channels.pop(),
            "strides": [shape.stride for shape in shapes],
            "anchor_scale": rpn.ANCHOR_SCALE,
            "adaptation": rpn.ADAPTATION,
            "assignment": rpn.ASSIGNMENT,
            "box_loss": rpn.BOX_LOSS,
            "nwd_scale": cfg.MODEL.NWD_SCALE,
            "delta_stds": rpn.DELTA_STDS,
            "dilation": rpn.DILATION,
            "centre_ratio": rpn.CENTER_RATIO,
            "ignore_ratio": rpn.IGNORE_RATIO,
            "positive_iou": rpn.POSITIVE_IOU,
            "negative_iou": rpn.NEGATIVE_IOU,
            "low_quality_iou": rpn.LOW_QUALITY_IOU,
            "batch_size": rpn.BATCH_SIZE_PER_IMAGE,
            "positive_fraction": rpn.POSITIVE_FRACTION,
            "region_loss_divisor": rpn.REGION_LOSS_DIVISOR,
            "loss_weights": (rpn.CLS_LOSS_WEIGHT, rpn.BOX_LOSS_WEIGHT),
            "pre_nms_topk": (rpn.PRE_NMS_TOPK_TRAIN, rpn.PRE_NMS_TOPK_TEST),
            "post_nms_topk": (rpn.POST_NMS_TOPK_TRAIN, rpn.POST_NMS_TOPK_TEST),
            "nms_threshold": rpn.NMS_THRESH,
            "valid_divisor": rpn.VALID_DIVISOR,
        }

    def forward(
        self, images: ImageList, features: Mapping[str, Tensor], gt_instances: list[Instances] | None = None
    ) -> tuple[list[Instances], dict[str, Tensor]]:
        """Propose boxes.

        Args:
            images: the batch; sizes without padding bound the boxes.
            features: level name -> (N, C, H, W).
            gt_instances: targets (``gt_boxes``), in training.

        Returns:
            Per image ``proposal_boxes`` and ``objectness_logits`` (probabilities, best first), and the losses.
        """
        levels = [features[name] for name in self.in_features]
        sizes = [(x.shape[-2], x.shape[-1]) for x in levels]
        counts = [h * w for h, w in sizes]
        grid = [
            grid_anchors(size, stride, self.anchor_scale * stride, levels[0].device)
            for size, stride in zip(sizes, self.strides)
        ]
        anchors = torch.cat(grid)[None].expand(len(levels[0]), -1, -1)
        limit = self._image_limits(images, anchors.device)
        boxes = self._pad_boxes(gt_instances) if gt_instances is not None else None
        valid = self._valid_anchors(images, sizes, anchors.device) if boxes is not None else None

        losses: dict[str, Tensor] = {}
        logits: list[Tensor] = []
        for number, stage in enumerate(self.stages):
            offsets: list[Tensor | None] = [None] * len(levels)
            if stage.uses_offsets:
                parts = anchors.split(counts, dim=1)
                offsets = [adaptive_offsets(a, size, s) for a, size, s in zip(parts, sizes, self.strides)]
            outputs = [stage(x, offset) for x, offset in zip(levels, offsets)]
            levels = [output[0] for output in outputs]
            deltas = torch.cat([output[1].flatten(2).transpose(1, 2) for output in outputs], dim=1).float()
            logits = [output[2].flatten(1).float() for output in outputs if output[2] is not None]
            decoded = self._decode(number, deltas, anchors)
            if boxes is not None and valid is not None:
                if self.assignment[number] == "region":
                    assigned = assign_by_region(sizes, self.strides, boxes, **self.region)
                elif self.assignment[number] == "iou":
                    assigned = assign_by_iou(anchors, boxes, **self.iou)
                else:
                    nwd = partial(wasserstein_similarities, scale=self.nwd_scale)
                    assigned = assign_by_iou(anchors, boxes, **self.iou, similarity=nwd)
                assigned = assigned.masked_fill(~valid, IGNORED)
                losses.update(self._losses(number, assigned, decoded, logits, boxes))
            anchors = torch.minimum(decoded.detach().clamp(min=0), limit)
        with torch.no_grad():
            return self._proposals(anchors, logits, counts, images), losses

    def _decode(self, stage: int, deltas: Tensor, anchors: Tensor) -> Tensor:
        """(N, A, 4) deltas and anchors -> (N, A, 4) boxes"""
        flat = self.transforms[stage].apply_deltas(deltas.reshape(-1, 4), anchors.reshape(-1, 4))
        return flat.view_as(anchors)

    @staticmethod
    def _pad_boxes(instances: Sequence[Instances]) -> Tensor:
        return nn.utils.rnn.pad_sequence([i.gt_boxes.tensor for i in instances], batch_first=True)

    @staticmethod
    def _image_limits(images: ImageList, device: torch.device) -> Tensor:
        """(N, 1, 4) largest coordinates of each image."""
        sizes = torch.tensor([[w, h, w, h] for h, w in images.image_sizes], dtype=torch.float32, device=device)
        return sizes[:, None]

    def _valid_anchors(self, images: ImageList, sizes: Sequence[tuple[int, int]], device: torch.device) -> Tensor:
        """(N, A) whether an anchor's cell lies in the image padded to a multiple of ``valid_divisor``."""
        divisor = self.valid_divisor
        if not divisor:
            return torch.ones((len(images), sum(h * w for h, w in sizes)), dtype=torch.bool, device=device)
        edges = torch.tensor(images.image_sizes, device=device)
        padded = (edges + divisor - 1) // divisor * divisor
        parts = []
        for (height, width), stride in zip(sizes, self.strides):
            limit_y, limit_x = ((padded + stride - 1) // stride).unbind(1)
            inside_y = torch.arange(height, device=device) < limit_y[:, None]
            inside_x = torch.arange(width, device=device) < limit_x[:, None]
            parts.append((inside_y[:, :, None] & inside_x[:, None]).flatten(1))
        return torch.cat(parts, dim=1)

    def _losses(
        self, number: int, assigned: Tensor, decoded: Tensor, logits: Sequence[Tensor], boxes: Tensor
    ) -> dict[str, Tensor]:
        """Losses of one stage; boxes by 1 - IoU or NWD, classes by binary cross entropy."""
        positive, negative = assigned >= 0, assigned == NEGATIVE
        if self.assignment[number] == "region":
            divisor = torch.tensor(assigned.numel() / self.region_loss_divisor, device=decoded.device)
        else:
            positive, negative = sample(positive, negative, self.batch_size, self.positive_fraction)
            divisor = (positive.sum(1).clamp(min=1) + negative.sum(1).clamp(min=1)).sum()
        if boxes.shape[1]:
            target = boxes.gather(1, assigned.clamp(min=0)[..., None].expand(-1, -1, 4))
            if self.box_loss == "iou":
                missed = 1 - paired_iou(decoded, target).clamp(min=1e-6)
            else:
                missed = 1 - wasserstein_similarity(decoded, target, self.nwd_scale)
        else:
            missed = decoded.sum(-1) * 0
        name = f"stage{number + 1}"
        losses = {f"loss_rpn_box_{name}": self.loss_weights[1] * torch.where(positive, missed, 0.0).sum() / divisor}
        if logits:
            # The stages before the last have boxes alone.
            entropy = F.binary_cross_entropy_with_logits(
                torch.cat(list(logits), dim=1), positive.float(), reduction="none"
            )
            used = positive | negative
            losses[f"loss_rpn_cls_{name}"] = self.loss_weights[0] * torch.where(used, entropy, 0.0).sum() / divisor
        return losses

    def _proposals(
        self, boxes: Tensor, logits: Sequence[Tensor], counts: Sequence[int], images: ImageList
    ) -> list[Instances]:
        """Select proposals: top per level, no empty boxes, NMS per level, top over the levels."""
        index = 0 if self.training else 1
        columns = []
        for level, (part, scores) in enumerate(zip(boxes.split(list(counts), dim=1), logits)):
            top, order = scores.sigmoid().topk(min(self.pre_nms_topk[index], scores.shape[1]))
            chosen = part.gather(1, order[..., None].expand(-1, -1, 4))
            columns.append((chosen, top, torch.full_like(order, level)))
        all_boxes, scores, levels = (torch.cat(column, dim=1) for column in zip(*columns))
        proposals = []
        for image_boxes, image_scores, image_levels, size in zip(all_boxes, scores, levels, images.image_sizes):
            solid = (image_boxes[:, 2:] > image_boxes[:, :2]).all(1)
            image_boxes, image_scores = image_boxes[solid], image_scores[solid]
            keep = batched_nms(image_boxes, image_scores, image_levels[solid], self.nms_threshold)
            keep = keep[: self.post_nms_topk[index]]
            instances = Instances(size)
            instances.proposal_boxes = Boxes(image_boxes[keep])
            instances.objectness_logits = image_scores[keep]
            proposals.append(instances)
        return proposals
