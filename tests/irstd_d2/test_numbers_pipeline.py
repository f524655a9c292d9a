"""From a file of an unusual size or content to a training step: reader, mapper, model, trainer."""

from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
import toy_training as toy
from detectron2.modeling import build_model
from detectron2.structures import BoxMode
from detectron2.utils.events import EventStorage
from loops import for_every

import bafe_d2  # noqa: F401  registers
from irstd_d2 import get_config
from irstd_d2.data import build_mapper, read_image
from irstd_d2.engine import IRSTDTrainer, NonFiniteLossError
from irstd_d2.errors import DatasetError

ROOT = Path(__file__).resolve().parents[2] / "configs"


def record(folder, width, height, box):
    """Write an image of noise with one target."""
    image = np.random.default_rng(0).integers(0, 80, (height, width), dtype=np.uint8)
    image[box[1] : box[3], box[0] : box[2]] = 255
    path = folder / f"{width}x{height}.png"
    cv2.imwrite(str(path), image)
    target = {"bbox": list(box), "bbox_mode": BoxMode.XYXY_ABS, "category_id": 0, "iscrowd": 0}
    return {"file_name": str(path), "image_id": path.stem, "height": height, "width": width, "annotations": [target]}


def train_and_detect(cfg, given):
    model = build_model(cfg)
    with EventStorage():
        losses = model.train()([build_mapper(cfg, is_train=True)(given)])
    total = sum(losses.values())
    assert torch.isfinite(total), losses
    total.backward()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)
    with torch.no_grad():
        found = model.eval()([build_mapper(cfg, is_train=False)(given)])[0]["instances"]
    assert found.image_size == (given["height"], given["width"])
    assert torch.isfinite(found.pred_boxes.tensor).all()


FIXED = ["INPUT.RESIZE_MODE", "fixed", "INPUT.FIXED_SIZE", (96, 96)]
EDGE = ["INPUT.RESIZE_MODE", "shortest_edge", "INPUT.MIN_SIZE_TRAIN", (96,), "INPUT.MIN_SIZE_TEST", 96]
EDGE += ["INPUT.MAX_SIZE_TRAIN", 160, "INPUT.MAX_SIZE_TEST", 160]


@pytest.mark.parametrize("resize", [FIXED, EDGE], ids=["fixed", "shortest_edge"])
@pytest.mark.parametrize(
    ("width", "height", "box"),
    [(1, 1, (0, 0, 1, 1)), (5000, 1, (7, 0, 10, 1)), (1, 5000, (0, 7, 1, 10)), (3, 2, (0, 0, 3, 2))],
)
def test_images_of_extreme_sizes(tmp_path, resize, width, height, box):
    cfg = get_config(ROOT / "bafe/tiny/fcos_tiny.yaml", ["MODEL.DEVICE", "cpu", *resize])
    train_and_detect(cfg, record(tmp_path, width, height, box))


@pytest.mark.slow
def test_an_image_of_6000_by_6000_pixels(tmp_path):
    cfg = get_config(ROOT / "bafe/tiny/fcos_tiny.yaml", ["MODEL.DEVICE", "cpu", *FIXED])
    train_and_detect(cfg, record(tmp_path, 6000, 6000, (3000, 3000, 3200, 3200)))


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_float_file_with_what_is_no_number_is_refused_by_name(tmp_path, value):
    image = np.full((8, 8), 0.5, np.float32)
    image[3, 3] = value
    path = tmp_path / "a.tif"
    cv2.imwrite(str(path), image)
    cfg = get_config(ROOT / "bafe/tiny/fcos_tiny.yaml", ["MODEL.DEVICE", "cpu"])
    with pytest.raises(DatasetError, match=r"a\.tif: pixels: NaN or infinite"):
        build_mapper(cfg, is_train=True)({"file_name": str(path), "annotations": []})


@pytest.mark.parametrize("mode", ["minmax", "percentile"])
@pytest.mark.parametrize(("low", "high"), [(-1.7e308, 1.7e308), (0, 5e-324), (0, 1e-40), (0, 1e38), (-3e38, 3e38)])
def test_floats_at_the_ends_of_their_range(tmp_path, mode, low, high):
    image = np.full((8, 8), float(low))
    image[::2] = high
    path = tmp_path / "a.tif"
    cv2.imwrite(str(path), image)
    if high > 1e300:
        with pytest.raises(DatasetError, match=r"a\.tif: pixels: NaN or infinite"):
            read_image(path, "RGB", mode)
        return
    found = read_image(path, "RGB", mode)
    assert found.min() == 0
    assert found.max() == pytest.approx(255 if high > 1 else 0)


def test_a_proposal_generator_that_stops_the_step_names_the_images_and_the_state_is_saved(toy_config, tmp_path):
    trainer = IRSTDTrainer(toy_config())
    trainer.resume_or_load(False)
    forward = trainer.model.forward

    def diverge(samples):
        if trainer.iter == 4:
            raise FloatingPointError("Predicted boxes or scores contain Inf/NaN. Training has diverged.")
        return forward(samples)

    trainer.model.forward = diverge
    pattern = r"iteration 4 is not finite\nprocess 0: Predicted boxes .* diverged\., images \['.*0_\d\.png"
    with pytest.raises(NonFiniteLossError, match=pattern):
        trainer.train()
    assert (tmp_path / "run" / "last_checkpoint").read_text() == "model_0000003.pth"
    again = IRSTDTrainer(toy_config())
    again.resume_or_load(True)
    assert again.start_iter == 4


@for_every("dtype", ["bfloat16", "float16"])
def test_training_in_reduced_precision_moves_and_stays_finite(toy_config, dtype):
    trainer = toy.train(toy_config(**{"SOLVER.AMP.ENABLED": True, "SOLVER.AMP.DTYPE": dtype}))
    exact = toy.train(toy_config("exact"))
    for name, value in trainer.model.state_dict().items():
        assert torch.isfinite(value).all()
        if name.startswith("net.0"):
            torch.testing.assert_close(value, exact.model.state_dict()[name], rtol=0.1, atol=0.1)
