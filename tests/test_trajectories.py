"""Ten steps of SGD and the detections after them, in double precision, against plain compositions of torch operators.

Both start from the same weights, at small widths and the published depth. They must agree to rounding: the sums run in
another order, and what follows from a comparison (the channels that are exchanged, targets, samples, suppression) could
differ only at a tie.
"""

import numpy as np
import plain_detectors
import pytest
import torch
from detectron2.modeling import build_model
from detectron2.structures import Boxes, Instances
from detectron2.utils.events import EventStorage

from auxdet_d2 import equality as auxdet
from bafe_d2 import equality as bafe
from irstd_d2 import get_config
from irstd_d2.equality import read_manifest, tensor_values
from irstd_d2.equality.comparison import paired_differences

STEPS = 10
# Sizes of the images of a batch: odd ones of different sizes, very wide, very tall.
SIZES = {
    "mixed": [(96, 128), (61, 113)],
    "wide": [(21, 320), (32, 275)],
    "tall": [(300, 28), (257, 31)],
}
every_batch = pytest.mark.parametrize(
    "sizes", ["mixed", *(pytest.param(name, marks=pytest.mark.slow) for name in ("wide", "tall"))]
)
NARROW = ["MODEL.RESNETS.STEM_OUT_CHANNELS", 8, "MODEL.RESNETS.RES2_OUT_CHANNELS", 16]
NARROW += ["MODEL.RESNETS.WIDTH_PER_GROUP", 4, "MODEL.FPN.OUT_CHANNELS", 64, "MODEL.DEVICE", "cpu"]
METADATA = [("Air", "LWIR", 640, 512), ("Submarine", "NIR", None, None)]


@pytest.fixture(autouse=True)
def double_precision(monkeypatch):
    """detectron2 keeps boxes, and our losses are computed, in single precision; here both stay double."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    monkeypatch.setattr(torch.Tensor, "float", torch.Tensor.double)
    monkeypatch.setattr(Boxes, "__init__", lambda self, tensor: setattr(self, "tensor", tensor.double().reshape(-1, 4)))
    yield
    torch.set_default_dtype(before)


def make_batch(sizes):
    """Images in 0..255, targets of all levels, some of which overlap, and masks with pixels to ignore."""
    rng = np.random.default_rng(0)
    images, boxes, masks = [], [], []
    for height, width in sizes:
        images.append(torch.from_numpy(rng.uniform(0, 255, (3, height, width))))
        corner = rng.uniform(0, [width - 8, height - 8], (4, 2)).round(2)
        edges = rng.uniform(4, [min(width, 90), min(height, 90)], (4, 2)).round(2)
        rows = np.concatenate([corner, np.minimum(corner + edges, [width, height])], axis=1)
        boxes.append(torch.from_numpy(np.concatenate([rows, [[2.25, 3.5, 8.75, 9.25]]])))
        masks.append(torch.from_numpy(rng.choice([0, 1, 255], (height, width), p=[0.5, 0.4, 0.1])))
    return images, boxes, masks


def build(system, manifest, config, names, opts):
    """Our model and the weights of the published names, made by the rules of the published ones at small widths."""
    model = build_model(get_config(config, [*NARROW, *opts]))
    published = names.to_published(skip_pixels(model)).values
    shapes = {k: v.shape for k, v in published.items() if not k.endswith("epsilon")}  # a constant
    rules = read_manifest(system.FOLDER / manifest).rules
    weights = {k: torch.from_numpy(tensor_values(k, shape, rules[k][1])) for k, shape in shapes.items()}
    weights = {k: v.double() if v.is_floating_point() else v for k, v in weights.items()}
    model.double().load_state_dict(names.to_ours(weights).values, strict=True)
    return model.train(), weights


def skip_pixels(model):
    return {k: v for k, v in model.state_dict().items() if not k.startswith("pixel_")}


def samples_of(images, boxes, masks):
    result = []
    for i, (image, rows, mask) in enumerate(zip(images, boxes, masks)):
        instances = Instances(
            image.shape[1:], gt_boxes=Boxes(rows), gt_classes=torch.zeros(len(rows), dtype=torch.long)
        )
        platform, band, width, height = METADATA[i]
        metadata = {"platform": platform, "band": band, "width": width, "height": height}
        result.append({"image": image, "instances": instances, "sem_seg": mask, "metadata": metadata})
    return result


def train_both(model, samples, plain, plain_losses, lr):
    """The largest relative difference of a loss in all steps."""
    optimizers = [
        torch.optim.SGD(parameters, lr, momentum=0.9, weight_decay=1e-4)
        for parameters in ([p for p in model.parameters() if p.requires_grad], plain.parameters())
    ]
    largest, totals = 0.0, []
    for _ in range(STEPS):
        with EventStorage():
            ours = model(samples)
        theirs = plain_losses()
        assert ours.keys() == theirs.keys()
        for name, value in ours.items():
            scale = max(abs(float(theirs[name])), 1e-12)
            largest = max(largest, abs(float(value) - float(theirs[name])) / scale)
        for optimizer, losses in zip(optimizers, (ours, theirs)):
            optimizer.zero_grad()
            sum(losses.values()).backward()
            optimizer.step()
        totals.append(float(sum(ours.values())))
    assert all(np.isfinite(totals))
    assert totals[-1] != pytest.approx(totals[0], rel=1e-3), "nothing was learnt, so nothing was tested"
    return largest


def weights_apart(model, names, plain):
    """The largest difference of a tensor, statistics of norms included, relative to its largest magnitude."""
    state = names.to_published(skip_pixels(model)).values
    largest = 0.0
    for name, value in plain.w.items():
        if value.is_floating_point():
            value = value.detach()
            scale = max(float(value.abs().max()), 1e-12)
            largest = max(largest, float((state[name] - value).abs().max()) / scale)
    return largest


def detections_apart(model, samples, rows):
    model.eval()
    with torch.no_grad():
        results = [result["instances"] for result in model(samples)]
    apart = np.zeros(2)
    for found, expected in zip(results, rows):
        boxes, scores = found.pred_boxes.tensor.numpy(), found.scores.numpy()
        assert len(expected)
        apart = np.maximum(apart, paired_differences(boxes, scores, expected.numpy(), 1e-7, 1e-10))
    return apart


def report(capsys, name, sizes, losses, weights, detections):
    with capsys.disabled():
        print(
            f"\n{name}, {sizes}: in {STEPS} steps losses differ by {losses:.1e}, weights by {weights:.1e} (relative), "
            f"boxes by {detections[0]:.1e} px, scores by {detections[1]:.1e}"
        )


@every_batch
def test_bafe_net(repo_root, capsys, sizes):
    config = repo_root / "configs/bafe/bafe_r50_fpn.yaml"
    model, weights = build(bafe, "bafe_r50.manifest.json", config, bafe.BAFE_NAMES, [])
    images, boxes, masks = make_batch(SIZES[sizes])
    samples = samples_of(images, boxes, masks)
    plain = plain_detectors.PlainBAFENet(weights)
    x = plain_detectors.pad_batch(images, [102.9801, 115.9465, 122.7717], [1.0] * 3)
    sky = torch.full((len(x), *x.shape[2:]), 255)
    for target, mask in zip(sky, masks):
        target[: mask.shape[0], : mask.shape[1]] = mask
    losses = train_both(model, samples, plain, lambda: plain.losses(x, boxes, sky), lr=1e-3)
    apart = weights_apart(model, bafe.BAFE_NAMES, plain)
    plain.training = False
    with torch.no_grad():
        rows = plain.detect(x, SIZES[sizes])
    found = detections_apart(model, samples, rows)
    report(capsys, "BAFE-Net", sizes, losses, apart, found)
    assert losses < 1e-10
    assert apart < 1e-10
    assert found[0] < 1e-7
    assert found[1] < 1e-10


@every_batch
def test_auxdet(repo_root, capsys, sizes):
    config = repo_root / "configs/auxdet/auxdet_r50_fpn.yaml"
    opts = ["MODEL.ROI_BOX_HEAD.FC_DIM", 32, "MODEL.AUXDET.ENCODER.DROPOUT", 0.0]
    model, weights = build(auxdet, "auxdet_r50.manifest.json", config, auxdet.AUXDET_NAMES, opts)
    images, boxes, masks = make_batch(SIZES[sizes])
    samples = samples_of(images, boxes, masks)
    plain = plain_detectors.PlainAuxDet(weights)
    x = plain_detectors.pad_batch(images, [123.675, 116.28, 103.53], [58.395, 57.12, 57.375])
    with auxdet.first_samples(model):
        losses = train_both(model, samples, plain, lambda: plain.losses(x, METADATA, SIZES[sizes], boxes), lr=3e-4)
    apart = weights_apart(model, auxdet.AUXDET_NAMES, plain)
    plain.training = False
    with torch.no_grad():
        rows = plain.detect(x, METADATA, SIZES[sizes])
    found = detections_apart(model, samples, rows)
    report(capsys, "AuxDet", sizes, losses, apart, found)
    assert losses < 1e-10
    assert apart < 1e-10
    assert found[0] < 1e-7
    assert found[1] < 1e-10
