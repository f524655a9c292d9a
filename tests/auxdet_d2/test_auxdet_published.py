"""AuxDet in its published form: parameters, names, statistics, the optimised model; its numbers: test_equality."""

import pytest
import torch
from detectron2.modeling import build_model

from auxdet_d2 import equality
from auxdet_d2.checkpoint import AUXDET_NAMES, CASCADE_RPN_NAMES
from auxdet_d2.modeling import AuxiliaryEncoder
from irstd_d2 import get_config
from irstd_d2.equality import Comparison, Reference, read_manifest
from irstd_d2.inference import optimize


@pytest.fixture(scope="module")
def manifest():
    return read_manifest(equality.FOLDER / "auxdet_r50.manifest.json")


@pytest.fixture
def model(manifest):
    return equality.build_published(manifest)


def count(module):
    return sum(p.numel() for p in module.parameters())


def test_parameter_counts(model, manifest, repo_root, capsys):
    body = count(model.backbone.bottom_up)
    assert count(model) == 45_279_044 == manifest.parameters[0]
    # The output convolutions of levels that feed nothing are not trained here.
    assert sum(p.numel() for p in model.parameters() if p.requires_grad) + 2 * 590_080 == manifest.parameters[1]
    assert (body, count(model.backbone) - body) == (23_508_032, 6_686_965)
    assert (count(model.proposal_generator), count(model.roi_heads)) == (1_182_217, 13_901_830)
    config = get_config(repo_root / "configs/auxdet/cascade_rpn_r50_fpn.yaml", ["MODEL.DEVICE", "cpu"])
    assert count(build_model(config)) == 42_526_543
    with capsys.disabled():
        print("\nAuxDet R50: 45,279,044 parameters (paper: 45.279 M); baseline 42,526,543 (paper: 42.527 M)")


def test_parameters_of_each_part_of_the_neck(model):
    neck = model.backbone
    names = ("fpn_lateral", "fpn_output", *(f"refinement.{p}" for p in ("leem", "detail", "m2dm", "encoder", "gate")))
    counts = [sum(p.numel() for k, p in neck.named_parameters() if k.startswith(name)) for name in names]
    assert counts == [984_064, 2_360_320, 786_436, 37_376, 2_383_792, 126_656, 8_321]


def test_names_convert_both_ways(manifest, repo_root):
    ours = AUXDET_NAMES.to_ours(manifest.state)
    assert {k: v.numel() for k, v in ours.dropped.items()} == {f"neck.edge_convs.{i}.epsilon": 1 for i in range(2)}
    back = AUXDET_NAMES.to_published(ours.values).values
    assert back.keys() == manifest.state.keys()
    assert all(torch.equal(back[k], manifest.state[k]) for k in back)  # the constants too
    config = get_config(repo_root / "configs/auxdet/cascade_rpn_r50_fpn.yaml", ["MODEL.DEVICE", "cpu"])
    state = build_model(config).state_dict()
    there = CASCADE_RPN_NAMES.to_published(state).values
    assert "neck.fpn_convs.4.conv.weight" in there
    assert CASCADE_RPN_NAMES.to_ours(there).values.keys() == state.keys()


def test_the_optimised_model_detects_what_the_published_one_does(model, manifest):
    reference = Reference(equality.FOLDER / "auxdet_full_eval.npz")
    images, metadata = equality.published_batch(manifest)
    model, comparison = optimize(model), Comparison()
    with torch.no_grad():
        features = model.backbone(images.tensor, metadata)
        proposals, _ = model.proposal_generator(images, features)
        detections, _ = model.roi_heads(images, features, proposals)
    for i, (found, p) in enumerate(zip(detections, proposals)):
        comparison.detections("proposals", p.proposal_boxes.tensor, p.objectness_logits, reference, f"proposals{i}")
        comparison.detections("detections", found.pred_boxes.tensor, found.scores, reference, f"det_raw{i}")
    assert all(row.ok for row in comparison.rows), comparison.rows


def test_running_statistics_move_as_after_one_update_per_stage(model, manifest):
    _, metadata = equality.published_batch(manifest)
    single, double = AuxiliaryEncoder(num_stages=1, dropout=0.0), AuxiliaryEncoder(num_stages=2, dropout=0.0)
    hints = [torch.randn(4, 256), torch.randn(4, 256)]
    for encoder in (single, double):
        encoder.load_state_dict(model.backbone.refinement.encoder.state_dict())
        encoder.train()
    one_by_one = torch.cat([single(metadata, [hint]) for hint in hints])
    torch.testing.assert_close(double(metadata, hints), one_by_one, rtol=1e-5, atol=1e-5)
    expected = {k: v for k, v in single.state_dict().items() if "running" in k}
    assert len(expected) == 8
    for name, value in expected.items():
        torch.testing.assert_close(double.state_dict()[name], value, rtol=1e-6, atol=1e-7)
