"""BAFE-Net against numbers of the published implementation: modules, features, outputs, detections, training."""

import numpy as np
import pytest
import torch
from detectron2.modeling import build_model
from detectron2.structures import Boxes, ImageList, Instances
from published import Published, assert_close, assert_same_detections, summary

from bafe_d2.checkpoint import BAFE_NAMES, NEVER_RUN, large_kernel_rules
from bafe_d2.modeling import FeatureExchange, LargeSelectiveKernel
from irstd_d2 import get_config
from irstd_d2.checkpoint import NameMap
from irstd_d2.inference import optimize
from irstd_d2.modeling.fcos_targets import assign_targets, pad_instances

LEVELS = ("p3", "p4", "p5")
OUTPUTS = {"logits": "cls", "distances": "bbox", "centerness": "ctr", "sky": "seg"}


@pytest.fixture(scope="module")
def published(oracle_dir):
    return Published(oracle_dir, "bafe_r50.manifest.json")


@pytest.fixture
def model(published, repo_root):
    model = build_model(get_config(repo_root / "configs/bafe/bafe_r50_fpn.yaml", ["MODEL.DEVICE", "cpu"]))
    model.load_state_dict(BAFE_NAMES.to_ours(published.state).values, strict=True)
    return model


def instances(boxes, size=(256, 256)):
    result = Instances(size)
    result.gt_boxes = Boxes(torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4))
    result.gt_classes = torch.zeros(len(boxes), dtype=torch.long)
    return result


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
    assert set(back) | set(ours.dropped) == set(published.state)
    assert all(torch.equal(back[k], published.state[k]) for k in back)
    assert len(NEVER_RUN) == 10


def test_a_published_fcos_is_a_part_of_these_names(published, repo_root):
    model = build_model(get_config(repo_root / "configs/bafe/fcos_r50_fpn.yaml", ["MODEL.DEVICE", "cpu"]))
    of_bafe = ("seg_convs", "conv_seg", "ChannelEx", "LSKModule", "convs_cls", "convs_seg")
    dropped = {pattern.split(".")[1] for pattern in NEVER_RUN}
    state = {k: v for k, v in published.state.items() if k.split(".")[1] not in {*of_bafe, *dropped}}
    renamed = BAFE_NAMES.to_ours(state)
    assert not renamed.dropped
    model.load_state_dict(renamed.values, strict=True)


@pytest.fixture(scope="module")
def modules(oracle_dir):
    return np.load(oracle_dir / "bafe_modules.npz")


def load_module(module, arrays, part, rules):
    state = {k[len(part) + 3 :]: torch.from_numpy(arrays[k]) for k in arrays.files if k.startswith(f"{part}.w.")}
    module.load_state_dict(NameMap(rules).to_ours(state).values, strict=True)
    return module


def check_gradients(module, arrays, part, rules, inputs, outputs, image):
    loss = sum((out * image(900 + i, tuple(out.shape))).sum() for i, out in enumerate(outputs))
    loss.backward()
    for i, x in enumerate(inputs):
        assert_close(x.grad, arrays[f"{part}.gradin{i}"], what=f"gradient of input {i}")
    names = {ours: theirs for theirs, ours in _names(rules, arrays, part)}
    for name, parameter in module.named_parameters():
        theirs = names[name]
        if arrays[f"{part}.grad_none.{theirs}"]:
            assert parameter.grad is None, name
        else:
            assert_close(parameter.grad, arrays[f"{part}.grad.{theirs}"], what=name)


def _names(rules, arrays, part):
    theirs = [k[len(part) + 3 :] for k in arrays.files if k.startswith(f"{part}.w.")]
    return [(name, next(iter(NameMap(rules).to_ours({name: torch.zeros(1)}).values))) for name in theirs]


def test_large_selective_kernel(modules, published):
    rules = [(a.removeprefix("x."), b.removeprefix("x.")) for a, b in large_kernel_rules("x", "x")]
    module = load_module(LargeSelectiveKernel(16), modules, "LSKModule", rules)
    inputs = [torch.from_numpy(modules[f"LSKModule.in{i}"]).requires_grad_() for i in range(2)]
    outputs = module(torch.cat(inputs)).chunk(2)
    for i, out in enumerate(outputs):
        assert_close(out, modules[f"LSKModule.out{i}"], what=f"output {i}")
    check_gradients(module, modules, "LSKModule", rules, inputs, outputs, published.image)


@pytest.mark.parametrize("selection", ["dynamic", "straight_through"])
def test_channel_exchange(modules, published, selection):
    rules = [
        ("mlp.{p}", "adapter.{p}"),
        *((a.removeprefix("x."), b.removeprefix("x.")) for a, b in large_kernel_rules("x.attention_mask", "x.mask")),
    ]
    module = load_module(FeatureExchange(16, selection=selection), modules, "ChannelEx", rules)
    inputs = [torch.from_numpy(modules[f"ChannelEx.in{i}"]).requires_grad_() for i in range(2)]
    for i, x in enumerate(inputs):
        importance = module.importance(x)
        assert_close(importance.logit(), modules[f"ChannelEx.logits{i}"], what="importance")
        top = importance.topk(8, dim=1).indices.sort(dim=1).values
        np.testing.assert_array_equal(top.numpy(), modules[f"ChannelEx.topk{i}"])
    outputs = module(*inputs)
    for i, out in enumerate(outputs):
        assert_close(out, modules[f"ChannelEx.out{i}"], what=f"output {i}")
    if selection == "dynamic":
        check_gradients(module, modules, "ChannelEx", rules, inputs, outputs, published.image)
    else:
        sum((out * published.image(900 + i, tuple(out.shape))).sum() for i, out in enumerate(outputs)).backward()
        assert all(p.grad.abs().sum() > 0 for p in module.mask.parameters())


def test_features_outputs_and_detections(model, published, oracle_dir):
    arrays = np.load(oracle_dir / "bafe_full_eval.npz")
    model.eval()
    image = published.image(2, (2, 3, 256, 256))
    exchanged = []
    model.head.cross_task.exchange.register_forward_pre_hook(lambda _, args: exchanged.append(args))
    with torch.no_grad():
        body = model.backbone.bottom_up
        stages = [body.stem(image)]
        for stage in body.stages:
            stages.append(stage(stages[-1]))
        pyramid = model.backbone(image)
        predictions = model.head([pyramid[name] for name in LEVELS])
    for name, stage in zip(("C2", "C3", "C4", "C5"), stages[1:]):
        assert_close(summary(stage), arrays[f"{name}_summary"], what=name)
        steps = [a // b for a, b in zip(stage.shape, arrays[f"{name}_sample"].shape)]
        sample = stage[:, :: steps[1], :: steps[2], :: steps[3]]
        assert_close(sample, arrays[f"{name}_sample"], what=name)
    for name in LEVELS:
        expected = arrays[f"{name.upper()}_sample"]
        steps = [a // b for a, b in zip(pyramid[name].shape, expected.shape)]
        assert_close(pyramid[name][:, :: steps[1], :: steps[2], :: steps[3]], expected, what=name)
        assert_close(summary(pyramid[name]), arrays[f"{name.upper()}_summary"], what=name)
    for level, (seg, cls) in enumerate(exchanged):
        for task, x in (("seg", seg), ("cls", cls)):
            with torch.no_grad():
                importance = model.head.cross_task.exchange.importance(x)
            assert_close(importance.logit(), arrays[f"exchange_logits_lvl{level}_{task}"], what=f"{task} {level}")
    for ours, theirs in OUTPUTS.items():
        for level in range(3):
            assert_close(predictions[ours][level], arrays[f"{theirs}{level}"], what=f"{ours} of level {level}")

    meta = published.manifest["meta"]
    sizes = [tuple(m["img_shape"]) for m in meta]
    images = ImageList(image, sizes)
    detections = model.forward_inference(images, [], predictions)
    for i, raw in enumerate(detections):
        assert_same_detections(raw.pred_boxes.tensor, raw.scores, arrays[f"det_raw{i}"])
    samples = [{"height": m["ori_shape"][0], "width": m["ori_shape"][1]} for m in meta]
    for i, result in enumerate(model.postprocess(detections, predictions, images, samples)):
        found = result["instances"]
        assert_same_detections(found.pred_boxes.tensor, found.scores, arrays[f"det{i}"])
        assert result["sem_seg"].shape == (2, *meta[i]["ori_shape"])
        torch.testing.assert_close(result["sem_seg"].sum(0), torch.ones(meta[i]["ori_shape"]))


def test_the_optimised_model_detects_what_the_published_one_does(model, published, oracle_dir):
    arrays = np.load(oracle_dir / "bafe_full_eval.npz")
    model = optimize(model)
    image, meta = published.image(2, (2, 3, 256, 256)), published.manifest["meta"]
    samples = [{"height": m["ori_shape"][0], "width": m["ori_shape"][1]} for m in meta]
    with torch.no_grad():
        pyramid = model.backbone(image)
        predictions = model.head([pyramid[name] for name in LEVELS])
        images = ImageList(image, [tuple(m["img_shape"]) for m in meta])
        detections = model.forward_inference(images, [], predictions)
        results = model.postprocess(detections, predictions, images, samples)
    for i, result in enumerate(results):
        found = result["instances"]
        assert_same_detections(found.pred_boxes.tensor, found.scores, arrays[f"det{i}"], box_tolerance=0.05)


def test_head_alone(model, published, oracle_dir):
    arrays = np.load(oracle_dir / "bafe_full_eval.npz")
    model.eval()
    with torch.no_grad():
        predictions = model.head([published.image(400 + i, (2, 256, 16 >> i, 12 >> i)) for i in range(3)])
    for ours, theirs in OUTPUTS.items():
        for level in range(3):
            assert_close(predictions[ours][level], arrays[f"headonly_{theirs}{level}"], what=f"{ours} {level}")


@pytest.fixture
def native_convolutions():
    """Gradients of frozen early stages differ by 1e-3 between convolution back ends, and by 4e-4 from this one."""
    with torch.backends.mkldnn.flags(enabled=False):
        yield


def test_losses_targets_gradients_and_statistics(model, published, oracle_dir, native_convolutions):
    arrays = np.load(oracle_dir / "bafe_train_losses.npz")
    model.train()
    boxes = published.manifest["gt_boxes"]
    sky = torch.from_numpy(arrays["sky"][:, 0].astype(np.int64))
    samples = [{"image": torch.zeros(3, 256, 256), "instances": instances(b), "sem_seg": s} for b, s in zip(boxes, sky)]
    features = model.backbone(published.image(2, (2, 3, 256, 256)))
    predictions = model.head([features[name] for name in LEVELS])
    points = model.points(predictions)
    targets = assign_targets(points, *pad_instances([s["instances"] for s in samples]), model.num_classes)
    start = 0
    for level, logits in enumerate(predictions["logits"]):
        count = logits.shape[-1] * logits.shape[-2]
        labels = targets.labels[:, start : start + count].reshape(-1).numpy()
        expected = arrays[f"target_labels{level}"]
        np.testing.assert_array_equal(labels, expected)
        positive = labels == 0
        distances = targets.distances[:, start : start + count].reshape(-1, 4).numpy()
        np.testing.assert_allclose(distances[positive], arrays[f"target_bbox{level}"][positive], atol=1e-4)
        start += count

    losses = model.forward_training(None, [], predictions, [sample["instances"] for sample in samples])
    losses["loss_sky"] = model.sky_loss(predictions, None, samples)
    names = {"loss_cls": "loss_cls", "loss_box_reg": "loss_bbox", "loss_centerness": "loss_centerness"}
    for ours, theirs in (names | {"loss_sky": "loss_seg"}).items():
        assert losses[ours].item() == pytest.approx(float(arrays[f"loss.{theirs}"]), rel=1e-5), ours
    sum(losses.values()).backward()

    ours_of = {}
    renamed = BAFE_NAMES.to_ours({k: torch.tensor(i) for i, k in enumerate(published.state)})
    order = list(published.state)
    for name, number in renamed.values.items():
        ours_of[order[int(number)]] = name
    parameters = dict(model.named_parameters())
    compared = 0
    for name, is_none, (total, magnitude) in zip(
        arrays["grad_names"], arrays["grad_is_none"], arrays["grad_sum_abssum"]
    ):
        if str(name) in renamed.dropped:
            assert is_none
            continue
        gradient = parameters[ours_of[str(name)]].grad
        assert (gradient is None) == bool(is_none), name
        if gradient is not None:
            if str(name).endswith("layer.0.bias"):
                # A batch norm follows: the true gradient is zero, both sides hold rounding alone.
                weight = parameters[ours_of[str(name).replace(".bias", ".weight")]].grad
                assert float(gradient.abs().max()) < 1e-4 * float(weight.abs().sum()), name
                continue
            scale = max(magnitude, 1e-12)
            assert abs(float(gradient.double().abs().sum()) - magnitude) / scale < 1e-3, name
            assert abs(float(gradient.double().sum()) - total) / scale < 1e-3, name
            compared += 1
    assert compared == 140
    state = model.state_dict()
    for key in arrays.files:
        name = key.removeprefix("after.")
        if key.startswith("after.") and name not in renamed.dropped:
            assert_close(state[ours_of[name]], arrays[key], what=name)
