"""A trained model, by name or file, run on data sets without a training's folder (``irstd evaluate --weights``)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from os import PathLike
from pathlib import Path

from detectron2.config import CfgNode
from detectron2.evaluation import inference_on_dataset
from detectron2.modeling import build_model
from tqdm import tqdm

from .. import model_zoo
from ..data import set_skip_bad
from ..data.classes import check_num_classes
from ..data.datasets import check_registered, prepare_classes
from ..evaluation import build_evaluator
from ..files import free_name, write_atomically
from ..inference.optimization import optimize
from .checkpoint import load_weights
from .trainer import IRSTDTrainer


def model_names(weights: Iterable[str | PathLike]) -> list[str]:
    """Short names: that of a model of the zoo, else of the checkpoint's folder, with its own where several share it.

    What still has the same name is numbered: each has a folder of its own.
    """
    known, paths = model_zoo.names(), [Path(path) for path in weights]
    names = [str(p) if str(p) in known and not p.is_file() else p.resolve().parent.name for p in paths]
    unique: list[str] = []
    for name, path in zip(names, paths):
        unique.append(free_name(f"{name}_{path.stem}" if names.count(name) > 1 else name, unique.__contains__))
    return unique


def save_detections(cfg: CfgNode, data_sets: Sequence[str], folder: Path) -> None:
    """Run the model of a configuration on data sets and leave what an evaluated run leaves.

    The sets become ``DATASETS.TEST``; ``folder`` gets ``config.yaml`` and
    ``inference/SET/coco_instances_results.json``. The model is made fast first (:func:`irstd_d2.inference.optimize`),
    which moves boxes and scores by rounding.

    Raises:
        ConfigError: a set is not registered, or weights, model and sets contradict each other.
        DatasetError: weights or images cannot be read.
    """
    cfg = cfg.clone()
    cfg.defrost()
    cfg.DATASETS.TEST, cfg.OUTPUT_DIR = tuple(data_sets), str(folder)
    check_registered("--dataset", data_sets)
    set_skip_bad(cfg.DATASETS.SKIP_BAD)
    model = build_model(cfg)
    classes = prepare_classes(cfg, train=False, trained=load_weights(model, cfg))
    check_num_classes(model, classes, f"--dataset {' '.join(data_sets)}")
    write_atomically(folder / "config.yaml", cfg.dump())
    fast = optimize(model)
    cfg.TEST.EVALUATORS = ()  # detections are saved all the same
    for name in data_sets:
        loader = tqdm(IRSTDTrainer.build_test_loader(cfg, name), desc=f"{folder.name} on {name}", unit="image")
        inference_on_dataset(fast, loader, build_evaluator(cfg, name))
