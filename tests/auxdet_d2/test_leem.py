import numpy as np
import pytest
import torch
import torch.nn.functional as F
from loops import for_every

from auxdet_d2.modeling.leem import LEEM, ResidualGate, normalize_instance, normalize_std
from irstd_d2.errors import ConfigError


def test_normalisations_written_out():
    x = torch.tensor([[1.0, 2], [3, 6]]).view(1, 1, 2, 2)
    unbiased, population = (14 / 3) ** 0.5, 3.5**0.5
    torch.testing.assert_close(normalize_std(x), (x - 3) / (unbiased + 1e-5))
    torch.testing.assert_close(normalize_instance(x), (x - 3) / population)
    torch.testing.assert_close(normalize_instance(x), F.instance_norm(x))


@for_every("normalize", [normalize_std, normalize_instance])
@for_every("size", [(1, 1), (3, 3)])
def test_flat_maps_and_single_cells_give_zero(normalize, size):
    x = torch.full((2, 3, *size), 7.0, requires_grad=True)
    y = normalize(x)
    assert y.abs().max() == 0
    y.sum().backward()
    assert torch.isfinite(x.grad).all()


def test_edges_of_a_point():
    """The prior without its ReLU is the product of two second differences (Eq. 17)."""
    x = torch.zeros(1, 1, 5, 5)
    x[0, 0, 2, 2] = 16
    square = LEEM(1, kernel="3x3")
    expected = torch.zeros(5, 5)
    expected[1:4, 1:4] = torch.tensor([[1.0, -2, 1], [-2, 4, -2], [1, -2, 1]])
    torch.testing.assert_close(square.square(x)[0, 0], expected)
    lines = LEEM(1)
    torch.testing.assert_close(lines.horizontal(lines.vertical(x))[0, 0], expected)


@for_every("kernel", ["1d", "3x3"])
def test_identity_prior_is_the_depthwise_one(kernel):
    x = torch.randn(2, 4, 6, 5)
    dense, depthwise = LEEM(4, kernel=kernel, init="laplacian_identity"), LEEM(4, kernel=kernel, connection="depthwise")
    torch.testing.assert_close(dense(x), depthwise(x))


def test_dense_prior_makes_all_channels_alike_and_identity_does_not():
    x = torch.randn(2, 4, 6, 5)
    dense = LEEM(4)(x)
    torch.testing.assert_close(dense, dense[:, :1].expand_as(dense))
    assert (LEEM(4, init="laplacian_identity")(x).std(dim=1) > 1e-3).all()


def test_xavier_has_the_spread_of_the_released_weights():
    assert LEEM(256, init="xavier").vertical.weight.std().item() == pytest.approx(0.0361, rel=0.01)


@for_every(
    ("options", "count"),
    [
        ({}, 2 * 3 * 64 * 64 + 2),
        ({"kernel": "3x3"}, 9 * 64 * 64 + 2),
        ({"connection": "depthwise"}, 2 * 3 * 64 + 2),
        ({"norm": "instance"}, 2 * 3 * 64 * 64 + 1 + 64),
    ],
)
def test_parameters_and_gradients(options, count):
    leem, x = LEEM(64, **options), torch.randn(2, 64, 4, 4)
    assert sum(p.numel() for p in leem.parameters()) == count
    y = leem(x)
    assert y.shape == x.shape
    y.square().sum().backward()
    assert all(p.grad is not None for p in leem.parameters())


@for_every("norm", ["std", "instance"])
def test_the_inner_gate_is_cancelled_by_the_norm(norm):
    leem, x = LEEM(4, norm=norm), torch.randn(2, 4, 6, 5)
    before = leem(x)
    torch.nn.init.constant_(leem.response_gate, 3.0)
    torch.testing.assert_close(leem(x), before, rtol=1e-3, atol=1e-3)


def test_half_precision_stays_near_full():
    leem, x = LEEM(8, init="laplacian_identity"), torch.randn(2, 8, 16, 16)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        half = leem(x.bfloat16())
    assert half.dtype == torch.bfloat16
    assert (half.float() - leem(x)).abs().mean() < 0.02


def test_residual_gate():
    gate, aux = ResidualGate(6), torch.randn(2, 4, 6)
    expected = torch.sigmoid(gate.score(F.relu(gate.hidden(aux))))
    torch.testing.assert_close(gate(aux), expected)
    assert gate.hidden.out_features == 3


@for_every("key", ["kernel", "connection", "init", "norm"])
def test_unknown_options(key):
    with pytest.raises(ConfigError, match=f"LEEM.{key.upper()} is 'other'"):
        LEEM(4, **{key: "other"})


def plain_moments(x, window):
    """Mean and population variance around each cell of a map (H, W), from the definition, in loops."""
    lengths, starts = [min(window, size) for size in x.shape], []
    for size, length in zip(x.shape, lengths):
        count = int(np.ceil((size - length) / max(1, window // 8))) + 1
        starts.append(np.linspace(0, size - length, count))
    found = np.empty((2, len(starts[0]), len(starts[1])))
    for i, top in enumerate(starts[0]):
        for j, left in enumerate(starts[1]):
            shares = [  # of each row and column in the window; a start may lie within a cell
                np.array([max(0, min(c + 1, start + length) - max(c, start)) for c in range(size)]) / length
                for start, length, size in zip((top, left), lengths, x.shape)
            ]
            weights = np.outer(*shares)
            mean = (weights * x).sum()
            found[:, i, j] = mean, (weights * x**2).sum() - mean**2
    for axis, (size, length) in enumerate(zip(x.shape, lengths)):
        centres, cells = starts[axis] + length / 2, np.arange(size) + 0.5
        found = np.apply_along_axis(lambda y, c=centres, i=cells: np.interp(i, c, y), axis + 1, found)
    return found, lengths[0] * lengths[1]


@for_every("size", [(21, 30), (4, 12), (3, 3), (1, 40), (17, 16)])
@for_every("window", [2, 5, 16])
def test_moments_of_windows_from_their_definition(size, window):
    x = np.random.default_rng(0).normal(10, 3, size)
    (mean, variance), count = plain_moments(x, window)
    given = torch.from_numpy(x)[None, None]
    unbiased = variance * count / max(1, count - 1)
    np.testing.assert_allclose(
        normalize_std(given, window=window)[0, 0], (x - mean) / (np.sqrt(unbiased) + 1e-5), rtol=1e-6, atol=1e-7
    )
    np.testing.assert_allclose(
        normalize_instance(given, window=window)[0, 0], (x - mean) / np.sqrt(variance + 1e-5), rtol=1e-6, atol=1e-7
    )


def test_a_window_hides_how_large_the_image_is():
    """In a crop of the window's size the response is that of the whole map; further away nothing matters."""
    torch.manual_seed(0)
    module, published = LEEM(2, window=6), LEEM(2)
    x = torch.rand(1, 2, 6, 6)
    assert torch.equal(module(x), published(x))
    large = torch.zeros(1, 2, 30, 30)
    large[..., 10:16, 10:16] = x
    disturbed = large.clone()
    disturbed[..., :4, :] = 50
    torch.testing.assert_close(module(large)[..., 10:16, 10:16], module(disturbed)[..., 10:16, 10:16])
    assert not torch.allclose(published(large)[..., 10:16, 10:16], published(disturbed)[..., 10:16, 10:16], rtol=0.1)


def test_windows_keep_full_precision_under_autocast():
    x = torch.randn(1, 2, 40, 40) + torch.linspace(0, 50, 40)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = normalize_std(x, window=8)
    assert torch.equal(y, normalize_std(x, window=8))


def test_windows_have_gradients_and_flat_maps_are_zero():
    x = torch.randn(1, 2, 7, 8, dtype=torch.float64, requires_grad=True)
    for normalize in (normalize_std, normalize_instance):
        assert torch.autograd.gradcheck(lambda x, f=normalize: f(x, window=3), x)
        assert normalize(torch.full((1, 2, 7, 8), 1000.1), window=3).abs().max() < 1e-2
