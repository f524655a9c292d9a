"""BAFE-Net and AuxDet as plain compositions of torch and torchvision operators, written from the papers.

Slow, in any precision, without modules: weights are a dict by published name, from which every function reads what it
needs. A model is trained with ``losses`` and shows with ``detect`` what it has learnt.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torchvision.ops import box_iou, deform_conv2d, nms, roi_align


def pad_batch(images, mean, std, divisor=32):
    """Normalise images (3, h, w) and pad them with zeros below and to the right: (N, 3, H, W)."""
    height = -(-max(x.shape[1] for x in images) // divisor) * divisor
    width = -(-max(x.shape[2] for x in images) // divisor) * divisor
    mean, std = (torch.tensor(v)[:, None, None] for v in (mean, std))
    return torch.stack([F.pad((x - mean) / std, (0, width - x.shape[2], 0, height - x.shape[1])) for x in images])


def clip(boxes, size):
    height, width = size
    x, y = boxes[:, 0::2].clamp(0, width), boxes[:, 1::2].clamp(0, height)
    return torch.stack([x[:, 0], y[:, 0], x[:, 1], y[:, 1]], dim=1)


def solid(boxes):
    return (boxes[:, 2] > boxes[:, 0]) & (boxes[:, 3] > boxes[:, 1])


def missed(boxes, targets):
    return (1 - box_iou(boxes, targets).diagonal()).sum()


class Plain:
    """What both share: reading weights, ResNet with norms that rest, pyramid.

    Args:
        weights: published name -> tensor.
        blocks: per stage of the ResNet.
        stride_in_1x1: whether a stage begins with a strided 1x1 convolution, else its 3x3 convolution has the stride.
    """

    training = True
    fixed: tuple[str, ...] = ()  # beginnings of names that are not trained

    def __init__(self, weights, blocks=(3, 4, 6, 3), stride_in_1x1=False):
        self.w, self.blocks, self.stride_in_1x1 = weights, blocks, stride_in_1x1
        for name, value in weights.items():
            statistic = name.endswith(("running_mean", "running_var", "num_batches_tracked"))
            if not statistic and not name.startswith(self.fixed):
                value.requires_grad_()

    def parameters(self):
        return [value for value in self.w.values() if value.requires_grad]

    def conv(self, x, name, **kwargs):
        weight = self.w[f"{name}.weight"]
        kwargs.setdefault("padding", weight.shape[-1] // 2)
        return F.conv2d(x, weight, self.w.get(f"{name}.bias"), **kwargs)

    def linear(self, x, name):
        return F.linear(x, self.w[f"{name}.weight"], self.w[f"{name}.bias"])

    def batch_norm(self, x, name, rests=False):
        statistics = (self.w[f"{name}.running_mean"], self.w[f"{name}.running_var"])
        affine = (self.w[f"{name}.weight"], self.w[f"{name}.bias"])
        return F.batch_norm(x, *statistics, *affine, self.training and not rests, 0.1)

    def resnet(self, x):
        x = self.batch_norm(self.conv(x, "backbone.conv1", stride=2), "backbone.bn1", rests=True).relu()
        x = F.max_pool2d(x, 3, 2, 1)
        outputs = []
        for stage, count in enumerate(self.blocks, start=1):
            for block in range(count):
                stride = 2 if stage > 1 and block == 0 else 1
                x = self.bottleneck(x, f"backbone.layer{stage}.{block}", stride)
            outputs.append(x)
        return outputs

    def bottleneck(self, x, name, stride):
        strides = (stride, 1, 1) if self.stride_in_1x1 else (1, stride, 1)
        y = x
        for i, s in enumerate(strides, start=1):
            y = self.batch_norm(self.conv(y, f"{name}.conv{i}", stride=s), f"{name}.bn{i}", rests=True)
            y = y.relu() if i < 3 else y
        if f"{name}.downsample.0.weight" in self.w:
            x = self.batch_norm(self.conv(x, f"{name}.downsample.0", stride=stride), f"{name}.downsample.1", rests=True)
        return (x + y).relu()

    def top_down(self, laterals, used):
        laterals = list(laterals)
        for i in reversed(range(1, len(laterals))):
            up = F.interpolate(laterals[i], size=laterals[i - 1].shape[-2:], mode="nearest")
            laterals[i - 1] = laterals[i - 1] + up
        return [self.conv(laterals[i], f"neck.fpn_convs.{i}.conv") for i in range(used)]


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
        focal, overlap, centre, positives, weights = 0.0, 0.0, 0.0, 0, 0.0
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
                overlap = overlap + 0 * sides.sum()  # a level without targets has a gradient, which is zero
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
            "loss_box_reg": overlap / weights if positives else 0.0,
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


class PlainAuxDet(Plain):
    """A two-stage detector with Cascade RPN, whose shallow laterals are modulated by metadata and sharpened.

    Samples are the first and not random ones; there is no dropout.
    """

    strides = (4, 8)
    fixed = ("backbone.conv1", "backbone.bn1", "backbone.layer1", "neck.fpn_convs.2", "neck.fpn_convs.3")
    platforms, bands = ("Air", "Space", "Land"), ("LWIR", "NIR", "SWIR")

    def embed(self, x, name):
        name = f"neck.meta_process_with_sem.{name}"
        return self.batch_norm(self.linear(x, f"{name}.0").relu(), f"{name}.2")

    def residual(self, x, name):
        name = f"neck.meta_process_with_sem.{name}"
        return x + self.linear(self.linear(x, f"{name}.w1").relu(), f"{name}.w2").relu()

    def encode(self, metadata, pooled):
        """Platform, band, width, height per image, None unknown; pooled detail (N, C): (N, 128)."""
        codes = [[], [], []]
        for platform, band, width, height in metadata:
            codes[0].append([float(platform == name) for name in self.platforms])
            codes[1].append([float(band == name) for name in self.bands])
            angles = [width / 2048, height / 2048, width / (height + 1e-6)] if width else []
            codes[2].append([f(a) for f in (math.sin, math.cos) for a in angles] or [0.0] * 6)
        names = ("view_mlp", "band_mlp", "size_mlp")
        known = [self.embed(torch.tensor(c, dtype=pooled.dtype), name) for c, name in zip(codes, names)]
        fused = self.residual(torch.cat(known, dim=1), "aux_fusion_mlp")
        x = torch.cat([fused, self.embed(pooled, "sem_mlp")], dim=1)
        for i in range(3):
            x = self.residual(x, f"fusion_mlp.{i}")
        return x

    def norm(self, x, name):
        return F.layer_norm(x, x.shape[-1:], self.w[f"{name}.weight"], self.w[f"{name}.bias"])

    def dynamic_mlp(self, pooled, aux, name):
        x = self.linear(pooled, f"{name}.conv1")
        for k in range(2):
            layer = f"{name}.conv2.{k}.dynamic_conv"
            matrices = self.linear(aux, f"{layer}.get_weight").view(len(x), x.shape[1], -1)
            x = self.norm(torch.einsum("ni,nio->no", x, matrices), f"{layer}.norm").relu()
        x = self.norm(self.linear(x, f"{name}.conv3"), f"{name}.norm3") + pooled
        return self.norm(self.linear(x, f"{name}.conv4"), f"{name}.norm4")

    def modulate(self, x, modulation):
        channels = x.shape[1]
        gain = modulation[:, :channels].sigmoid()[:, :, None, None]
        taps = modulation[:, channels:].sigmoid().detach()
        pooled = torch.stack([x.mean(1), x.max(1).values], dim=1)
        spatial = []
        for n in range(len(x)):
            kernel = x.new_zeros(1, 2, 3, 3)
            for m in range(2):
                up, down, left, right = taps[n, 4 * m : 4 * m + 4]
                kernel[0, m, 0, 1], kernel[0, m, 2, 1], kernel[0, m, 1, 0], kernel[0, m, 1, 2] = up, down, left, right
                kernel[0, m, 1, 1] = -(up + down + left + right)
            spatial.append(F.conv2d(pooled[n : n + 1], kernel, padding=1))
        return x + (x * gain + x) + (x * torch.cat(spatial).sigmoid() + x)

    def edges(self, x, name):
        y = F.conv2d(x, self.w[f"{name}.conv_vert.weight"], padding=(1, 0)).relu() * self.w[f"{name}.alpha"].sigmoid()
        y = F.conv2d(y, self.w[f"{name}.conv_hori.weight"], padding=(0, 1))
        mean, std = y.mean((2, 3), keepdim=True), y.std((2, 3), keepdim=True)
        return (y - mean) / (std + 1e-5) * self.w[f"{name}.beta"]

    def pyramid(self, x, metadata):
        laterals = [self.conv(f, f"neck.lateral_convs.{i}.conv") for i, f in enumerate(self.resnet(x))]
        refined = list(laterals)
        for i, stride in enumerate((8, 4)):
            groups = laterals[i].shape[1] // self.w[f"neck.downsamples.{i}.weight"].shape[1]
            shallow = self.conv(laterals[i], f"neck.downsamples.{i}", stride=stride, padding=1, groups=groups)
            aux = self.encode(metadata, (shallow - laterals[3]).mean((2, 3)))
            modulation = self.dynamic_mlp(laterals[i].mean((2, 3)), aux, f"neck.dynamic_atts.{i}.loc_att")
            y = self.modulate(laterals[i], modulation)
            gate = self.linear(self.linear(aux, "neck.mlp.0").relu(), "neck.mlp.2").sigmoid()
            refined[i] = y + gate[:, :, None, None] * self.edges(y, f"neck.edge_convs.{i}")
        return self.top_down(refined, 2)

    @staticmethod
    def decode(anchors, deltas, stds):
        deltas = deltas * deltas.new_tensor(stds)
        limit = math.log(1000 / 16)
        centre, size = (anchors[:, :2] + anchors[:, 2:]) / 2, anchors[:, 2:] - anchors[:, :2]
        centre, size = centre + deltas[:, :2] * size, size * deltas[:, 2:].clamp(-limit, limit).exp()
        return torch.cat([centre - size / 2, centre + size / 2], dim=1)

    def proposal_stages(self, features, sizes):
        """Per image and level: anchors and boxes of both stages, logits of the second."""
        result = [[] for _ in sizes]
        for feature, stride in zip(features, self.strides):
            height, width = feature.shape[-2:]
            y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
            cells = torch.stack([x, y], dim=-1).reshape(-1, 2).double()
            first = torch.cat([cells * stride - 4 * stride, cells * stride + 4 * stride], dim=1)
            bridge = self.conv(feature, "rpn_head.stages.0.rpn_conv.conv", dilation=3, padding=3).relu()
            deltas = self.conv(bridge, "rpn_head.stages.0.rpn_reg")
            for n, size in enumerate(sizes):
                boxes = self.decode(first, deltas[n].flatten(1).T, (0.1, 0.1, 0.5, 0.5))
                second = clip(boxes.detach(), size)
                spread = (second[:, 2:] - second[:, :2]) / stride / 2 - 1
                shift = (second[:, :2] + second[:, 2:]) / 2 / stride - cells
                offsets = []
                for tap_y in (-1, 0, 1):
                    for tap_x in (-1, 0, 1):
                        offsets += [spread[:, 1] * tap_y + shift[:, 1], spread[:, 0] * tap_x + shift[:, 0]]
                offsets = torch.stack(offsets).view(1, 18, height, width)
                weight = self.w["rpn_head.stages.1.rpn_conv.conv.weight"]
                adapted = deform_conv2d(bridge[n : n + 1], offsets, weight, padding=1).relu()
                deltas2 = self.conv(adapted, "rpn_head.stages.1.rpn_reg")[0].flatten(1).T
                logits = self.conv(adapted, "rpn_head.stages.1.rpn_cls")[0, 0].flatten()
                boxes2 = self.decode(second, deltas2, (0.05, 0.05, 0.1, 0.1))
                result[n].append({"first": boxes, "second": second, "boxes": boxes2, "logits": logits, "cells": cells})
        return result

    def region_targets(self, level, stage, boxes):
        """The first stage: index of a target, -1 background, -2 ignored, cell by cell."""
        stride, cells = self.strides[level], stage["cells"]
        height, width = int(cells[:, 1].max()) + 1, int(cells[:, 0].max()) + 1
        assigned = torch.full((len(cells),), -1)
        beside = torch.zeros(len(cells), dtype=torch.bool)
        for number, box in enumerate(boxes):
            edge = math.sqrt((box[2] - box[0]) * (box[3] - box[1]))
            own = min(max(math.floor(math.log2(edge) - math.log2(8 * 4) + 0.5), 0), 1)

            def inside(share, box=box):
                a, b = (1 + share) / 2, (1 - share) / 2
                low = (a * box[:2] + b * box[2:]) / stride
                high = (b * box[:2] + a * box[2:]) / stride
                limit = torch.tensor([width, height])
                low, high = (torch.minimum(v.round().clamp(min=0), limit) for v in (low, high))
                return ((cells >= low) & (cells <= high)).all(1)

            if level == own:
                assigned[inside(0.5)] = -2
                assigned[inside(0.2)] = number
            else:
                beside |= inside(0.5)
        assigned[beside] = -2
        return assigned

    @staticmethod
    def overlap_targets(anchors, boxes):
        if not len(boxes):
            return torch.full((len(anchors),), -1)
        iou = box_iou(boxes, anchors)
        best = iou.max(0)
        assigned = torch.where(best.values >= 0.7, best.indices, -1)
        for number, row in enumerate(iou):
            if row.max() >= 0.3:
                assigned[row == row.max()] = number
        return assigned

    def losses(self, x, metadata, sizes, boxes):
        """Losses of a padded batch (N, 3, H, W), its metadata, sizes without padding, boxes (M, 4) per image."""
        features = self.pyramid(x, metadata)
        stages = self.proposal_stages(features, sizes)
        missed1, missed2, entropy, count, drawn = 0.0, 0.0, 0.0, 0, 0
        for image, size, wanted in zip(stages, sizes, boxes):
            all2, anchors2, logits2, valid = [], [], [], []
            for level, stage in enumerate(image):
                reach = [-(-edge // 32) * 32 / self.strides[level] for edge in size]
                inside = (stage["cells"][:, 0] < reach[1]) & (stage["cells"][:, 1] < reach[0])
                assigned = self.region_targets(level, stage, wanted)
                positive = (assigned >= 0) & inside
                count += len(assigned)
                if positive.any():
                    missed1 = missed1 + missed(stage["first"][positive], wanted[assigned[positive]])
                anchors2.append(stage["second"])
                all2.append(stage["boxes"])
                logits2.append(stage["logits"])
                valid.append(inside)
            assigned = self.overlap_targets(torch.cat(anchors2), wanted)
            valid, logits, decoded = torch.cat(valid), torch.cat(logits2), torch.cat(all2)
            positive = ((assigned >= 0) & valid).nonzero()[:, 0][:128]
            negative = ((assigned == -1) & valid).nonzero()[:, 0][: 256 - len(positive)]
            drawn += max(len(positive), 1) + max(len(negative), 1)
            if len(positive):
                missed2 = missed2 + missed(decoded[positive], wanted[assigned[positive]])
            entropy = entropy - F.logsigmoid(logits[positive]).sum() - F.logsigmoid(-logits[negative]).sum()
        losses = {
            "loss_rpn_box_stage1": 7.0 * missed1 / (count / 200),
            "loss_rpn_box_stage2": 7.0 * missed2 / drawn,
            "loss_rpn_cls_stage2": 0.7 * entropy / drawn,
        }
        with torch.no_grad():
            proposals = [self.proposals(image, size, 2000)[:, :4] for image, size in zip(stages, sizes)]
        return losses | self.box_losses(features, proposals, boxes)

    @staticmethod
    def proposals(image, size, per_level):
        rows = []
        for stage in image:
            scores = stage["logits"].sigmoid()
            order = scores.argsort(descending=True)[:per_level]
            boxes, scores = clip(stage["boxes"][order], size), scores[order]
            boxes, scores = boxes[solid(boxes)], scores[solid(boxes)]
            keep = nms(boxes, scores, 0.8)
            rows.append(torch.cat([boxes[keep], scores[keep, None]], dim=1))
        rows = torch.cat(rows)
        return rows[rows[:, 4].argsort(descending=True)][:300]

    def box_head(self, features, boxes):
        """Logits (R, 2) and deltas (R, 4) of boxes (R, 4) per image."""
        pooled = []
        for n, rows in enumerate(boxes):
            large = (rows[:, 2:] - rows[:, :2]).prod(1).sqrt() >= 112
            levels = []
            for feature, stride in zip(features, self.strides):
                one = feature[n : n + 1]
                levels.append(roi_align(one, [rows], 7, 1 / stride, sampling_ratio=-1, aligned=True))
            pooled.append(torch.where(large[:, None, None, None], levels[1], levels[0]))
        x = torch.cat(pooled).flatten(1)
        for i in range(2):
            x = self.linear(x, f"roi_head.bbox_head.shared_fcs.{i}").relu()
        return self.linear(x, "roi_head.bbox_head.fc_cls"), self.linear(x, "roi_head.bbox_head.fc_reg")

    def box_losses(self, features, proposals, boxes):
        chosen, labels, targets = [], [], []
        for rows, wanted in zip(proposals, boxes):
            rows = torch.cat([wanted, rows])
            positive = torch.zeros(len(rows), dtype=torch.bool)
            nearest = torch.zeros(len(rows), dtype=torch.long)
            if len(wanted):
                iou, nearest = box_iou(wanted, rows).max(0)
                positive = iou >= 0.65
            first = positive.nonzero()[:, 0][:64]
            rest = (~positive).nonzero()[:, 0][: 256 - len(first)]
            chosen.append(rows[torch.cat([first, rest])])
            labels += [0] * len(first) + [1] * len(rest)
            targets.append(wanted[nearest[first]])
        logits, deltas = self.box_head(features, chosen)
        labels = torch.tensor(labels)
        start, ends = torch.cat(chosen)[labels == 0], torch.cat(targets)
        sizes = [b[:, 2:] - b[:, :2] for b in (start, ends)]
        moved = ((ends[:, :2] + ends[:, 2:]) / 2 - (start[:, :2] + start[:, 2:]) / 2) / sizes[0]
        wanted = torch.cat([moved / 0.04, (sizes[1] / sizes[0]).log() / 0.08], dim=1)
        return {
            "loss_cls": 1.5 * F.cross_entropy(logits, labels),
            "loss_box_reg": F.smooth_l1_loss(deltas[labels == 0], wanted, reduction="sum") / len(labels),
        }

    def detect(self, x, metadata, sizes):
        """Rows (D, 5) of boxes and scores per image, best first."""
        features = self.pyramid(x, metadata)
        images = self.proposal_stages(features, sizes)
        proposals = [self.proposals(image, size, 1000)[:, :4] for image, size in zip(images, sizes)]
        logits, deltas = self.box_head(features, proposals)
        scores = logits.softmax(1)[:, 0].split([len(p) for p in proposals])
        boxes = self.decode(torch.cat(proposals), deltas, (0.04, 0.04, 0.08, 0.08)).split([len(p) for p in proposals])
        results = []
        for rows, score, size in zip(boxes, scores, sizes):
            rows = clip(rows, size)
            keep = score > 0.001
            rows, score = rows[keep], score[keep]
            keep = nms(rows, score, 0.5)[:100]
            results.append(torch.cat([rows[keep], score[keep, None]], dim=1))
        return results
