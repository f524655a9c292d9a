"""BAFE-Net as a plain composition of operators; see plain_detector."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from plain_detector import Plain, clip, solid
from torchvision.ops import box_iou, nms


class PlainBAFENet(Plain):
    """FCOS on three levels with a background task that exchanges channels with classification."""

    strides = (8, 16, 32)
    ranges = ((-1, 64), (64, 128), (128, 256))

    def __init__(self, weights):
        # The choice of channels is hard: its weights get no gradient.
        norms = [f"backbone.layer{i}.{j}." for i in range(1, 5) for j in range(6)]
        norms = [f"{b}{n}" for b in norms for n in ("bn", "downsample.1")]
        self.fixed = ("backbone.bn1", *norms, "bbox_head.ChannelEx.attention_mask")
        super().__init__(weights, stride_in_1x1=True)

    def tower(self, x, name):
        for i in range(4):
            norm = f"bbox_head.{name}.{i}.gn"
            x = self.conv(x, f"bbox_head.{name}.{i}.conv")
            x = F.group_norm(x, 32, self.w[f"{norm}.weight"], self.w[f"{norm}.bias"]).relu()
        return x

    def large_kernel(self, x, name):
        channels = x.shape[1]
        near = self.conv(x, f"{name}.conv0", groups=channels)
        far = self.conv(near, f"{name}.conv_spatial", groups=channels, dilation=3, padding=9)
        near, far = self.conv(near, f"{name}.conv1"), self.conv(far, f"{name}.conv2")
        both = torch.cat([near, far], dim=1)
        pooled = torch.cat([both.mean(1, keepdim=True), both.max(1, keepdim=True).values], dim=1)
        gate = self.conv(pooled, f"{name}.conv_squeeze").sigmoid()
        return self.conv(near * gate[:, 0:1] + far * gate[:, 1:2], f"{name}.conv")

    def two_convs(self, x, name):
        for i in range(2):
            layer = f"bbox_head.{name}.{i}.layer"
            x = self.batch_norm(self.conv(x, f"{layer}.0"), f"{layer}.1").relu()
        return x

    def exchange(self, seg, cls):
        name, half = "bbox_head.ChannelEx", seg.shape[1] // 2
        chosen = []
        for x in (seg, cls):
            with torch.no_grad():
                importance = (x * self.large_kernel(x, f"{name}.attention_mask")).mean((2, 3)).sigmoid()
            chosen.append([row.topk(half).indices.sort().values for row in importance])
        results = []
        for own, receiver, sender, other in ((chosen[0], seg, cls, chosen[1]), (chosen[1], cls, seg, chosen[0])):
            result = receiver.clone()
            for n in range(len(receiver)):
                sent = sender[n, other[n]].permute(1, 2, 0)
                sent = self.linear(self.linear(sent, f"{name}.mlp.fc1").relu(), f"{name}.mlp.fc2")
                result[n, own[n]] = sent.permute(2, 0, 1)
            results.append(result)
        return results

    def predict(self, x):
        _, *features = self.resnet(x)
        laterals = [self.conv(f, f"neck.lateral_convs.{i}.conv") for i, f in enumerate(features)]
        levels = []
        for i, p in enumerate(self.top_down(laterals, 3)):
            seg = self.large_kernel(self.tower(p, "seg_convs"), "bbox_head.LSKModule")
            cls = self.large_kernel(self.tower(p, "cls_convs"), "bbox_head.LSKModule")
            seg, cls = self.exchange(self.two_convs(seg, "convs_seg"), self.two_convs(cls, "convs_cls"))
            sides = self.conv(self.tower(p, "reg_convs"), "bbox_head.conv_reg")
            levels.append(
                {
                    "logits": self.conv(cls, "bbox_head.conv_cls"),
                    "sides": (sides * self.w[f"bbox_head.scales.{i}.scale"]).exp(),
                    "centerness": self.conv(cls, "bbox_head.conv_centerness"),
                    "sky": self.conv(seg, "bbox_head.conv_seg"),
                }
            )
        return levels

    def points(self, level, stride):
        height, width = level["logits"].shape[-2:]
        y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
        return torch.stack([x, y], dim=-1).reshape(-1, 2).double().add(0.5).mul(stride)

    def losses(self, x, boxes, sky):
        """Losses of a padded batch (N, 3, H, W), boxes (M, 4) per image, sky (N, H, W): 1, 0, or 255 to ignore."""
        levels = self.predict(x)
        focal, overlap, centre, weights = x.new_zeros(4)
        positives = 0
        for n in range(len(x)):
            for level, stride, (low, high) in zip(levels, self.strides, self.ranges):
                points = self.points(level, stride)
                logits, centerness = level["logits"][n, 0].flatten(), level["centerness"][n, 0].flatten()
                sides = level["sides"][n].flatten(1).T
                left_top = points[:, None] - boxes[n][None, :, :2]
                right_bottom = boxes[n][None, :, 2:] - points[:, None]
                wanted = torch.cat([left_top, right_bottom], dim=2)
                fits = (wanted.amin(2) > 0) & (wanted.amax(2) >= low) & (wanted.amax(2) <= high)
                area = (boxes[n][:, 2:] - boxes[n][:, :2]).prod(1).expand(len(points), -1)
                area = torch.where(fits, area, math.inf)
                positive = fits.any(1)
                probability, label = logits.sigmoid(), positive.double()
                entropy = F.binary_cross_entropy_with_logits(logits, label, reduction="none")
                miss = torch.where(positive, 1 - probability, probability)
                focal = focal + (torch.where(positive, 0.25, 0.75) * miss**2 * entropy).sum()
                # A level without targets has gradients, which are zero.
                overlap, centre = overlap + 0 * sides.sum(), centre + 0 * centerness.sum()
                if not positive.any():
                    continue
                target = wanted[positive, area[positive].argmin(1)]
                found = sides[positive]
                l, t, r, b = target.unbind(1)  # noqa: E741
                weight = torch.sqrt(
                    torch.minimum(l, r) / torch.maximum(l, r) * torch.minimum(t, b) / torch.maximum(t, b)
                )
                p = points[positive]
                as_boxes = [torch.cat([p - s[:, :2], p + s[:, 2:]], dim=1) for s in (found, target)]
                iou = box_iou(*as_boxes).diagonal()
                overlap = overlap - (iou.log() * weight).sum()
                centre = centre + F.binary_cross_entropy_with_logits(centerness[positive], weight, reduction="sum")
                positives, weights = positives + int(positive.sum()), weights + weight.sum()
        total, count = 0.0, 0
        for level in levels:
            mask = F.interpolate(sky[:, None].double(), size=level["sky"].shape[-2:], mode="nearest")
            known = mask != 255
            total = total + F.binary_cross_entropy_with_logits(level["sky"][known], mask[known], reduction="sum")
            count += mask.numel()
        positives = max(positives, 1)
        return {
            "loss_cls": focal / positives,
            "loss_box_reg": overlap / weights.clamp(min=1e-6),
            "loss_centerness": centre / positives,
            "loss_sky": total / count,
        }

    def detect(self, x, sizes):
        """Rows (D, 5) of boxes and scores per image, best first."""
        levels, results = self.predict(x), []
        for n, size in enumerate(sizes):
            boxes, scores = [], []
            for level, stride in zip(levels, self.strides):
                probability = level["logits"][n, 0].flatten().sigmoid()
                keep = (probability > 0.05).nonzero()[:, 0]
                keep = keep[probability[keep].argsort(descending=True)][:1000]
                points, sides = self.points(level, stride)[keep], level["sides"][n].flatten(1).T[keep]
                boxes.append(clip(torch.cat([points - sides[:, :2], points + sides[:, 2:]], dim=1), size))
                scores.append(probability[keep] * level["centerness"][n, 0].flatten()[keep].sigmoid())
            boxes, scores = torch.cat(boxes), torch.cat(scores)
            boxes, scores = boxes[solid(boxes)], scores[solid(boxes)]
            keep = nms(boxes, scores, 0.5)[:100]
            results.append(torch.cat([boxes[keep], scores[keep, None]], dim=1))
        return results
