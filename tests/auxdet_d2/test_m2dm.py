import pytest
import torch
from loops import for_every

from auxdet_d2.modeling.m2dm import (
    M2DM,
    MODES,
    apply_edge_kernels,
    build_edge_kernels,
    channel_gain,
    pool_channels,
    spatial_gain,
)
from irstd_d2.errors import ConfigError


def test_kernels_written_out():
    taps = torch.tensor([[1.0, 2, 3, 4, 0, 0, 0, 5]])
    assert build_edge_kernels(taps)[0].tolist() == [
        [[0, 1, 0], [3, -10, 4], [0, 2, 0]],
        [[0, 0, 0], [0, -5, 5], [0, 0, 0]],
    ]
    assert build_edge_kernels(taps, "up_left_right_down")[0].tolist() == [
        [[0, 1, 0], [2, -10, 3], [0, 4, 0]],
        [[0, 0, 0], [0, -5, 0], [0, 5, 0]],
    ]


def test_kernels_by_hand():
    maps = torch.zeros(1, 2, 3, 3)
    maps[0, 0] = torch.tensor([[0.0, 0, 0], [0, 1, 0], [0, 0, 0]])
    taps = torch.tensor([[1.0, 2, 3, 4, 9, 9, 9, 9]])
    # A point spreads through the mirrored kernel: the cell below it sees it upwards.
    assert apply_edge_kernels(maps, build_edge_kernels(taps))[0, 0].tolist() == [[0, 2, 0], [4, -10, 3], [0, 1, 0]]


def slow_edges(maps, kernels):
    """One cell at a time, zero outside."""
    num_images, _, height, width = maps.shape
    result = torch.zeros(num_images, 1, height, width)
    for n in range(num_images):
        for m in range(2):
            for y in range(height):
                for x in range(width):
                    for dy in (-1, 0, 1):
                        for dx in (-1, 0, 1):
                            if 0 <= y + dy < height and 0 <= x + dx < width:
                                result[n, 0, y, x] += maps[n, m, y + dy, x + dx] * kernels[n, m, dy + 1, dx + 1]
    return result


@for_every("size", [(1, 1), (4, 5), (1, 6)])
def test_kernels_against_a_loop(size):
    maps, kernels = torch.randn(3, 2, *size), torch.randn(3, 2, 3, 3)
    torch.testing.assert_close(apply_edge_kernels(maps, kernels), slow_edges(maps, kernels), rtol=1e-5, atol=1e-5)


def test_flat_maps_have_no_edges_inside():
    x = torch.full((2, 4, 6, 6), 100.0)
    gain = spatial_gain(x, torch.rand(2, 8))
    torch.testing.assert_close(gain[:, :, 1:-1, 1:-1], torch.full((2, 1, 4, 4), 1.5), rtol=1e-4, atol=0)


def test_spatial_gain_is_exact_under_autocast():
    x, taps = torch.randn(2, 4, 6, 6) + 100, torch.rand(2, 8)
    expected = spatial_gain(x, taps)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(spatial_gain(x, taps), expected)
    assert spatial_gain(x.bfloat16(), taps.bfloat16()).dtype == torch.bfloat16


def test_pooling():
    x = torch.tensor([1.0, 5, 3]).view(1, 3, 1, 1)
    assert pool_channels(x).flatten().tolist() == [3, 5]


@for_every("mode", MODES)
def test_modes_are_what_they_say(mode):
    m2dm, x, aux = M2DM(6, 5, mode=mode, hidden=3, detach_kernels=False), torch.randn(2, 6, 4, 5), torch.randn(2, 5)
    modulation = m2dm.predict_modulation(x, aux)
    cm, taps = modulation[:, :6], modulation[:, -8:]
    assert modulation.shape[1] == {"channel": 6, "spatial": 8}.get(mode, 14)

    def pscm(f):
        return f * cm[:, :, None, None] + f

    def pssm(f):
        return f * apply_edge_kernels(pool_channels(f), build_edge_kernels(taps)).sigmoid() + f

    expected = {
        "parallel": lambda: x + pssm(x) + pscm(x),
        "channel": lambda: x + pscm(x),
        "spatial": lambda: x + pssm(x),
        "channel_spatial": lambda: x + pssm(pscm(x)),
        "spatial_channel": lambda: x + pscm(pssm(x)),
    }[mode]()
    torch.testing.assert_close(m2dm(x, aux), expected)


def test_channel_gain():
    assert channel_gain(torch.tensor([[0.0, 1.0]])).flatten().tolist() == [1, 2]


@for_every("detach", [True, False])
def test_only_differentiable_kernels_train_the_taps(detach):
    m2dm, x = M2DM(6, 5, hidden=3, detach_kernels=detach), torch.randn(2, 6, 4, 5)
    m2dm(x, torch.randn(2, 5)).square().sum().backward()
    assert all(p.grad is not None for p in m2dm.parameters())
    grad = m2dm.dynamic_mlp.project_norm.weight.grad
    assert grad[:6].abs().min() > 0
    assert (grad[6:].abs().sum() == 0) == detach


@for_every("tap_order", ["up_down_left_right", "up_left_right_down"])
def test_tap_order_reaches_the_kernels(tap_order):
    m2dm, x, aux = M2DM(6, 5, tap_order=tap_order), torch.randn(2, 6, 4, 5), torch.randn(2, 5)
    modulation = m2dm.predict_modulation(x, aux)
    gain = spatial_gain(x, modulation[:, 6:], tap_order)
    torch.testing.assert_close(m2dm(x, aux), x * (2 + modulation[:, :6, None, None] + gain))


@for_every(
    ("options", "message"),
    [
        ({"mode": "serial"}, "MODE is 'serial'"),
        ({"tap_order": "left"}, "TAP_ORDER is 'left'"),
        ({"mode": "spatial"}, "set DETACH_KERNELS False"),
    ],
)
def test_unknown_options(options, message):
    with pytest.raises(ConfigError, match=message):
        M2DM(6, 5, **options)
