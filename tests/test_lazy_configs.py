"""The configurations in Python give the models and schedules of those in YAML, and train."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import toy_training as toy
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.config import LazyConfig, instantiate
from detectron2.engine import AMPTrainer, SimpleTrainer, create_ddp_model, default_writers, hooks
from detectron2.evaluation import inference_on_dataset, print_csv_format
from detectron2.modeling import build_model
from detectron2.solver import build_lr_scheduler
from toy_training import TEST, TRAIN

import auxdet_d2  # noqa: F401
import bafe_d2  # noqa: F401
from irstd_d2 import get_config
from irstd_d2.data import build_mapper
from irstd_d2.solver import build_optimizer, with_iteration_schedule

ROOT = Path(__file__).resolve().parents[1]
PAIRS = {
    "cascade_rpn_r50_fpn": "auxdet/cascade_rpn_r50_fpn",
    "auxdet_r50_fpn": "auxdet/auxdet_r50_fpn",
    "fcos_r18_fpn": "bafe/fcos_r18_fpn",
    "bafe_r18_fpn": "bafe/bafe_r18_fpn",
}
IMAGES = {"auxdet": 7000, "bafe": 768}


def lazy(name):
    return LazyConfig.load(str(ROOT / "configs" / "lazy" / f"{name}.py"))


def test_every_lazy_configuration_has_its_yaml():
    assert {path.stem for path in (ROOT / "configs" / "lazy").glob("*.py")} == set(PAIRS)


@pytest.mark.parametrize("name", PAIRS)
def test_same_model(name, tmp_path):
    cfg, yaml = lazy(name), get_config(ROOT / "configs" / f"{PAIRS[name]}.yaml", ["MODEL.DEVICE", "cpu"])
    model, expected = instantiate(cfg.model), build_model(yaml)
    state = expected.state_dict()
    assert list(model.state_dict()) == list(state)
    model.load_state_dict(state)
    trained = [[key for key, p in m.named_parameters() if p.requires_grad] for m in (model, expected)]
    assert trained[0] == trained[1]
    metadata = {"platform": "Air", "band": "NIR", "width": 96, "height": 64}
    samples = [{"image": torch.rand(3, 64, 96) * 255, "metadata": metadata}]
    features = [m.eval().backbone(m.preprocess_image(samples).tensor) for m in (model, expected)]
    for level, feature in features[0].items():
        assert torch.equal(feature, features[1][level])
    # The score of a network without training is below the published threshold; all detections are compared.
    for m in (model, expected):
        if hasattr(m, "test_score_thresh"):
            m.test_score_thresh = 0.0
    with torch.no_grad():
        found = [m(samples)[0]["instances"] for m in (model, expected)]
    assert len(found[0])
    assert torch.equal(found[0].pred_boxes.tensor, found[1].pred_boxes.tensor)
    assert torch.equal(found[0].scores, found[1].scores)
    LazyConfig.save(cfg, str(tmp_path / "config.yaml"))
    assert (tmp_path / "config.yaml").exists()


@pytest.mark.parametrize("name", PAIRS)
def test_same_schedule_and_optimizer(name):
    cfg, family = lazy(name), PAIRS[name].split("/")[0]
    yaml = get_config(ROOT / "configs" / f"{PAIRS[name]}.yaml", ["MODEL.DEVICE", "cpu"])
    yaml.freeze()
    yaml = with_iteration_schedule(yaml, IMAGES[family])
    assert cfg.train.max_iter == yaml.SOLVER.MAX_ITER
    assert cfg.dataloader.train.total_batch_size == yaml.SOLVER.IMS_PER_BATCH
    multiplier = instantiate(cfg.lr_multiplier)
    schedule = build_lr_scheduler(yaml, torch.optim.SGD([torch.nn.Parameter(torch.zeros(()))], 1.0))
    for iteration in (0, 100, 499, 501, *(step + offset for step in yaml.SOLVER.STEPS for offset in (-1, 1))):
        schedule.last_epoch = iteration
        assert multiplier(iteration / cfg.train.max_iter) == pytest.approx(schedule.get_lr()[0], rel=0.01), iteration
    model = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4))
    cfg.optimizer.params.model = model
    groups = [
        {tuple(p.shape): (group["lr"], group["weight_decay"]) for group in o.param_groups for p in group["params"]}
        for o in (instantiate(cfg.optimizer), build_optimizer(yaml, model))
    ]
    assert type(instantiate(cfg.optimizer)).__name__ in type(build_optimizer(yaml, model)).__name__
    assert groups[0] == groups[1]


@pytest.mark.parametrize("name", PAIRS)
def test_same_samples(name, tmp_path):
    folder = tmp_path / "images"
    folder.mkdir()
    toy.register(folder)
    try:
        cfg = lazy(name)
        for split in ("train", "test"):
            cfg.dataloader[split].dataset.names = TRAIN if split == "train" else TEST
        augmentations = cfg.dataloader.train.mapper.augmentations
        pastes = [a for a in augmentations if "BAGCopyPaste" in str(a._target_)]
        assert len(pastes) == name.startswith("bafe")
        for paste in pastes:
            augmentations.remove(paste)
        yaml = get_config(ROOT / "configs" / f"{PAIRS[name]}.yaml", ["INPUT.BAG_CP.ENABLED", False])
        for split in ("train", "test"):
            record = instantiate(cfg.dataloader[split].dataset)[0]
            samples = []
            for mapper in (instantiate(cfg.dataloader[split].mapper), build_mapper(yaml, split == "train")):
                np.random.seed(0)
                samples.append(mapper(record))
            assert type(instantiate(cfg.dataloader[split].mapper)).__name__ == yaml.INPUT.MAPPER
            assert torch.equal(samples[0]["image"], samples[1]["image"])
    finally:
        toy.unregister()


def run_as_detectron2(cfg, resume=False):
    """Train and evaluate in the steps of detectron2's ``tools/lazyconfig_train_net.py``, which its wheel lacks."""
    options = cfg.train
    model = instantiate(cfg.model).to(options.device)
    cfg.optimizer.params.model = model
    optimizer = instantiate(cfg.optimizer)
    loop = AMPTrainer if options.amp.enabled else SimpleTrainer
    trainer = loop(create_ddp_model(model, **options.ddp), instantiate(cfg.dataloader.train), optimizer)
    checkpointer = DetectionCheckpointer(model, options.output_dir, trainer=trainer)
    results = {}

    def test():
        loader, evaluator = instantiate(cfg.dataloader.test), instantiate(cfg.dataloader.evaluator)
        results.update(inference_on_dataset(trainer.model, loader, evaluator))
        print_csv_format(results)
        return results

    trainer.register_hooks(
        [
            hooks.IterationTimer(),
            hooks.LRScheduler(scheduler=instantiate(cfg.lr_multiplier)),
            hooks.PeriodicCheckpointer(checkpointer, **options.checkpointer),
            hooks.EvalHook(options.eval_period, test),
            hooks.PeriodicWriter(default_writers(options.output_dir, options.max_iter), period=options.log_period),
        ]
    )
    checkpointer.resume_or_load(options.init_checkpoint, resume=resume)
    trainer.train(trainer.iter + 1 if resume and checkpointer.has_checkpoint() else 0, options.max_iter)
    return results


def test_detectron2_trains_resumes_and_evaluates(tmp_path):
    folder, out = tmp_path / "images", tmp_path / "out"
    folder.mkdir()
    out.mkdir()
    toy.register(folder)
    overrides = [
        *(f"dataloader.train.dataset.names={TRAIN}", f"dataloader.test.dataset.names={TEST}"),
        *("dataloader.train.total_batch_size=2", "dataloader.train.num_workers=0", "dataloader.test.num_workers=0"),
        *(f"dataloader.{split}.mapper.augmentations.0.shape=[64,64]" for split in ("train", "test")),
        *(f"train.output_dir={out}", "train.log_period=1", "train.device=cpu", "train.eval_period=2"),
        *("train.checkpointer.period=1", "train.max_iter=1", "model.backbone.bottom_up.stages.depth=10"),
    ]
    try:
        run_as_detectron2(LazyConfig.apply_overrides(lazy("fcos_r18_fpn"), overrides))
        results = run_as_detectron2(
            LazyConfig.apply_overrides(lazy("fcos_r18_fpn"), [*overrides, "train.max_iter=2"]), True
        )
    finally:
        toy.unregister()
    rows = [json.loads(line) for line in (out / "metrics.json").read_text().splitlines()]
    assert [row["iteration"] for row in rows if "total_loss" in row] == [0, 1]
    assert all(np.isfinite(row["total_loss"]) for row in rows if "total_loss" in row)
    assert "AP50" in results["bbox"]
