"""MODEL.CHANNELS_LAST changes the memory format and nothing else."""

import pytest
import torch
from toy_training import TRAIN, register, unregister

from irstd_d2 import get_config
from irstd_d2.engine import IRSTDTrainer

CONFIGS = ("configs/bafe/tiny/bafe_tiny.yaml", "configs/auxdet/tiny/auxdet_tiny.yaml")


@pytest.mark.parametrize("config", CONFIGS)
def test_same_features(repo_root, config):
    options = ["MODEL.DEVICE", "cpu"]
    plain = IRSTDTrainer.build_model(get_config(repo_root / config, options)).eval()
    model = IRSTDTrainer.build_model(get_config(repo_root / config, [*options, "MODEL.CHANNELS_LAST", True])).eval()
    model.load_state_dict(plain.state_dict())
    x = torch.randn(2, 3, 96, 64)
    with torch.no_grad():
        features, expected = model.backbone(x), plain.backbone(x)
    assert features["p2"].is_contiguous(memory_format=torch.channels_last)
    for name, feature in features.items():
        torch.testing.assert_close(feature, expected[name], rtol=1e-4, atol=1e-5)


def test_a_training_keeps_the_format(repo_root, tmp_path):
    register(tmp_path)
    try:
        options = ["MODEL.DEVICE", "cpu", "DATASETS.TRAIN", (TRAIN,), "DATASETS.TEST", (), "OUTPUT_DIR", str(tmp_path)]
        options += ["SOLVER.MAX_ITER", 2, "SOLVER.IMS_PER_BATCH", 2, "INPUT.FIXED_SIZE", (64, 64)]
        options += ["DATALOADER.NUM_WORKERS", 0, "MODEL.CHANNELS_LAST", True]
        cfg = get_config(repo_root / "configs/baselines/tiny/fcos_tiny.yaml", options)
        cfg.freeze()
        IRSTDTrainer(cfg).train()
        resumed = IRSTDTrainer(cfg)
        resumed.resume_or_load(resume=True)
        assert resumed.start_iter == 2
        weight = resumed.model.head.cls_tower[0].weight
        assert weight.is_contiguous(memory_format=torch.channels_last)
        assert not weight.is_contiguous()
    finally:
        unregister()
