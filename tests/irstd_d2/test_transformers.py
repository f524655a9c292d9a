"""detectron2's Swin and ViT behind a configuration."""

import importlib.util

import pytest
import torch
from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY, build_backbone
from detectron2.modeling.backbone import SimpleFeaturePyramid, SwinTransformer, ViT
from loops import for_every
from torchvision.ops import StochasticDepth

from irstd_d2 import get_config
from irstd_d2.errors import ConfigError
from irstd_d2.modeling import SelectiveFPN, SwinBackbone, ViTPyramid

SWIN = {"embed_dim": 8, "depths": (2, 2, 2, 2), "num_heads": (1, 2, 2, 4), "window_size": 4}
VIT = {"img_size": 64, "patch_size": 8, "embed_dim": 32, "depth": 3, "num_heads": 2, "pretrain_img_size": 64}
VIT_OPTS = [
    *("MODEL.BACKBONE.NAME", "build_vit_pyramid_backbone", "MODEL.FPN.OUT_CHANNELS", 16, "MODEL.FPN.NORM", "LN"),
    *("MODEL.VIT.PATCH_SIZE", 8, "MODEL.VIT.EMBED_DIM", 32, "MODEL.VIT.DEPTH", 3, "MODEL.VIT.NUM_HEADS", 2),
    *("MODEL.VIT.IMAGE_SIZE", 64, "MODEL.VIT.WINDOW_SIZE", 4, "MODEL.VIT.WINDOW_BLOCKS", [0, 2]),
    *("MODEL.VIT.LEVELS", ["p2", "p3", "p4"]),
]
SWIN_OPTS = [
    *("MODEL.BACKBONE.NAME", "build_swin_backbone", "MODEL.BACKBONE.FREEZE_AT", 0, "MODEL.SWIN.EMBED_DIM", 8),
    *("MODEL.SWIN.DEPTHS", [2, 2, 2, 2], "MODEL.SWIN.NUM_HEADS", [1, 2, 2, 4], "MODEL.SWIN.WINDOW_SIZE", 4),
]


def build(*opts):
    return build_backbone(get_config(None, list(opts)))


def drop_probabilities(backbone):
    return [module.p for module in backbone.modules() if isinstance(module, StochasticDepth)]


@for_every("size", [(64, 96), (50, 71), (1, 1)])
def test_swin_is_that_of_detectron2_under_other_names(size):
    ours = SwinBackbone(**SWIN).eval()
    theirs = SwinTransformer(**SWIN, drop_path_rate=0.0).eval()
    theirs.load_state_dict(ours.state_dict())
    x = torch.randn(1, 3, *size)
    with torch.no_grad():
        actual, expected = ours(x), theirs(x)
    assert list(actual) == list(ours.output_shape()) == ["res2", "res3", "res4", "res5"]
    for feature, wanted, shape in zip(actual.values(), expected.values(), ours.output_shape().values()):
        assert torch.equal(feature, wanted)
        assert feature.shape == (1, shape.channels, *(-(-s // shape.stride) for s in size))
    assert ours.size_divisibility == 32


def test_swin_stages_beyond_the_outputs_are_not_built():
    backbone = SwinBackbone(**SWIN, out_features=("res2", "res4")).train()
    assert backbone.output_shape() == {
        "res2": ShapeSpec(channels=8, stride=4),
        "res4": ShapeSpec(channels=32, stride=16),
    }
    assert len(backbone.layers) == 3
    assert backbone.size_divisibility == 16
    # Of a sum over channels the layer norm behind would leave no gradient.
    sum(f.square().sum(1).std() + f[:, 0].mean() for f in backbone(torch.randn(1, 3, 32, 32)).values()).backward()
    assert not [name for name, p in backbone.named_parameters() if p.grad is None]
    with pytest.raises(ConfigError, match=r"OUT_FEATURES has 'p2'"):
        SwinBackbone(**SWIN, out_features=("p2",))


@for_every(("freeze_at", "layers"), [(0, 0), (1, 0), (2, 1), (3, 2)])
def test_swin_frozen_stages(freeze_at, layers):
    backbone = SwinBackbone(**SWIN, freeze_at=freeze_at, drop_path=0.7)
    trained = {name for name, p in backbone.named_parameters() if p.requires_grad}
    assert any(name.startswith("patch_embed") for name in trained) == (freeze_at == 0)
    for layer in range(4):
        assert any(name.startswith(f"layers.{layer}.") for name in trained) == (layer >= layers)
    # Eight blocks, the first without; frozen ones drop nothing.
    assert drop_probabilities(backbone) == pytest.approx([0.1 * i for i in range(8)][max(1, 2 * layers) :])


def test_swin_from_a_configuration():
    backbone = build(*SWIN_OPTS, "MODEL.SWIN.DROP_PATH", 0.0, "MODEL.SWIN.OUT_FEATURES", ["res2", "res3"])
    assert isinstance(backbone, SwinBackbone)
    assert drop_probabilities(backbone) == []
    assert list(backbone(torch.randn(1, 3, 32, 32))) == ["res2", "res3"]


def test_defaults_are_swin_t():
    sizes = [p.numel() for p in build("MODEL.BACKBONE.NAME", "build_swin_backbone").parameters()]
    assert sum(sizes) == 28_288_354 - 769_000 + 192 + 384 + 768  # as published, without classifier, three norms more


@for_every("size", [(64, 64), (48, 80)])
def test_vit_is_that_of_detectron2(size):
    ours = ViTPyramid(ViT(**VIT, use_rel_pos=True), levels=("p2", "p3", "p4"), out_channels=16).eval()
    theirs = SimpleFeaturePyramid(ViT(**VIT, use_rel_pos=True), "last_feat", 16, (2.0, 1.0, 0.5)).eval()
    theirs.load_state_dict(ours.state_dict())
    x = torch.randn(2, 3, *size)
    with torch.no_grad():
        actual, expected = ours(x), theirs(x)
    assert list(actual) == list(ours.output_shape()) == list(expected)
    assert all(torch.equal(actual[name], feature) for name, feature in expected.items())
    assert [s.stride for s in ours.output_shape().values()] == [4, 8, 16]
    assert ours.size_divisibility == ours.padding_constraints["size_divisibility"] == 16


def test_vit_from_a_configuration():
    backbone = build(*VIT_OPTS, "MODEL.VIT.DROP_PATH", 0.2).train()
    assert drop_probabilities(backbone) == pytest.approx([0.1, 0.2])
    assert [block.window_size for block in backbone.net.blocks] == [4, 0, 4]
    assert {name: f.shape for name, f in backbone(torch.randn(1, 3, 48, 64)).items()} == {
        "p2": (1, 16, 12, 16),
        "p3": (1, 16, 6, 8),
        "p4": (1, 16, 3, 4),
    }


def test_a_patch_wider_than_every_level_decides_the_padding():
    backbone = build(*VIT_OPTS, "MODEL.VIT.PATCH_SIZE", 16, "MODEL.VIT.LEVELS", ["p2", "p3"])
    assert backbone.size_divisibility == 16


@for_every(
    ("opts", "message"),
    [
        (["MODEL.VIT.LEVELS", ["p2", "p6"]], r"LEVELS has 'p6'"),
        (["MODEL.VIT.PATCH_SIZE", 32], "strides 8 to 64"),
        (["MODEL.VIT.PATCH_SIZE", 12], "PATCH_SIZE is 12"),
        (["MODEL.VIT.PATCH_SIZE", 0], "PATCH_SIZE is 0"),
    ],
)
def test_vit_settings_that_cannot_work(opts, message):
    with pytest.raises(ConfigError, match=message):
        build(*VIT_OPTS, *opts)


def test_vit_names_the_missing_package(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match="needs the package timm: pip install timm"):
        build(*VIT_OPTS)


def test_stochastic_depth_acts_in_training_alone():
    backbone = SwinBackbone(**SWIN, drop_path=0.9)
    x = torch.randn(1, 3, 32, 32)
    backbone.eval()
    assert torch.equal(backbone(x)["res5"], backbone(x)["res5"])
    backbone.train()
    assert len({backbone(x)["res5"].sum().item() for _ in range(8)}) > 1


def test_any_backbone_under_the_pyramid():
    opts = [*SWIN_OPTS, "MODEL.FPN.IN_FEATURES", ["res2", "res3", "res4"], "MODEL.FPN.OUT_CHANNELS", 8]
    opts += ["MODEL.BACKBONE.NAME", "build_irstd_fpn_backbone", "MODEL.BACKBONE.BOTTOM_UP", "build_swin_backbone"]
    backbone = build(*opts, "MODEL.SWIN.OUT_FEATURES", ["res2", "res3", "res4"])
    assert isinstance(backbone, SelectiveFPN)
    assert {name: f.shape[-1] for name, f in backbone(torch.randn(1, 3, 32, 64)).items()} == {
        "p2": 16,
        "p3": 8,
        "p4": 4,
    }
    with pytest.raises(ConfigError, match=r"BOTTOM_UP is 'build_swim'; known are .*'build_swin_backbone'"):
        build(*opts, "MODEL.BACKBONE.BOTTOM_UP", "build_swim")
    assert "build_irstd_fpn_backbone" in BACKBONE_REGISTRY
