"""AuxDet as a whole against numbers of the published implementation: every stage, detections, losses, gradients."""

import numpy as np
import pytest
import torch
from detectron2.modeling import build_model
from detectron2.modeling.postprocessing import detector_postprocess
from detectron2.structures import Boxes, ImageList, Instances
from detectron2.utils.events import EventStorage
from published import Published, assert_close, assert_same_detections, summary

from auxdet_d2 import collate_metadata
from auxdet_d2.checkpoint import AUXDET_NAMES, CASCADE_RPN_NAMES
from auxdet_d2.modeling import anchor_targets
from irstd_d2 import get_config
from irstd_d2.inference import optimize


@pytest.fixture(scope="module")
def published(oracle_dir):
    return Published(oracle_dir, "auxdet_r50.manifest.json")


@pytest.fixture
def model(published, repo_root):
    config = get_config(
        repo_root / "configs/auxdet/auxdet_r50_fpn.yaml",
        # The reference's images all count as padded to the whole batch, and its dropout was off.
        ["MODEL.DEVICE", "cpu", "MODEL.CASCADE_RPN.VALID_DIVISOR", 0, "MODEL.AUXDET.ENCODER.DROPOUT", 0.0],
    )
    model = build_model(config)
    model.load_state_dict(AUXDET_NAMES.to_ours(published.state).values, strict=True)
    return model


@pytest.fixture
def metadata(published, model):
    entries = [
        {"platform": m["view"], "band": m["band_type"], "width": m["width"], "height": m["height"]}
        for m in published.manifest["meta"]
    ]
    return collate_metadata(entries, model.vocabulary)


@pytest.fixture
def images(published):
    sizes = [tuple(m["img_shape"]) for m in published.manifest["meta"]]
    return ImageList(published.image(1, (4, 3, 256, 320)), sizes)


def sampled(x, expected):
    steps = [a // b for a, b in zip(x.shape, expected.shape)]
    return x[:, :: steps[1], :: steps[2], :: steps[3]]


def check(x, arrays, name):
    assert_close(sampled(x, arrays[f"{name}_sample"]), arrays[f"{name}_sample"], what=name)
    # The sums cancel, so all six numbers are compared on the scale of the largest.
    assert_close(summary(x)[[0, 1, 3, 4, 5]], arrays[f"{name}_summary"][[0, 1, 3, 4, 5]], what=name)


def test_parameter_counts(model, published, repo_root, capsys):
    count = lambda module: sum(p.numel() for p in module.parameters())  # noqa: E731
    body = count(model.backbone.bottom_up)
    assert count(model) == 45_279_044 == published.manifest["params_total"]
    assert sum(p.numel() for p in model.parameters() if p.requires_grad) + 2 * 590_080 == 45_053_700
    assert (body, count(model.backbone) - body) == (23_508_032, 6_686_965)
    assert (count(model.proposal_generator), count(model.roi_heads)) == (1_182_217, 13_901_830)
    config = get_config(repo_root / "configs/auxdet/cascade_rpn_r50_fpn.yaml", ["MODEL.DEVICE", "cpu"])
    assert count(build_model(config)) == 42_526_543
    with capsys.disabled():
        print("\nAuxDet R50: 45,279,044 parameters (paper: 45.279 M); baseline 42,526,543 (paper: 42.527 M)")


def test_names_convert_both_ways(published, repo_root):
    ours = AUXDET_NAMES.to_ours(published.state)
    assert {k: v.numel() for k, v in ours.dropped.items()} == {f"neck.edge_convs.{i}.epsilon": 1 for i in range(2)}
    back = AUXDET_NAMES.to_published(ours.values).values
    assert back.keys() | ours.dropped.keys() == published.state.keys()
    assert all(torch.equal(back[k], published.state[k]) for k in back)
    config = get_config(repo_root / "configs/auxdet/cascade_rpn_r50_fpn.yaml", ["MODEL.DEVICE", "cpu"])
    state = build_model(config).state_dict()
    there = CASCADE_RPN_NAMES.to_published(state).values
    assert "neck.fpn_convs.4.conv.weight" in there
    assert CASCADE_RPN_NAMES.to_ours(there).values.keys() == state.keys()


def test_every_stage_in_evaluation(model, published, metadata, images, oracle_dir):
    arrays = np.load(oracle_dir / "auxdet_full_eval.npz")
    model.eval()
    stages = {}
    for i, stage in enumerate(model.proposal_generator.stages):
        stage.register_forward_hook(lambda _, args, out, i=i: stages.setdefault(i, []).append((args, out)))
    with torch.no_grad():
        x = model.backbone.bottom_up.stem(images.tensor)
        for i, part in enumerate(model.backbone.bottom_up.stages):
            x = part(x)
            check(x, arrays, f"C{i + 2}")
        features = model.backbone(images.tensor, metadata)
        for name in ("p2", "p3"):
            check(features[name], arrays, name.upper())
        proposals, losses = model.proposal_generator(images, features)
        sizes = torch.tensor(images.image_sizes)
        refined = model.proposal_generator.predict(features, sizes)[1][1].anchors
    assert losses == {}
    for level in range(2):
        _, (bridge, deltas, _) = stages[0][level]
        check(bridge, arrays, f"rpn_s0_bridge{level}")
        assert_close(deltas, arrays[f"rpn_s0_reg{level}"], what=f"deltas of stage 1, level {level}")
        (_, offsets), (_, deltas, logits) = stages[1][level]
        rows = offsets[0].permute(1, 2, 0).reshape(-1, 18)
        assert_close(rows, arrays[f"rpn_s1_offset{level}_img0"], what=f"offsets, level {level}")
        expected = arrays[f"rpn_s1_offset{level}_summary"]
        assert_close(summary(offsets)[[0, 1, 3, 4, 5]], expected[[0, 1, 3, 4, 5]], what="offsets")
        assert_close(deltas, arrays[f"rpn_s1_reg{level}"], what=f"deltas of stage 2, level {level}")
        assert_close(logits, arrays[f"rpn_s1_cls{level}"], what=f"logits, level {level}")
    for level, boxes in enumerate(refined):
        np.testing.assert_allclose(boxes[1], arrays[f"rpn_refined_anchors{level}_img1"], atol=0.02)
    for i, p in enumerate(proposals):
        assert len(p) == 300
        assert_same_detections(p.proposal_boxes.tensor, p.objectness_logits, arrays[f"proposals{i}"])


def test_box_head_on_the_published_proposals(model, published, metadata, images, oracle_dir):
    arrays = np.load(oracle_dir / "auxdet_full_eval.npz")
    model.eval()
    proposals = []
    for i, size in enumerate(images.image_sizes):
        instances = Instances(size)
        instances.proposal_boxes = Boxes(torch.from_numpy(arrays[f"proposals{i}"][:, :4].copy()))
        instances.objectness_logits = torch.from_numpy(arrays[f"proposals{i}"][:, 4].copy())
        proposals.append(instances)
    heads = model.roi_heads
    with torch.no_grad():
        features = model.backbone(images.tensor, metadata)
        pooled = heads.box_pooler([features[n] for n in heads.box_in_features], [p.proposal_boxes for p in proposals])
        assert_close(pooled[::40, ::16], arrays["roi_feats_sample"], what="pooled features")
        assert_close(summary(pooled)[[0, 1, 3, 4, 5]], arrays["roi_feats_summary"][[0, 1, 3, 4, 5]], what="pooled")
        logits, deltas = heads.box_predictor(heads.box_head(pooled))
        assert_close(logits, arrays["roi_cls_score"], what="class logits")
        assert_close(deltas, arrays["roi_bbox_pred"], what="box deltas")
        detections, _ = heads(images, features, proposals)
    compared = 0
    for i, (found, meta) in enumerate(zip(detections, published.manifest["meta"])):
        assert_same_detections(found.pred_boxes.tensor, found.scores, arrays[f"det_raw{i}"])
        final = detector_postprocess(found, meta["height"], meta["width"])
        assert_same_detections(final.pred_boxes.tensor, final.scores, arrays[f"det{i}"])
        compared += len(found)
    assert compared == 89 + 100 + 85 + 100


def test_the_optimised_model_detects_what_the_published_one_does(model, published, metadata, images, oracle_dir):
    arrays = np.load(oracle_dir / "auxdet_full_eval.npz")
    model = optimize(model)
    with torch.no_grad():
        features = model.backbone(images.tensor, metadata)
        proposals, _ = model.proposal_generator(images, features)
        detections, _ = model.roi_heads(images, features, proposals)
    for i, (found, p) in enumerate(zip(detections, proposals)):
        assert_same_detections(p.proposal_boxes.tensor, p.objectness_logits, arrays[f"proposals{i}"])
        assert_same_detections(found.pred_boxes.tensor, found.scores, arrays[f"det_raw{i}"])


# LEEM's normalisation cancels its gate, and the normalisation of the pooled hint a bias before it.
ZERO_GRADIENT = ("neck.edge_convs.0.alpha", "neck.edge_convs.1.alpha", "neck.downsamples.1.bias")

# Sums of large terms that cancel: the float32 gradients of the reference are this far from a float64 run of our model,
# closer to which our own float32 run is.
CANCELLING = {
    "neck.edge_convs.0.beta": 2e-3,
    "neck.edge_convs.1.beta": 5e-3,
    "neck.mlp.2.bias": 2e-3,
    "neck.mlp.2.weight": 2e-3,
}


def take_first(positive, negative, batch_size, positive_fraction):
    limit = torch.full((len(positive),), int(batch_size * positive_fraction))
    kept = anchor_targets.first_n(positive, limit)
    return kept, anchor_targets.first_n(negative, batch_size - kept.sum(1))


def take_first_labels(labels, num_samples, positive_fraction, bg_label):
    positive = torch.nonzero((labels != -1) & (labels != bg_label)).squeeze(1)
    negative = torch.nonzero(labels == bg_label).squeeze(1)
    positive = positive[: int(num_samples * positive_fraction)]
    return positive, negative[: num_samples - len(positive)]


def test_training_losses_samples_gradients_and_statistics(model, published, metadata, images, oracle_dir, monkeypatch):
    arrays = np.load(oracle_dir / "auxdet_train_losses.npz")
    assignments, samples, drawn = [], [], []

    def recorded(assign):
        def wrapper(*args, **kwargs):
            assignments.append(assign(*args, **kwargs))
            return assignments[-1]

        return wrapper

    for name in ("assign_by_region", "assign_by_iou"):
        monkeypatch.setattr(anchor_targets, name, recorded(getattr(anchor_targets, name)))
    monkeypatch.setattr(anchor_targets, "sample", lambda *a: samples.append(take_first(*a)) or samples[-1])
    monkeypatch.setattr(
        "detectron2.modeling.roi_heads.roi_heads.subsample_labels",
        lambda *a: drawn.append(take_first_labels(*a)) or drawn[-1],
    )
    model.train()
    targets = []
    for boxes, size in zip(published.manifest["gt_boxes"], images.image_sizes):
        instances = Instances(size)
        instances.gt_boxes = Boxes(torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4))
        instances.gt_classes = torch.zeros(len(boxes), dtype=torch.long)
        targets.append(instances)
    features = model.backbone(images.tensor, metadata)
    proposals, losses = model.proposal_generator(images, features, targets)
    with EventStorage():
        _, box_losses = model.roi_heads(images, features, proposals, targets)

    for i, p in enumerate(proposals):
        assert_same_detections(p.proposal_boxes.tensor, p.objectness_logits, arrays[f"train_proposals{i}"])
    regions, overlaps = assignments
    for i in range(4):
        positive = torch.nonzero(regions[i] >= 0).squeeze(1).numpy()
        np.testing.assert_array_equal(positive, arrays[f"rpn0_img{i}_pos_inds"])
        counts = [len(positive), int((regions[i] == anchor_targets.NEGATIVE).sum())]
        np.testing.assert_array_equal(counts, arrays[f"rpn0_img{i}_num_pos_neg"])
        for kind, mask in zip(("pos", "neg"), samples[0]):
            found = torch.nonzero(mask[i]).squeeze(1).numpy()
            np.testing.assert_array_equal(found, np.sort(arrays[f"rpn1_img{i}_{kind}_inds"]))
        for kind, index in zip(("pos", "neg"), drawn[i]):
            np.testing.assert_array_equal(index.numpy(), np.sort(arrays[f"rcnn_img{i}_{kind}_inds"]))
    assert overlaps.shape == (4, 6400)

    expected = {
        "loss_rpn_box_stage1": ["s0.loss_rpn_reg.0", "s0.loss_rpn_reg.1"],
        "loss_rpn_box_stage2": ["s1.loss_rpn_reg.0", "s1.loss_rpn_reg.1"],
        "loss_rpn_cls_stage2": ["s1.loss_rpn_cls.0", "s1.loss_rpn_cls.1"],
        "loss_cls": ["loss_cls"],
        "loss_box_reg": ["loss_bbox"],
    }
    losses = {**losses, **box_losses}
    assert losses.keys() == expected.keys()
    for ours, theirs in expected.items():
        total = sum(float(arrays[f"loss.{name}"]) for name in theirs)
        assert losses[ours].item() == pytest.approx(total, rel=1e-5), ours
    sum(losses.values()).backward()

    order = list(published.state)
    renamed = AUXDET_NAMES.to_ours({k: torch.tensor(i) for i, k in enumerate(order)}).values
    ours_of = {order[int(number)]: name for name, number in renamed.items()}
    parameters = dict(model.named_parameters())
    compared, nothing = 0, 0
    for name, is_none, (total, magnitude) in zip(
        arrays["grad_names"], arrays["grad_is_none"], arrays["grad_sum_abssum"]
    ):
        gradient = parameters[ours_of[str(name)]].grad
        assert (gradient is None) == bool(is_none), name
        if gradient is None:
            nothing += 1
            continue
        if str(name) in ZERO_GRADIENT:
            assert max(magnitude, float(gradient.abs().sum())) < 1e-5, name
            continue
        tolerance = CANCELLING.get(str(name), 1e-3) * max(magnitude, 1e-6)
        assert abs(float(gradient.double().abs().sum()) - magnitude) < tolerance, name
        assert abs(float(gradient.double().sum()) - total) < tolerance, name
        compared += 1
    assert compared + nothing + len(ZERO_GRADIENT) == 276
    state = model.state_dict()
    for key in arrays.files:
        if key.startswith("after."):
            assert_close(state[ours_of[key.removeprefix("after.")]], arrays[key], what=key)
