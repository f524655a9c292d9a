"""Ten steps of SGD and the detections after them, in double precision, against plain compositions of torch operators.

Both start from the same weights, at small widths and the published depth. They must agree to rounding: the sums run in
another order, and what follows from a comparison (the channels that are exchanged, targets, samples, suppression) could
differ only at a tie.
"""

from functools import partial

import numpy as np
import pytest
import torch
from detectron2.modeling import build_model
from detectron2.structures import Boxes, Instances
from detectron2.utils.events import EventStorage
from plain_auxdet import PlainAuxDet
from plain_bafe_net import PlainBAFENet
from plain_detector import pad_batch

from auxdet_d2 import equality as auxdet
from bafe_d2 import equality as bafe
from irstd_d2 import get_config
from irstd_d2.equality import read_manifest, tensor_values
from irstd_d2.equality.comparison import paired_differences

STEPS = 10
# Sizes of the images of a batch: odd ones of different sizes, very wide, very tall, of one cell.
SIZES = {
    "mixed": [(96, 128), (61, 113)],
    "wide": [(21, 320), (32, 275)],
    "tall": [(300, 28), (257, 31)],
    "three": [(193, 70), (33, 255), (128, 127)],
    "small": [(32, 32), (33, 31)],
    "wider": [(37, 1013), (35, 640)],
    "taller": [(1000, 33), (720, 36)],
    "odd": [(513, 511), (101, 67)],
}
# Targets of an image (height, width), where they are not those of make_batch.
TARGETS = {
    "none": lambda _, __: [],
    "none in one": lambda height, _: [[9, 9, 25, 22]] if height == SIZES["mixed"][0][0] else [],
    "many": lambda height, width: [
        [x, y, x + 1.5 + x % 7, y + 2 + y % 5] for x in range(0, width - 9, 7) for y in range(0, height - 7, 5)
    ],
    "at the edges": lambda height, width: [
        *([0, 10, 7, 17], [width - 9, 12, width, 20], [30, 0, 39, 6], [50, height - 8, 62, height]),
        *([0, 0, 5, 5], [width - 4, height - 4, width, height], [0, 0, width, height]),
        *([20, 20, 21, 21], [20, 20, 21, 21], [31.5, 23.25, 47.5, 30], [31.5, 23.25, 47.5, 30]),
    ],
    "below a pixel": lambda _, __: [[10.2, 10.3, 10.7, 10.9], [40, 41, 40.01, 60], [11.7, 11.8, 12.2, 12.3]],
}
every_batch = pytest.mark.parametrize(
    "batch",
    ["mixed", *(pytest.param(name, marks=pytest.mark.slow) for name in [*SIZES, *TARGETS] if name != "mixed")],
)
NARROW = ["MODEL.RESNETS.STEM_OUT_CHANNELS", 8, "MODEL.RESNETS.RES2_OUT_CHANNELS", 16]
NARROW += ["MODEL.RESNETS.WIDTH_PER_GROUP", 4, "MODEL.FPN.OUT_CHANNELS", 64, "MODEL.DEVICE", "cpu"]
METADATA = [("Air", "LWIR", 640, 512), ("Submarine", "NIR", None, None), ("Land", None, 1013, 37)]
ALL_UNKNOWN = [(None, None, None, None)] * 3


@pytest.fixture(autouse=True)
def double_precision(monkeypatch):
    """detectron2 keeps boxes, and our losses are computed, in single precision; here both stay double."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    monkeypatch.setattr(torch.Tensor, "float", torch.Tensor.double)
    monkeypatch.setattr(Boxes, "__init__", lambda self, tensor: setattr(self, "tensor", tensor.double().reshape(-1, 4)))
    yield
    torch.set_default_dtype(before)


def make_batch(batch):
    """Sizes, images in 0..255, targets of all levels, some of which overlap, and masks with pixels to ignore."""
    rng, sizes = np.random.default_rng(0), SIZES.get(batch, SIZES["mixed"])
    images, boxes, masks = [], [], []
    for height, width in sizes:
        images.append(torch.from_numpy(rng.uniform(0, 255, (3, height, width))))
        corner = rng.uniform(0, [width - 8, height - 8], (4, 2)).round(2)
        edges = rng.uniform(4, [min(width, 90), min(height, 90)], (4, 2)).round(2)
        rows = np.concatenate([corner, np.minimum(corner + edges, [width, height])], axis=1)
        rows = TARGETS[batch](height, width) if batch in TARGETS else [*rows, [2.25, 3.5, 8.75, 9.25]]
        boxes.append(torch.from_numpy(np.reshape(rows, (-1, 4)).astype(float)))
        masks.append(torch.from_numpy(rng.choice([0, 1, 255], (height, width), p=[0.5, 0.4, 0.1])))
    return sizes, images, boxes, masks


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


def samples_of(images, boxes, masks, known=METADATA):
    result = []
    for i, (image, rows, mask) in enumerate(zip(images, boxes, masks)):
        instances = Instances(
            image.shape[1:], gt_boxes=Boxes(rows), gt_classes=torch.zeros(len(rows), dtype=torch.long)
        )
        platform, band, width, height = known[i]
        metadata = {"platform": platform, "band": band, "width": width, "height": height}
        result.append({"image": image, "instances": instances, "sem_seg": mask, "metadata": metadata})
    return result


def train_both(model, samples, plain, plain_losses, lr):
    """The largest relative difference of a loss in all steps; NaN if any is."""
    optimizers = [
        torch.optim.SGD(parameters, lr, momentum=0.9, weight_decay=1e-4)
        for parameters in ([p for p in model.parameters() if p.requires_grad], plain.parameters())
    ]
    differences, totals = [], []
    for _ in range(STEPS):
        with EventStorage():
            ours = model(samples)
        theirs = plain_losses()
        assert ours.keys() == theirs.keys()
        for name, value in ours.items():
            expected = theirs[name].item()
            differences.append(abs(value.item() - expected) / max(abs(expected), 1e-12))
        for optimizer, losses in zip(optimizers, (ours, theirs)):
            optimizer.zero_grad()
            sum(losses.values()).backward()
            optimizer.step()
        totals.append(sum(ours.values()).item())
    assert all(np.isfinite(totals))
    assert totals[-1] != pytest.approx(totals[0], rel=1e-3), "nothing was learnt, so nothing was tested"
    return np.max(differences)  # unlike max, it keeps NaN


def weights_apart(model, names, plain):
    """The largest difference of a tensor, statistics of norms included, relative to its largest magnitude."""
    state = names.to_published(skip_pixels(model)).values
    differences = []
    for name, value in plain.w.items():
        if value.is_floating_point():
            value = value.detach()
            scale = max(float(value.abs().max()), 1e-12)
            differences.append(float((state[name] - value).abs().max()) / scale)
    return np.max(differences)


def check(capsys, what, batch, model, names, plain, samples, losses, detect):
    """After the steps weights and detections agree too; print by how much.

    Args:
        what: of the printed line.
        batch: a name of ``SIZES`` or ``TARGETS``.
        losses: their largest difference.
        detect: gives the rows of the plain model per image.
    """
    weights = weights_apart(model, names, plain)
    plain.training = False
    model.eval()
    apart, counts = [], []
    with torch.no_grad():
        for result, expected in zip(model(samples), detect(), strict=True):
            rows, found = result["instances"].pred_boxes.tensor.numpy(), result["instances"].scores.numpy()
            counts.append(len(expected))
            apart.append(paired_differences(rows, found, expected.numpy(), 1e-7, 1e-10))
    boxes, scores = np.max(apart, axis=0)
    assert all(counts)
    with capsys.disabled():
        print(
            f"\n{what}: in {STEPS} steps losses differ by {losses:.1e}, weights by {weights:.1e} (relative), "
            f"{sum(counts)} boxes by {boxes:.1e} px, scores by {scores:.1e}"
        )
    # The norms of maps of a few cells divide by small deviations, which enlarges rounding.
    limit = 1e-9 if batch == "small" else 1e-10
    assert losses < limit
    assert weights < limit
    assert boxes < 1e-7
    assert scores < limit


@every_batch
def test_bafe_net(repo_root, capsys, batch):
    config = repo_root / "configs/bafe/bafe_r50_fpn.yaml"
    model, weights = build(bafe, "bafe_r50.manifest.json", config, bafe.BAFE_NAMES, [])
    sizes, images, boxes, masks = make_batch(batch)
    samples = samples_of(images, boxes, masks)
    plain = PlainBAFENet(weights)
    x = pad_batch(images, [102.9801, 115.9465, 122.7717], [1.0] * 3)
    sky = torch.full((len(x), *x.shape[2:]), 255)
    for target, mask in zip(sky, masks):
        target[: mask.shape[0], : mask.shape[1]] = mask
    losses = train_both(model, samples, plain, lambda: plain.losses(x, boxes, sky), lr=1e-3)
    detect = partial(plain.detect, x, sizes)
    check(capsys, f"BAFE-Net, {batch}", batch, model, bafe.BAFE_NAMES, plain, samples, losses, detect)


@every_batch
def test_auxdet(repo_root, capsys, batch):
    config = repo_root / "configs/auxdet/auxdet_r50_fpn.yaml"
    # Ten steps on unusual images may leave no score above the published threshold, and nothing to compare.
    score_thresh = 0.001 if batch in ("mixed", "wide", "tall", "small") else 0.0
    opts = ["MODEL.ROI_BOX_HEAD.FC_DIM", 32, "MODEL.AUXDET.ENCODER.DROPOUT", 0.0]
    opts += ["MODEL.ROI_HEADS.SCORE_THRESH_TEST", score_thresh]
    model, weights = build(auxdet, "auxdet_r50.manifest.json", config, auxdet.AUXDET_NAMES, opts)
    sizes, images, boxes, masks = make_batch(batch)
    metadata = (ALL_UNKNOWN if batch == "small" else METADATA)[: len(sizes)]
    samples = samples_of(images, boxes, masks, metadata)
    plain = PlainAuxDet(weights)
    x = pad_batch(images, [123.675, 116.28, 103.53], [58.395, 57.12, 57.375])
    auxdet.sample_first(model)
    losses = train_both(model, samples, plain, lambda: plain.losses(x, metadata, sizes, boxes), lr=3e-4)
    detect = partial(plain.detect, x, metadata, sizes, score_thresh)
    check(capsys, f"AuxDet, {batch}", batch, model, auxdet.AUXDET_NAMES, plain, samples, losses, detect)
