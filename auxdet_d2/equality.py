"""AuxDet against numbers of its published implementation; see ``irstd_d2.equality``.

The published configuration with a ResNet-50, on a batch of four images of different sizes, padded, one of them with an
unknown band. Dropout was off, the samplers took the first anchors and boxes, and every anchor took part.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from detectron2.layers import ShapeSpec
from detectron2.modeling import build_model
from detectron2.modeling.backbone import Backbone
from detectron2.modeling.postprocessing import detector_postprocess
from detectron2.structures import Boxes, ImageList, Instances
from detectron2.utils.events import EventStorage
from torch import Tensor, nn

from irstd_d2 import get_config
from irstd_d2.equality import Comparison, Manifest, Reference, compare_sizes, image, our_names, read_manifest
from irstd_d2.model_zoo import find_config

from .checkpoint import AUXDET_NAMES
from .metadata import MetadataBatch, MetadataVocabulary, collate_metadata
from .modeling import LEEM, AuxDetFPN, AuxiliaryEncoder, FeatureRefinement
from .modeling.anchor_targets import NEGATIVE, OverlapAssigner, Selection, first_n
from .modeling.m2dm import build_edge_kernels, spatial_gain

FOLDER = Path(__file__).parent / "reference"
CONFIG = "configs/auxdet/auxdet_r50_fpn.yaml"
OPTIONS = ["MODEL.DEVICE", "cpu", "MODEL.CASCADE_RPN.VALID_DIVISOR", "0", "MODEL.AUXDET.ENCODER.DROPOUT", "0.0"]
STAGES = ("res2", "res3")
SHAPES = {"res2": (256, 4), "res3": (512, 8), "res4": (1024, 16), "res5": (2048, 32)}  # channels, stride
FIELDS = {"fields.platform": "view", "fields.band": "band", "fields.size": "size", "visual": "sem"}

# Sums of large terms that cancel: the float32 gradients of the reference are this far from a float64 run of our model,
# closer to which our own float32 run is.
CANCELLING = {
    "neck.edge_convs.0.beta": 2e-3,
    "neck.edge_convs.1.beta": 5e-3,
    "neck.mlp.2.bias": 2e-3,
    "neck.mlp.2.weight": 2e-3,
}
LOSSES = {
    "loss_rpn_box_stage1": ("s0.loss_rpn_reg.0", "s0.loss_rpn_reg.1"),
    "loss_rpn_box_stage2": ("s1.loss_rpn_reg.0", "s1.loss_rpn_reg.1"),
    "loss_rpn_cls_stage2": ("s1.loss_rpn_cls.0", "s1.loss_rpn_cls.1"),
    "loss_cls": ("loss_cls",),
    "loss_box_reg": ("loss_bbox",),
}


def compare(folder: Path | None = None) -> Comparison:
    """Compare everything.

    Args:
        folder: of the reference numbers; by default those of the package.
    """
    folder = folder or FOLDER
    manifest = read_manifest(folder / "auxdet_r50.manifest.json")
    comparison = Comparison()
    compare_parts_of_neck(comparison, manifest, Reference(folder / "auxdet_neck_parts.npz"))
    compare_neck(comparison, manifest, Reference(folder / "auxdet_neck.npz"))
    compare_evaluation(comparison, manifest, Reference(folder / "auxdet_full_eval.npz"))
    compare_training(comparison, manifest, Reference(folder / "auxdet_train_losses.npz"))
    # Has no whole form.
    compare_sizes(comparison, build_published(manifest), Reference(FOLDER / "auxdet_sizes.npz"))
    return comparison


def build_published(manifest: Manifest) -> Any:
    """Our model with the weights of the published one."""
    model = build_model(get_config(find_config(CONFIG), OPTIONS))
    model.load_state_dict(AUXDET_NAMES.to_ours(manifest.state).values, strict=True)
    return model


def published_batch(manifest: Manifest) -> tuple[ImageList, MetadataBatch]:
    """The images, normalised, in a padded batch, and their metadata."""
    entries = [
        {"platform": m["view"], "band": m["band_type"], "width": m["width"], "height": m["height"]}
        for m in manifest.images
    ]
    sizes = [(int(m["img_shape"][0]), int(m["img_shape"][1])) for m in manifest.images]
    return ImageList(image(1, (4, 3, 256, 320)), sizes), collate_metadata(entries, MetadataVocabulary())


def compare_parts_of_neck(comparison: Comparison, manifest: Manifest, reference: Reference) -> None:
    """Every module of the neck on inputs of its own."""
    _, metadata = published_batch(manifest)
    neck = _build_neck(manifest).eval()
    refinement = neck.refinement
    vector, x = image(102, (4, 128)), image(101, (4, 256, 6, 7))
    for mode in ("eval", "train"):
        # The published arrays are of a single call, hence one stage.
        encoder = AuxiliaryEncoder(num_stages=1, dropout=0.0)
        encoder.load_state_dict(refinement.encoder.state_dict())
        encoder.train(mode == "train")
        out = encoder(metadata, [image(100, (4, 256))])[0]
        comparison.values("metadata encoder", out, reference, f"meta_{mode}_out", 1e-6)
    for ours, name in FIELDS.items():
        norm = encoder.get_submodule(ours).norm
        for statistic in ("running_mean", "running_var"):
            key = f"meta_train_after.{name}_mlp.2.{statistic}"
            comparison.values("metadata encoder: BatchNorm", getattr(norm, statistic), reference, key, 1e-6)
    for i, stage in enumerate(STAGES):
        out = refinement.m2dm[stage].dynamic_mlp(x.mean(dim=(2, 3)), vector)
        comparison.values("dynamic MLP", out, reference, f"dmlp{i}_out", 1e-6)
        out = refinement.leem[stage](image(105, (2, 256, 6, 7)))
        comparison.values("LEEM", out, reference, f"edge{i}_out", 1e-5)
    x, taps = image(103, (4, 256, 6, 7)), image(104, (4, 8)).sigmoid()
    comparison.values("M2DM, spatial", build_edge_kernels(taps)[:, None], reference, "sm_kernels", 1e-6)
    comparison.values("M2DM, spatial", x * spatial_gain(x, taps), reference, "sm_out", 1e-6)
    out = encoder.metadata_fusion(image(106, (4, 96)))
    comparison.values("residual MLP and gate", out, reference, "fcres_out", 1e-6)
    comparison.values("residual MLP and gate", refinement.gate(vector), reference, "alpha_mlp_out", 1e-6)
    fresh: Any = LEEM(16)
    comparison.values("LEEM, freshly initialised", fresh.vertical.weight, reference, "edge_init_vert", 0.0)
    comparison.values("LEEM, freshly initialised", fresh.horizontal.weight, reference, "edge_init_hori", 0.0)
    comparison.values("LEEM, freshly initialised", fresh(image(107, (2, 16, 9, 8))), reference, "edge_init_out", 1e-5)


def compare_neck(comparison: Comparison, manifest: Manifest, reference: Reference) -> None:
    """The neck as a whole on given features: outputs, auxiliary vectors, gradients."""
    _, metadata = published_batch(manifest)
    for mode in ("eval", "train"):
        what = f"neck in {'evaluation' if mode == 'eval' else 'training'}"
        neck = _build_neck(manifest).train(mode == "train")
        seen: list[Tensor] = []
        neck.refinement.encoder.register_forward_hook(lambda _, __, out, seen=seen: seen.append(out))
        outputs = neck(torch.zeros(4, 3, 128, 160), metadata)
        laterals = dict(zip(SHAPES, neck.project_laterals(neck.bottom_up.features)))
        for i, (stage, level) in enumerate(zip(STAGES, ("p2", "p3"))):
            aux = seen[0][i]
            comparison.values(what, aux, reference, f"{mode}_aux{i}", 1e-5)
            comparison.values(what, neck.refinement.gate(aux), reference, f"{mode}_alpha{i}", 1e-5)
            modulation = neck.refinement.m2dm[stage].dynamic_mlp(laterals[stage].mean(dim=(2, 3)), aux)
            comparison.values(what, modulation, reference, f"{mode}_mod{i}", 1e-5)
            comparison.sample(what, outputs[level], reference, f"{mode}_P{i + 2}", 1e-5)
    neck = _build_neck(manifest).train()
    outputs = neck(torch.zeros(4, 3, 128, 160), metadata)
    torch.stack([(p * image(210 + i, p.shape)).sum() for i, p in enumerate(outputs.values())]).sum().backward()
    parameters = {f"backbone.{name}": p.grad for name, p in neck.named_parameters()}
    names = our_names(AUXDET_NAMES, (f"neck.{name}" for name in map(str, reference["grad_names"])))
    gradients = {published.removeprefix("neck."): parameters[ours] for published, ours in names.items()}
    # The gate in front of LEEM's normalisation has no gradient but for eps; what is left are rounding errors of terms
    # that cancel, which are as large as the gradient of the scale behind it.
    sums = dict(zip(map(str, reference["grad_names"]), reference["grad_sum_abssum"][:, 1]))
    scales = {name: float(sums[name.replace("alpha", "beta")]) for name in sums if name.endswith("alpha")}
    comparison.gradients("neck: gradients", gradients, reference, 1e-4, scales=scales)


def compare_evaluation(comparison: Comparison, manifest: Manifest, reference: Reference) -> None:
    """From an image to detections, every stage."""
    model = build_published(manifest).eval()
    images, metadata = published_batch(manifest)
    stages: dict[int, list[Any]] = {}
    for i, stage in enumerate(model.proposal_generator.stages):
        stage.register_forward_hook(lambda _, args, out, i=i: stages.setdefault(i, []).append((args, out)))
    with torch.no_grad():
        x = model.backbone.bottom_up.stem(images.tensor)
        for i, part in enumerate(model.backbone.bottom_up.stages):
            x = part(x)
            comparison.sample("backbone, C2 to C5", x, reference, f"C{i + 2}")
        features = model.backbone(images.tensor, metadata)
        for name in ("p2", "p3"):
            comparison.sample("pyramid, P2 and P3", features[name], reference, name.upper())
        proposals, _ = model.proposal_generator(images, features)
        refined = model.proposal_generator.predict(features, torch.tensor(images.image_sizes))[1][1].anchors
    for level in range(2):
        _, (bridge, deltas, _) = stages[0][level]
        comparison.sample("proposals, stage 1", bridge, reference, f"rpn_s0_bridge{level}")
        comparison.values("proposals, stage 1", deltas, reference, f"rpn_s0_reg{level}")
        (_, offsets), (_, deltas, logits) = stages[1][level]
        rows = offsets[0].permute(1, 2, 0).reshape(-1, 18)
        comparison.values("proposals, stage 2", rows, reference, f"rpn_s1_offset{level}_img0")
        comparison.summary("proposals, stage 2", offsets, reference, f"rpn_s1_offset{level}")
        comparison.values("proposals, stage 2", deltas, reference, f"rpn_s1_reg{level}")
        comparison.values("proposals, stage 2", logits, reference, f"rpn_s1_cls{level}")
        comparison.boxes("refined anchors", refined[level][1], reference, f"rpn_refined_anchors{level}_img1", 0.02)
    for i, found in enumerate(proposals):
        tensor, scores = found.proposal_boxes.tensor, found.objectness_logits
        comparison.detections("proposals", tensor, scores, reference, f"proposals{i}")
    _compare_box_head(comparison, model, images, features, manifest, reference)


@torch.no_grad()
def _compare_box_head(
    comparison: Comparison,
    model: Any,
    images: ImageList,
    features: Mapping[str, Tensor],
    manifest: Manifest,
    reference: Reference,
) -> None:
    """The box head on the proposals of the reference, whose order is known."""
    proposals = []
    for i, size in enumerate(images.image_sizes):
        rows = torch.from_numpy(reference[f"proposals{i}"])
        proposals.append(Instances(size, proposal_boxes=Boxes(rows[:, :4]), objectness_logits=rows[:, 4]))
    heads = model.roi_heads
    pooled = heads.box_pooler([features[n] for n in heads.box_in_features], [p.proposal_boxes for p in proposals])
    comparison.values("box head", pooled[::40, ::16], reference, "roi_feats_sample")
    comparison.summary("box head", pooled, reference, "roi_feats")
    logits, deltas = heads.box_predictor(heads.box_head(pooled))
    comparison.values("box head", logits, reference, "roi_cls_score")
    comparison.values("box head", deltas, reference, "roi_bbox_pred")
    detections, _ = heads(images, features, proposals)
    for i, (found, meta) in enumerate(zip(detections, manifest.images)):
        comparison.detections("detections", found.pred_boxes.tensor, found.scores, reference, f"det_raw{i}")
        final = detector_postprocess(found, meta["height"], meta["width"])
        comparison.detections("detections", final.pred_boxes.tensor, final.scores, reference, f"det{i}")


@dataclass(frozen=True)
class FirstOverlaps(OverlapAssigner):
    """An ``OverlapAssigner`` that takes the first anchors in place of random ones."""

    def select_for_loss(self, assigned: Tensor) -> Selection:
        limit = torch.full((len(assigned),), int(self.batch_size * self.positive_fraction))
        positive = first_n(assigned >= 0, limit)
        negative = first_n(assigned == NEGATIVE, self.batch_size - positive.sum(1))
        return Selection(positive, negative, (positive.sum(1).clamp(min=1) + negative.sum(1).clamp(min=1)).sum())


def sample_first(model: Any) -> list[tuple[Tensor, Tensor]]:
    """Let a model train on the first anchors and boxes and not random ones; gives those of the box head, per image."""
    drawn: list[tuple[Tensor, Tensor]] = []

    def first_labels(labels: Tensor, num_samples: int, fraction: float, background: int) -> tuple[Tensor, Tensor]:
        positive = torch.nonzero((labels != -1) & (labels != background))[: int(num_samples * fraction), 0]
        negative = torch.nonzero(labels == background)[: num_samples - len(positive), 0]
        drawn.append((positive, negative))
        return drawn[-1]

    model.roi_heads.sampler, rpn = first_labels, model.proposal_generator
    rpn.assigners = [FirstOverlaps(**vars(a)) if isinstance(a, OverlapAssigner) else a for a in rpn.assigners]
    return drawn


def compare_training(comparison: Comparison, manifest: Manifest, reference: Reference) -> None:
    """One training step: targets, samples, losses, gradients, BatchNorm statistics."""
    model = build_published(manifest).train()
    images, metadata = published_batch(manifest)
    targets = []
    for rows, size in zip(manifest.gt_boxes, images.image_sizes):
        boxes = Boxes(torch.tensor(rows, dtype=torch.float32).reshape(-1, 4))
        targets.append(Instances(size, gt_boxes=boxes, gt_classes=torch.zeros(len(rows), dtype=torch.long)))
    drawn = sample_first(model)
    with EventStorage() as storage:
        features = model.backbone(images.tensor, metadata)
        proposals, losses = model.proposal_generator(images, features, targets)
        _, box_losses = model.roi_heads(images, features, proposals, targets)
        with torch.no_grad():
            _compare_anchors(comparison, model.proposal_generator, images, features, manifest, reference)
    for i, (found, chosen) in enumerate(zip(proposals, drawn)):
        tensor, scores = found.proposal_boxes.tensor, found.objectness_logits
        comparison.detections("training: proposals", tensor, scores, reference, f"train_proposals{i}")
        for kind, index in zip(("pos", "neg"), chosen):
            name = f"rcnn_img{i}_{kind}_inds"
            comparison.same("training: sampled boxes", index, reference, name, any_order=True)
        counts = torch.tensor([len(index) for index in chosen])
        comparison.same("training: sampled boxes", counts, reference, f"rcnn_img{i}_num_pos_neg")
    losses = {**losses, **box_losses}
    for ours, theirs in LOSSES.items():
        expected = sum(float(reference[f"loss.{name}"]) for name in theirs)
        comparison.compared |= {(reference.name, f"loss.{name}") for name in theirs}
        comparison.number("training: losses", ours, losses[ours].item(), expected, 1e-5)
    total = torch.stack(list(losses.values())).sum()
    comparison.values("training: losses", total.detach().double(), reference, "loss_total", 1e-5)
    accuracy = 100 * storage.latest()["fast_rcnn/cls_accuracy"][0]
    comparison.values("training: losses", np.array(accuracy), reference, "loss.acc", 1e-5)
    total.backward()
    names = our_names(AUXDET_NAMES, manifest.rules)
    parameters = dict(model.named_parameters())
    gradients = {theirs: parameters[ours].grad for theirs, ours in names.items() if ours in parameters}
    # LEEM's normalisation cancels its gate, and the normalisation of the pooled hint a bias before it: both sides hold
    # rounding errors alone.
    zero = ("neck.edge_convs.0.alpha", "neck.edge_convs.1.alpha", "neck.downsamples.1.bias")
    comparison.gradients(
        "training: gradients",
        gradients,
        reference,
        tolerances={**CANCELLING, **dict.fromkeys(zero, 1e-5)},
        scales=dict.fromkeys(zero, 1.0),
    )
    state = model.state_dict()
    for key in sorted(reference.names()):
        if key.startswith("after."):
            ours = names[key.removeprefix("after.")]
            comparison.values("training: BatchNorm", state[ours], reference, key)


def _compare_anchors(
    comparison: Comparison,
    generator: Any,
    images: ImageList,
    features: Mapping[str, Tensor],
    manifest: Manifest,
    reference: Reference,
) -> None:
    """Targets of the anchors of both stages and the sample of the second."""
    boxes = nn.utils.rnn.pad_sequence(
        [torch.tensor(rows, dtype=torch.float32).reshape(-1, 4) for rows in manifest.gt_boxes], batch_first=True
    )
    limit = torch.tensor(images.image_sizes, dtype=torch.float32)
    grid, outputs = generator.predict(features, limit)
    regions, overlaps = (
        assigner.assign(grid, torch.cat(output.anchors, dim=1), boxes)
        for assigner, output in zip(generator.assigners, outputs)
    )
    chosen = generator.assigners[1].select_for_loss(overlaps)
    first = {"pos": regions >= 0, "neg": regions == NEGATIVE}
    second = {"pos": chosen.positive, "neg": chosen.negative}
    for stage, masks in enumerate((first, second)):
        what = f"training: anchors, stage {stage + 1}"
        for i in range(len(regions)):
            for kind in ("pos",) if stage == 0 else ("pos", "neg"):
                index = torch.nonzero(masks[kind][i])[:, 0]
                comparison.same(what, index, reference, f"rpn{stage}_img{i}_{kind}_inds", any_order=True)
            counts = torch.stack([mask[i].sum() for mask in masks.values()])
            comparison.same(what, counts, reference, f"rpn{stage}_img{i}_num_pos_neg")


class GivenFeatures(Backbone):
    """Stands in for the ResNet: hands on given feature maps, whatever the image."""

    def __init__(self) -> None:
        super().__init__()
        self.features = {
            name: image(200 + i, (4, channels, 128 // stride, 160 // stride)).relu()
            for i, (name, (channels, stride)) in enumerate(SHAPES.items())
        }

    def output_shape(self) -> dict[str, ShapeSpec]:
        return {name: ShapeSpec(channels=c, stride=s) for name, (c, s) in SHAPES.items()}

    def forward(self, x: Tensor) -> dict[str, Tensor]:  # noqa: ARG002  see above
        return self.features


def _build_neck(manifest: Manifest) -> Any:
    """The neck with the weights of the published one, on given features."""
    laterals = {name: ShapeSpec(channels=256, stride=stride) for name, (_, stride) in SHAPES.items()}
    refinement = FeatureRefinement(laterals, encoder={"dropout": 0.0})
    neck = AuxDetFPN(GivenFeatures(), list(SHAPES), 256, refinement=refinement, out_features=["p2", "p3"])
    published = {name: value for name, value in manifest.state.items() if name.startswith("neck.")}
    state = AUXDET_NAMES.to_ours(published).values
    neck.load_state_dict({name.removeprefix("backbone."): value for name, value in state.items()}, strict=True)
    return neck
