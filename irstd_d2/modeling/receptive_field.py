"""Assignment of points to targets by Gaussian receptive fields: every target has points, however small it is.

A point of a level sees the image through a Gaussian around it, whose width is that of the level's effective receptive
field, e. A target of width w and height h is the Gaussian of its box. Their distance is a sum over the two axes, with d
the distance of the centres along an axis:

    Kullback-Leibler   ((e^2 + 4 d^2) / w^2 - 1 + 2 ln(w / e)) / 2
    Wasserstein        d^2 + ((w - e) / 2)^2

and the score 1 / (1 + distance). Source: Xu et al., "RFLA: Gaussian Receptive Field based Label Assignment for Tiny
Object Detection" (arXiv 2208.08738): the effective field is half as wide as the theoretical one, the k points of
highest score of a target are positive, and so is the best under fields decayed by beta, where it was free.

Here a point that several targets want goes to the one in whose order it stands further in front, then to the smaller;
and before all this each target has taken one point of its own. The paper leaves both open; without the second a crowd
of targets would leave some with none.

Letters in shapes: N images, M targets (padded), P points over all levels, C candidates.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from detectron2.modeling.backbone.resnet import BasicStem, ResNet
from torch import Tensor, nn

from ..errors import ConfigError, check_known
from .fcos_targets import Level, Points, Targets, sort_by_area, targets_of_points

DISTANCES = ("kl", "wasserstein")
# A target looks for a point of its own among so many; further ones only matter where that many targets want the same.
_CHOICES = 16
# Candidates of targets that are compared at a time, some 50 bytes each: bounds the memory of dense scenes.
_CANDIDATES = 2**22


def axis_distance(offset: Tensor, size: Tensor, field: float, kind: str) -> Tensor:
    """What one axis adds to the distance of a receptive field of width ``field`` and a target.

    ``offset`` (...,) is the distance of the centres along the axis in pixels, ``size`` (...,) the target's, positive.
    ``kind`` is ``kl``, from the target's Gaussian to the field's, or ``wasserstein``, squared.
    """
    if kind == "kl":
        return ((field**2 + 4 * offset**2) / size**2 - 1) / 2 + torch.log(size / field)
    return offset**2 + ((size - field) / 2) ** 2


def theoretical_fields(backbone: nn.Module, strides: Sequence[int]) -> list[int]:
    """Width in pixels of what one cell of each level, given by its stride, can see through the ResNet below it.

    The backbone holds a ResNet of basic or bottleneck blocks on the standard stem; a level beyond its last stage is
    reached by 3x3 convolutions of stride 2.

    Raises:
        ConfigError: for another backbone.
    """
    resnet = next((module for module in backbone.modules() if isinstance(module, ResNet)), None)
    if resnet is None or not isinstance(resnet.stem, BasicStem):
        raise ConfigError(
            "MODEL.FCOS.RFLA.FIELD_WIDTHS is empty and the backbone is no ResNet with the standard stem; give the "
            "widths of the receptive fields in pixels, one per level"
        )
    convs = [getattr(block, name) for stage in resnet.stages for block in stage
             for name in ("conv1", "conv2", "conv3") if hasattr(block, name)]  # fmt: skip
    layers = [(7, 2), (3, 2), *((conv.kernel_size[0], conv.stride[0]) for conv in convs)]
    width, step, widths = 1, 1, {}
    for kernel, stride in layers:
        width, step = width + (kernel - 1) * step, step * stride
        widths[step] = width
    while step < max(strides):
        width, step = width + 2 * step, 2 * step
        widths[step] = width
    if missing := [stride for stride in strides if stride not in widths]:
        raise ConfigError(f"MODEL.FCOS.RFLA.FIELD_WIDTHS is empty and no stage has the strides {missing}; give them")
    return [widths[stride] for stride in strides]


@dataclass(frozen=True)
class ReceptiveFieldAssigner:
    """Chooses the points of each target by the distance of Gaussians; see the module.

    Attributes:
        fields: width of each level's effective receptive field in network pixels.
        distance: one of ``DISTANCES``.
        topk: points per target of the first and of the second stage.
        decay: beta, of the fields in the second stage.

    Raises:
        ConfigError: for an unknown distance or values that are not positive.
    """

    fields: Sequence[float]
    distance: str = "kl"
    topk: tuple[int, int] = (3, 1)
    decay: float = 0.9

    def __post_init__(self) -> None:
        check_known("MODEL.FCOS.RFLA.DISTANCE", self.distance, DISTANCES)
        if min(self.fields) <= 0 or self.decay <= 0:
            raise ConfigError(
                f"MODEL.FCOS.RFLA.FIELD_WIDTHS {tuple(self.fields)} and DECAY {self.decay} must be positive"
            )
        if len(self.topk) != 2 or self.topk[0] < 1 or self.topk[1] < 0:
            raise ConfigError(f"MODEL.FCOS.RFLA.TOPK is {self.topk}; give two numbers, the first at least 1")

    def __call__(self, points: Points, boxes: Tensor, classes: Tensor, num_classes: int) -> Targets:
        """Assign points to targets, boxes (N, M, 4) in network pixels, without area where padded, and classes (N, M).

        Points may lie outside of their target, so side distances may be negative, and the centerness to learn is that
        of the target widened to two strides. The label of background is ``num_classes``, K.
        """
        boxes, classes = sort_by_area(boxes, classes)
        exists = (boxes[..., 2:] > boxes[..., :2]).all(-1)
        best = self._candidates(points, boxes, exists, max(_CHOICES, self.topk[0]), 1.0)
        owners = Owners(exists, len(points.center))
        owners.give_each_one(best)
        owners.claim(best[..., : self.topk[0]])
        if self.topk[1]:
            owners.claim(self._candidates(points, boxes, exists, self.topk[1], self.decay))
        targets = targets_of_points(points, boxes, classes, num_classes, owners.positive, owners.target)
        stride = torch.cat([points.center.new_full((x.height * x.width,), x.stride) for x in points.levels])
        return Targets(targets.labels, targets.distances, widened_centerness(targets.distances, 2 * stride))

    def _candidates(self, points: Points, boxes: Tensor, exists: Tensor, count: int, decay: float) -> Tensor:
        """The ``count`` best points of each target over all levels, best first, (N, M, up to count)."""
        step = max(1, _CANDIDATES // (len(boxes) * len(points.levels) * 4 * count))
        return torch.cat(
            [
                self._best(points, boxes[:, start : start + step], exists[:, start : start + step], count, decay)
                for start in range(0, boxes.shape[1], step)
            ],
            dim=1,
        )

    def _best(self, points: Points, boxes: Tensor, exists: Tensor, count: int, decay: float) -> Tensor:
        centre = (boxes[..., :2] + boxes[..., 2:]) / 2
        size = torch.where(exists[..., None], boxes[..., 2:] - boxes[..., :2], 1.0)
        distances, indices, first = [], [], 0
        for level, field in zip(points.levels, self.fields, strict=True):
            distance, index = self._level(level, centre, size, field * decay, count)
            distances.append(distance)
            indices.append(index + first)
            first += level.height * level.width
        distance, index = torch.cat(distances, dim=-1), torch.cat(indices, dim=-1)
        # Of equal points the first is the better.
        index, order = index.sort(dim=-1)
        order = distance.gather(-1, order).argsort(dim=-1, stable=True)[..., :count]
        return index.gather(-1, order)

    def _level(self, level: Level, centre: Tensor, size: Tensor, field: float, count: int) -> tuple[Tensor, Tensor]:
        """Points of one level among which the ``count`` nearest of each target are: distance and index, (N, M, C).

        The distance is a sum over the axes, each growing with the offset. So the point in the i-th nearest column and
        the j-th nearest row has i * j - 1 points that are at least as near: those with i * j > count need no look.
        """
        y, x = level.axes(centre.device)
        column, along_x = self._axis(x, level.stride, centre[..., 0], size[..., 0], field, count)
        row, along_y = self._axis(y, level.stride, centre[..., 1], size[..., 1], field, count)
        pairs = [(i, j) for i in range(row.shape[-1]) for j in range(min(column.shape[-1], count // (i + 1)))]
        i, j = torch.tensor(pairs, device=centre.device).unbind(1)
        return along_y[..., i] + along_x[..., j], row[..., i] * level.width + column[..., j]

    def _axis(
        self, position: Tensor, stride: int, centre: Tensor, size: Tensor, field: float, count: int
    ) -> tuple[Tensor, Tensor]:
        """The ``count`` positions (L,) nearest to the centres (N, M), nearest first: index and distance (N, M, C)."""
        count = min(count, len(position))
        start = (centre / stride - 0.5 - count / 2).ceil().clamp(0, len(position) - count)
        window = start[..., None].long() + torch.arange(count, device=centre.device)
        offset = (position[window] - centre[..., None]).abs()
        offset, order = offset.sort(dim=-1, stable=True)
        return window.gather(-1, order), axis_distance(offset, size[..., None], field, self.distance)


class Owners:
    """Which target owns each point; what is owned stays so.

    ``exists`` (N, M) says whether a target is more than padding; targets come in the order of their right to a point.
    """

    def __init__(self, exists: Tensor, num_points: int):
        self.exists, self.count = exists, exists.shape[1]
        self.number = torch.arange(self.count, device=exists.device)
        # rank * M + target for an owned point: the least of what is offered wins.
        self.free = torch.iinfo(torch.int64).max
        self.keys = torch.full((len(exists), num_points), self.free, device=exists.device)

    @property
    def positive(self) -> Tensor:
        """(N, P) whether a point is owned."""
        return self.keys != self.free

    @property
    def target(self) -> Tensor:
        """(N, P) index of the owner, 0 for a free point."""
        return torch.where(self.positive, self.keys % self.count, 0)

    def give_each_one(self, wanted: Tensor) -> None:
        """Give each target one point, the best of its list (N, M, C) that none with a better right takes.

        In each round each target without one asks for the first free point of its list; it fails only if another gets
        it. So after C rounds it has one, unless each point of its list belongs to another target.
        """
        without = self.exists
        for _ in range(wanted.shape[-1]):
            free, rank = (self._owner(wanted) == self.free).max(dim=-1)
            choice = wanted.gather(-1, rank[..., None]).squeeze(-1)
            key = torch.where(without & free, rank * self.count + self.number, self.free)
            self.keys.scatter_reduce_(1, choice, key, "amin")
            without = without & (self.keys.gather(1, choice) != key)

    def claim(self, wanted: Tensor) -> None:
        """Give each free point of the lists (N, M, C) to the target in whose list it stands further in front."""
        rank = torch.arange(wanted.shape[-1], device=wanted.device)
        key = rank * self.count + self.number[:, None]
        key = torch.where(self.exists[..., None] & (self._owner(wanted) == self.free), key, self.free)
        self.keys.scatter_reduce_(1, wanted.flatten(1), key.flatten(1), "amin")

    def _owner(self, wanted: Tensor) -> Tensor:
        return self.keys.gather(1, wanted.flatten(1)).view_as(wanted)


def widened_centerness(distances: Tensor, least: Tensor) -> Tensor:
    """Centerness (N, P), at least 0.01, in boxes that are widened, around their centre, to at least ``least`` (P,).

    The centerness of a point outside of its box would be 0, and neither its box nor its score would learn. In a box of
    two strides the nearest point has at least 1 / 3; boxes that are larger keep their own centerness.
    """
    sides = distances[..., :2] + distances[..., 2:]
    half = torch.maximum(sides, least[:, None]) / 2
    offset = (distances[..., :2] - distances[..., 2:]).abs() / 2
    ratio = ((half - offset) / (half + offset)).clamp(min=0)
    return ratio.prod(-1).sqrt().clamp(min=0.01)
