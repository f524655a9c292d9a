"""BAFE-Net against numbers of its published implementation; see ``irstd_d2.equality``.

The published configuration with a ResNet-50, on a batch of two images, the second of a smaller size, padded; its sky
mask has pixels to ignore.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from detectron2.modeling import build_model
from detectron2.structures import Boxes, ImageList, Instances
from torch import Tensor, nn

from irstd_d2 import get_config
from irstd_d2.checkpoint import NameMap
from irstd_d2.equality import (
    Comparison,
    Manifest,
    Reference,
    compare_sizes,
    image,
    our_names,
    read_manifest,
    tensor_values,
)
from irstd_d2.model_zoo import find_config
from irstd_d2.modeling.fcos_targets import assign_targets, pad_instances

from .checkpoint import BAFE_NAMES, large_kernel_rules
from .modeling import FeatureExchange, LargeSelectiveKernel

FOLDER = Path(__file__).parent / "reference"
CONFIG = "configs/bafe/bafe_r50_fpn.yaml"
LEVELS = ("p3", "p4", "p5")
OUTPUTS = {"logits": "cls", "distances": "bbox", "centerness": "ctr", "sky": "seg"}
LOSSES = {
    "loss_cls": "loss_cls",
    "loss_box_reg": "loss_bbox",
    "loss_centerness": "loss_centerness",
    "loss_sky": "loss_seg",
}
# Published names of the parameters of the two modules that are also compared alone, and ours.
KERNEL_RULES = [(a.removeprefix("x."), b.removeprefix("x.")) for a, b in large_kernel_rules("x", "x")]
EXCHANGE_RULES = [
    ("mlp.{p}", "adapter.{p}"),
    *((a.removeprefix("x."), b.removeprefix("x.")) for a, b in large_kernel_rules("x.attention_mask", "x.mask")),
]


def compare(folder: Path | None = None) -> Comparison:
    """Compare everything.

    Args:
        folder: of the reference numbers; by default those of the package.
    """
    folder = folder or FOLDER
    manifest = read_manifest(folder / "bafe_r50.manifest.json")
    comparison = Comparison()
    compare_modules(comparison, Reference(folder / "bafe_modules.npz"))
    compare_evaluation(comparison, manifest, Reference(folder / "bafe_full_eval.npz"))
    compare_training(comparison, manifest, Reference(folder / "bafe_train_losses.npz"))
    # Has no whole form.
    compare_sizes(comparison, build_published(manifest), Reference(FOLDER / "bafe_sizes.npz"))
    return comparison


def build_published(manifest: Manifest) -> Any:
    """Our model with the weights of the published one."""
    model = build_model(get_config(find_config(CONFIG), ["MODEL.DEVICE", "cpu"]))
    model.load_state_dict(BAFE_NAMES.to_ours(manifest.state).values, strict=True)
    return model


def compare_modules(comparison: Comparison, reference: Reference) -> None:
    """Large selective kernel and feature exchange alone, of 16 channels: outputs, choices, gradients."""
    for what, part, module, rules in (
        ("large selective kernel", "LSKModule", LargeSelectiveKernel(16), KERNEL_RULES),
        ("feature exchange", "ChannelEx", FeatureExchange(16), EXCHANGE_RULES),
    ):
        theirs = [n.removeprefix(f"{part}.grad_none.") for n in reference.names() if n.startswith(f"{part}.grad_none.")]
        names = our_names(NameMap(rules), theirs)
        _fill(module, part, names)
        inputs = [image(300 + i, (2, 16, 9, 11)).requires_grad_() for i in range(2)]
        if isinstance(module, FeatureExchange):
            for i, x in enumerate(inputs):
                importance = module.importance(x)
                comparison.values(what, importance.logit(), reference, f"{part}.logits{i}")
                chosen = importance.topk(8, dim=1).indices.sort(dim=1).values
                comparison.same(f"{what}: channels", chosen, reference, f"{part}.topk{i}")
            outputs: Sequence[Tensor] = module(*inputs)
        else:
            outputs = module(torch.cat(inputs)).chunk(2)
        total = torch.zeros(())
        for i, out in enumerate(outputs):
            comparison.values(what, out, reference, f"{part}.out{i}")
            total = total + (out * image(900 + i, out.shape)).sum()
        total.backward()
        for i, x in enumerate(inputs):
            comparison.values(f"{what}: gradients", _gradient(x), reference, f"{part}.gradin{i}")
        parameters = dict(module.named_parameters())
        for name, ours in names.items():
            comparison.compared.add((reference.name, f"{part}.grad_none.{name}"))
            gradient = parameters[ours].grad
            if reference[f"{part}.grad_none.{name}"] or gradient is None:
                both = bool(reference[f"{part}.grad_none.{name}"]) and gradient is None
                comparison.add(f"{what}: gradients", name, 0.0 if both else torch.inf, 5e-5, numbers=0, unit="relative")
            else:
                comparison.values(f"{what}: gradients", gradient, reference, f"{part}.grad.{name}")


def _fill(module: nn.Module, part: str, names: dict[str, str]) -> None:
    """Give a module its published weights, which every name makes by itself."""
    shapes = {name: list(value.shape) for name, value in module.state_dict().items()}
    state = {}
    for name, ours in names.items():
        rule = "bias" if name.endswith("bias") else "he"
        state[ours] = torch.from_numpy(tensor_values(f"{part}.{name}", shapes[ours], rule))
    module.load_state_dict(state, strict=True)


def _gradient(x: Tensor) -> Tensor:
    if x.grad is None:
        raise ValueError("an input got no gradient")
    return x.grad


@torch.no_grad()
def compare_evaluation(comparison: Comparison, manifest: Manifest, reference: Reference) -> None:
    """From an image to detections, every stage; the head also on features of its own."""
    model = build_published(manifest).eval()
    x = image(2, (2, 3, 256, 256))
    exchanged: list[tuple[Tensor, Tensor]] = []
    hook = model.head.cross_task.exchange.register_forward_pre_hook(lambda _, args: exchanged.append(args))
    stage = model.backbone.bottom_up.stem(x)
    for i, part in enumerate(model.backbone.bottom_up.stages):
        stage = part(stage)
        comparison.sample("backbone, C2 to C5", stage, reference, f"C{i + 2}")
    pyramid = model.backbone(x)
    for name in LEVELS:
        comparison.sample("pyramid, P3 to P5", pyramid[name], reference, name.upper())
    predictions = model.head([pyramid[name] for name in LEVELS])
    hook.remove()
    for level, both in enumerate(exchanged):
        for task, features in zip(("seg", "cls"), both):
            logits = model.head.cross_task.exchange.importance(features).logit()
            comparison.values("exchange, ranking of channels", logits, reference, f"exchange_logits_lvl{level}_{task}")
    alone = model.head([image(400 + i, (2, 256, 16 >> i, 12 >> i)) for i in range(3)])
    for ours, theirs in OUTPUTS.items():
        for level in range(3):
            comparison.values(f"head: {ours}", predictions[ours][level], reference, f"{theirs}{level}")
            comparison.values("head on given features", alone[ours][level], reference, f"headonly_{theirs}{level}")

    images = ImageList(x, [(m["img_shape"][0], m["img_shape"][1]) for m in manifest.images])
    detections = model.forward_inference(images, [], predictions)
    for i, raw in enumerate(detections):
        comparison.detections("detections", raw.pred_boxes.tensor, raw.scores, reference, f"det_raw{i}")
    samples = [{"height": m["ori_shape"][0], "width": m["ori_shape"][1]} for m in manifest.images]
    for i, result in enumerate(model.postprocess(detections, predictions, images, samples)):
        found = result["instances"]
        comparison.detections("detections", found.pred_boxes.tensor, found.scores, reference, f"det{i}")


def compare_training(comparison: Comparison, manifest: Manifest, reference: Reference) -> None:
    """One training step: targets, losses, gradients, BatchNorm statistics."""
    # Gradients of frozen early stages differ by 1e-3 between convolution back ends, and by 4e-4 from this one.
    with torch.backends.mkldnn.flags(enabled=False):
        _compare_training(comparison, manifest, reference)


def _compare_training(comparison: Comparison, manifest: Manifest, reference: Reference) -> None:
    model = build_published(manifest).train()
    sky = torch.from_numpy(reference["sky"][:, 0].astype("int64"))
    comparison.compared.add((reference.name, "sky"))
    samples: list[dict[str, Any]] = []
    for rows, mask in zip(manifest.gt_boxes, sky):
        boxes = Boxes(torch.tensor(rows, dtype=torch.float32).reshape(-1, 4))
        instances = Instances((256, 256), gt_boxes=boxes, gt_classes=torch.zeros(len(rows), dtype=torch.long))
        samples.append({"instances": instances, "sem_seg": mask})
    instances_of_all = [sample["instances"] for sample in samples]
    features = model.backbone(image(2, (2, 3, 256, 256)))
    predictions = model.head([features[name] for name in LEVELS])
    targets = assign_targets(model.points(predictions), *pad_instances(instances_of_all), model.num_classes)
    start = 0
    for level, logits in enumerate(predictions["logits"]):
        end = start + logits.shape[-1] * logits.shape[-2]
        labels, distances = targets.labels[:, start:end].flatten(), targets.distances[:, start:end].reshape(-1, 4)
        comparison.compared.add((reference.name, f"target_bbox{level}"))
        comparison.same("training: targets", labels, reference, f"target_labels{level}")
        # What the published code writes for the background is not used.
        positive = (labels == 0).numpy()
        expected = torch.from_numpy(reference[f"target_bbox{level}"][positive])
        difference = (distances[positive] - expected).abs().max() if len(expected) else torch.zeros(())
        name = f"target_bbox{level}"
        comparison.add("training: targets", name, float(difference), 1e-4, numbers=expected.numel(), unit="px")
        start = end

    losses = model.forward_training(None, [], predictions, instances_of_all)
    losses["loss_sky"] = model.sky_loss(predictions, None, samples)
    for ours, theirs in LOSSES.items():
        value = losses[ours].detach().double()
        comparison.values("training: losses", value, reference, f"loss.{theirs}", 1e-5)
    total = torch.stack(list(losses.values())).sum()
    comparison.values("training: losses", total.detach().double(), reference, "loss_total", 1e-5)
    total.backward()

    names = our_names(BAFE_NAMES, manifest.rules)
    parameters = dict(model.named_parameters())
    gradients = {theirs: parameters[ours].grad for theirs, ours in names.items() if ours in parameters}
    # A batch norm follows these biases: the true gradient is zero, both sides hold rounding alone.
    scales = {}
    for name, gradient in gradients.items():
        weight = gradients.get(name.replace(".bias", ".weight"))
        if name.endswith("layer.0.bias") and gradient is not None and weight is not None:
            scales[name] = gradient.numel() * float(weight.abs().sum())
    tolerances = dict.fromkeys(scales, 1e-4)
    what = "training: gradients"
    comparison.gradients(what, gradients, reference, tolerances=tolerances, scales=scales)
    state = model.state_dict()
    for key in sorted(reference.names()):
        name = key.removeprefix("after.")
        if key.startswith("after.") and name in names:  # others never run
            comparison.values("training: BatchNorm", state[names[name]], reference, key)
