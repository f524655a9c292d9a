import pytest
import torch
import torch.nn.functional as F
from loops import for_every

from auxdet_d2.modeling.dynamic_mlp import DynamicLayer, DynamicMLP, build_dynamic_layer, per_sample_linear
from irstd_d2.errors import ConfigError


def test_each_image_has_its_own_matrix():
    x = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    weights = torch.tensor([[1.0, 0, 0, 0, 1, 0], [1.0, 10, 100, 2, 20, 200]])
    assert per_sample_linear(x, weights).tolist() == [[1, 2, 0], [11, 110, 1100]]


def test_variant_a_against_a_loop():
    layer, x, aux = DynamicLayer(4, 3, 5), torch.randn(6, 4), torch.randn(6, 5)
    for row, x_i, aux_i in zip(layer(x, aux), x, aux):
        matrix = (layer.weights.weight @ aux_i + layer.weights.bias).reshape(4, 3)
        expected = F.layer_norm(x_i @ matrix, (3,), layer.norm.weight, layer.norm.bias).clamp(min=0)
        torch.testing.assert_close(row, expected)


@for_every("variant", ["A", "B", "C"])
@for_every("num_layers", [1, 2, 4])
@for_every("out_features", [None, 11])
def test_shapes_and_gradients(variant, num_layers, out_features):
    mlp = DynamicMLP(12, 5, out_features, hidden=3, num_layers=num_layers, variant=variant)
    x, aux = torch.randn(4, 12, requires_grad=True), torch.randn(4, 5, requires_grad=True)
    y = mlp(x, aux)
    assert y.shape == (4, out_features or 12)
    (y * torch.randn_like(y)).sum().backward()
    for name, parameter in mlp.named_parameters():
        assert parameter.grad is not None, name
    assert x.grad.abs().sum() > 0
    assert aux.grad.abs().sum() > 0


@for_every("variant", ["A", "B", "C"])
def test_images_do_not_mix(variant):
    mlp, x, aux = DynamicMLP(12, 5, 8, hidden=3, variant=variant), torch.randn(4, 12), torch.randn(4, 5)
    alone = torch.cat([mlp(x[i : i + 1], aux[i : i + 1]) for i in range(4)])
    torch.testing.assert_close(mlp(x, aux), alone, rtol=1e-5, atol=1e-6)


def weights_seen_by(variant, x, aux):
    layer = build_dynamic_layer(variant, x.shape[1], 3, aux.shape[1])
    seen = []
    layer.weights.register_forward_hook(lambda module, args, output: seen.append(output))
    layer(x, aux)
    layer(x + 1, aux)
    return seen


def test_only_variant_c_lets_the_image_shape_the_weights():
    x, aux = torch.randn(2, 4), torch.randn(2, 5)
    unchanged = {v: torch.equal(*weights_seen_by(v, x, aux)) for v in "ABC"}
    assert unchanged == {"A": True, "B": True, "C": False}


def test_widths():
    mlp = DynamicMLP(256, 128, 264)
    assert [tuple(layer.weights.weight.shape) for layer in mlp.layers] == [(128 * 32, 128)] * 2
    assert mlp.reduce.out_features == mlp.expand.in_features == 128
    assert DynamicMLP(16, 4, bottleneck=6).reduce.out_features == 6


def test_unknown_options():
    with pytest.raises(ConfigError, match="VARIANT is 'D'"):
        DynamicMLP(8, 4, variant="D")
    with pytest.raises(ConfigError, match="NUM_LAYERS is 0"):
        DynamicMLP(8, 4, num_layers=0)
