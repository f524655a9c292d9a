"""A detector of a few weights on images of a few pixels, for tests of the training itself."""

from __future__ import annotations

import math

import cv2
import numpy as np
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.modeling import META_ARCH_REGISTRY
from detectron2.structures import Boxes, BoxMode, Instances
from torch import nn

from irstd_d2 import get_config
from irstd_d2.engine import IRSTDTrainer

TRAIN, TEST = "engine_test_train", "engine_test_val"
# A training that is evaluated, keeps its best checkpoint and drops old ones.
FULL = {
    "DATASETS.TEST": (TEST,),
    "TEST.EVAL_PERIOD": 6,
    "TEST.EVALUATORS": ("coco", "pd_fa"),
    "TEST.BEST_METRIC": "pd_fa/F1",
    "SOLVER.MAX_ITER": 44,
    "SOLVER.STEPS": (30,),
    "SOLVER.CHECKPOINT_PERIOD": 6,
    "SOLVER.CHECKPOINT_KEEP": 2,
}


def make_dicts(folder, count, seed):
    """Write images of 64x64 pixels with two targets of 4x4 each."""
    dicts = []
    for i in range(count):
        rng = np.random.default_rng((seed, i))
        image = rng.normal(60, 8, (64, 64))
        annotations = []
        for x, y in rng.integers(4, 56, (2, 2)).tolist():
            image[y : y + 4, x : x + 4] += 120
            annotations.append(
                {"bbox": [x, y, x + 4, y + 4], "bbox_mode": BoxMode.XYXY_ABS, "category_id": 0, "iscrowd": 0}
            )
        path = folder / f"{seed}_{i}.png"
        if not path.exists():
            cv2.imwrite(str(path), image.clip(0, 255).astype(np.uint8))
        dicts.append(
            {
                "file_name": str(path),
                "image_id": path.stem,
                "height": 64,
                "width": 64,
                "annotations": annotations,
                "metadata": {"platform": ("Air", "Land")[i % 2]},
            }
        )
    return dicts


def register(folder, train=10, test=3):
    """Register ``TRAIN`` and ``TEST`` with images in ``folder``."""
    for name, count, seed in ((TRAIN, train, 0), (TEST, test, 1)):
        dicts = make_dicts(folder, count, seed)
        DatasetCatalog.register(name, lambda dicts=dicts: dicts)
        MetadataCatalog.get(name).set(thing_classes=["target"])


def unregister():
    for name in (TRAIN, TEST):
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)


@META_ARCH_REGISTRY.register()
class ToyDetector(nn.Module):
    """Batch norm, dropout and a dead weight: what a resume must restore and distribution must bear."""

    def __init__(self, cfg):
        super().__init__()
        self.net = nn.Sequential(
            nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(0.3), nn.Conv2d(4, 1, 3, padding=1)
        )
        self.unused = nn.Parameter(torch.ones(2))
        self.num_classes = 1
        self.poison_at = None
        self.steps = 0

    def forward(self, samples):
        image = torch.stack([s["image"] for s in samples]) / 255
        heat = self.net(image)
        if not self.training:
            return [self.detect(h[0], sample) for h, sample in zip(heat, samples)]
        target = torch.zeros_like(heat)
        for i, sample in enumerate(samples):
            for x1, y1, x2, y2 in sample["instances"].gt_boxes.tensor.long().tolist():
                target[i, 0, y1:y2, x1:x2] = 1
        self.steps += 1
        loss = nn.functional.binary_cross_entropy_with_logits(heat, target)
        return {"loss_heat": loss * (math.nan if self.steps == self.poison_at else 1), "loss_l2": heat.mean() ** 2}

    def detect(self, heat, sample):
        """A box of 4x4 at each of the ten hottest places."""
        scores, index = heat.sigmoid().flatten().topk(10)
        corner = torch.stack([index % heat.shape[1], index // heat.shape[1]], 1).float()
        instances = Instances((sample["height"], sample["width"]))
        instances.pred_boxes, instances.scores = Boxes(torch.cat([corner, corner + 4], 1)), scores
        instances.pred_classes = torch.zeros(len(scores), dtype=torch.long)
        return {"instances": instances}


def toy_config(output, **overrides):
    """Configuration of a training of twelve iterations into the folder ``output``."""
    options = {
        "MODEL.META_ARCHITECTURE": "ToyDetector",
        "MODEL.WEIGHTS": "",
        "MODEL.DEVICE": "cpu",
        "DATASETS.TRAIN": (TRAIN,),
        "DATASETS.TEST": (),
        "DATALOADER.NUM_WORKERS": 0,
        "INPUT.MIN_SIZE_TRAIN": (64,),
        "INPUT.MIN_SIZE_TEST": 64,
        "SOLVER.IMS_PER_BATCH": 3,
        "SOLVER.MAX_ITER": 12,
        "SOLVER.STEPS": (8,),
        "SOLVER.BASE_LR": 0.05,
        "SOLVER.WARMUP_ITERS": 4,
        "SOLVER.CHECKPOINT_PERIOD": 5,
        "SOLVER.EMA.ENABLED": True,
        "SEED": 7,
        "OUTPUT_DIR": str(output),
        **overrides,
    }
    output.mkdir(exist_ok=True, parents=True)
    cfg = get_config(None, [item for pair in options.items() for item in pair])
    cfg.freeze()
    return cfg


def train(cfg, resume=False, stop_after=None):
    trainer = IRSTDTrainer(cfg)
    trainer.resume_or_load(resume)
    if stop_after is not None:
        trainer.max_iter = stop_after
    trainer.train()
    return trainer


def assert_same_tensors(a, b):
    assert a.keys() == b.keys()
    for key in a:
        assert torch.equal(a[key], b[key]), key


def trained_weights(checkpoint):
    """The weights that a checkpoint of an averaged training goes on from."""
    return checkpoint["trainer"]["hooks"]["EMAHook"]["trained"]
