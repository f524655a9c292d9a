from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from loops import for_every

from irstd_d2.errors import ConfigError
from irstd_d2.synthetic import ImagingDomain, SceneConfig, SceneGenerator, dense_config
from irstd_d2.synthetic.backgrounds import PAINTERS, paint_background
from irstd_d2.synthetic.domains import rule_for

SQUARE = {"Air": "LWIR", "Land": "LWIR", "Space": "NIR"}


def tight_boxes(mask):
    boxes = []
    for number in range(1, mask.max() + 1):
        rows, columns = np.nonzero(mask == number)
        boxes.append([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1])
    return boxes


def pixels_of(boxes, mask):
    return [mask[y1:y2, x1:x2] for x1, y1, x2, y2 in boxes.astype(int)]


@given(index=st.integers(0, 1 << 26), conflict=st.sampled_from([0.0, 0.6, 1.0]), bits=st.sampled_from([8, 16]))
def test_scene_is_consistent(index, conflict, bits):
    config = SceneConfig(seed=5, domain_conflict=conflict, bits=bits)
    scene = SceneGenerator(config).scene(index)
    height, width = scene.image.shape
    assert scene.image.dtype == (np.uint8 if bits == 8 else np.uint16)
    assert (scene.metadata["width"], scene.metadata["height"]) == (width, height)
    assert scene.target_mask.shape == scene.sky_mask.shape == (height, width)
    assert set(np.unique(scene.sky_mask)) <= {0, 1}
    assert scene.boxes.tolist() == tight_boxes(scene.target_mask)
    assert len(scene.kinds) == len(scene.boxes)
    assert len(scene.clutter_kinds) == len(scene.clutter_boxes)
    boxes = np.concatenate([scene.boxes, scene.clutter_boxes])
    assert (boxes[:, :2] >= 0).all()
    assert (boxes[:, 2:] <= [width, height]).all()
    target = rule_for(ImagingDomain(**scene.metadata)).target
    assert set(scene.kinds) <= {target}
    if scene.conflict:
        assert scene.background == "featureless"
        assert target not in scene.clutter_kinds
        assert {*scene.kinds, *scene.clutter_kinds} == {"point", "spot", "streak"}
        assert scene.sky_mask.all()
    else:
        assert set(scene.clutter_kinds) <= {target}


def test_scene_depends_on_seed_and_index_only():
    a, b = SceneGenerator(SceneConfig(seed=1)), SceneGenerator(SceneConfig(seed=1))
    for index in (0, 7, 1 << 24):
        first = a.scene(index)
    again = b.scene(1 << 24)
    assert first.metadata == again.metadata == a.scene(1 << 24).metadata
    for name in ("image", "boxes", "target_mask", "sky_mask", "clutter_boxes"):
        np.testing.assert_array_equal(getattr(first, name), getattr(again, name))
    same_size = SceneConfig(size=(96, 96))
    other = [SceneGenerator(replace(same_size, seed=seed)).scene(0).image for seed in (1, 2)]
    assert not np.array_equal(*other)


@given(index=st.integers(0, 10**6))
def test_only_the_metadata_tells_targets_from_clutter(index):
    generator = SceneGenerator(SceneConfig(domain_conflict=1.0, size=(128, 128)))
    scenes = {p: generator.scene(index, ImagingDomain(p, band, 128, 128)) for p, band in SQUARE.items()}
    reference = scenes["Land"]
    everything = sorted(np.concatenate([reference.boxes, reference.clutter_boxes]).tolist())
    targets = {}
    for platform, scene in scenes.items():
        np.testing.assert_array_equal(scene.image, reference.image)
        np.testing.assert_array_equal(scene.sky_mask, reference.sky_mask)
        assert sorted(np.concatenate([scene.boxes, scene.clutter_boxes]).tolist()) == everything
        targets[platform] = {tuple(box) for box in scene.boxes.tolist()}
        assert targets[platform]
    assert sum(len(boxes) for boxes in targets.values()) == len(everything)
    assert set.union(*targets.values()) == {tuple(box) for box in everything}


def test_band_and_resolution_decide_as_well():
    config = SceneConfig(domain_conflict=1.0)
    generator = SceneGenerator(config)
    nir = generator.scene(4, ImagingDomain("Space", "NIR", 128, 128))
    swir = generator.scene(4, ImagingDomain("Space", "SWIR", 128, 128))
    np.testing.assert_array_equal(nir.image, swir.image)
    assert set(nir.kinds) == {"streak"}
    assert set(swir.kinds) == {"point"}
    assert rule_for(ImagingDomain("Space", "NIR", 136, 96)).target == "point"


@pytest.mark.parametrize("share", [0.0, 0.25, 1.0])
def test_domain_conflict_is_the_share_of_conflict_scenes(share):
    generator = SceneGenerator(SceneConfig(domain_conflict=share, size=(64, 64)))
    conflicts = [generator.scene(i).conflict for i in range(200)]
    assert np.mean(conflicts) == pytest.approx(share, abs=0.02)


def test_more_conflict_keeps_the_conflict_scenes():
    few, many = (SceneGenerator(SceneConfig(domain_conflict=c, size=(64, 64))) for c in (0.3, 0.7))
    for index in range(30):
        a, b = few.scene(index), many.scene(index)
        assert b.conflict or not a.conflict
        if a.conflict == b.conflict:
            np.testing.assert_array_equal(a.image, b.image)


def test_sky_decides_where_there_is_a_horizon():
    generator = SceneGenerator(SceneConfig(domain_conflict=0.0, balance="uniform", size=(128, 128)))
    horizons = targets = lookalikes = 0
    for index in range(150):
        scene = generator.scene(index)
        if scene.background in ("land_horizon", "sea_horizon"):
            horizons += 1
            assert 0 < scene.sky_mask.mean() < 1
            assert scene.sky_mask[scene.target_mask > 0].all()
            assert not any(part.any() for part in pixels_of(scene.clutter_boxes, scene.sky_mask))
            targets += len(scene.boxes)
            lookalikes += len(scene.clutter_boxes)
        else:
            assert scene.sky_mask.mean() in (0, 1)
            assert len(scene.clutter_boxes) == 0
    assert horizons > 20
    assert targets > horizons
    assert lookalikes > horizons


def test_lookalikes_look_like_targets():
    """Below the horizon stand objects of the same sizes and contrasts as those in the sky."""
    generator = SceneGenerator(dense_config(size=(160, 128)))
    sides: dict[bool, list[float]] = {True: [], False: []}
    for index in range(60):
        scene = generator.scene(index)
        for is_target, boxes in ((True, scene.boxes), (False, scene.clutter_boxes)):
            sides[is_target] += (boxes[:, 2:] - boxes[:, :2]).ravel().tolist()
    assert np.mean(sides[True]) == pytest.approx(np.mean(sides[False]), abs=0.1)
    assert set(sides[True]) == set(sides[False]) == {2, 3}


def test_dense_areas():
    scenes = [SceneGenerator(dense_config(size=(160, 128))).scene(i) for i in range(40)]
    counts = [len(scene.boxes) for scene in scenes]
    assert min(counts) >= 4
    assert max(counts) <= 3 * 12 + 2
    assert 14 < np.mean(counts) < 26
    for scene in scenes:
        wide = scene.boxes + np.array([-1, -1, 0, 0])  # a gap of one pixel at least
        x1, y1, x2, y2 = wide.T
        apart = (x1[:, None] >= x2) | (x2[:, None] <= x1) | (y1[:, None] >= y2) | (y2[:, None] <= y1)
        assert (apart | np.eye(len(wide), dtype=bool)).all()


def test_bright_targets_stand_out():
    generator = SceneGenerator(SceneConfig(domain_conflict=1.0))
    for index in range(20):
        scene = generator.scene(index)
        level = np.median(scene.image)
        for box in np.concatenate([scene.boxes, scene.clutter_boxes]).astype(int):
            patch = scene.image[box[1] : box[3], box[0] : box[2]]
            assert patch.max() > level + 12


def test_bit_depths_hold_the_same_scene():
    eight = SceneGenerator(SceneConfig(bits=8)).scene(11)
    sixteen = SceneGenerator(SceneConfig(bits=16)).scene(11)
    np.testing.assert_allclose(sixteen.image / 257, eight.image, atol=0.51)
    np.testing.assert_array_equal(eight.boxes, sixteen.boxes)
    assert len(np.unique(sixteen.image)) > 10 * len(np.unique(eight.image))


def test_dense_areas_are_dense():
    """Half the targets of an image and more have another within 20 pixels: 8 to 12 share an area of that size."""
    for index in range(20):
        boxes = SceneGenerator(dense_config(size=(160, 128))).scene(index).boxes
        distance = np.abs(boxes[:, None, :2] - boxes[None, :, :2]).max(axis=2)
        assert np.median((distance <= 20).sum(axis=1)) >= 7


def test_cold_targets_are_darker_than_their_background():
    generator = SceneGenerator(SceneConfig(domain_conflict=0.0, balance="uniform", size=(96, 96)))
    cold = hot = 0
    for index in range(600):
        scene = generator.scene(index)
        for x1, y1, x2, y2 in scene.boxes.astype(int) if scene.background == "terrain" else ():
            around = scene.image[max(y1 - 4, 0) : y2 + 4, max(x1 - 4, 0) : x2 + 4].astype(float)
            center = scene.image[(y1 + y2) // 2 - 1 : (y1 + y2) // 2 + 2, (x1 + x2) // 2 - 1 : (x1 + x2) // 2 + 2]
            cold += center.mean() < around.mean() - 8
            hot += center.mean() > around.mean() + 8
    assert cold + hot > 40
    assert cold / (cold + hot) == pytest.approx(0.4, abs=0.2)


@for_every("size", [(64, 64), (96, 176), (131, 97)])
def test_painters(size):
    for name in PAINTERS:
        for seed in range(8):
            image, sky = paint_background(name, np.random.default_rng(seed), *size)
            assert image.shape == sky.shape == size
            assert (image.dtype, sky.dtype) == (np.float32, bool)
            assert np.isfinite(image).all()
            assert image.min() >= 0.01
            assert image.max() <= 0.75


def test_featureless_backgrounds_are_smoother_than_the_others():
    def roughness(name):
        images = [paint_background(name, np.random.default_rng(seed), 96, 96)[0] for seed in range(10)]
        return np.mean([np.abs(np.diff(image, axis=1)).mean() for image in images])

    others = [roughness(name) for name in sorted(PAINTERS) if name != "featureless"]
    assert roughness("featureless") < 0.7 * min(others)


def test_star_trails_share_one_direction():
    """The gradient's energy of equal streaks lies across them, that of points in all directions."""

    def anisotropy(name, seed):
        image = paint_background(name, np.random.default_rng(seed), 192, 192)[0]
        dy, dx = np.gradient(image)
        tensor = np.array([[(dx * dx).sum(), (dx * dy).sum()], [(dx * dy).sum(), (dy * dy).sum()]])
        low, high = np.linalg.eigvalsh(tensor)
        return high / low

    trails = np.mean([anisotropy("star_trails", seed) for seed in range(6)])
    points = np.mean([anisotropy("stars", seed) for seed in range(6)])
    assert trails > 3
    assert points < 1.5


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"domain_conflict": 1.2}, "domain_conflict"),
        ({"bits": 12}, "bits"),
        ({"size": (20, 20)}, "size"),
        ({"size": "tiny"}, "size"),
        ({"size": (128, 128, 3)}, "size"),
        ({"balance": "none"}, "balance"),
    ],
)
def test_bad_config(change, message):
    with pytest.raises(ConfigError, match=message):
        SceneConfig(**change)
