"""AuxDet's neck against numbers of the published implementation: each part, whole, in training, and its gradients."""

import numpy as np
import pytest
import torch
from detectron2.layers import ShapeSpec
from detectron2.modeling.backbone import Backbone
from published import Published, assert_close, summary

from auxdet_d2.checkpoint import AUXDET_NAMES
from auxdet_d2.metadata import MetadataVocabulary, collate_metadata
from auxdet_d2.modeling import LEEM, AuxDetFPN, AuxiliaryEncoder, FeatureRefinement
from auxdet_d2.modeling.leem import ResidualGate
from auxdet_d2.modeling.m2dm import M2DM, build_edge_kernels, spatial_gain

STAGES = ("res2", "res3")
FIELDS = {"fields.platform": "view", "fields.band": "band", "fields.size": "size", "visual": "sem"}
SHAPES = {"res2": (256, 4), "res3": (512, 8), "res4": (1024, 16), "res5": (2048, 32)}
VOCABULARY = MetadataVocabulary.from_names(["Air", "Space", "Land"], ["LWIR", "NIR", "SWIR"])


class GivenFeatures(Backbone):
    """Stands in for the ResNet: hands on the feature maps that the test sets, whatever the image."""

    features: dict[str, torch.Tensor]

    def output_shape(self):
        return {name: ShapeSpec(channels=c, stride=s) for name, (c, s) in SHAPES.items()}

    def forward(self, x):
        return self.features


@pytest.fixture(scope="module")
def published(oracle_dir):
    return Published(oracle_dir, "auxdet_r50.manifest.json")


@pytest.fixture(scope="module")
def parts(oracle_dir):
    return np.load(oracle_dir / "auxdet_neck_parts.npz")


@pytest.fixture(scope="module")
def whole(oracle_dir):
    return np.load(oracle_dir / "auxdet_neck.npz")


@pytest.fixture
def metadata(published):
    entries = [
        {"platform": m["view"], "band": m["band_type"], "width": m["width"], "height": m["height"]}
        for m in published.manifest["meta"]
    ]
    return collate_metadata(entries, VOCABULARY)


@pytest.fixture
def state(published):
    """The weights of the published neck under our names, prefix removed."""
    neck = {k: v for k, v in published.state.items() if k.startswith("neck.")}
    return {k.removeprefix("backbone."): v for k, v in AUXDET_NAMES.to_ours(neck).values.items()}


def part(state, prefix):
    return {k.removeprefix(f"{prefix}."): v for k, v in state.items() if k.startswith(f"{prefix}.")}


def build_neck(state):
    laterals = {name: ShapeSpec(channels=256, stride=stride) for name, (_, stride) in SHAPES.items()}
    refinement = FeatureRefinement(laterals, encoder={"dropout": 0.0})
    neck = AuxDetFPN(GivenFeatures(), list(SHAPES), 256, refinement=refinement, out_features=["p2", "p3"])
    neck.load_state_dict(state, strict=True)
    return neck


def test_every_published_array_is_compared(parts, whole, capsys):
    """The arrays that the tests of this file compare are all there are."""
    statistics = {f"meta_train_after.{m}_mlp.2.running_{s}" for m in FIELDS.values() for s in ("mean", "var")}
    of_parts = {*statistics, "meta_sem_in", "meta_eval_out", "meta_train_out", "alpha_mlp_out"}
    of_parts |= {"dmlp_f1", "dmlp_aux", "dmlp0_out", "dmlp1_out", "sm_x", "sm_w", "sm_out", "sm_kernels"}
    of_parts |= {"edge_x", "edge0_out", "edge1_out", "fcres_x", "fcres_out"}
    of_parts |= {f"edge_init_{a}" for a in ("vert", "hori", "x", "out")}
    assert set(parts) == of_parts
    arrays = [f"{a}{i}" for i in (0, 1) for a in ("aux", "alpha", "mod")]
    arrays += [f"P{level}_{a}" for level in (2, 3) for a in ("sample", "summary")]
    of_whole = {f"{mode}_{a}" for mode in ("eval", "train") for a in arrays}
    assert set(whole) == of_whole | {"grad_sum_abssum", "grad_names", "grad_is_none"}
    with capsys.disabled():
        print(
            f"\nAuxDet neck: {len(of_parts)} + {len(whole.files)} arrays, {len(whole['grad_names'])} gradients compared"
        )


def test_parameters_of_each_part(state):
    neck = build_neck(state)
    names = ("fpn_lateral", "fpn_output", *(f"refinement.{p}" for p in ("leem", "detail", "m2dm", "encoder", "gate")))
    counts = [sum(p.numel() for k, p in neck.named_parameters() if k.startswith(name)) for name in names]
    assert counts == [984_064, 2_360_320, 786_436, 37_376, 2_383_792, 126_656, 8_321]
    assert sum(p.numel() for p in neck.parameters()) == sum(counts) == 6_686_965


@pytest.mark.parametrize("mode", ["eval", "train"])
def test_encoder(state, parts, metadata, mode):
    # The published arrays are of a single call, hence one stage.
    encoder = AuxiliaryEncoder(num_stages=1, dropout=0.0)
    encoder.load_state_dict(part(state, "refinement.encoder"))
    encoder.train(mode == "train")
    assert_close(encoder(metadata, [torch.from_numpy(parts["meta_sem_in"])])[0], parts[f"meta_{mode}_out"], 1e-6)
    if mode == "train":
        for ours, name in FIELDS.items():
            embedding = encoder.get_submodule(ours)
            for statistic in ("running_mean", "running_var"):
                expected = parts[f"meta_train_after.{name}_mlp.2.{statistic}"]
                assert_close(getattr(embedding.norm, statistic), expected, 1e-6, name)


@pytest.mark.parametrize(("i", "stage"), list(enumerate(STAGES)))
def test_dynamic_mlp(state, parts, i, stage):
    m2dm = M2DM(256, 128)
    m2dm.load_state_dict(part(state, f"refinement.m2dm.{stage}"))
    x, aux = torch.from_numpy(parts["dmlp_f1"]), torch.from_numpy(parts["dmlp_aux"])
    assert_close(m2dm.dynamic_mlp(x.mean(dim=(2, 3)), aux), parts[f"dmlp{i}_out"], 1e-6)


def test_spatial_modulation(parts):
    x, taps = torch.from_numpy(parts["sm_x"]), torch.from_numpy(parts["sm_w"])
    assert_close(build_edge_kernels(taps), parts["sm_kernels"][:, 0], 1e-6)
    assert_close(x * spatial_gain(x, taps), parts["sm_out"], 1e-6)


@pytest.mark.parametrize(("i", "stage"), list(enumerate(STAGES)))
def test_leem(state, parts, i, stage):
    leem = LEEM(256)
    leem.load_state_dict(part(state, f"refinement.leem.{stage}"))
    assert_close(leem(torch.from_numpy(parts["edge_x"])), parts[f"edge{i}_out"], 1e-5)


def test_fresh_leem(parts):
    leem = LEEM(16)
    np.testing.assert_array_equal(leem.vertical.weight.detach(), parts["edge_init_vert"])
    np.testing.assert_array_equal(leem.horizontal.weight.detach(), parts["edge_init_hori"])
    assert_close(leem(torch.from_numpy(parts["edge_init_x"])), parts["edge_init_out"], 1e-5)


def test_residual_mlp_and_gate(state, parts):
    encoder, gate = AuxiliaryEncoder(dropout=0.0), ResidualGate(128)
    encoder.load_state_dict(part(state, "refinement.encoder"))
    gate.load_state_dict(part(state, "refinement.gate"))
    assert_close(encoder.metadata_fusion(torch.from_numpy(parts["fcres_x"])), parts["fcres_out"], 1e-6)
    assert_close(gate(torch.from_numpy(parts["dmlp_aux"])), parts["alpha_mlp_out"], 1e-6)


def given_features(published):
    return {
        name: published.image(200 + i, (4, channels, 128 // stride, 160 // stride)).relu()
        for i, (name, (channels, stride)) in enumerate(SHAPES.items())
    }


@pytest.mark.parametrize("mode", ["eval", "train"])
def test_whole_neck(published, state, whole, metadata, mode):
    neck = build_neck(state).train(mode == "train")
    neck.bottom_up.features = given_features(published)
    seen = {}
    neck.refinement.encoder.register_forward_hook(lambda module, args, output: seen.update(aux=output))
    outputs = neck(torch.zeros(4, 3, 128, 160), metadata)
    laterals = dict(zip(SHAPES, neck.project_laterals(neck.bottom_up.features)))
    for i, (stage, level, step) in enumerate(zip(STAGES, ("p2", "p3"), (2, 1))):
        aux = seen["aux"][i]
        assert_close(aux, whole[f"{mode}_aux{i}"], 1e-5, f"aux {stage}")
        assert_close(neck.refinement.gate(aux), whole[f"{mode}_alpha{i}"], 1e-5, f"gate {stage}")
        modulation = neck.refinement.m2dm[stage].dynamic_mlp(laterals[stage].mean(dim=(2, 3)), aux)
        assert_close(modulation, whole[f"{mode}_mod{i}"], 1e-5, f"modulation {stage}")
        name = f"{mode}_P{i + 2}"
        assert_close(outputs[level][:, ::4, ::step, ::step], whole[f"{name}_sample"], 1e-5, level)
        assert_close(summary(outputs[level]), whole[f"{name}_summary"], 1e-5, level)


def test_gradients_of_the_whole_neck(published, state, whole, metadata):
    neck = build_neck(state).train()
    neck.bottom_up.features = given_features(published)
    outputs = neck(torch.zeros(4, 3, 128, 160), metadata)
    sum((p * published.image(210 + i, tuple(p.shape))).sum() for i, p in enumerate(outputs.values())).backward()

    parameters = dict(neck.named_parameters())
    expected = dict(zip(map(str, whole["grad_names"]), whole["grad_sum_abssum"]))
    without = {str(name) for name, none in zip(whole["grad_names"], whole["grad_is_none"]) if none}
    assert without == {f"fpn_convs.{i}.conv.{p}" for i in (2, 3) for p in ("weight", "bias")}
    for name, (total, magnitude) in expected.items():
        (ours,) = AUXDET_NAMES.to_ours({f"neck.{name}": torch.empty(0)}).values
        grad = parameters[ours.removeprefix("backbone.")].grad
        if name in without:
            assert grad is None, name
            continue
        # The gate in front of the normalisation has no gradient but for eps; what is left are rounding errors of terms
        # that cancel, which are as large as the gradient of the scale behind it.
        scale = expected[name.replace("alpha", "beta")][1]
        assert abs(grad.double().sum() - total) <= 1e-4 * scale, name
        assert abs(grad.double().abs().sum() - magnitude) <= 1e-4 * scale, name


def test_running_statistics_move_as_after_one_update_per_stage(state, metadata):
    single, double = AuxiliaryEncoder(num_stages=1, dropout=0.0), AuxiliaryEncoder(num_stages=2, dropout=0.0)
    hints = [torch.randn(4, 256), torch.randn(4, 256)]
    for encoder in (single, double):
        encoder.load_state_dict(part(state, "refinement.encoder"))
        encoder.train()
    one_by_one = torch.cat([single(metadata, [hint]) for hint in hints])
    torch.testing.assert_close(double(metadata, hints), one_by_one, rtol=1e-5, atol=1e-5)
    expected = {k: v for k, v in single.state_dict().items() if "running" in k}
    assert len(expected) == 8
    for name, value in expected.items():
        torch.testing.assert_close(double.state_dict()[name], value, rtol=1e-6, atol=1e-7)
