import pytest
import torch
from detectron2.layers import ShapeSpec
from detectron2.modeling import build_backbone
from detectron2.modeling.backbone import FPN, Backbone
from detectron2.modeling.backbone.fpn import LastLevelMaxPool

from irstd_d2 import get_config
from irstd_d2.errors import ConfigError
from irstd_d2.modeling import SelectiveFPN

STAGES = {"res2": 4, "res3": 8, "res4": 16, "res5": 32}


class Strides(Backbone):
    """One convolution per stage."""

    def __init__(self):
        super().__init__()
        self.convs = torch.nn.ModuleDict({k: torch.nn.Conv2d(3, s, 1, stride=s) for k, s in STAGES.items()})

    def output_shape(self):
        return {name: ShapeSpec(channels=stride, stride=stride) for name, stride in STAGES.items()}

    def forward(self, x):
        return {name: conv(x) for name, conv in self.convs.items()}


@pytest.mark.parametrize("fuse_type", ["sum", "avg"])
@pytest.mark.parametrize("top", [LastLevelMaxPool, lambda: None])
def test_all_levels_are_those_of_detectron2(fuse_type, top):
    ours = SelectiveFPN(Strides(), list(STAGES), 8, top_block=top(), fuse_type=fuse_type)
    theirs = FPN(ours.bottom_up, list(STAGES), 8, top_block=top(), fuse_type=fuse_type)
    theirs.load_state_dict(ours.state_dict())
    x = torch.randn(2, 3, 32, 64)
    expected = theirs(x)
    actual = ours(x)
    assert list(actual) == list(expected)
    for name, feature in expected.items():
        torch.testing.assert_close(actual[name], feature)
    assert ours.output_shape() == theirs.output_shape()


@pytest.mark.parametrize("out_features", [["p2"], ["p3"], ["p2", "p4"], ["p5", "p6"], ["p3", "p6"]])
def test_a_selection_gives_the_same_levels_and_trains_only_what_feeds_them(out_features):
    every = SelectiveFPN(Strides(), list(STAGES), 8, top_block=LastLevelMaxPool())
    some = SelectiveFPN(every.bottom_up, list(STAGES), 8, out_features=out_features, top_block=LastLevelMaxPool())
    some.load_state_dict(every.state_dict())
    x = torch.randn(2, 3, 32, 64)
    expected, actual = every(x), some(x)
    assert list(actual) == list(some.output_shape()) == out_features
    for name, feature in actual.items():
        torch.testing.assert_close(feature, expected[name])
    sum(f.sum() for f in actual.values()).backward()
    own = {name: p for name, p in some.named_parameters() if name.startswith("fpn")}
    assert {name for name, p in own.items() if p.grad is not None} == {n for n, p in own.items() if p.requires_grad}


def test_unknown_levels_and_top_blocks():
    with pytest.raises(ConfigError, match=r"OUT_FEATURES has 'p7'"):
        SelectiveFPN(Strides(), list(STAGES), 8, out_features=["p7"])
    names = ["res2", "res3", "res4", "res5"]
    cfg = get_config(None, ["MODEL.RESNETS.OUT_FEATURES", names, "MODEL.FPN.IN_FEATURES", names])
    cfg.MODEL.BACKBONE.NAME, cfg.MODEL.FPN.TOP_BLOCK = "build_irstd_resnet_fpn_backbone", "p8"
    with pytest.raises(ConfigError, match="TOP_BLOCK is 'p8'"):
        build_backbone(cfg)


@pytest.mark.parametrize(
    ("top", "levels"),
    [("none", 4), ("maxpool", 5), ("p6", 5), ("p6p7", 6)],
)
def test_top_blocks(top, levels):
    names = ["res2", "res3", "res4", "res5"]
    cfg = get_config(None, ["MODEL.RESNETS.OUT_FEATURES", names, "MODEL.FPN.IN_FEATURES", names])
    cfg.MODEL.RESNETS.DEPTH, cfg.MODEL.RESNETS.STEM_OUT_CHANNELS, cfg.MODEL.RESNETS.RES2_OUT_CHANNELS = 10, 8, 8
    cfg.MODEL.BACKBONE.NAME, cfg.MODEL.FPN.TOP_BLOCK = "build_irstd_resnet_fpn_backbone", top
    cfg.MODEL.FPN.OUT_CHANNELS = 8
    outputs = build_backbone(cfg)(torch.randn(1, 3, 64, 64))
    assert [f.shape[-1] for f in outputs.values()] == [16, 8, 4, 2, 1, 1][:levels]
