"""The predictor: files, pixels, tiles; tiles against the whole image with real networks."""

import cv2
import numpy as np
import pytest
import torch

from irstd_d2 import get_config
from irstd_d2.engine import IRSTDTrainer
from irstd_d2.errors import ConfigError
from irstd_d2.inference import Predictor

OPTIONS = ["MODEL.DEVICE", "cpu", "INPUT.RESIZE_MODE", "scale"]
# Batch norm and one level: what a pixel becomes depends on the 30 pixels around it only.
LOCAL = [
    *("MODEL.FCOS.NORM", "BN", "MODEL.FPN.NORM", "BN", "MODEL.FCOS.IN_FEATURES", "('p2',)"),
    *("MODEL.FCOS.REGRESS_RANGES", "((-1, 512),)", "MODEL.FPN.OUT_FEATURES", "['p2']"),
    *("MODEL.RESNETS.OUT_FEATURES", "['res2']", "MODEL.FPN.IN_FEATURES", "['res2']"),
]


def make_predictor(tmp_path, config="baselines/tiny/fcos_tiny", options=(), **arguments):
    """A predictor with random weights and norms that have seen data, on which scores differ."""
    cfg = get_config(f"configs/{config}.yaml", [*OPTIONS, *map(str, options)])
    path = tmp_path / "weights.pth"
    if not path.exists():
        torch.manual_seed(1)
        model = IRSTDTrainer.build_model(cfg)
        for module in model.modules():
            if isinstance(module, torch.nn.Conv2d):
                torch.nn.init.kaiming_normal_(module.weight)
            if isinstance(module, torch.nn.BatchNorm2d):
                module.running_var.uniform_(0.5, 2)
                module.running_mean.normal_(0, 0.1)
        # Boxes of targets that fit the overlap: 3 to 12 pixels from the centre to a side.
        head = dict(model.named_modules()).get("head")
        if hasattr(head, "box_distances"):
            torch.nn.init.normal_(head.box_distances.weight, std=0.002)
            torch.nn.init.constant_(head.box_distances.bias, 1.8)
        torch.save({"model": model.state_dict()}, path)
    cfg.MODEL.WEIGHTS = str(path)
    return Predictor(cfg, **arguments)


@pytest.fixture
def image(tmp_path):
    rng = np.random.default_rng(0)
    pixels = cv2.GaussianBlur(rng.normal(30000, 9000, (280, 345)), (0, 0), 2).clip(0, 65535).astype(np.uint16)
    for y, x in rng.integers(4, 270, (30, 2)):
        pixels[y : y + 3, x : x + 3] = 60000
    path = tmp_path / "image.png"
    cv2.imwrite(str(path), pixels)
    return path


@pytest.fixture(autouse=True)
def _in_the_project(repo_root, monkeypatch):
    monkeypatch.chdir(repo_root)


def rows(instances):
    return torch.cat([instances.pred_boxes.tensor, instances.scores[:, None]], 1)


def test_tiles_of_a_network_without_global_operations_give_the_detections_of_the_whole_image(tmp_path, image):
    """All boxes within 0.001 pixel and all scores within 1e-5 where the receptive field fits half the overlap."""
    options = [*LOCAL, "TEST.DETECTIONS_PER_IMAGE", 100000, "MODEL.FCOS.SCORE_THRESH_TEST", 0.02]
    options += ["MODEL.FCOS.TOPK_CANDIDATES_TEST", 100000, "INPUT.HIGH_BIT_DEPTH", "percentile"]
    whole = rows(make_predictor(tmp_path, options=options)(image))
    tiled = rows(make_predictor(tmp_path, options=options, tile=160, overlap=96)(image))
    assert len(whole) > 50
    assert len(tiled) == len(whole)
    distance = torch.cdist(whole, tiled, compute_mode="donot_use_mm_for_euclid_dist")
    partner = distance.argmin(1)
    assert sorted(partner.tolist()) == list(range(len(whole)))
    assert (whole[:, :4] - tiled[partner, :4]).abs().max() < 1e-3
    assert (whole[:, 4] - tiled[partner, 4]).abs().max() < 1e-5


@pytest.mark.parametrize("config", ["baselines/tiny/fcos_tiny", "auxdet/tiny/auxdet_tiny", "bafe/tiny/bafe_tiny"])
def test_an_image_that_fits_a_tile_is_detected_as_a_whole(tmp_path, image, config):
    whole = make_predictor(tmp_path, config)(image, {"platform": "Air"})
    tiled = make_predictor(tmp_path, config, tile=345, overlap=64)(image, {"platform": "Air"})
    assert torch.equal(rows(whole), rows(tiled))


def test_pixels_in_memory_are_the_same_as_the_file(tmp_path, image):
    predictor = make_predictor(tmp_path)
    found, again = predictor(image), predictor(cv2.imread(str(image), cv2.IMREAD_UNCHANGED))
    assert torch.equal(rows(found), rows(again))
    assert len(found) > 0


def record(predictor):
    """Run the predictor with its model replaced by one that remembers its samples."""
    seen, model = [], predictor.model

    def remember(samples):
        seen.extend(samples)
        return model(samples)

    predictor.model = remember
    return seen


def test_tiles_carry_the_metadata_of_the_whole_and_one_stretch(tmp_path, image):
    predictor = make_predictor(tmp_path, options=["INPUT.HIGH_BIT_DEPTH", "minmax"], tile=128, batch_size=2)
    seen, steps = record(predictor), []
    predictor(image, {"platform": "Air", "band": "LWIR"}, lambda batches: (steps.append(len(batches)), batches)[1])
    assert len(seen) == 12
    assert len(seen) / 2 <= steps[0] < 12
    assert all(s["metadata"] == {"platform": "Air", "band": "LWIR", "width": 345, "height": 280} for s in seen)
    assert min(s["image"].min() for s in seen) == 0
    assert max(s["image"].max() for s in seen) == 255
    assert sum(s["image"].min() > 0 for s in seen) > 0  # a tile of its own range would reach both ends


def test_tiles_are_resized_like_a_full_one(tmp_path, image):
    options = ["INPUT.RESIZE_MODE", "fixed", "INPUT.FIXED_SIZE", "(256, 128)"]
    predictor = make_predictor(tmp_path, options=options, tile=128, overlap=32)
    seen = record(predictor)
    found = predictor(image)
    assert {tuple(s["image"].shape[1:]) for s in seen} == {(2 * s["height"], s["width"]) for s in seen}
    assert found.image_size == (280, 345)
    assert (found.pred_boxes.tensor[:, 2] <= 345).all()
    assert (found.pred_boxes.tensor[:, 2] > 200).any()


@pytest.mark.parametrize(
    ("options", "tile"),
    [
        (["INPUT.RESIZE_MODE", "fixed", "INPUT.FIXED_SIZE", "(100, 96)"], 96),
        (["INPUT.RESIZE_MODE", "shortest_edge", "INPUT.MIN_SIZE_TEST", 170], 170),
        (["INPUT.RESIZE_MODE", "shortest_edge", "INPUT.MIN_SIZE_TEST", 0], 512),
        (["INPUT.RESIZE_MODE", "scale"], 512),
    ],
)
def test_automatic_tiles_are_of_the_networks_size_and_for_large_images_only(tmp_path, image, options, tile):
    predictor = make_predictor(tmp_path, options=options, tile=None)
    assert (predictor.tile, predictor.largest_whole) == (tile, 2 * tile)
    seen = record(predictor)
    predictor(image)
    assert (len(seen) > 1) == (2 * tile < 345)


def test_impossible_tiles_are_refused_at_once(tmp_path):
    with pytest.raises(ConfigError, match="overlap is 64 and the tile 64"):
        make_predictor(tmp_path, tile=64, overlap=64)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device; torch sees none here")
def test_a_gpu_finds_what_the_cpu_finds(tmp_path, image):
    options = [*LOCAL, "MODEL.FCOS.SCORE_THRESH_TEST", 0.02]
    expected = make_predictor(tmp_path, options=options, tile=160, overlap=96)(image)
    found = make_predictor(tmp_path, options=[*options, "MODEL.DEVICE", "cuda"], tile=160, overlap=96)(image)
    assert found.pred_boxes.device.type == "cpu"
    assert len(found) == len(expected)
    torch.testing.assert_close(rows(found), rows(expected), rtol=1e-3, atol=1e-2)


def test_metadata_of_a_model_without_it_is_named_and_misspelt_fields_are_refused(tmp_path, image, caplog):
    predictor = make_predictor(tmp_path)
    predictor(image, {"platform": "Air", "view_angle": 3})
    assert "This model takes no metadata: platform are not used" in caplog.text
    for name, field in (("plattform", "platform"), ("Bnad", "band"), ("widht", "width")):
        with pytest.raises(ConfigError, match=f"the metadata has '{name}'; write '{field}'"):
            predictor(image, {name: "Air"})
