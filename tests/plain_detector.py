"""What the plain BAFE-Net and AuxDet share: compositions of torch and torchvision operators, written from the papers.

Slow, in any precision, without modules: weights are a dict by published name, from which every function reads what it
needs. A model is trained with ``losses`` and shows with ``detect`` what it has learnt.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torchvision.ops import box_iou


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
