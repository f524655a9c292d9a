"""Feature maps of a report: hooks see what goes in and out, maps lie where the image is, models come from runs."""

import base64
import math

import cv2
import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog
from detectron2.modeling import build_model
from torch import nn

from irstd_d2 import get_config
from irstd_d2.data.image_io import IGNORE
from irstd_d2.engine.checkpoint import IRSTDCheckpointer
from irstd_d2.errors import ConfigError, DatasetError
from irstd_d2.reporting.features import BACKBONE, FeatureMap, Lens, Tap, target_ratio, watch
from irstd_d2.reporting.pictures import data_uri, heat_map, sky_picture
from irstd_d2.reporting.run import load_run

CONFIG = "configs/baselines/tiny/fcos_tiny.yaml"


class Pair(nn.Module):
    def forward(self, a, b):
        return a + 1, {"p2": b + 2, "note": "text", "flat": b.mean((2, 3))}


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.stages = nn.ModuleDict({"fine": nn.Conv2d(1, 2, 1), "coarse": nn.Conv2d(1, 2, 1)})
        self.shared = Pair()

    def forward(self, x):
        for stage in self.stages.values():
            stage(x)
        return [self.shared(x, x * i) for i in (1, 2)]


def test_watching_tells_inputs_from_outputs_and_leaves_no_hook():
    model, x = Model(), torch.rand(1, 1, 4, 4)
    taps = (
        Tap(nn.Conv2d, "in", "input"),
        Tap(nn.Conv2d, "out"),
        Tap(Pair, "second", "input", 1),
        Tap(Pair, "first out", "output", 0),
        Tap(Pair, "dict out", "output", 1),
        Tap(Pair, "beyond", "output", 5),
        Tap(nn.Linear, "absent"),
        BACKBONE,
    )
    with watch(model, taps) as seen:
        model(x)
    found = {tap.title: [(level, tuple(value.shape)) for level, value in maps] for tap, maps in seen.items()}
    assert found["in"] == [("fine", (1, 1, 4, 4)), ("coarse", (1, 1, 4, 4))]
    assert found["out"] == [("fine", (1, 2, 4, 4)), ("coarse", (1, 2, 4, 4))]
    assert found["second"] == [("level 1", (1, 1, 4, 4)), ("level 2", (1, 1, 4, 4))]
    assert found["dict out"] == [("p2", (1, 1, 4, 4))] * 2
    torch.testing.assert_close(seen[taps[2]][1][1], 2 * x)
    torch.testing.assert_close(seen[taps[3]][0][1], x + 1)
    assert found["beyond"] == found["absent"] == found[BACKBONE.title] == []
    assert not any(module._forward_hooks for module in model.modules())


def save_run(folder, config, options=()):
    cfg = get_config(config, ["MODEL.DEVICE", "cpu", *options])
    torch.manual_seed(0)
    model = build_model(cfg).eval()
    folder.mkdir()
    IRSTDCheckpointer(model, str(folder)).save("model_final")
    (folder / "config.yaml").write_text(cfg.dump())
    return model


@pytest.fixture
def record(tmp_path):
    """An image of 40x56 pixels."""
    path = tmp_path / "image.png"
    cv2.imwrite(str(path), np.random.default_rng(0).integers(0, 255, (40, 56), dtype=np.uint8))
    return {"file_name": str(path), "image_id": 0, "height": 40, "width": 56, "metadata": {"platform": "Air"}}


def test_a_lens_shows_the_backbone_of_the_saved_model(repo_root, tmp_path, record):
    options = ["INPUT.RESIZE_MODE", "fixed", "INPUT.FIXED_SIZE", "(40, 56)"]
    model = save_run(tmp_path / "run", str(repo_root / CONFIG), options)
    lens = Lens(load_run(tmp_path / "run"), (BACKBONE,))
    assert lens.weights == tmp_path / "run" / "model_final.pth"
    insight = lens(record)
    assert insight.sky is None
    (maps,) = insight.rows.values()
    sample = lens._mapper(record)
    with torch.no_grad():
        images = model.preprocess_image([sample]).tensor
        features = model.backbone(images)
    assert [m.level for m in maps] == [name for name, x in features.items() if min(x.shape[-2:]) >= 4]
    np.testing.assert_array_equal(maps[0].values, features[maps[0].level][0].abs().mean(0).numpy())
    assert images.shape[-2:] != (40, 56)
    assert maps[0].covered == pytest.approx((40 / images.shape[-2], 56 / images.shape[-1]))


@pytest.mark.parametrize("own", ["[[report_features_set, elsewhere, val]]", "[[a, b]]"])
def test_a_lens_needs_none_of_the_runs_own_sets(repo_root, tmp_path, record, own):
    save_run(tmp_path / "run", str(repo_root / CONFIG))
    config = tmp_path / "run" / "config.yaml"
    assert config.read_text().count("OWN: []") == 1
    config.write_text(config.read_text().replace("OWN: []", f"OWN: {own}"))
    DatasetCatalog.register("report_features_set", lambda: [])
    try:
        assert Lens(load_run(tmp_path / "run"), (BACKBONE,))(record).rows
    finally:
        DatasetCatalog.remove("report_features_set")


def test_what_a_lens_needs(repo_root, tmp_path):
    save_run(tmp_path / "run", str(repo_root / CONFIG))
    config = (tmp_path / "run" / "config.yaml").read_text()
    (tmp_path / "run" / "config.yaml").write_text(config + "NO_SUCH_KEY: 1\n")
    with pytest.raises(ConfigError, match=r"config\.yaml: Non-existent config key: NO_SUCH_KEY"):
        Lens(load_run(tmp_path / "run"), ())
    (tmp_path / "run" / "model_final.pth").unlink()
    with pytest.raises(DatasetError, match="no checkpoint"):
        Lens(load_run(tmp_path / "run"), ())
    (tmp_path / "run" / "config.yaml").unlink()
    with pytest.raises(DatasetError, match=r"config\.yaml is missing or cannot be read"):
        Lens(load_run(tmp_path / "run"), ())


def test_a_heat_map_paints_cells_as_blocks_and_cuts_padding():
    values = np.array([[0.0, 1.0, 9.0], [2.0, 3.0, 9.0]])
    picture = heat_map(values, (4, 8), (1.0, 2 / 3))
    assert picture.shape == (4, 8, 3)
    for rows in (slice(0, 2), slice(2, 4)):
        for columns in (slice(0, 4), slice(4, 8)):
            assert len(np.unique(picture[rows, columns].reshape(-1, 3), axis=0)) == 1
    brightness = picture.astype(int).sum(2)
    assert brightness[0, 0] < brightness[0, 7] < brightness[3, 0] < brightness[3, 7]
    constant = heat_map(np.full((3, 3), 5.0), (6, 6))
    assert len(np.unique(constant.reshape(-1, 3), axis=0)) == 1


def test_activation_at_targets_over_elsewhere():
    values = np.ones((4, 6))
    values[1, 2] = 5
    values[:, 4:] = 1000  # padding
    feature_map = FeatureMap("p2", values, (1.0, 4 / 6))
    boxes = np.array([[20.0, 10.0, 29.0, 19.0]])  # of an image of 40x40 pixels: row 1, column 2
    assert target_ratio(feature_map, boxes, (40, 40)) == pytest.approx(5)
    outside = np.array([[20.0, 10.0, 29.0, 19.0], [39.0, 39.0, 60.0, 60.0]])
    assert target_ratio(feature_map, outside, (40, 40)) == pytest.approx(3)
    assert math.isnan(target_ratio(feature_map, np.zeros((0, 4)), (40, 40)))
    assert math.isnan(target_ratio(FeatureMap("p5", np.ones((1, 1)), (1.0, 1.0)), boxes, (40, 40)))


def test_a_sky_picture_tells_sky_from_errors():
    image = np.full((6, 6, 3), 100.0)
    image[0, 0] = 0  # a range
    image[0, 1] = 200
    sky = np.zeros((6, 6), bool)
    sky[:3] = True
    truth = np.zeros((6, 6), np.uint8)
    truth[:2] = 1
    truth[5] = IGNORE
    picture = sky_picture(image, sky, (6, 6), truth).astype(int)
    assert picture[1, 3, 2] > picture[1, 3, 0] + 50  # blue
    assert picture[2, 3, 0] > picture[2, 3, 2]  # orange where the sky is not
    assert np.ptp(picture[4, 3]) == np.ptp(picture[5, 3]) == 0  # gray where both say other, or nothing counts
    assert sky_picture(image, sky, (3, 12)).shape == (3, 12, 3)


def test_pictures_are_lossless_and_what_cannot_be_encoded_is_said(monkeypatch):
    picture = np.random.default_rng(0).integers(0, 255, (9, 7, 3), dtype=np.uint8)
    kind, _, data = data_uri(picture).partition(",")
    assert kind == "data:image/webp;base64"
    decoded = cv2.imdecode(np.frombuffer(base64.b64decode(data), np.uint8), cv2.IMREAD_COLOR)
    np.testing.assert_array_equal(decoded[..., ::-1], picture)
    monkeypatch.setattr(cv2, "imencode", lambda *args: (False, None))
    with pytest.raises(ValueError, match=r"could not encode a picture of shape \(9, 7, 3\)"):
        data_uri(picture)
