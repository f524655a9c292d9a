"""Reading, augmenting and loading."""

from __future__ import annotations

import itertools
import logging
import time

import cv2
import numpy as np
import torch
from detectron2.data import DatasetCatalog, DatasetMapper, MetadataCatalog
from detectron2.data import transforms as T
from detectron2.structures import BoxMode
from harness import Bench, timed

import bafe_d2  # noqa: F401
from bafe_d2.data import BAGCopyPaste, TargetLibrary
from irstd_d2 import get_config
from irstd_d2.data import IRSTDAugInput, IRSTDDatasetMapper, load_voc
from irstd_d2.engine import IRSTDTrainer
from irstd_d2.synthetic import dense_config, write_densesirst

from .detectors import CONFIGS, training_step
from .scenes import small_boxes


def run(bench: Bench) -> None:
    logging.getLogger("irstd_d2").setLevel(logging.WARNING)
    for size, suffix in itertools.product((64,) if bench.quick else (512, 1024), (".jpg", ".png")):
        _mapper(bench, size, suffix)
    _bag_cp(bench)
    _waiting(bench)


def _scene(size: int) -> np.ndarray:
    """Clouds and noise as a sensor has them, which a compressor finds neither flat nor random."""
    rng = np.random.default_rng(0)
    image = cv2.resize(rng.uniform(40, 160, (size // 32, size // 32)), (size, size), interpolation=cv2.INTER_CUBIC)
    return np.clip(image + rng.normal(0, 2, image.shape), 0, 255).astype(np.uint8)


def _mapper(bench: Bench, size: int, suffix: str) -> None:
    path = bench.folder / f"scene{size}{suffix}"
    cv2.imwrite(str(path), _scene(size))
    annotations = [
        {"bbox": box, "bbox_mode": BoxMode.XYXY_ABS, "category_id": 0} for box in small_boxes(13, size).tolist()
    ]
    record = {"file_name": str(path), "height": size, "width": size, "annotations": annotations}
    flip = T.RandomFlip()
    ours = IRSTDDatasetMapper(True, augmentations=[flip])
    theirs = DatasetMapper(is_train=True, augmentations=[flip], image_format="RGB")
    bench.compare(
        f"mapper, {size}x{size} gray {suffix[1:].upper()}",
        ("our mapper", lambda: ours(record)),
        ("detectron2's mapper", lambda: theirs(dict(record)), None),
        per_second="images",
    )


def _bag_cp(bench: Bench) -> None:
    size = 64 if bench.quick else 512
    rng = np.random.default_rng(0)
    library = TargetLibrary.from_crops([rng.uniform(0.3, 1, s) for s in rng.integers(1, 9, (1000, 2)).tolist()])
    image = rng.uniform(0, 120, (size, size, 3)).astype(np.float32)
    sky = np.repeat([1, 0], size // 2).astype(np.uint8)[:, None] * np.ones(size, np.uint8)
    boxes = small_boxes(13, size).numpy()
    augmentation = BAGCopyPaste(library)

    def paste() -> None:
        augmentation(IRSTDAugInput(image, boxes=boxes, classes=np.zeros(len(boxes), np.int64), sem_seg=sky))

    paste()
    seconds = timed(paste, torch.device("cpu"), 1 if bench.quick else 50)
    bench.share(f"BAG-CP, {size}x{size}", ("BAG-CP", seconds), ("limit", 1e-3), at_most=1.0)


def _waiting(bench: Bench) -> None:
    """How long a training step waits for the workers."""
    num_images, steps = (4, 2) if bench.quick else (64, 8)
    size = 64 if bench.quick else 512
    root = write_densesirst(bench.folder / "dense", dense_config(size=(size, size)), num_images, 0, progress=False)
    name = "benchmark_dense"
    DatasetCatalog.register(name, lambda: load_voc(root, "train_v2", layout="densesirst"))
    MetadataCatalog.get(name).set(thing_classes=["Target"])
    config = "bafe/tiny/bafe_tiny.yaml" if bench.quick else "bafe/bafe_r18_fpn.yaml"
    options = ["DATASETS.TRAIN", (name,), "INPUT.BAG_CP.ENABLED", True, "INPUT.MAPPER", "BackgroundDatasetMapper"]
    options += ["INPUT.FIXED_SIZE", (size, size), "SOLVER.IMS_PER_BATCH", 2, "OUTPUT_DIR", str(bench.folder / "output")]
    workers = 0 if bench.quick else 4
    cfg = get_config(CONFIGS / config, [*options, "DATALOADER.NUM_WORKERS", workers, "MODEL.DEVICE", str(bench.device)])
    model = IRSTDTrainer.build_model(cfg)
    stream = iter(IRSTDTrainer.build_train_loader(cfg))
    training_step(model, next(stream))()
    waited = total = 0.0
    for _ in range(steps):
        start = time.perf_counter()
        batch = next(stream)
        waited += time.perf_counter() - start
        timed(training_step(model, batch), bench.device)
        total += time.perf_counter() - start
    DatasetCatalog.remove(name)
    bench.share(
        f"waiting for data, {workers} workers, BAG-CP, {size}x{size}, BAFE-Net R18",
        ("waiting", waited / steps),
        ("training step of 2", total / steps),
        at_most=0.05,
    )
    torch.manual_seed(0)
