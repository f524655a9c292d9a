"""Test-time augmentation on the command line: beside the plain results, with averaged weights, in the demo."""

import argparse
import json
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
import toy_training as toy
from toy_training import TEST

from irstd_d2.cli.train import get_parser, train
from irstd_d2.inference import DetectorWithTTA, Predictor

TTA = ("TEST.AUG.ENABLED", "True", "TEST.AUG.SCALES", "(1.0, 1.5)", "TEST.EVALUATORS", "('coco', 'pd_fa')")


@pytest.fixture
def main(tmp_path):
    toy.register(tmp_path, train=4, test=3)
    yield train
    toy.unregister()


def arguments(cfg, *options):
    path = Path(cfg.OUTPUT_DIR) / "given.yaml"
    path.write_text(cfg.dump())
    return get_parser().parse_args(["--config-file", str(path), *options], argparse.Namespace(systems=()))


def predictions(folder):
    return json.loads((folder / TEST / "coco_instances_results.json").read_text())


def test_results_stand_beside_the_plain_ones(main, tmp_path):
    """After a training, with its averaged weights, and in an evaluation of its checkpoint."""
    out = tmp_path / "out"
    cfg = toy.toy_config(out, **{"DATASETS.TEST": (TEST,), "SOLVER.MAX_ITER": 3})
    main(arguments(cfg, *TTA))
    after_training = predictions(out / "inference_TTA")
    log = (out / "log.txt").read_text()
    assert log.index("Results on") < log.index("Evaluating with test-time augmentation") < log.rindex("Results on")

    results = main(arguments(cfg, "--eval-only", *TTA, "MODEL.WEIGHTS", str(out / "model_final.pth")))
    assert list(results) == ["bbox", "pd_fa", "bbox_TTA", "pd_fa_TTA"]
    assert results["bbox"].keys() == results["bbox_TTA"].keys()
    assert predictions(out / "inference_TTA") == after_training
    assert predictions(out / "inference") != after_training
    results = main(arguments(cfg, "--eval-only", "MODEL.WEIGHTS", str(out / "model_final.pth")))
    assert list(results) == ["bbox"]


def test_the_predictor_augments_whole_images_and_tiles(repo_root, tmp_path):
    cfg = toy.toy_config(tmp_path / "out").clone()
    cfg.defrost()
    cfg.merge_from_list(["TEST.AUG.ENABLED", True, "MODEL.WEIGHTS", str(tmp_path / "weights.pth")])
    torch.save({"model": toy.ToyDetector(cfg).state_dict()}, tmp_path / "weights.pth")
    image = np.random.default_rng(0).integers(0, 255, (64, 64), dtype=np.uint8)
    cv2.imwrite(str(tmp_path / "image.png"), image)
    for tile, calls in ((0, 1), (48, 4)):
        predictor = Predictor(cfg, tile=tile, overlap=8)
        assert isinstance(predictor.model, DetectorWithTTA)
        seen = []
        detector = predictor.model.model
        detector.register_forward_pre_hook(lambda _, inputs, seen=seen: seen.extend(inputs[0]))
        found = predictor(tmp_path / "image.png", {"platform": "Air"})
        assert len(seen) == 2 * calls  # each and its mirror image
        assert all(sample["metadata"]["platform"] == "Air" for sample in seen)
        assert len(found) > 0
        assert not detector.training
