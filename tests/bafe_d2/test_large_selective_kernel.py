"""The large selective kernel against loops over pixels; its reach; compilation."""

import math

import torch
from loops import for_every

from bafe_d2.modeling import LargeSelectiveKernel
from bafe_d2.modeling.large_selective_kernel import DilatedDepthwiseConv


def depthwise_slowly(x, conv):
    """(C, H, W) with a dilated kernel per channel, pixel by pixel."""
    channels, height, width = x.shape
    kernel, dilation, padding = conv.kernel_size[0], conv.dilation[0], conv.padding[0]
    out = conv.bias[:, None, None].expand_as(x).clone()
    for c in range(channels):
        for row in range(height):
            for column in range(width):
                for i in range(kernel):
                    for j in range(kernel):
                        y, z = row + i * dilation - padding, column + j * dilation - padding
                        if 0 <= y < height and 0 <= z < width:
                            out[c, row, column] += conv.weight[c, 0, i, j] * x[c, y, z]
    return out


def block_slowly(block, x):
    """Equations 1 to 3, for one image."""
    near = depthwise_slowly(x, block.near)
    far = depthwise_slowly(near, block.far)
    reduced = []
    for branch, conv in ((near, block.reduce_near), (far, block.reduce_far)):
        reduced.append(torch.einsum("oc,chw->ohw", conv.weight[:, :, 0, 0], branch) + conv.bias[:, None, None])
    pooled = [
        [[f([float(b[c, h, w]) for b in reduced for c in range(b.shape[0])]) for w in range(x.shape[2])]
         for h in range(x.shape[1])]
        for f in (lambda values: sum(values) / len(values), max)
    ]  # fmt: skip
    pooled = torch.tensor(pooled)
    weights = torch.zeros(2, *x.shape[1:])
    for o in range(2):
        for h in range(x.shape[1]):
            for w in range(x.shape[2]):
                total = float(block.select.bias[o])
                for c in range(2):
                    for i in range(7):
                        for j in range(7):
                            y, z = h + i - 3, w + j - 3
                            if 0 <= y < x.shape[1] and 0 <= z < x.shape[2]:
                                total += float(block.select.weight[o, c, i, j] * pooled[c, y, z])
                weights[o, h, w] = 1 / (1 + math.exp(-total))
    mixed = reduced[0] * weights[0] + reduced[1] * weights[1]
    return torch.einsum("oc,chw->ohw", block.expand.weight[:, :, 0, 0], mixed) + block.expand.bias[:, None, None]


def test_it_equals_the_slow_version():
    block = LargeSelectiveKernel(4)
    x = torch.randn(2, 4, 6, 7)
    with torch.no_grad():
        result = block(x)
        for n in range(2):
            torch.testing.assert_close(result[n], block_slowly(block, x[n]), rtol=1e-4, atol=1e-5)


def test_its_two_branches_reach_5_and_23_pixels():
    block = LargeSelectiveKernel(2).double()
    for branch, reach in (("near", 2), ("far", 11)):
        x = torch.zeros(1, 2, 41, 41, dtype=torch.double, requires_grad=True)
        out = block.near(x) if branch == "near" else block.far(block.near(x))
        out[0, :, 20, 20].sum().backward()
        touched = x.grad[0, 0].nonzero()
        assert touched.amin(0).tolist() == [20 - reach] * 2
        assert touched.amax(0).tolist() == [20 + reach] * 2


def test_weights_follow_the_position():
    """Where the selection favours the near branch, the far one has no part in the output, and the other way round."""
    block = LargeSelectiveKernel(4)
    with torch.no_grad():
        block.select.weight.zero_()
        block.select.bias.copy_(torch.tensor([30.0, -30.0]))
        x = torch.randn(1, 4, 5, 5)
        expected = block.expand(block.reduce_near(block.near(x)))
        torch.testing.assert_close(block(x), expected)


def test_it_compiles_without_a_break_and_takes_any_batch():
    block = LargeSelectiveKernel(4)
    compiled = torch.compile(block, fullgraph=True, backend="eager")
    for shape in ((1, 4, 5, 5), (3, 4, 8, 2), (2, 4, 1, 1)):
        x = torch.randn(shape)
        torch.testing.assert_close(compiled(x), block(x))


@for_every("size", [(1, 1), (2, 5), (3, 3), (8, 7), (20, 31)])
@for_every(("kernel", "dilation"), [(7, 3), (3, 2), (5, 1)])
@for_every("layout", [torch.contiguous_format, torch.channels_last])
def test_sub_grids_are_the_dilated_convolution(size, kernel, dilation, layout):
    conv = DilatedDepthwiseConv(6, kernel, dilation).double()
    x = torch.randn(2, 6, *size, dtype=torch.float64).to(memory_format=layout).requires_grad_()
    plain, ours = torch.nn.Conv2d.forward(conv, x), conv.convolve_sub_grids(x)
    torch.testing.assert_close(ours, plain)
    upstream = torch.randn_like(ours)
    wanted = (x, conv.weight, conv.bias)
    for a, b in zip(
        torch.autograd.grad((ours * upstream).sum(), wanted), torch.autograd.grad((plain * upstream).sum(), wanted)
    ):
        torch.testing.assert_close(a, b)


def test_a_cpu_convolves_sub_grids_and_an_exported_model_does_not(monkeypatch):
    conv = DilatedDepthwiseConv(2, 7, 3)
    x = torch.randn(1, 2, 9, 9)
    exported = str(torch.export.export(conv, (x,)))
    assert "permute" not in exported
    assert "[3, 3]" in exported  # the dilation
    monkeypatch.setattr(DilatedDepthwiseConv, "convolve_sub_grids", lambda self, x: x * 0)
    assert conv(x).abs().sum() == 0
