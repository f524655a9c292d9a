"""Parameters and multiply-adds, counted by hand and by another way, and the page made from them."""

import re
from pathlib import Path

import pytest
import torch
from complexity import Complexity, analyze, build_on_cpu, count_parameters
from detectron2.layers import ShapeSpec
from fvcore.nn import FlopCountAnalysis
from model_zoo import SECTIONS, configurations, line, lines, main, module_table, render, square_size
from torch import nn

from auxdet_d2.modeling.cascade_rpn import CascadeRPN
from irstd_d2 import get_config
from irstd_d2.modeling import IRSTDFCOS, FCOSHead

ROOT = Path(__file__).resolve().parents[2]
CONFIGS = ROOT / "configs"


class Stem(nn.Module):
    """A backbone of one convolution of stride 4: 3 -> 8 channels, 3x3."""

    size_divisibility, padding_constraints = 4, {}

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, stride=4, padding=1)

    def forward(self, x):
        return {"p2": self.conv(x)}

    def output_shape(self):
        return {"p2": ShapeSpec(channels=8, stride=4)}


def test_counts_are_those_of_the_formula():
    head = FCOSHead(8, num_levels=1, num_classes=2, num_convs=1, norm="")
    model = IRSTDFCOS(
        Stem(), head, ["p2"], pixel_mean=[0.0] * 3, pixel_std=[1.0] * 3, num_classes=2, regress_ranges=[(-1, 99)]
    ).eval()
    complexity = analyze(model)
    cells = (96 // 4) * (160 // 4)
    stem, tower, predictors = 9 * 3 * 8, 9 * 8 * 8, 9 * 8 * (2 + 4 + 1)
    assert complexity.multiply_adds((96, 160)) == cells * (stem + 2 * tower + predictors)
    assert complexity.multiply_adds((96, 160), "backbone") == cells * stem
    assert complexity.multiply_adds((96, 160), "head.cls_tower") == cells * tower
    assert complexity.parameters["backbone.conv"] == 9 * 3 * 8 + 8
    assert complexity.parameters[""] == sum(p.numel() for p in model.parameters())
    assert complexity.modules(1) == ["backbone", "head"]
    table = module_table(complexity, (96, 160), depth=1)
    share = 100 * stem / (stem + 2 * tower + predictors)
    assert f"| backbone | 224 | {cells * stem / 1e9:.3f} | {share:.1f} % |" in table
    assert table.count("\n") == 4  # heading, rule, all, backbone, head


def test_deformable_convolution_counts_as_a_convolution():
    generator = CascadeRPN(in_features=["p2"], channels=8, strides=[4])
    backbone = Stem()
    from detectron2.modeling import GeneralizedRCNN

    class NoHeads(nn.Module):
        pass

    from irstd_d2.export.graphs import Candidates, Suppression, region_candidates, region_suppression

    @region_candidates.register
    def _(heads: NoHeads, features, boxes, present, image_size) -> Candidates:
        return Candidates(boxes, present.float(), present.long())

    @region_suppression.register
    def _(heads: NoHeads) -> Suppression:
        return Suppression(1, 0.5, 10)

    model = GeneralizedRCNN(
        backbone=backbone, proposal_generator=generator, roi_heads=NoHeads(), pixel_mean=[0.0] * 3, pixel_std=[1.0] * 3
    ).eval()
    complexity = analyze(model)
    cells = 32 * 32
    stage = 9 * 8 * 8 + 8 * 4
    assert complexity.multiply_adds((128, 128), "proposal_generator") == cells * (2 * stage + 8)


@pytest.mark.parametrize("name", ["auxdet/tiny/auxdet_tiny.yaml", "bafe/tiny/bafe_tiny.yaml"])
def test_counts_are_linear_in_the_pixels(name):
    """At a size that was not probed, the modules that run on pixels alone equal a direct count."""
    model = build_on_cpu(get_config(CONFIGS / name))
    complexity = analyze(model)
    with torch.no_grad():
        direct = FlopCountAnalysis(model.backbone.bottom_up, torch.zeros(1, 3, 192, 320))
        direct.unsupported_ops_warnings(False).uncalled_modules_warnings(False)
        assert complexity.multiply_adds((192, 320), "backbone.bottom_up") == direct.total()
    children = [name for name, _ in model.named_children()]
    total = sum(complexity.multiply_adds((192, 320), child) for child in children)
    assert complexity.multiply_adds((192, 320)) == pytest.approx(total, rel=1e-12)
    assert complexity.parameters == count_parameters(model)


def test_a_row_shows_the_paper_in_brackets():
    known = Complexity({"": 45_279_044}, {"": 1e9}, {"": 1000.0})
    row = line("auxdet/auxdet_r50_fpn.yaml", known, (100, 200))
    assert row == (
        "| [auxdet/auxdet_r50_fpn.yaml](../configs/auxdet/auxdet_r50_fpn.yaml) | 45.279 (45.279) | 1.020 (215) "
        "| 200x100 | AP50 77.9, Recall 87.2 |"
    )
    assert "(" not in line("auxdet/tiny/auxdet_tiny.yaml", known, (8, 8)).split("|", 2)[2]


def test_the_page_has_every_row_in_its_section():
    names = ["auxdet/a.yaml", "bafe/c.yaml", "both.yaml", "baselines/d.yaml"]
    page = render({name: f"| [{name}] |" for name in names})
    assert re.findall("^## (.*)", page, re.M) == ["AuxDet", "BAFE-Net", "Both together", "Baselines"]
    assert all(page.count(f"[{name}]") == 1 for name in names)


def test_square_size():
    cfg = get_config(None, ["INPUT.RESIZE_MODE", "fixed", "INPUT.FIXED_SIZE", (96, 160)])
    assert square_size(cfg) == (96, 160)
    assert square_size(get_config(None, ["INPUT.RESIZE_MODE", "scale", "INPUT.SCALE", 1.5])) == (768, 768)
    assert square_size(get_config(None, ["INPUT.MIN_SIZE_TEST", 640])) == (640, 640)


def test_the_page_is_up_to_date():
    page = (ROOT / "docs" / "model_zoo.md").read_text(encoding="utf-8")
    advice = "run python benchmarks/model_zoo.py --all --output docs/model_zoo.md"
    for row in lines(["bafe/tiny/fcos_tiny.yaml", "baselines/tiny/retinanet_tiny.yaml"]).values():
        assert row in page, advice
    prefixes = {name: name.partition("/")[0] if "/" in name else "" for name in configurations()}
    wanted = [name for _, part in SECTIONS for name, prefix in prefixes.items() if prefix == part.rstrip("/")]
    assert re.findall(r"^\| \[([^\]]+)\]", page, re.M) == wanted, advice


def test_prints_modules_and_refuses_what_is_no_configuration(capsys):
    assert main(["configs/baselines/tiny/fcos_tiny.yaml", "--depth", "1", "--size", "64", "96"]) == 0
    shown = capsys.readouterr().out
    assert "At 96x64:" in shown
    assert "| backbone | 110,928 |" in shown
    assert "| head | 38,857 |" in shown
    assert "backbone.bottom_up" not in shown
    assert main(["configs/nothing.yaml"]) == 2
    assert "configs/nothing.yaml is not a configuration" in capsys.readouterr().err
    for arguments in ([], ["--all", "configs/baselines/tiny/fcos_tiny.yaml"]):
        with pytest.raises(SystemExit):
            main(arguments)
