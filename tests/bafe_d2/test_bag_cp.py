"""BAG-CP: its rules on many seeds, its maths against plain loops, its use as a detectron2 augmentation."""

import math

import numpy as np
import pytest
from detectron2.data import DatasetCatalog
from detectron2.data import transforms as T
from hypothesis import given, settings
from hypothesis import strategies as st
from loops import for_every

from bafe_d2.data import BAGCopyPaste, PasteRule, TargetLibrary
from bafe_d2.data.bag_cp import PasteTransform
from bafe_d2.data.gaussian_paste import COUNTED_ABOVE, gaussian_weights, target_window, tight_boxes
from irstd_d2.data import IRSTDAugInput, read_image
from irstd_d2.data.image_io import read_sky_mask
from irstd_d2.errors import ConfigError


@pytest.fixture
def library():
    rng = np.random.default_rng(0)
    shapes = rng.integers(1, 10, (200, 2))
    return TargetLibrary.from_crops([rng.uniform(0.3, 1, tuple(shape)) for shape in shapes])


def plain_weights(width, height, offset, sigma, angle):
    """Eq. 2 and 3, pixel by pixel."""
    rows = []
    for j in range(height):
        row = []
        for i in range(width):
            x = (2 * i / (width - 1) - 1 if width > 1 else 0.0) - 2 * offset[0]
            y = (2 * j / (height - 1) - 1 if height > 1 else 0.0) - 2 * offset[1]
            u = math.cos(angle) * x - math.sin(angle) * y
            v = math.sin(angle) * x + math.cos(angle) * y
            row.append(math.exp(-(u**2) / (2 * sigma[0] ** 2) - v**2 / (2 * sigma[1] ** 2)))
        rows.append(row)
    values = [v for row in rows for v in row]
    low, high = min(values), max(values)
    if high - low < 1e-9:
        return [[1.0] * width for _ in range(height)]
    return [[(v - low) / (high - low) for v in row] for row in rows]


@given(st.integers(0, 10**6))
@settings(max_examples=100, deadline=None)
def test_gaussian_weights_equal_plain_loops(seed):
    rng = np.random.default_rng(seed)
    sizes = rng.integers(1, 6, (4, 2))
    offsets, sigmas = rng.uniform(0, 0.2, (4, 2)), rng.uniform(0.3, 0.6, (4, 2))
    angles = rng.uniform(-math.pi / 2, math.pi / 2, 4)
    weights = gaussian_weights(sizes, offsets, sigmas, angles, 5)
    assert ((weights >= 0) & (weights <= 1)).all()
    for i, (width, height) in enumerate(sizes.tolist()):
        expected = plain_weights(width, height, offsets[i], sigmas[i], angles[i])
        np.testing.assert_allclose(weights[i, :height, :width], expected, atol=1e-9)
        assert weights[i].sum() == pytest.approx(np.sum(expected))
        assert weights[i].max() == 1


def test_windows_and_tight_boxes_by_hand():
    window = target_window(np.array([[2, 1], [1, 3]]), 3)
    assert window.astype(int).tolist() == [[[1, 1, 0], [0, 0, 0], [0, 0, 0]], [[1, 0, 0], [1, 0, 0], [1, 0, 0]]]
    counted = np.zeros((1, 5, 5), bool)
    counted[0, 1, 2] = counted[0, 3, 4] = True
    assert tight_boxes(counted, np.array([[10, 20]])).tolist() == [[12, 21, 15, 24]]


def run(library, image, boxes, sky, seed, rule=None):
    np.random.seed(seed)
    aug_input = IRSTDAugInput(image.copy(), boxes=boxes.copy(), classes=np.zeros(len(boxes), np.int64), sem_seg=sky)
    transform = BAGCopyPaste(library, rule)(aug_input)
    return aug_input, transform


def overlap(a, b, gap=0):
    low, high = np.maximum(a[:, None, :2], b[None, :, :2]), np.minimum(a[:, None, 2:], b[None, :, 2:])
    return (high - low > -gap).all(-1)


def check_rules(before, boxes, sky, aug_input, transform, rule):
    """Everything that the paper says of a paste, from the pictures before and after alone."""
    after, new = aug_input.image, aug_input.boxes[len(boxes) :]
    np.testing.assert_array_equal(aug_input.boxes[: len(boxes)], boxes)
    assert len(aug_input.classes) == len(aug_input.boxes)
    changed = np.zeros(sky.shape, bool)
    changed[transform.rows, transform.columns] = True
    different = (after != before).any(-1) if after.ndim == 3 else after != before
    assert not (different & ~changed).any()
    assert (sky[changed] == 1).all()
    for x1, y1, x2, y2 in boxes.astype(int).tolist():
        assert not changed[y1:y2, x1:x2].any()
    assert not overlap(new, boxes).any()
    assert not (overlap(new, new) & ~np.eye(len(new), dtype=bool)).any()
    sizes = new[:, 2:] - new[:, :2]
    assert (sizes >= 1).all()
    assert (sizes <= 5).all()
    for x1, y1, x2, y2 in new.astype(int).tolist():
        part = changed[y1:y2, x1:x2]
        assert part[0].any() and part[-1].any() and part[:, 0].any() and part[:, -1].any()  # noqa: PT018
    assert changed.sum() == sum(changed[y1:y2, x1:x2].sum() for x1, y1, x2, y2 in new.astype(int).tolist())
    return cluster_sizes(new, rule)


def cluster_sizes(new, rule):
    """Number of targets in each dense area: boxes within an area's edge of each other, areas found greedily."""
    left, counts = list(range(len(new))), []
    while left:
        group = [left[0]]
        low, high = new[left[0], :2].copy(), new[left[0], 2:].copy()
        for i in left[1:]:
            l2, h2 = np.minimum(low, new[i, :2]), np.maximum(high, new[i, 2:])
            if (h2 - l2 <= rule.area_edge).all():
                group.append(i)
                low, high = l2, h2
        counts.append(len(group))
        left = [i for i in left if i not in group]
    return counts


@for_every("dtype", [np.uint8, np.uint16, np.float32])
@for_every("channels", [0, 3])
def test_rules_hold_on_synthetic_skies(library, dtype, channels):
    rule, counts, images = PasteRule(), [], 0
    for seed in range(40):
        rng = np.random.default_rng(seed)
        shape = (96, 128, channels) if channels else (96, 128)
        top = 255 if dtype != np.uint16 else 65535
        image = (rng.random(shape) * top * 0.5).astype(dtype)
        sky = (rng.random((96, 128)) < 0.02).astype(np.uint8)
        sky[: rng.integers(30, 90), :] = 1
        corner = rng.integers(0, 80, (6, 2))
        boxes = np.concatenate([corner, corner + 4], 1).astype(np.float32)
        aug_input, transform = run(library, image, boxes, sky, seed)
        assert aug_input.image.dtype == dtype
        if isinstance(transform, PasteTransform):
            counts += check_rules(image, boxes, sky, aug_input, transform, rule)
            images += 1
            assert aug_input.image.max() <= top
            assert (aug_input.image.astype(float) >= image).all()
    assert images > 25
    assert min(counts) >= 8
    assert max(counts) <= 12


@pytest.mark.slow
def test_rules_hold_on_2000_real_images(real_densesirst, monkeypatch):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(real_densesirst))
    dicts = DatasetCatalog.get("densesirst_v2_trainval")
    library = TargetLibrary.from_dicts(dicts[:60])
    rule, counts, sizes, pasted = PasteRule(), [], [], 0
    for index in range(0, 400, 2):
        record = dicts[index]
        image, sky = read_image(record["file_name"]), read_sky_mask(record["sem_seg_file_name"])
        boxes = np.array([a["bbox"] for a in record["annotations"]], np.float32).reshape(-1, 4)
        resize = T.ResizeTransform(image.shape[0], image.shape[1], 512, 512)
        boxes = resize.apply_box(boxes).astype(np.float32)
        image, sky = resize.apply_image(image), resize.apply_segmentation(sky)
        for seed in range(10):
            aug_input, transform = run(library, image, boxes, sky, 10 * index + seed)
            if isinstance(transform, PasteTransform):
                pasted += 1
                counts += check_rules(image, boxes, sky, aug_input, transform, rule)
                new = transform.pasted_boxes
                sizes += (new[:, 2:] - new[:, :2]).tolist()
    assert pasted > 1500
    assert np.mean([8 <= c <= 12 for c in counts]) > 0.97  # two areas side by side can look like others
    assert set(np.unique(sizes)) <= {1.0, 2.0, 3.0, 4.0, 5.0}


def test_parameters_stay_in_their_ranges(library, monkeypatch):
    seen = {}

    def recorded(sizes, offsets, sigmas, angles, edge):
        seen.setdefault("offsets", []).append(offsets)
        seen.setdefault("sigmas", []).append(sigmas)
        seen.setdefault("angles", []).append(angles)
        return gaussian_weights(sizes, offsets, sigmas, angles, edge)

    monkeypatch.setattr("bafe_d2.data.bag_cp.gaussian_weights", recorded)
    sky, image = np.ones((200, 200), np.uint8), np.zeros((200, 200), np.float32)
    nothing, areas = np.zeros((0, 4), np.float32), set()
    for seed in range(200):
        _, transform = run(library, image, nothing, sky, seed)
        areas.add(len(cluster_sizes(transform.pasted_boxes, PasteRule())))
    assert areas == {1, 2, 3}
    for name, low, high in (("offsets", 0, 0.2), ("sigmas", 0.3, 0.6), ("angles", -np.pi / 2, np.pi / 2)):
        values = np.concatenate([v.ravel() for v in seen[name]])
        assert values.min() >= low
        assert values.max() <= high
        counts, _ = np.histogram(values, 8, (low, high))
        assert counts.min() > 0.7 * counts.mean()  # uniform


def test_gaps_between_neighbours_in_a_row(library):
    augmentation = BAGCopyPaste(library)
    np.random.seed(0)
    for _ in range(100):
        sizes = np.random.randint(1, 6, (12, 2))
        kept, corners = augmentation._pack(sizes, 20)
        assert len(kept) >= 8
        x, y, w = corners[:, 0], corners[:, 1], sizes[kept, 0]
        same_row = y[1:] == y[:-1]
        gaps = (x[1:] - x[:-1] - w[:-1])[same_row]
        assert set(np.unique(gaps)) <= {1, 2}
        assert (corners + sizes[kept] <= 20).all()
        assert (corners >= 0).all()


def test_brightness_is_added_and_clipped(library):
    image, sky = np.full((64, 64), 250, np.uint8), np.ones((64, 64), np.uint8)
    aug_input, transform = run(library, image, np.zeros((0, 4), np.float32), sky, 1)
    assert aug_input.image.max() == 255
    assert transform.values.max() <= 1
    dark, _ = run(library, np.zeros((64, 64), np.float32), np.zeros((0, 4), np.float32), sky, 1)
    np.testing.assert_allclose(dark.image[transform.rows, transform.columns], transform.values * 255, rtol=1e-6)
    weights = transform.values / library.patches.max()
    assert weights.max() > COUNTED_ABOVE


def test_without_sky_or_place_the_image_stays(library):
    image, boxes = np.zeros((64, 64), np.uint8), np.zeros((0, 4), np.float32)
    for sky in (None, np.zeros((64, 64), np.uint8), np.full((64, 64), 255, np.uint8)):
        aug_input, transform = run(library, image, boxes, sky, 0)
        assert isinstance(transform, T.NoOpTransform)
        assert len(aug_input.boxes) == 0
        assert not aug_input.image.any()
    narrow = np.zeros((64, 64), np.uint8)
    narrow[:19] = 1
    assert isinstance(run(library, image, boxes, narrow, 0)[1], T.NoOpTransform)
    assert isinstance(run(library, image[:10, :10], boxes, narrow[:10, :10], 0)[1], T.NoOpTransform)


def test_the_only_free_place_is_found(library):
    sky = np.zeros((300, 300), np.uint8)
    sky[200:220, 37:57] = 1
    for seed in range(5):
        _, transform = run(library, np.zeros((300, 300), np.uint8), np.zeros((0, 4), np.float32), sky, seed)
        assert transform.rows.min() >= 200
        assert transform.columns.max() < 57


def test_modes_of_table_iii(library):
    sky = np.zeros((128, 128), np.uint8)
    sky[:64] = 1
    image, boxes = np.full((128, 128), 40, np.float32), np.zeros((0, 4), np.float32)
    anywhere = PasteRule(clusters=False, gaussian=False, background_aware=False)
    below = 0
    for seed in range(20):
        aug_input, transform = run(library, image, boxes, sky, seed, anywhere)
        new = transform.pasted_boxes
        below += (new[:, 1] > 64).sum()
        assert not (overlap(new, new) & ~np.eye(len(new), dtype=bool)).any()
        assert 8 <= len(new) <= 36
        # Plain paste replaces the pixels.
        np.testing.assert_allclose(
            aug_input.image[transform.rows, transform.columns], transform.values * 255, rtol=1e-6
        )
    assert below > 20
    aware = PasteRule(clusters=False)
    _, transform = run(library, image, boxes, sky, 0, aware)
    assert transform.pasted_boxes[:, 3].max() <= 64


def test_seeds_repeat_and_differ(library):
    image, boxes, sky = np.zeros((99, 99), np.uint8), np.zeros((0, 4), np.float32), np.ones((99, 99), np.uint8)
    a, b, c = (run(library, image, boxes, sky, seed)[0].image for seed in (3, 3, 4))
    assert (a == b).all()
    assert (a != c).any()


def test_new_targets_have_the_class_that_was_asked_for(library):
    sky = np.ones((60, 80), np.uint8)
    for pasted_class in (0, 3):
        np.random.seed(0)
        aug_input = IRSTDAugInput(
            np.full((60, 80), 90, np.uint8), boxes=np.array([[1.0, 1, 4, 4]]), classes=np.array([7]), sem_seg=sky
        )
        BAGCopyPaste(library, pasted_class=pasted_class)(aug_input)
        assert len(aug_input.classes) > 1
        assert aug_input.classes[0] == 7
        assert set(aug_input.classes[1:]) == {pasted_class}


def test_probability(library):
    augmentation = BAGCopyPaste(library, prob=0.3)
    np.random.seed(0)
    sky = np.ones((64, 64), np.uint8)
    pasted = sum(isinstance(augmentation.get_transform(sky, None, sky), PasteTransform) for _ in range(400))
    assert 80 < pasted < 160
    for prob in (-0.1, 50):
        with pytest.raises(ConfigError, match=r"INPUT\.BAG_CP\.PROB is"):
            BAGCopyPaste(library, prob=prob)


def test_plain_detectron2_input(library):
    np.random.seed(0)
    aug_input = T.AugInput(np.zeros((64, 64, 3), np.uint8), sem_seg=np.ones((64, 64), np.uint8))
    transform = T.AugmentationList([T.NoOpTransform(), BAGCopyPaste(library)])(aug_input)
    pasted = transform.transforms[-1].pasted_boxes
    assert len(pasted) >= 8
    assert aug_input.boxes is None
    aug_input = T.AugInput(np.zeros((64, 64, 3), np.uint8), boxes=np.zeros((1, 4)), sem_seg=np.ones((64, 64), np.uint8))
    BAGCopyPaste(library)(aug_input)
    assert len(aug_input.boxes) > 8


@for_every("values", [{"gaps": (2, 1)}, {"sigma": (-1, 1)}, {"area_edge": 4}])
def test_impossible_rules_are_refused(values):
    with pytest.raises(ConfigError, match=r"INPUT\.BAG_CP"):
        PasteRule(**values)


@for_every("box", [[-30, 40, -20, 50], [40, -30, 50, -20], [-30, -30, -20, -20], [130, 40, 140, 50], [-5, 40, -1, 50]])
def test_targets_beside_the_image_take_no_place(library, box):
    """Behind a crop boxes keep coordinates outside of it."""
    free = BAGCopyPaste(library)._free_pixels((100, 120), np.array([box], float), np.ones((100, 120), np.uint8))
    assert free.all()


def test_a_target_across_the_edge_takes_its_visible_part(library):
    boxes = np.array([[-4.0, 10, 3, 14], [110, -9, 130, 2]])
    free = BAGCopyPaste(library)._free_pixels((100, 120), boxes, np.ones((100, 120), np.uint8))
    expected = np.ones((100, 120))
    expected[9:15, 0:4] = expected[0:3, 109:120] = 0  # and one pixel around
    np.testing.assert_array_equal(free, expected)


@for_every(("brightness", "none"), [((0.0, 0.05), True), ((0.0, 0.2), False), ((0.09, 0.11), False)])
@pytest.mark.parametrize("halo", [False, True])
def test_every_box_holds_a_pixel_that_counts(library, brightness, none, halo):
    """Too faint a target is not pasted: its box would name a target that nobody can see."""
    sky, nothing = np.ones((128, 128), np.uint8), np.zeros((0, 4), np.float32)
    rule = PasteRule(brightness=brightness, halo=halo)
    for seed in range(5):
        _, transform = run(library, np.full((128, 128), 40, np.uint8), nothing, sky, seed, rule)
        counted = np.zeros((128, 128), bool)
        counted[transform.rows[transform.counted], transform.columns[transform.counted]] = True
        assert (len(transform.pasted_boxes) == 0) == none
        for x1, y1, x2, y2 in transform.pasted_boxes.astype(int).tolist():
            inside = counted[y1:y2, x1:x2]
            assert inside.any(0)[[0, -1]].all()
            assert inside.any(1)[[0, -1]].all()


def test_a_deviation_of_zero_is_refused():
    with pytest.raises(ConfigError, match=r"INPUT.BAG_CP.SIGMA is \(0.0, 0.5\); give two values, 0 < first"):
        PasteRule(sigma=(0.0, 0.5))


@pytest.mark.parametrize("boxes", [None, np.zeros((0, 4), np.float32)])
def test_targets_without_a_label_are_warned_of(library, caplog, boxes):
    """detectron2's own mapper gives its augmentations no boxes."""
    aug_input = T.AugInput(np.full((64, 64), 40, np.uint8), boxes=boxes, sem_seg=np.ones((64, 64), np.uint8))
    transform = BAGCopyPaste(library)(aug_input)
    assert len(transform.pasted_boxes) > 0
    assert ("the new targets get no label" in caplog.text) == (boxes is None)
    if boxes is not None:
        np.testing.assert_array_equal(aug_input.boxes, transform.pasted_boxes)
