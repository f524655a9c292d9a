import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from loops import for_every
from torch import nn

from auxdet_d2.metadata import MetadataBatch
from auxdet_d2.modeling.metadata_encoder import (
    AuxiliaryEncoder,
    DetailCompensation,
    MetadataBatchNorm,
    ResidualMLP,
    encode_names,
    encode_numbers,
    encode_sizes,
)
from irstd_d2.errors import ConfigError


def metadata(*entries):
    platform, band, size = zip(*entries)
    return MetadataBatch(torch.tensor(platform), torch.tensor(band), torch.tensor(size, dtype=torch.float32))


FOUR = metadata((0, 0, (256, 256)), (1, 1, (1024, 740)), (2, 2, (512, 512)), (0, -1, (600, 400)))


def test_names_are_one_hot_and_unknown_is_zero_or_its_own_class():
    index = torch.tensor([0, 2, -1])
    assert encode_names(index, 3).tolist() == [[1, 0, 0], [0, 0, 1], [0, 0, 0]]
    assert encode_names(index, 3, "learned").tolist() == [[1, 0, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]]


def test_sizes_are_sines_then_cosines():
    code = encode_sizes(torch.tensor([[1024.0, 512.0], [0.0, 0.0]]))
    angles = [0.5, 0.25, 1024 / (512 + 1e-6)]
    expected = [math.sin(a) for a in angles] + [math.cos(a) for a in angles]
    torch.testing.assert_close(code[0], torch.tensor(expected))
    assert code[1].tolist() == [0] * 6
    assert encode_sizes(torch.tensor([[8.0, 8.0], [0.0, 0.0]]), 16, "learned")[:, 6].tolist() == [0, 1]


@settings(deadline=None)
@given(st.floats(1, 1e4), st.floats(1, 1e4))
def test_no_known_size_looks_unknown(width, height):
    code = encode_sizes(torch.tensor([[width, height]]))[0]
    torch.testing.assert_close(code[:3] ** 2 + code[3:] ** 2, torch.ones(3))


def test_a_batch_of_one_takes_the_running_statistics_and_keeps_them():
    norm, reference = MetadataBatchNorm(4), nn.BatchNorm1d(4)
    for module in (norm, reference):
        module.running_mean.copy_(torch.arange(4))
        module.running_var.fill_(4)
    x = torch.randn(1, 4, requires_grad=True)
    torch.testing.assert_close(norm.train()(x), reference.eval()(x))
    assert norm.running_mean.tolist() == [0, 1, 2, 3]
    norm(x).square().sum().backward()
    assert norm.weight.grad.abs().sum() > 0
    assert x.grad.abs().sum() > 0


def test_larger_batches_are_those_of_batch_norm():
    norm, reference, x = MetadataBatchNorm(4), nn.BatchNorm1d(4), torch.randn(5, 4)
    torch.testing.assert_close(norm(x), reference(x))
    torch.testing.assert_close(norm.running_var, reference.running_var)
    torch.testing.assert_close(norm.eval()(x), reference.eval()(x))


@for_every("uses", [1, 2, 3])
def test_the_momentum_stands_for_several_updates(uses):
    norm, reference, x = MetadataBatchNorm(4, uses), nn.BatchNorm1d(4), torch.randn(5, 4)
    norm(x)
    for _ in range(uses):
        reference(x)
    torch.testing.assert_close(norm.running_mean, reference.running_mean)
    torch.testing.assert_close(norm.running_var, reference.running_var)


def test_residual_mlp_drops_between_its_layers_only():
    mlp, x = ResidualMLP(6, dropout=1.0), torch.randn(3, 6)
    torch.testing.assert_close(mlp(x), x + F.relu(mlp.fc2.bias).expand(3, 6))
    mlp.eval()
    torch.testing.assert_close(mlp(x), x + F.relu(mlp.fc2(F.relu(mlp.fc1(x)))))


@for_every("fields", [("platform",), ("size", "band"), ("platform", "band", "size"), ()])
@for_every("visual", [0, 5])
def test_each_field_decides_alone(fields, visual):
    if not fields and not visual:
        with pytest.raises(ConfigError, match="neither FIELDS nor VISUAL"):
            AuxiliaryEncoder(fields=fields, visual_channels=visual)
        return
    encoder = AuxiliaryEncoder(fields=fields, visual_channels=visual, num_stages=3).eval()
    hints = [torch.randn(4, visual) for _ in range(3)] if visual else []
    aux = encoder(FOUR, hints)
    assert aux.shape == (3, 4, encoder.out_features)
    assert encoder.out_features == 32 * (len(fields) + bool(visual))
    changed = {"platform": FOUR.platform.roll(1), "band": FOUR.band.roll(1), "size": FOUR.size.roll(1, 0)}
    for name, value in changed.items():
        same = torch.equal(encoder(FOUR._replace(**{name: value}), hints), aux)
        assert same == (name not in fields)
    if visual:
        other = encoder(FOUR, [hints[0] + 1, *hints[1:]])
        assert [torch.equal(a, b) for a, b in zip(other, aux)] == [False, True, True]


def test_stages_share_the_embedding_but_not_the_dropout():
    encoder = AuxiliaryEncoder(visual_channels=0)
    first, second = encoder(FOUR)
    assert not torch.equal(first, second)
    first, second = encoder.eval()(FOUR)
    assert torch.equal(first, second)


@for_every("norm", ["BN", "LN"])
@for_every("unknown", ["zero", "learned"])
def test_a_batch_of_one_unknown_image_trains(norm, unknown):
    encoder = AuxiliaryEncoder(norm=norm, unknown=unknown, visual_channels=7, dropout=0.0)
    hints = [torch.randn(1, 7) for _ in range(2)]
    aux = encoder(MetadataBatch.unknown(1), hints)
    aux.square().sum().backward()
    assert torch.isfinite(aux).all()
    grad = encoder.fields["platform"].linear.weight.grad
    # With zeros in, only the bias learns; a class of its own learns what unknown means.
    assert (grad.abs().sum() > 0) == (unknown == "learned")
    assert all(p.grad is not None for p in encoder.parameters())


def test_layer_norm_does_not_mix_the_images_of_a_training_batch():
    encoder = AuxiliaryEncoder(norm="LN", visual_channels=0, dropout=0.0)
    alone = torch.cat([encoder(MetadataBatch(*(t[i : i + 1] for t in FOUR))) for i in range(4)], dim=1)
    torch.testing.assert_close(encoder(FOUR), alone)
    mixed = AuxiliaryEncoder(visual_channels=0, dropout=0.0)
    assert not torch.allclose(mixed(FOUR)[:, :2], mixed(MetadataBatch(*(t[:2] for t in FOUR))))


def test_larger_vocabularies():
    encoder = AuxiliaryEncoder(num_platforms=5, num_bands=7, visual_channels=0).eval()
    assert not torch.equal(*encoder(metadata((4, 6, (9, 9)), (3, 5, (9, 9))))[0])


@for_every(
    ("options", "message"),
    [
        ({"fields": ["platform", "azimuth"]}, "FIELDS has"),
        ({"norm": "GN"}, "NORM is 'GN'"),
        ({"unknown": "mean"}, "UNKNOWN is 'mean'"),
    ],
)
def test_unknown_options(options, message):
    with pytest.raises(ConfigError, match=message):
        AuxiliaryEncoder(**options)


@for_every("size", [(64, 96), (33, 47)])
def test_detail_compensation_is_the_pooled_difference(size):
    shallow = torch.randn(2, 8, *size)
    deepest = torch.randn(2, 6, -(-size[0] // 8), -(-size[1] // 8))
    detail = DetailCompensation(8, 6, 8)
    assert detail.conv.groups == 2
    assert detail.conv.bias.abs().sum() == 0
    expected = (detail.conv(shallow) - deepest).mean(dim=(2, 3))
    torch.testing.assert_close(detail(shallow, deepest.mean(dim=(2, 3))), expected)


def test_numbers_turn_by_half_a_circle():
    code = encode_numbers(torch.tensor([0.0, 0.5, 1.0, math.nan]))
    torch.testing.assert_close(code, torch.tensor([[0.0, 1], [1, 0], [0, -1], [0, 0]]), rtol=0, atol=1e-6)
    assert encode_numbers(torch.tensor([0.3, math.nan]), "learned")[:, 2].tolist() == [0, 1]


@for_every("unknown", ["zero", "learned"])
def test_further_fields_have_embeddings_of_their_own(unknown):
    encoder = AuxiliaryEncoder(visual_channels=0, extra={"angle": 0, "season": 2}, unknown=unknown).eval()
    flag = int(unknown == "learned")
    widths = {name: embedding.linear.in_features for name, embedding in encoder.fields.items()}
    assert widths == {
        "platform": 3 + flag,
        "band": 3 + flag,
        "size": 6 + flag,
        "angle": 2 + flag,
        "season": 2 + flag,
    }
    assert encoder.out_features == 5 * 32
    nan = math.nan
    known = FOUR._replace(extra=torch.tensor([[0.2, 1], [0.9, 0], [nan, 1], [0.1, nan]]))
    aux = encoder(known)
    for column in (0, 1):
        other = known.extra.clone()
        other[0, column] = 0.0
        changed = encoder(known._replace(extra=other))
        assert [torch.equal(a, b) for a, b in zip(changed[0], aux[0])] == [False, True, True, True]
    # Without columns all of them are unknown.
    torch.testing.assert_close(encoder(FOUR), encoder(FOUR._replace(extra=torch.full((4, 2), nan))))
    assert not torch.allclose(encoder(FOUR), aux)


def test_further_fields_alone():
    encoder = AuxiliaryEncoder(fields=(), visual_channels=0, extra={"angle": 0}, norm="LN")
    encoder(FOUR._replace(extra=torch.tensor([[0.2], [math.nan], [0.4], [1.0]]))).sum().backward()
    assert all(torch.isfinite(p.grad).all() for p in encoder.parameters())
