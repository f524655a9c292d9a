"""Deformable convolution by rows against torchvision's operator."""

import torch
from loops import for_every
from torchvision.ops import deform_conv2d

from auxdet_d2.modeling import deformable
from auxdet_d2.modeling.cascade_rpn import adaptive_conv
from auxdet_d2.modeling.deformable import bilinear_corners, deformable_conv2d, deformable_conv2d_by_rows


def inputs(num_images=2, c_in=5, c_out=7, kernel=3, size=(6, 9), spread=3.0, dtype=torch.float64):
    x = torch.randn(num_images, c_in, *size, dtype=dtype, requires_grad=True)
    offsets = torch.randn(num_images, 2 * kernel * kernel, *size, dtype=dtype) * spread
    weight = torch.randn(c_out, c_in, kernel, kernel, dtype=dtype, requires_grad=True)
    return x, offsets, weight


@for_every("kernel", [1, 3, 5])
@for_every("spread", [0.0, 1.0, 10.0])
@for_every("size", [(1, 1), (6, 9)])
def test_equals_torchvision_in_values_and_gradients(kernel, spread, size):
    x, offsets, weight = inputs(kernel=kernel, spread=spread, size=size)
    ours = deformable_conv2d_by_rows(x, offsets, weight)
    theirs = deform_conv2d(x, offsets, weight, padding=kernel // 2)
    torch.testing.assert_close(ours, theirs)
    upstream = torch.randn_like(ours)
    for a, b in zip(
        torch.autograd.grad((ours * upstream).sum(), (x, weight)),
        torch.autograd.grad((theirs * upstream).sum(), (x, weight)),
    ):
        torch.testing.assert_close(a, b)


def test_zero_offsets_are_a_plain_convolution():
    x, offsets, weight = inputs(spread=0.0)
    plain = torch.nn.functional.conv2d(x, weight, padding=1)
    torch.testing.assert_close(deformable_conv2d_by_rows(x, offsets, weight), plain)


def test_whole_cells_at_the_border_sample_zero_outside():
    x = torch.ones(1, 1, 3, 3)
    offsets = torch.zeros(1, 2, 3, 3)
    offsets[:, 1] = -1.0  # each place looks one column to its left
    result = deformable_conv2d_by_rows(x, offsets, torch.ones(1, 1, 1, 1))
    assert result.tolist() == [[[[0, 1, 1]] * 3]]


def test_half_a_cell_outside_counts_by_half():
    offsets = torch.full((1, 2, 1, 1), -0.5)
    result = deformable_conv2d_by_rows(torch.full((1, 1, 1, 1), 4.0), offsets, torch.ones(1, 1, 1, 1))
    assert result.item() == 1.0


@for_every("wild", [1e9, -1e9, 1e30, -1e30])
def test_wild_offsets_give_zero(wild):
    rows, weights = bilinear_corners(torch.full((1, 18, 4, 4), wild), 3)
    assert rows.min() >= 0
    assert rows.max() < 16
    assert weights.abs().max() == 0


def test_offsets_that_want_a_gradient_get_it():
    x, offsets, weight = inputs(num_images=1, c_in=2, c_out=2, size=(3, 3), spread=1.0)
    assert torch.autograd.gradcheck(deformable_conv2d_by_rows, (x, offsets.requires_grad_(), weight))


def test_a_model_that_runs_on_a_cpu_gathers_rows(monkeypatch):
    monkeypatch.setattr(deformable, "deform_conv2d", None)
    x, offsets, weight = inputs(dtype=torch.float32)
    deformable_conv2d(x, offsets, weight).sum().backward()
    assert offsets.grad is None
    assert x.grad.abs().sum() > 0


def test_an_exported_convolution_keeps_the_operator_of_torchvision():
    conv = adaptive_conv(4, "offset").eval()
    x, offsets, _ = inputs(1, 4, 4, dtype=torch.float32)
    exported = torch.export.export(conv, (x.detach(), offsets))
    assert "torchvision.deform_conv2d" in str(exported)
    with torch.no_grad():
        torch.testing.assert_close(exported.module()(x.detach(), offsets), conv(x, offsets))
