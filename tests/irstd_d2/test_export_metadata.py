"""What a file says about its model: classes by name and id, configurations of other projects; what it cannot take."""

import json

import numpy as np
import pytest
import torch
from detectron2.config import get_cfg
from detectron2.modeling import build_model
from PIL import Image
from test_export_graphs import METADATA, assert_equal, build, by_model, images, without_resizing

from irstd_d2.data import ClassTable
from irstd_d2.errors import ConfigError
from irstd_d2.export import ExportedDetector, build_graph, export_model
from irstd_d2.export.files import model_facts
from irstd_d2.export.runtime import main


def test_further_fields_are_refused():
    _, model = build("auxdet/tiny/auxdet_tiny.yaml", ["MODEL.METADATA.EXTRA_NUMERIC", ("view_angle=0:90",)])
    with pytest.raises(ConfigError, match="not \\['view_angle'\\]; export a model"):
        build_graph(model)


def plain_retinanet():
    """A model of detectron2 alone: its configuration has no key of this project."""
    cfg = get_cfg()
    cfg.MODEL.META_ARCHITECTURE, cfg.MODEL.DEVICE = "RetinaNet", "cpu"
    cfg.MODEL.BACKBONE.NAME, cfg.MODEL.RESNETS.OUT_FEATURES = (
        "build_retinanet_resnet_fpn_backbone",
        ["res3", "res4", "res5"],
    )
    cfg.MODEL.RESNETS.DEPTH, cfg.MODEL.RESNETS.RES2_OUT_CHANNELS = 18, 64
    cfg.MODEL.FPN.IN_FEATURES, cfg.MODEL.RETINANET.IN_FEATURES = ["res3", "res4", "res5"], ["p3", "p4"]
    cfg.MODEL.ANCHOR_GENERATOR.SIZES, cfg.MODEL.RETINANET.NUM_CLASSES = [[16], [32]], 2
    cfg.MODEL.RETINANET.SCORE_THRESH_TEST, cfg.MODEL.FPN.OUT_CHANNELS = 0.0, 32
    torch.manual_seed(0)
    model = build_model(cfg).eval()
    torch.nn.init.normal_(model.head.cls_score.weight, std=0.2)
    return cfg, model


def test_a_model_without_the_projects_keys_is_exported(tmp_path):
    cfg, model = plain_retinanet()
    model.train()
    export_model(cfg, model, tmp_path / "model.ts", format="torchscript")
    assert model.training
    detector = ExportedDetector(tmp_path / "model.ts")
    assert (detector.class_names, detector.category_ids) == (["class 0", "class 1"], [0, 1])
    assert detector.facts["preprocessing"]["resize"] == {"mode": "shortest_edge", "shortest": 800, "longest": 1333}
    expected = by_model(model.eval(), images(), METADATA)
    assert_equal(expected, without_resizing(detector)(images()), 0.02, 1e-4)


def test_fcos_without_auxdets_keys_is_exported(tmp_path):
    cfg, model = build("bafe/tiny/fcos_tiny.yaml")
    del cfg.MODEL["METADATA"], cfg.MODEL["AUXDET"]
    export_model(cfg, model, tmp_path / "model.ts", format="torchscript")
    assert ExportedDetector(tmp_path / "model.ts").facts["metadata"] is None


def test_classes_bear_the_names_and_ids_of_the_set(tmp_path, capsys):
    cfg, model = plain_retinanet()
    table = ClassTable.from_categories({7: "ship", 3: "plane"})
    export_model(cfg, model, tmp_path / "model.ts", format="torchscript", classes=table)
    detector = ExportedDetector(tmp_path / "model.ts")
    assert (detector.class_names, detector.category_ids) == (["ship", "plane"], [7, 3])
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64), np.uint8)).save(tmp_path / "a.png")
    assert main([str(tmp_path / "model.ts"), str(tmp_path / "a.png"), "--threshold", "0"]) == 0
    row = json.loads(capsys.readouterr().out)
    assert len(row["classes"]) > 5
    assert row["category_ids"] == [{"ship": 7, "plane": 3}[name] for name in row["classes"]]
    with pytest.raises(ConfigError, match=r"has 2 classes, but the given table has 1 \(ship\)"):
        export_model(cfg, model, tmp_path / "x.ts", format="torchscript", classes=ClassTable.from_names(["ship"]))
    cfg, model = build("bafe/tiny/fcos_tiny.yaml", ["DATASETS.CLASSES", ("drone",)])
    assert model_facts(cfg, build_graph(model))["classes"] == ["drone"]
