"""Losses, gradients and detections stay finite whatever sound data holds; what is not sound is named."""

from pathlib import Path

import pytest
import torch
from detectron2.modeling import build_model
from detectron2.structures import Boxes, Instances
from detectron2.utils.events import EventStorage

import auxdet_d2  # noqa: F401  registers
import bafe_d2  # noqa: F401  registers
from irstd_d2 import get_config
from irstd_d2.solver import build_optimizer

ROOT = Path(__file__).resolve().parents[2] / "configs"
CONFIGS = (
    "auxdet/tiny/auxdet_tiny",
    "bafe/tiny/bafe_tiny",
    pytest.param("auxdet/tiny/cascade_rpn_tiny", marks=pytest.mark.slow),
    pytest.param("bafe/tiny/fcos_tiny", marks=pytest.mark.slow),
)
PRECISIONS = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}


@pytest.fixture(scope="module", params=CONFIGS, ids=lambda name: Path(name).name)
def model(request):
    torch.manual_seed(0)
    cfg = get_config(ROOT / f"{request.param}.yaml", ["MODEL.DEVICE", "cpu", "MODEL.WEIGHTS", ""])
    model = build_model(cfg)
    model.pristine = {key: value.clone() for key, value in model.state_dict().items()}
    model.cfg = cfg
    return model


def sample(boxes=(), height=64, width=96, image=None, seed=0):
    """One image with targets at ``boxes`` (XYXY) and the upper half sky, as a mapper gives it."""
    generator = torch.Generator().manual_seed(seed)
    if image is None:
        image = torch.rand(3, height, width, generator=generator) * 80
    boxes = torch.as_tensor(boxes, dtype=torch.float32).reshape(-1, 4)
    instances = Instances((height, width))
    instances.gt_boxes, instances.gt_classes = Boxes(boxes), torch.zeros(len(boxes), dtype=torch.long)
    sky = torch.zeros(height, width, dtype=torch.long)
    sky[: height // 2] = 1
    metadata = {"platform": "Air", "band": "LWIR", "width": width, "height": height}
    return {
        "image": image,
        "instances": instances,
        "sem_seg": sky,
        "height": height,
        "width": width,
        "metadata": metadata,
        "file_name": f"{seed}.png",
    }


def grid(count, width=96, height=64, side=3.0):
    """``count`` boxes that cover the image, many of them on top of each other."""
    generator = torch.Generator().manual_seed(1)
    corner = torch.rand(count, 2, generator=generator) * torch.tensor([width - side, height - side])
    return torch.cat([corner, corner + side], 1)


BOX = ((20.0, 20.0, 24.0, 23.0),)
BATCHES = {
    "no targets": lambda: [sample(), sample(seed=1)],
    "targets on one image": lambda: [sample(BOX), sample(seed=1)],
    "thousands of targets": lambda: [sample(grid(3000))],
    "boxes without area": lambda: [sample([(20, 20, 20, 20), (30, 30, 34, 30), (40, 40, 40 + 1e-6, 44)])],
    "box beyond the image": lambda: [sample([(-1e4, -1e4, 1e4, 1e4), (-5, 10, 500, 14)])],
    "box of the whole image": lambda: [sample([(0, 0, 96, 64)])],
    "box far outside": lambda: [sample([(900, 900, 904, 904)])],
    "black image": lambda: [sample(BOX, image=torch.zeros(3, 64, 96))],
    "white image": lambda: [sample(BOX, image=torch.full((3, 64, 96), 255.0))],
    "values of a raw sensor": lambda: [sample(BOX, image=torch.rand(3, 64, 96) * 65535)],
    "wide": lambda: [sample([(100, 2, 104, 5)], 8, 640)],
    "high": lambda: [sample([(2, 100, 5, 104)], 640, 8)],
    # At stride 32 a norm over one pixel has nothing to normalise, so an image alone has more than 32 pixels on a side.
    "smallest": lambda: [sample([(0, 0, 1, 1)], 1, 33)],
    "one pixel beside a larger image": lambda: [sample([(0, 0, 1, 1)], 1, 1), sample(BOX, seed=1)],
}
# What differs in reduced precision: sums over many positives, large activations.
REDUCED = ("thousands of targets", "values of a raw sensor")
DETECTED = (
    "no targets",
    "black image",
    "values of a raw sensor",
    "wide",
    "smallest",
    "one pixel beside a larger image",
)


def cases(batches):
    """Single precision on all, the reduced ones where they differ."""
    yield from (pytest.param(name, "fp32", id=f"{name}-fp32") for name in batches)
    for name in batches:
        if name in REDUCED:
            yield from (
                pytest.param(name, kind, id=f"{name}-{kind}", marks=pytest.mark.slow) for kind in ("bf16", "fp16")
            )


def check_step(model, batch, precision):
    model.load_state_dict(model.pristine)
    model.train()
    optimizer = build_optimizer(model.cfg, model)
    dtype = PRECISIONS[precision]
    with EventStorage(), torch.autocast("cpu", dtype=dtype, enabled=dtype is not None):
        losses = model(BATCHES[batch]())
    assert all(torch.isfinite(loss) for loss in losses.values()), losses
    sum(loss.float() for loss in losses.values()).backward()
    wrong = [name for name, p in model.named_parameters() if p.grad is not None and not torch.isfinite(p.grad).all()]
    assert not wrong
    optimizer.step()
    assert all(torch.isfinite(value).all() for value in model.state_dict().values())
    assert any(not torch.equal(model.pristine[name], p) for name, p in model.named_parameters())


@pytest.mark.parametrize(("batch", "precision"), list(cases(BATCHES)))
def test_a_step_stays_finite(model, batch, precision):
    check_step(model, batch, precision)


# What differs is tested for the baselines too; whole models, whose parts the baselines share, see every batch.
@pytest.mark.slow
@pytest.mark.parametrize("precision", ["bf16", "fp16"])
@pytest.mark.parametrize("model", CONFIGS[:2], indirect=True)
def test_a_step_stays_finite_on_every_batch_in_reduced_precision(model, precision):
    for batch in BATCHES:
        # PyTorch 2.15 convolves maps of at most two pixels' width with stride 2 wrongly in bfloat16 on CPUs.
        if batch not in REDUCED and (batch, precision) != ("high", "bf16"):
            check_step(model, batch, precision)


@pytest.mark.parametrize(("batch", "precision"), list(cases(DETECTED)))
def test_detections_are_finite_and_within_the_image(model, batch, precision):
    model.load_state_dict(model.pristine)
    model.eval()
    dtype = PRECISIONS[precision]
    samples = BATCHES[batch]()
    with torch.no_grad(), torch.autocast("cpu", dtype=dtype, enabled=dtype is not None):
        outputs = model(samples)
    for output, given in zip(outputs, samples, strict=True):
        found = output["instances"]
        assert found.image_size == (given["height"], given["width"])
        boxes, limit = found.pred_boxes.tensor, torch.tensor([given["width"], given["height"]] * 2)
        assert torch.isfinite(boxes).all()
        assert torch.isfinite(found.scores).all()
        assert (boxes >= 0).all()
        assert (boxes <= limit).all()
        assert ((found.scores >= 0) & (found.scores <= 1)).all()


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_pixels_that_are_no_numbers_show_in_the_loss_and_are_never_detected(model, value):
    model.load_state_dict(model.pristine)
    image = torch.rand(3, 64, 96) * 80
    image[0, 3, 3] = value
    with EventStorage():
        losses = model.train()([sample(BOX, image=image)])
    assert not torch.isfinite(sum(losses.values()))
    model.load_state_dict(model.pristine)
    with torch.no_grad():
        found = model.eval()([sample(BOX, image=image)])[0]["instances"]
    assert torch.isfinite(found.pred_boxes.tensor).all()
    assert torch.isfinite(found.scores).all()
