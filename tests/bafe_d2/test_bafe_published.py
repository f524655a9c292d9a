"""BAFE-Net in its published form: parameters, names, the optimised model; its numbers: test_equality."""

import pytest
import torch
from detectron2.modeling import build_model
from detectron2.structures import ImageList

from bafe_d2 import equality
from bafe_d2.checkpoint import BAFE_NAMES, NEVER_RUN
from irstd_d2 import get_config
from irstd_d2.equality import Comparison, Reference, image, read_manifest
from irstd_d2.inference import optimize


@pytest.fixture(scope="module")
def published():
    return read_manifest(equality.FOLDER / "bafe_r50.manifest.json")


@pytest.fixture
def model(published):
    return equality.build_published(published)


def test_parameter_counts(published, model, capsys):
    ours = sum(p.numel() for p in model.parameters())
    dropped = sum(v.numel() for k, v in BAFE_NAMES.to_ours(published.state).dropped.items() if not _is_statistic(k))
    head = sum(p.numel() for p in model.head.parameters())
    body = sum(p.numel() for p in model.backbone.bottom_up.parameters())
    neck = sum(p.numel() for p in model.backbone.parameters()) - body
    mask = sum(p.numel() for p in model.head.cross_task.exchange.mask.parameters())
    assert (body, neck, head + dropped) == (23_508_032, 2_688_512, 9_385_977)
    assert (ours, dropped, ours + dropped) == (34_732_182, 850_339, 35_582_521)
    assert (mask, mask + dropped) == (118_470, 968_809)  # never trained in the published model
    with capsys.disabled():
        print(f"\nBAFE-Net R50: {ours:,} parameters that run, {ours + dropped:,} as published (paper: 35.626 M)")


def _is_statistic(name):
    return name.endswith(("running_mean", "running_var", "num_batches_tracked"))


def test_r18_has_the_published_number_of_parameters(repo_root, capsys):
    model = build_model(get_config(repo_root / "configs/bafe/bafe_r18_fpn.yaml", ["MODEL.DEVICE", "cpu"]))
    ours = sum(p.numel() for p in model.parameters())
    assert ours + 850_339 == 22_562_873
    with capsys.disabled():
        print(f"\nBAFE-Net R18: {ours:,} parameters that run, {ours + 850_339:,} as published (paper: 22.31 M)")


def test_names_convert_both_ways(published):
    ours = BAFE_NAMES.to_ours(published.state)
    back = BAFE_NAMES.to_published(ours.values).values
    assert {k: v.shape for k, v in back.items()} == {k: v.shape for k, v in published.state.items()}
    assert {k: v.dtype for k, v in back.items()} == {k: v.dtype for k, v in published.state.items()}
    assert all(torch.equal(back[k], published.state[k]) for k in back.keys() - ours.dropped.keys())
    assert len(NEVER_RUN) == 10


def test_a_published_fcos_is_a_part_of_these_names(published, repo_root):
    model = build_model(get_config(repo_root / "configs/bafe/fcos_r50_fpn.yaml", ["MODEL.DEVICE", "cpu"]))
    of_bafe = ("seg_convs", "conv_seg", "ChannelEx", "LSKModule", "convs_cls", "convs_seg")
    dropped = {pattern.split(".")[1] for pattern in NEVER_RUN}
    state = {k: v for k, v in published.state.items() if k.split(".")[1] not in {*of_bafe, *dropped}}
    renamed = BAFE_NAMES.to_ours(state)
    assert not renamed.dropped
    assert BAFE_NAMES.to_published(renamed.values).values.keys() == state.keys()
    model.load_state_dict(renamed.values, strict=True)


def test_the_optimised_model_detects_what_the_published_one_does(model, published):
    reference = Reference(equality.FOLDER / "bafe_full_eval.npz")
    model, comparison = optimize(model), Comparison()
    x = image(2, (2, 3, 256, 256))
    samples = [{"height": m["ori_shape"][0], "width": m["ori_shape"][1]} for m in published.images]
    with torch.no_grad():
        pyramid = model.backbone(x)
        predictions = model.head([pyramid[name] for name in equality.LEVELS])
        images = ImageList(x, [tuple(m["img_shape"]) for m in published.images])
        detections = model.forward_inference(images, [], predictions)
        results = model.postprocess(detections, predictions, images, samples)
    for i, result in enumerate(results):
        found = result["instances"]
        boxes, scores = found.pred_boxes.tensor, found.scores
        comparison.detections("detections", boxes, scores, reference, f"det{i}", box_tolerance=0.05)
        assert result["sem_seg"].shape == (2, *published.images[i]["ori_shape"])
        torch.testing.assert_close(result["sem_seg"].sum(0), torch.ones(published.images[i]["ori_shape"]))
    assert all(row.ok for row in comparison.rows), comparison.rows
