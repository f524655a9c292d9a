"""Every configuration builds, reads a sample, takes a training step with its own optimiser, and detects."""

import functools
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.modeling import build_model
from detectron2.structures import BoxMode
from detectron2.utils.events import EventStorage

import auxdet_d2  # noqa: F401  registers
import bafe_d2  # noqa: F401  registers
from irstd_d2 import get_config
from irstd_d2.data import build_mapper
from irstd_d2.data.classes import num_classes_of
from irstd_d2.engine.trainer import AMP_DTYPES
from irstd_d2.evaluation import EVALUATOR_REGISTRY
from irstd_d2.solver import build_optimizer, with_iteration_schedule

ROOT = Path(__file__).resolve().parents[2] / "configs"
EDGE = 96
SMALL = [
    *("MODEL.DEVICE", "cpu", "MODEL.WEIGHTS", "", "INPUT.FIXED_SIZE", (EDGE, EDGE)),
    *("INPUT.MIN_SIZE_TRAIN", (EDGE,), "INPUT.MAX_SIZE_TRAIN", EDGE),
    *("INPUT.MIN_SIZE_TEST", EDGE, "INPUT.MAX_SIZE_TEST", EDGE),
]


def is_tiny(path):
    return "tiny" in path.parts


def parameters():
    for path in sorted(ROOT.rglob("*.yaml")):
        if not path.name.startswith("Base-"):
            yield pytest.param(path, id=str(path.relative_to(ROOT)), marks=[] if is_tiny(path) else pytest.mark.slow)


@pytest.fixture(scope="module")
def dicts(tmp_path_factory):
    """Two images, one without targets; the upper half of each is sky."""
    folder = tmp_path_factory.mktemp("images")
    records = []
    for number, boxes in enumerate([[[20, 10, 24, 14], [50, 30, 58, 36]], []]):
        image = np.random.default_rng(number).integers(40, 90, (80, 100), dtype=np.uint8)
        for x1, y1, x2, y2 in boxes:
            image[y1:y2, x1:x2] = 230
        sky = np.zeros((80, 100), np.uint8)
        sky[:40] = 1
        cv2.imwrite(str(folder / f"{number}.png"), image)
        cv2.imwrite(str(folder / f"sky_{number}.png"), sky)
        annotations = [{"bbox": b, "bbox_mode": BoxMode.XYXY_ABS, "category_id": 0, "iscrowd": 0} for b in boxes]
        records.append(
            {
                "file_name": str(folder / f"{number}.png"),
                "sem_seg_file_name": str(folder / f"sky_{number}.png"),
                "image_id": number,
                "height": 80,
                "width": 100,
                "annotations": annotations,
                "metadata": {"platform": "Air", "band": "LWIR"} if number else {},
            }
        )
    DatasetCatalog.register("every_config", lambda: records)
    MetadataCatalog.get("every_config").set(thing_classes=["target"])
    yield records
    DatasetCatalog.remove("every_config")
    MetadataCatalog.remove("every_config")


@pytest.mark.parametrize("path", list(parameters()))
def test_config_trains_and_detects(path, dicts):
    cfg = get_config(path, SMALL)
    data_sets = [*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST]
    assert all(name in DatasetCatalog.list() for name in data_sets), data_sets
    assert cfg.OUTPUT_DIR != "./output", "give the configuration an OUTPUT_DIR of its own"
    assert all(name in EVALUATOR_REGISTRY for name in cfg.TEST.EVALUATORS)
    assert cfg.SOLVER.AMP.DTYPE in AMP_DTYPES
    cfg.DATASETS.TRAIN = ("every_config",)
    cfg = with_iteration_schedule(cfg, len(dicts))
    if cfg.SOLVER.LR_SCHEDULER_NAME == "WarmupMultiStepLR":
        assert max(cfg.SOLVER.STEPS, default=0) < cfg.SOLVER.MAX_ITER

    model = build_model(cfg)
    number, key = num_classes_of(model)
    assert number == functools.reduce(getattr, key.split("."), cfg)  # every command compares it with the data
    optimizer = build_optimizer(cfg, model)
    trained = {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}
    assert trained
    mapper = build_mapper(cfg, is_train=True)
    with EventStorage():
        losses = model([mapper(record) for record in dicts])
    assert losses
    assert all(torch.isfinite(loss) for loss in losses.values()), losses
    sum(losses.values()).backward()
    optimizer.step()
    changed = [name for name, p in model.named_parameters() if name in trained and not torch.equal(p, trained[name])]
    # Norms and biases of dead branches aside, a step reaches most of what is trained.
    assert sum(trained[n].numel() for n in changed) > 0.5 * sum(p.numel() for p in trained.values())

    model.eval()
    mapper = build_mapper(cfg, is_train=False)
    with torch.no_grad():
        outputs = model([mapper(record) for record in dicts])
    assert len(outputs) == 2
    for output in outputs:
        boxes = output["instances"].pred_boxes.tensor
        assert torch.isfinite(boxes).all()
        assert output["instances"].image_size == (80, 100)


def test_there_are_configurations_of_every_kind():
    names = {str(p.relative_to(ROOT)) for p in ROOT.rglob("*.yaml")}
    for kind in ("fcos", "retinanet", "faster_rcnn", "cascade_rcnn"):
        assert {f"baselines/{kind}_r18_fpn.yaml", f"baselines/{kind}_r50_fpn.yaml"} <= names
        assert f"baselines/tiny/{kind}_tiny.yaml" in names


def test_there_are_the_named_configurations():
    names = {str(path.relative_to(ROOT)) for path in ROOT.rglob("*.yaml")}
    wanted = ["auxdet/cascade_rpn_r50_fpn.yaml", "bafe/fcos_r18_fpn.yaml", "auxbafe_r50_fpn.yaml"]
    wanted += [f"{name}_r{depth}_fpn.yaml" for name in ("auxdet/auxdet", "bafe/bafe") for depth in (18, 34, 50, 101)]
    assert set(wanted) <= names
