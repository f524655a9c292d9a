"""The modules of the two systems, beside plain compositions that give the same numbers."""

from __future__ import annotations

import copy

import torch
import torch.nn.functional as F
from detectron2.layers import ShapeSpec
from harness import Bench
from torch import Tensor
from torchvision.ops import deform_conv2d

from auxdet_d2.metadata import MetadataBatch
from auxdet_d2.modeling.anchor_targets import grid_anchors
from auxdet_d2.modeling.backbone import FeatureRefinement
from auxdet_d2.modeling.cascade_rpn import adaptive_offsets
from auxdet_d2.modeling.deformable import deformable_conv2d
from auxdet_d2.modeling.leem import LEEM
from auxdet_d2.modeling.m2dm import M2DM, build_edge_kernels
from bafe_d2.modeling import CrossTask, FeatureExchange, LargeSelectiveKernel
from bafe_d2.modeling.bafe_head import BAFEHead, Bottleneck


def run(bench: Bench) -> None:
    channels, size = (32, 16) if bench.quick else (256, 64)
    _deformable(bench, channels, 2 * size)
    with torch.no_grad():
        _exchange(bench, channels, size)
        _large_kernel(bench, channels, size)
        _head(bench, channels, size)
        _m2dm(bench, channels, size)
        _leem(bench, channels, 2 * size)
        _metadata(bench, channels, size)


def _forward_and_backward(function, *inputs: Tensor) -> None:
    wanted = [x for x in inputs if x.requires_grad]
    torch.autograd.grad(function(*inputs).sum(), wanted)


def _deformable(bench: Bench, channels: int, size: int) -> None:
    device = bench.device
    x = torch.randn(1, channels, size, size, device=device, requires_grad=True)
    weight = (torch.randn(channels, channels, 3, 3, device=device) * 0.01).requires_grad_()
    anchors = grid_anchors((size, size), 4, 32.0, device)[None]
    offsets = adaptive_offsets(anchors + torch.randn_like(anchors) * 2, (size, size), 4)
    theirs = lambda x, o, w: deform_conv2d(x, o, w, padding=1)  # noqa: E731
    torch.testing.assert_close(deformable_conv2d(x, offsets, weight), theirs(x, offsets, weight), rtol=1e-4, atol=1e-4)
    for name, ours, other in (
        (
            "forward",
            lambda: deformable_conv2d(x.detach(), offsets, weight.detach()),
            lambda: theirs(x.detach(), offsets, weight.detach()),
        ),
        (
            "forward and backward",
            lambda: _forward_and_backward(deformable_conv2d, x, offsets, weight),
            lambda: _forward_and_backward(theirs, x, offsets, weight),
        ),
    ):
        bench.compare(
            f"deformable convolution, {channels} channels, {size}x{size}, {name}",
            ("rows of channels", ours),
            ("torchvision", other, None),
        )
        bench.memory(f"deformable convolution, {name}", "rows of channels", ours)
        bench.memory(f"deformable convolution, {name}", "torchvision", other)


def naive_exchange(module: FeatureExchange, first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
    """The exchange of channels task by task, image by image and channel by channel."""
    assert module.adapter is not None
    chosen = [module.importance(x).topk(module.num_exchanged).indices.sort().values for x in (first, second)]
    outputs = []
    for x, index, other, other_index in ((first, chosen[0], second, chosen[1]), (second, chosen[1], first, chosen[0])):
        images = []
        for image, own, sender, theirs in zip(x, index.tolist(), other, other_index.tolist()):
            sent = torch.stack([sender[channel] for channel in theirs]).flatten(1).T
            received = F.linear(
                F.linear(sent, module.adapter.fc1.weight, module.adapter.fc1.bias).relu(),
                module.adapter.fc2.weight,
                module.adapter.fc2.bias,
            ).T.view(-1, *image.shape[1:])
            image = image.clone()
            for channel, value in zip(own, received):
                image[channel] = value
            images.append(image)
        outputs.append(torch.stack(images))
    return outputs[0], outputs[1]


def _exchange(bench: Bench, channels: int, size: int) -> None:
    module = FeatureExchange(channels).to(bench.device).eval()
    first, second = (torch.randn(2, channels, size, size, device=bench.device) for _ in range(2))
    for a, b in zip(module(first, second), naive_exchange(module, first, second)):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)
    bench.compare(
        f"exchange with its selection, 2 x {channels} channels, {size}x{size}",
        ("one gather", lambda: module(first, second)),
        ("channel by channel", lambda: naive_exchange(module, first, second), None),
    )


def _large_kernel(bench: Bench, channels: int, size: int) -> None:
    module = LargeSelectiveKernel(channels).to(bench.device).eval()
    x = torch.randn(2, channels, size, size, device=bench.device)
    conv = torch.nn.Conv2d(channels, channels, 3, padding=1).to(bench.device)
    bench.compare(
        f"large selective kernel, {channels} channels, {size}x{size}",
        ("block", lambda: module(x)),
        ("one 3x3 convolution", lambda: conv(x), None),
    )


def naive_cross_task(module: CrossTask, seg: Tensor, cls: Tensor) -> tuple[Tensor, Tensor]:
    """Every module of the cross-task block once per task."""
    seg, cls = module.large_kernel(seg), module.large_kernel(cls)
    return naive_exchange(module.exchange, module.seg_convs(seg), module.cls_convs(cls))


def _head(bench: Bench, channels: int, size: int) -> None:
    head = BAFEHead(channels, num_levels=3, num_classes=1, cross_task={}).to(bench.device).eval()
    features = [torch.randn(1, channels, size >> i, size >> i, device=bench.device) for i in range(3)]
    cross = head.cross_task
    assert cross is not None
    inner = [(head.seg_tower(x), head.cls_tower(x)) for x in features]
    both = [torch.cat(pair) for pair in inner]
    after = [(cross.seg_convs(seg), cross.cls_convs(cls)) for seg, cls in inner]

    def exchange_and_kernel() -> None:
        for x, pair in zip(both, after):
            cross.large_kernel(x)
            cross.exchange(*pair)

    bench.compare(
        f"BAFE head on {size}x{size} and two coarser levels",
        ("large kernel and exchange", exchange_and_kernel),
        ("whole head", lambda: head(features), 0.35),
    )
    bench.compare(
        "cross-task block of the BAFE head",
        ("both tasks at once", lambda: [cross(*pair) for pair in inner]),
        ("task by task", lambda: [naive_cross_task(cross, *pair) for pair in inner], 1.0),
    )
    naive = copy.deepcopy(head)
    unused = Bottleneck(channels).to(bench.device).eval()

    def naive_forward(seg: Tensor, cls: Tensor) -> tuple[Tensor, Tensor]:
        unused(cls)
        return naive_cross_task(cross, seg, cls)

    naive.cross_task.forward = naive_forward
    bench.compare(
        "BAFE head",
        ("head", lambda: head(features)),
        (
            "task by task, with the third branch of the published head, which feeds nothing",
            lambda: naive(features),
            1.0,
        ),
    )


def naive_modulation(module: M2DM, x: Tensor, aux: Tensor) -> Tensor:
    """Channel and spatial modulation image by image."""
    modulation = module.predict_modulation(x, aux)
    images = []
    for image, vector in zip(x, modulation):
        channel, taps = vector[: module.channels], vector[module.channels :]
        maps = torch.stack([image.mean(0), image.amax(0)])[None]
        kernel = build_edge_kernels(taps[None], module.tap_order)
        gain = F.conv2d(maps, kernel, padding=1).sigmoid()
        first = image * (1 + channel[:, None, None])
        images.append(image + first + image * (1 + gain[0]))
    return torch.stack(images)


def _m2dm(bench: Bench, channels: int, size: int) -> None:
    module = M2DM(channels, 64).to(bench.device).eval()
    x, aux = torch.randn(4, channels, size, size, device=bench.device), torch.randn(4, 64, device=bench.device)
    torch.testing.assert_close(module(x, aux), naive_modulation(module, x, aux), rtol=1e-4, atol=1e-4)
    bench.compare(
        f"M2DM, 4 images, {channels} channels, {size}x{size}",
        ("batched", lambda: module(x, aux)),
        ("image by image", lambda: naive_modulation(module, x, aux), None),
    )


def _leem(bench: Bench, channels: int, size: int) -> None:
    module = LEEM(channels).to(bench.device).eval()
    assert module.vertical is not None
    x = torch.randn(1, channels, size, size, device=bench.device)
    bench.compare(
        f"LEEM, {channels} channels, {size}x{size}",
        ("module", lambda: module(x)),
        ("its two convolutions", lambda: module.horizontal(module.vertical(x)), None),  # type: ignore[misc]
    )


def _metadata(bench: Bench, channels: int, size: int) -> None:
    shapes = {f"res{i}": ShapeSpec(channels=channels, stride=2**i) for i in range(2, 6)}
    refinement = FeatureRefinement(shapes).to(bench.device).eval()
    edges = {name: max(1, size * 4 // (shape.stride or 1)) for name, shape in shapes.items()}
    features = {name: torch.randn(4, channels, edge, edge, device=bench.device) for name, edge in edges.items()}
    metadata = MetadataBatch.unknown(4, bench.device)
    bench.compare(
        "refinement of a pyramid of 4 images",
        ("metadata and visual hints", lambda: refinement.encode(features, metadata)),
        ("whole refinement", lambda: refinement(features, metadata), None),
    )
