"""Optimised models detect the same: both systems, every baseline, and convolutions that must be left alone."""

import copy
from pathlib import Path

import pytest
import torch
from detectron2.layers import Conv2d, FrozenBatchNorm2d, ROIAlign
from test_export_graphs import METADATA, TINY, assert_equal, build, by_model, images
from torch import nn

from irstd_d2.errors import ConfigError
from irstd_d2.inference import optimization, optimize, winograd
from irstd_d2.inference.optimization import ChannelsLastGroupNorm, fold_batch_norms
from irstd_d2.inference.roi_align import RowROIAlign
from irstd_d2.inference.winograd import WinogradConv2d

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
BASELINES = sorted(str(p.relative_to(CONFIGS)) for p in CONFIGS.glob("baselines/*r18*.yaml"))


def with_statistics(model):
    """Statistics of a trained network: nothing is 0 or 1."""
    generator = torch.Generator().manual_seed(1)
    for module in model.modules():
        if hasattr(module, "running_var"):
            module.running_mean.copy_(0.1 * torch.randn(module.running_mean.shape, generator=generator))
            module.running_var.copy_(0.5 + torch.rand(module.running_var.shape, generator=generator))
            module.weight.data.copy_(0.5 + torch.rand(module.weight.shape, generator=generator))
            module.bias.data.copy_(0.1 * torch.randn(module.bias.shape, generator=generator))
    return model.eval()


FINE = ["bafe/tiny/fcos_fine.yaml", "bafe/tiny/bafe_fine.yaml"]  # batch norm per level


@pytest.mark.parametrize("name", [*TINY, *FINE, *BASELINES])
def test_an_optimised_model_detects_the_same(name):
    model = with_statistics(build(name)[1])
    expected = by_model(model, images(), METADATA)
    fast = optimize(model)
    assert type(fast) is type(model)
    assert_equal(expected, by_model(fast, images(), METADATA), 0.02, 1e-4, sky=1e-4)
    assert not any(isinstance(m, nn.BatchNorm2d | FrozenBatchNorm2d) for m in fast.modules())
    assert not any(p.requires_grad for p in fast.parameters())
    # The model itself is as it was.
    assert_equal(expected, by_model(model, images(), METADATA), 0, 0, sky=0)


def test_a_training_model_stays_in_training_and_its_example_is_compared():
    model = with_statistics(build("bafe/tiny/fcos_tiny.yaml")[1]).train()
    samples = [{"image": torch.rand(3, 64, 96) * 255}, {"image": torch.rand(3, 96, 64) * 255}]
    assert not optimize(model, samples).training
    assert model.training


def test_a_model_that_it_does_not_suit_is_found_out(monkeypatch):
    model = with_statistics(build("bafe/tiny/fcos_tiny.yaml")[1])
    monkeypatch.setattr(optimization, "fold_batch_norms", lambda fast: nn.init.normal_(fast.head.box_distances.weight))
    with pytest.raises(RuntimeError, match="the optimised IRSTDFCOS detects otherwise in example 0"):
        optimize(model, [{"image": torch.rand(3, 64, 96) * 255}])


def test_half_precision_is_near_and_asked_for():
    model = with_statistics(build("auxdet/tiny/cascade_rpn_tiny.yaml")[1])
    x = torch.rand(1, 3, 64, 96)
    with torch.no_grad():
        expected = model.backbone(x)["p2"]
        fast = optimize(model, dtype="bfloat16")
        kinds = []
        fast.backbone.register_forward_hook(lambda *args: kinds.append(args[2]["p2"].dtype))
        fast([{"image": torch.rand(3, 64, 96) * 255}])
        found = optimize(model).backbone(x)["p2"]
    assert kinds == [torch.bfloat16]
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    for dtype in ("int3", torch.bfloat16, None):
        with pytest.raises(ConfigError, match=f"the type is {dtype!r}; known are 'float32'"):
            optimize(model, dtype=dtype)


def norm_of(channels):
    norm = nn.BatchNorm2d(channels)
    norm.running_mean.uniform_(-1, 1)
    norm.running_var.uniform_(0.5, 2)
    return norm


@pytest.mark.parametrize("norm", [norm_of, FrozenBatchNorm2d])
@pytest.mark.parametrize("bias", [True, False])
def test_a_norm_inside_and_behind_a_convolution(norm, bias):
    inside = Conv2d(3, 4, 3, stride=2, groups=1, bias=bias, norm=norm(4), activation=nn.ReLU())
    behind = nn.Sequential(nn.Conv2d(4, 6, 1, groups=2, bias=bias), norm(6), nn.ReLU())
    model, x = nn.Sequential(inside, behind).eval(), torch.randn(2, 3, 9, 8)
    expected = model(x)
    assert fold_batch_norms(model) == 2
    assert inside.norm is None
    assert isinstance(behind[1], nn.Identity)
    torch.testing.assert_close(model(x), expected)


@pytest.mark.parametrize("shape", [(1, 32, 130, 128), (3, 8, 5, 7), (2, 4, 1, 1)])
def test_group_norm_is_exact_with_the_channels_innermost(shape):
    norm = nn.GroupNorm(4, shape[1])
    nn.init.uniform_(norm.weight), nn.init.uniform_(norm.bias)
    x = (5 + torch.randn(shape)).to(memory_format=torch.channels_last)
    expected = copy.deepcopy(norm).double()(x.contiguous().double())
    found = ChannelsLastGroupNorm(norm)(x)
    torch.testing.assert_close(found.double(), expected, rtol=0, atol=3e-6)
    assert found.is_contiguous(memory_format=torch.channels_last)
    half = ChannelsLastGroupNorm(norm.bfloat16())(x.bfloat16())
    torch.testing.assert_close(half.double(), expected, rtol=0.02, atol=0.05)


@pytest.mark.parametrize(
    ("shape", "step", "at_once"),
    [((1, 128, 32, 32), 1, 2048), ((2, 128, 17, 30), 1, 20), ((1, 130, 40, 23), 3, 30), ((2, 128, 33, 50), 2, 60)],
)
def test_winograd_convolutions_are_convolutions(monkeypatch, shape, step, at_once):
    monkeypatch.setattr(winograd, "TILES_AT_ONCE", at_once)
    norm = nn.GroupNorm(1, 131) if step == 3 else None
    conv = Conv2d(shape[1], 131, 3, padding=step, dilation=step, bias=step != 2, norm=norm, activation=torch.relu)
    x = torch.randn(shape).to(memory_format=torch.channels_last)
    fast = optimize(nn.Sequential(conv))[0]
    with torch.no_grad():
        found, expected = fast(x).double(), copy.deepcopy(conv).double()(x.double())
    assert isinstance(fast, WinogradConv2d)
    assert type(fast.norm) is (ChannelsLastGroupNorm if norm else type(None))
    assert (found != 0).any()
    assert float((found - expected).abs().max() / expected.abs().max()) < 1e-5
    assert not torch.equal(found, conv(x).double())  # by another way


class RunsAList(nn.Module):
    """As detectron2's FPN: the convolution has a name, and runs from a list."""

    def __init__(self):
        super().__init__()
        self.output = nn.Conv2d(128, 128, 3, padding=1)
        self.order = [self.output]

    def forward(self, x):
        return self.order[0](x)


def test_convolutions_in_lists_are_exchanged_too():
    model, calls = RunsAList(), []
    fast = optimize(model)
    fast.output.register_forward_hook(lambda *_: calls.append(1))
    x = torch.randn(1, 128, 16, 16)
    torch.testing.assert_close(fast(x), model(x), rtol=1e-4, atol=1e-4)
    assert calls
    assert fast.order == [fast.output] != model.order


def test_winograd_convolutions_leave_other_runs_as_they_are():
    conv = nn.Conv2d(128, 128, 3, padding=1)
    fast, small, half = WinogradConv2d(conv), torch.randn(1, 128, 8, 24), torch.randn(1, 128, 16, 16).bfloat16()
    assert torch.equal(fast(small), conv(small))
    assert torch.equal(fast.bfloat16()(half), conv.bfloat16()(half))
    traced = torch.jit.trace(WinogradConv2d(nn.Conv2d(128, 128, 3, padding=1)), torch.randn(1, 128, 16, 16))
    assert [tuple(x.shape) for x in traced.state_dict().values()] == [(128, 128, 3, 3), (128,)]
    assert "as_strided" not in str(traced.inlined_graph)


@pytest.mark.parametrize(
    "other",
    [
        nn.Conv2d(64, 128, 3, padding=1),
        nn.Conv2d(128, 512, 3, padding=1),
        nn.Conv2d(128, 128, 3, padding=1, stride=2),
        nn.Conv2d(128, 128, 3, padding=2),
        nn.Conv2d(128, 128, 3),
        nn.Conv2d(128, 128, (1, 3), padding=(0, 1)),
        nn.Conv2d(128, 128, 3, padding=1, groups=128),
        nn.Conv2d(128, 128, 3, padding=1, padding_mode="reflect"),
    ],
)
def test_other_convolutions_stay(other):
    assert not WinogradConv2d.suits(other)


@pytest.mark.parametrize(("output", "samples", "aligned"), [(7, 0, True), ((5, 3), 0, False), (7, 2, True)])
def test_regions_by_rows(output, samples, aligned):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 5, 20, 31, generator=generator).to(memory_format=torch.channels_last)
    corner = torch.rand(200, 2, generator=generator) * torch.tensor([150.0, 100.0]) - 20  # beyond every edge
    sides = torch.rand(200, 2, generator=generator) ** 3 * torch.tensor([120.0, 90.0])
    sides[:3], sides[3:5] = 0, -3
    images = torch.randint(0, 2, (200, 1), generator=generator)
    rois = torch.cat([images, corner, corner + sides], dim=1)
    pooler = ROIAlign(output if isinstance(output, tuple) else (output, output), 0.25, samples, aligned=aligned)
    for count in (200, 1, 0):
        torch.testing.assert_close(RowROIAlign(pooler)(x, rois[:count]), pooler(x, rois[:count]), rtol=1e-4, atol=3e-5)


class TwoNorms(nn.Module):
    """One convolution with a norm of its own for each of two levels."""

    def __init__(self):
        super().__init__()
        conv = nn.Conv2d(3, 3, 1)
        self.first, self.second = nn.Sequential(conv, norm_of(3)), nn.Sequential(conv, norm_of(3))

    def forward(self, x):
        return self.first(x) - 2 * self.second(x)


@pytest.mark.parametrize(
    "model",
    [
        TwoNorms(),
        nn.Sequential(Conv2d(3, 3, 1, activation=nn.ReLU()), norm_of(3)),
        nn.Sequential(nn.Conv2d(3, 3, 1), nn.ReLU(), norm_of(3)),
        nn.Sequential(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3, track_running_stats=False)),
        nn.Sequential(nn.ConvTranspose2d(3, 3, 1), norm_of(3)),
    ],
)
def test_what_must_be_left_alone(model):
    model, x = model.eval(), torch.randn(2, 3, 5, 4)
    expected = model(x)
    assert fold_batch_norms(model) == 0
    assert torch.equal(model(x), expected)
