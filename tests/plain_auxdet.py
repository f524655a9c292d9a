"""AuxDet as a plain composition of operators; see plain_detector."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from plain_detector import Plain, clip, missed, solid
from torchvision.ops import box_iou, deform_conv2d, nms, roi_align


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
        # Without targets too, all have a gradient.
        missed1, missed2 = (
            0 * sum(level[name].sum() for image in stages for level in image) for name in ("first", "boxes")
        )
        entropy, count, drawn = 0.0, 0, 0
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

    def detect(self, x, metadata, sizes, score_thresh):
        """Rows (D, 5) of boxes and scores, all above ``score_thresh``, per image, best first."""
        features = self.pyramid(x, metadata)
        images = self.proposal_stages(features, sizes)
        proposals = [self.proposals(image, size, 1000)[:, :4] for image, size in zip(images, sizes)]
        logits, deltas = self.box_head(features, proposals)
        scores = logits.softmax(1)[:, 0].split([len(p) for p in proposals])
        boxes = self.decode(torch.cat(proposals), deltas, (0.04, 0.04, 0.08, 0.08)).split([len(p) for p in proposals])
        results = []
        for rows, score, size in zip(boxes, scores, sizes):
            rows = clip(rows, size)
            keep = score > score_thresh
            rows, score = rows[keep], score[keep]
            keep = nms(rows, score, 0.5)[:100]
            results.append(torch.cat([rows[keep], score[keep, None]], dim=1))
        return results
