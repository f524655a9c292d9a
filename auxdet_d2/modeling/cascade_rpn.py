"""Cascade RPN: proposals refined over stages, each looking where the stage before put its boxes.

Source: Vu et al., "Cascade RPN: Delving into High-Quality Region Proposal Network with Adaptive Convolution"
(NeurIPS 2019), with the constants of AuxDet (section "Implementation details").

Letters in shapes: N images, A anchors of all levels, H and W cells of a level.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from detectron2.config import CfgNode, configurable
from detectron2.layers import Conv2d, ShapeSpec, batched_nms
from detectron2.modeling.proposal_generator import PROPOSAL_GENERATOR_REGISTRY
from detectron2.structures import Boxes, ImageList, Instances
from torch import Tensor, nn
from torch.nn import functional as F

from irstd_d2.errors import ConfigError, check_known, check_number
from irstd_d2.modeling.decoding import clip_boxes, take
from irstd_d2.modeling.gaussian_distance import wasserstein_similarities, wasserstein_similarity

from .anchor_targets import IGNORED, AnchorGrid, OverlapAssigner, RegionAssigner
from .box_transform import BoundedBox2BoxTransform
from .deformable import deformable_conv2d


def adaptive_offsets(anchors: Tensor, size: tuple[int, int], stride: int, kernel: int = 3) -> Tensor:
    """Offsets that spread the taps of a convolution evenly over each cell's anchor.

    ``anchors`` are (N, H * W, 4) in pixels on a level of ``size`` (H, W) and ``stride``; ``kernel`` is the odd edge.

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
    """3x3 convolution that looks at the anchors, by an offset per tap."""

    def __init__(self, channels: int):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(channels, channels, 3, 3))
        nn.init.normal_(self.weight, std=0.01)

    def forward(self, x: Tensor, offsets: Tensor | None = None) -> Tensor:
        """(N, C, H, W), and (N, 18, H, W) offsets -> (N, C, H, W)"""
        if offsets is None:
            raise ValueError("this convolution adapts by offsets; give them")
        # Half precision would move the taps, by whole cells far from the anchor's own, and torchvision has no bfloat16
        # kernel.
        with torch.autocast(x.device.type, enabled=False):
            return deformable_conv2d(x.float(), offsets.float(), self.weight.float()).to(x.dtype)


def adaptive_conv(channels: int, adaptation: str, dilation: int = 3) -> nn.Module:
    """Build the 3x3 convolution of a stage, adapted to its anchors by "offset", or by "dilation" to all alike."""
    check_known("MODEL.CASCADE_RPN.ADAPTATION", adaptation, ("dilation", "offset"))
    if adaptation == "offset":
        return AdaptiveConv(channels)
    conv = nn.Conv2d(channels, channels, 3, padding=dilation, dilation=dilation)
    nn.init.normal_(conv.weight, std=0.01)
    nn.init.zeros_(conv.get_parameter("bias"))
    return conv


class CascadeRPNStage(nn.Module):
    """One stage: adaptive convolution, box deltas, and class logits in the last stage.

    Args:
        channels: of every level.
        adaptation, dilation: see ``adaptive_conv``.
        with_logits: whether the stage classifies.
    """

    def __init__(self, channels: int, *, adaptation: str, dilation: int, with_logits: bool):
        super().__init__()
        self.conv = adaptive_conv(channels, adaptation, dilation)
        self.uses_offsets = isinstance(self.conv, AdaptiveConv)
        self.deltas = Conv2d(channels, 4, 1)
        self.logits = Conv2d(channels, 1, 1) if with_logits else None
        for layer in (self.deltas, self.logits):
            if layer is not None:
                nn.init.normal_(layer.weight, std=0.01)
                nn.init.zeros_(layer.bias)

    def forward(self, x: Tensor, offsets: Tensor | None) -> tuple[Tensor, Tensor, Tensor | None]:
        """(N, C, H, W) -> bridged features (N, C, H, W), deltas (N, 4, H, W), logits (N, 1, H, W) or ``None``"""
        x = (self.conv(x, offsets) if self.uses_offsets else self.conv(x)).relu()
        return x, self.deltas(x), None if self.logits is None else self.logits(x)


def paired_iou(a: Tensor, b: Tensor) -> Tensor:
    """IoU of paired boxes (..., 4): (...,), 0 for boxes without area, where detectron2's gives NaN."""
    low, high = torch.maximum(a[..., :2], b[..., :2]), torch.minimum(a[..., 2:], b[..., 2:])
    intersection = (high - low).clamp(min=0).prod(-1)
    union = (a[..., 2:] - a[..., :2]).prod(-1) + (b[..., 2:] - b[..., :2]).prod(-1) - intersection
    return intersection / union.clamp(min=1e-6)


@dataclass(frozen=True)
class StageSpec:
    """What makes one stage.

    Args:
        adaptation: of its convolution, "dilation", or "offset", which looks at the boxes of the stage before.
        assigner: gives its anchors their targets, and chooses those that enter the loss.
        delta_stds: standard deviations of the four deltas.
        dilation: of the first kind.
    """

    adaptation: str
    assigner: RegionAssigner | OverlapAssigner
    delta_stds: Sequence[float]
    dilation: int = 3


PUBLISHED_STAGES = (
    StageSpec("dilation", RegionAssigner(), (0.1, 0.1, 0.5, 0.5)),
    StageSpec("offset", OverlapAssigner(), (0.05, 0.05, 0.1, 0.1)),
)


@dataclass(frozen=True)
class StageOutput:
    """What a stage makes of its anchors, a list over levels each.

    Attributes:
        anchors, boxes: (N, H * W, 4) that it started from and that it gives, the latter not clipped, with gradient.
        logits: (N, H * W); empty but for the last stage.
    """

    anchors: list[Tensor]
    boxes: list[Tensor]
    logits: list[Tensor]


@PROPOSAL_GENERATOR_REGISTRY.register()
class CascadeRPN(nn.Module):
    """Proposal generator of any number of stages, one anchor per cell.

    Args:
        in_features, channels, strides: of the levels, finest first, all of the same channels.
        stages: see ``StageSpec``; the last one also classifies.
        anchor_scale: edge of an anchor in strides.
        box_similarity: of paired boxes (..., 4): (...,); the box loss is 1 - this.
        loss_weights: of classification and of boxes.
        pre_nms_topk, post_nms_topk: (training, test); the first per level.
        nms_thresh: IoU, per level.
        valid_divisor: anchors outside the image padded to a multiple of this take no part; 0: all take part.
    """

    @configurable
    def __init__(
        self,
        *,
        in_features: Sequence[str],
        channels: int,
        strides: Sequence[int],
        stages: Sequence[StageSpec] = PUBLISHED_STAGES,
        anchor_scale: float = 8.0,
        box_similarity: Callable[[Tensor, Tensor], Tensor] = paired_iou,
        loss_weights: tuple[float, float] = (0.7, 7.0),
        pre_nms_topk: tuple[int, int] = (2000, 1000),
        post_nms_topk: tuple[int, int] = (300, 300),
        nms_thresh: float = 0.8,
        valid_divisor: int = 32,
    ):
        super().__init__()
        self.in_features, self.strides, self.anchor_scale = list(in_features), list(strides), anchor_scale
        self.assigners = [spec.assigner for spec in stages]
        self.stages = nn.ModuleList(
            CascadeRPNStage(
                channels, adaptation=spec.adaptation, dilation=spec.dilation, with_logits=spec is stages[-1]
            )
            for spec in stages
        )
        self.transforms = [
            BoundedBox2BoxTransform(tuple(1 / s for s in spec.delta_stds), scale_clamp=math.log(1000 / 16))
            for spec in stages
        ]
        self.box_similarity, self.loss_weights = box_similarity, loss_weights
        self.pre_nms_topk, self.post_nms_topk, self.nms_thresh = pre_nms_topk, post_nms_topk, nms_thresh
        self.valid_divisor = valid_divisor

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: Mapping[str, ShapeSpec]) -> dict[str, Any]:
        rpn = cfg.MODEL.CASCADE_RPN
        check_known("MODEL.CASCADE_RPN.IN_FEATURES", rpn.IN_FEATURES, input_shape)
        shapes = [input_shape[name] for name in rpn.IN_FEATURES]
        channels = {shape.channels for shape in shapes}
        if len(channels) != 1:
            raise ConfigError(f"MODEL.CASCADE_RPN.IN_FEATURES have {sorted(channels)} channels; they must be equal")
        check_known("MODEL.CASCADE_RPN.BOX_LOSS", rpn.BOX_LOSS, ("iou", "nwd"))
        for key in ("PRE_NMS_TOPK_TRAIN", "PRE_NMS_TOPK_TEST", "POST_NMS_TOPK_TRAIN", "POST_NMS_TOPK_TEST"):
            check_number(f"MODEL.CASCADE_RPN.{key}", rpn[key], 1)
        check_number("MODEL.CASCADE_RPN.NMS_THRESH", rpn.NMS_THRESH, 0, 1)
        check_number("MODEL.CASCADE_RPN.ANCHOR_SCALE", rpn.ANCHOR_SCALE, 0, open_ends=True)
        check_number("MODEL.CASCADE_RPN.VALID_DIVISOR", rpn.VALID_DIVISOR, 0)
        nwd = partial(wasserstein_similarity, scale=cfg.MODEL.NWD_SCALE)
        return {
            "in_features": rpn.IN_FEATURES,
            "channels": channels.pop(),
            "strides": [shape.stride for shape in shapes],
            "stages": stages_from_config(cfg),
            "anchor_scale": rpn.ANCHOR_SCALE,
            "box_similarity": paired_iou if rpn.BOX_LOSS == "iou" else nwd,
            "loss_weights": (rpn.CLS_LOSS_WEIGHT, rpn.BOX_LOSS_WEIGHT),
            "pre_nms_topk": (rpn.PRE_NMS_TOPK_TRAIN, rpn.PRE_NMS_TOPK_TEST),
            "post_nms_topk": (rpn.POST_NMS_TOPK_TRAIN, rpn.POST_NMS_TOPK_TEST),
            "nms_thresh": rpn.NMS_THRESH,
            "valid_divisor": rpn.VALID_DIVISOR,
        }

    def forward(
        self, images: ImageList, features: Mapping[str, Tensor], gt_instances: list[Instances] | None = None
    ) -> tuple[list[Instances], dict[str, Tensor]]:
        """Propose boxes from ``features`` level -> (N, C, H, W), within the images without padding.

        Returns:
            Per image ``proposal_boxes`` and ``objectness_logits`` (probabilities, best first), and the losses, empty
            without ``gt_instances``.
        """
        device = features[self.in_features[0]].device
        limit = torch.tensor(images.image_sizes, dtype=torch.float32, device=device)
        grid, outputs = self.predict(features, limit)
        losses: dict[str, Tensor] = {}
        if gt_instances is not None:
            boxes = nn.utils.rnn.pad_sequence([i.gt_boxes.tensor for i in gt_instances], batch_first=True)
            outside = ~self._valid_anchors(images, grid.sizes, device)
            for number, (assigner, output) in enumerate(zip(self.assigners, outputs), start=1):
                assigned = assigner.assign(grid, torch.cat(output.anchors, dim=1), boxes)
                losses |= self._losses(
                    f"stage{number}", assigner, assigned.masked_fill(outside, IGNORED), output, boxes
                )
        with torch.no_grad():
            return self._proposals(outputs[-1], limit, images), losses

    def predict(self, features: Mapping[str, Tensor], image_size: Tensor) -> tuple[AnchorGrid, list[StageOutput]]:
        """Run all stages; each starts from the boxes of the one before, clipped to the image.

        ``image_size`` (N, 2) are height and width without padding.
        """
        levels = [features[name] for name in self.in_features]
        grid = AnchorGrid([(x.shape[-2], x.shape[-1]) for x in levels], self.strides, self.anchor_scale)
        anchors = [a[None].expand(x.shape[0], -1, -1) for a, x in zip(grid.anchors(levels[0].device), levels)]
        outputs: list[StageOutput] = []
        for stage, transform in zip(self.stages, self.transforms):
            boxes, logits = [], []
            for number, (x, size, stride) in enumerate(zip(levels, grid.sizes, grid.strides)):
                offsets = adaptive_offsets(anchors[number], size, stride) if stage.uses_offsets else None
                levels[number], deltas, scores = stage(x, offsets)
                flat = deltas.float().flatten(2).transpose(1, 2)
                moved = transform.apply_deltas(flat.reshape(-1, 4), anchors[number].reshape(-1, 4))
                boxes.append(moved.view(flat.shape))
                if scores is not None:
                    logits.append(scores.float().flatten(1))
            outputs.append(StageOutput(anchors, boxes, logits))
            anchors = [clip_boxes(b.detach(), image_size) for b in boxes]
        return grid, outputs

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
        self,
        stage: str,
        assigner: RegionAssigner | OverlapAssigner,
        assigned: Tensor,
        output: StageOutput,
        boxes: Tensor,
    ) -> dict[str, Tensor]:
        """Losses of one stage: boxes by 1 - similarity, classes by binary cross entropy."""
        positive, negative, divisor = assigner.select_for_loss(assigned)
        decoded = torch.cat(output.boxes, dim=1)
        if boxes.shape[1]:
            target = take(boxes, assigned.clamp(min=0))
            missed = 1 - self.box_similarity(decoded, target)
        else:
            missed = decoded.sum(-1) * 0
        losses = {f"loss_rpn_box_{stage}": self.loss_weights[1] * torch.where(positive, missed, 0.0).sum() / divisor}
        if output.logits:
            logits = torch.cat(output.logits, dim=1)
            entropy = F.binary_cross_entropy_with_logits(logits, positive.float(), reduction="none")
            used = positive | negative
            losses[f"loss_rpn_cls_{stage}"] = self.loss_weights[0] * torch.where(used, entropy, 0.0).sum() / divisor
        return losses

    def _proposals(self, output: StageOutput, image_size: Tensor, images: ImageList) -> list[Instances]:
        """Select proposals: top per level, no empty boxes, NMS per level, top over the levels."""
        index = 0 if self.training else 1
        columns = []
        for level, (boxes, logits) in enumerate(zip(output.boxes, output.logits)):
            top, order = logits.sigmoid().topk(min(self.pre_nms_topk[index], logits.shape[1]))
            chosen = clip_boxes(take(boxes, order), image_size)
            columns.append((chosen, top, torch.full_like(order, level)))
        all_boxes, scores, levels = (torch.cat(column, dim=1) for column in zip(*columns))
        proposals = []
        for image_boxes, image_scores, image_levels, size in zip(all_boxes, scores, levels, images.image_sizes):
            solid = (image_boxes[:, 2:] > image_boxes[:, :2]).all(1)
            image_boxes, image_scores = image_boxes[solid], image_scores[solid]
            keep = batched_nms(image_boxes, image_scores, image_levels[solid], self.nms_thresh)
            keep = keep[: self.post_nms_topk[index]]
            instances = Instances(size)
            instances.proposal_boxes = Boxes(image_boxes[keep])
            instances.objectness_logits = image_scores[keep]
            proposals.append(instances)
        return proposals


def stages_from_config(cfg: CfgNode) -> list[StageSpec]:
    """Build the stages that ``MODEL.CASCADE_RPN`` describes.

    Raises:
        ConfigError: for an unknown assignment, lists of different lengths, or values that contradict each other.
    """
    rpn, scale = cfg.MODEL.CASCADE_RPN, cfg.MODEL.NWD_SCALE
    lengths = len(rpn.ADAPTATION), len(rpn.ASSIGNMENT), len(rpn.DELTA_STDS)
    if len(set(lengths)) != 1 or not lengths[0]:
        raise ConfigError(
            "MODEL.CASCADE_RPN.ADAPTATION, ASSIGNMENT and DELTA_STDS have {}, {} and {} entries; give one per "
            "stage".format(*lengths)
        )
    check_known("MODEL.CASCADE_RPN.ASSIGNMENT", rpn.ASSIGNMENT, ("region", "iou", "nwd"))
    check_number("MODEL.NWD_SCALE", scale, 0, open_ends=True)
    check_number("MODEL.CASCADE_RPN.DILATION", rpn.DILATION, 1)
    check_number("MODEL.CASCADE_RPN.CENTER_RATIO", rpn.CENTER_RATIO, 0)
    check_number("MODEL.CASCADE_RPN.REGION_LOSS_DIVISOR", rpn.REGION_LOSS_DIVISOR, 0, open_ends=True)
    check_number("MODEL.CASCADE_RPN.BATCH_SIZE_PER_IMAGE", rpn.BATCH_SIZE_PER_IMAGE, 1)
    check_number("MODEL.CASCADE_RPN.POSITIVE_FRACTION", rpn.POSITIVE_FRACTION, 0, 1)
    for deviation in (value for stds in rpn.DELTA_STDS for value in stds):
        check_number("MODEL.CASCADE_RPN.DELTA_STDS", deviation, 0, open_ends=True)
    overlap = partial(
        OverlapAssigner,
        rpn.POSITIVE_IOU,
        rpn.NEGATIVE_IOU,
        rpn.LOW_QUALITY_IOU,
        rpn.BATCH_SIZE_PER_IMAGE,
        rpn.POSITIVE_FRACTION,
    )
    assigners: dict[str, RegionAssigner | OverlapAssigner] = {
        "region": RegionAssigner(rpn.CENTER_RATIO, rpn.IGNORE_RATIO, rpn.REGION_LOSS_DIVISOR),
        "iou": overlap(),
        "nwd": overlap(similarity=partial(wasserstein_similarities, scale=scale)),
    }
    rows = zip(rpn.ADAPTATION, rpn.ASSIGNMENT, rpn.DELTA_STDS)
    return [StageSpec(adaptation, assigners[name], tuple(stds), rpn.DILATION) for adaptation, name, stds in rows]
