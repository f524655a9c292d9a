"""Metrics of masks, against the published packages on random and real masks, and by hand."""

import cv2
import numpy as np
import pytest

from irstd_d2.evaluation.ground_truth import GroundTruth
from irstd_d2.evaluation.mask_evaluation import TargetMasks
from irstd_d2.evaluation.mask_metrics import (
    COLUMNS,
    Regions,
    count_masks,
    level_counts,
    mask_metrics,
    pixel_curves,
)

py_irstd_metrics = pytest.importorskip("py_irstd_metrics", reason="pyirstdmetrics is not installed")


def random_maps(seed):
    """Probability maps and masks: blobs that overlap, touch, merge and split, single pixels, noise, empty images."""
    rng = np.random.default_rng(seed)
    height, width = rng.integers(20, 70, 2)
    maps = []
    for _ in range(rng.integers(1, 5)):
        target, probability = np.zeros((height, width), bool), np.zeros((height, width))
        for _ in range(rng.integers(0, 7)):
            y, x = rng.integers(0, height - 3), rng.integers(0, width - 3)
            h, w = rng.integers(1, 8, 2)
            target[y : y + h, x : x + w] = True
            if rng.random() < 0.8:
                dy, dx, dh, dw = rng.integers(-2, 3, 4)
                top, left = max(0, y + dy), max(0, x + dx)
                probability[top : top + max(1, h + dh), left : left + max(1, w + dw)] = rng.random()
        for _ in range(rng.integers(0, 4)):
            y, x = rng.integers(0, height), rng.integers(0, width)
            probability[y : y + 2, x : x + 3] = rng.random()
        if rng.random() < 0.3:
            probability = np.maximum(probability, rng.random((height, width)) ** 8)
        if rng.random() < 0.3:
            probability = np.round(probability * 255) / 255
        maps.append((probability, target))
    return maps


def summed(maps, threshold=0.5):
    rows = [vars(count_masks(probability > threshold, target)) for probability, target in maps]
    return mask_metrics({name: np.array([sum(row[name] for row in rows)]) for name in COLUMNS}, np.array([len(rows)]))


def published(maps):
    """The same names from the published package, as fractions."""
    whole = {"with_dynamic": False, "with_binary": True, "sample_based": False}
    handlers = {
        "IoU": py_irstd_metrics.IoUHandler(**whole),
        "precision": py_irstd_metrics.PrecisionHandler(**whole),
        "recall": py_irstd_metrics.RecallHandler(**whole),
        "F1": py_irstd_metrics.FmeasureHandler(**whole, beta=1),
        "nIoU": py_irstd_metrics.IoUHandler(with_dynamic=False, with_binary=True, sample_based=True),
    }
    pixels = py_irstd_metrics.CMMetrics(metric_handlers=handlers)
    centre = py_irstd_metrics.ProbabilityDetectionAndFalseAlarmRate()
    shooting = py_irstd_metrics.ShootingRuleBasedProbabilityDetectionAndFalseAlarmRate()
    matching = py_irstd_metrics.MatchingBasedMetrics()
    errors = py_irstd_metrics.HierarchicalIoUBasedErrorAnalysis()
    for metric in (pixels, centre, shooting, matching, errors):
        for probability, target in maps:
            metric.update(probability, target)
    found = {name: result["binary"] for name, result in pixels.get().items()}
    found["Pd"], found["Fa"] = centre.get()["probability_detection"], centre.get()["false_alarm"]
    found["Pd_shooting"] = shooting.get()["probability_detection"]
    found["Fa_shooting"] = shooting.get()["false_alarm"]
    found["hIoU"] = matching.get()["hiou"]
    found |= {
        ours: errors.get()[theirs]
        for ours, theirs in {
            "loc_IoU": "loc_iou",
            "loc_interference": "loc_itf_err",
            "loc_merged": "loc_m2s_err",
            "loc_perception": "loc_pcp_err",
            "loc_split": "loc_s2m_err",
            "seg_IoU": "seg_iou",
            "seg_merging": "seg_mrg_err",
            "seg_interference": "seg_itf_err",
            "seg_perception": "seg_pcp_err",
        }.items()
    }
    return {name: float(np.squeeze(value)) for name, value in found.items()}


def basic_irstd(maps, by_value):
    """BasicIRSTD's Pd and false pixels in loops; ``by_value`` is DNA-Net's older count of false areas."""
    from skimage.measure import label, regionprops

    found = targets = false = pixels = 0
    for probability, target in maps:
        predicted = regionprops(label(probability > 0.5, connectivity=2))
        areas, matched_areas = [region.area for region in predicted], []
        for truth in regionprops(label(target, connectivity=2)):
            targets += 1
            for number, region in enumerate(predicted):
                if np.linalg.norm(np.subtract(region.centroid, truth.centroid)) < 3:
                    matched_areas.append(region.area)
                    del predicted[number]
                    found += 1
                    break
        if by_value:
            false += sum(area for area in areas if area not in matched_areas)
        else:
            false += sum(region.area for region in predicted)
        pixels += target.size
    return found / max(targets, 1), false / pixels


def check(maps, label):
    ours = {name: value[0] for name, value in summed(maps).items()}
    for name, expected in published(maps).items():
        scale = 1e6 if name.startswith("Fa") else 100
        assert ours[name] / scale == pytest.approx(expected, abs=1e-9), (label, name)
    for by_value, name in ((False, "Fa"), (True, "Fa_area")):
        pd, fa = basic_irstd(maps, by_value)
        assert ours["Pd"] / 100 == pytest.approx(pd, abs=1e-9), label
        assert ours[name] / 1e6 == pytest.approx(fa, abs=1e-9), (label, name)


@pytest.mark.parametrize("seeds", [range(30), pytest.param(range(30, 300), marks=pytest.mark.slow)], ids=str)
def test_all_metrics_equal_the_published_packages_on_random_cases(seeds):
    for seed in seeds:
        check(random_maps(seed), f"seed {seed}")


@pytest.mark.slow
def test_all_metrics_equal_the_published_packages_on_real_masks(real_masks):
    """Every real mask of a set against a blurred, shifted and noisy copy of itself."""
    truth = GroundTruth.from_dataset(real_masks)
    targets, rng, maps = TargetMasks.of(real_masks, truth), np.random.default_rng(0), []
    for index in range(len(truth.image_ids)):
        target = targets[index]
        probability = cv2.GaussianBlur(target.astype(float), (3, 3), 0)
        probability = np.roll(probability, rng.integers(-2, 3, 2), (0, 1)) * rng.uniform(0.4, 1.2)
        probability[rng.random(target.shape) < 1e-4] = rng.random()
        maps.append((np.clip(probability, 0, 1), target))
    check(maps, real_masks)


def test_curves_equal_the_published_package():
    for seed in range(12):
        maps = random_maps(seed)
        for levels in (10, 256):
            make = {
                "tpr": py_irstd_metrics.TPRHandler,
                "fpr": py_irstd_metrics.FPRHandler,
                "precision": py_irstd_metrics.PrecisionHandler,
            }
            handlers = {name: handler(with_dynamic=True, with_binary=False) for name, handler in make.items()}
            theirs = py_irstd_metrics.CMMetrics(num_bins=levels, metric_handlers=handlers)
            counts = []
            for probability, target in maps:
                theirs.update(probability, target)
                counts.append((*level_counts(probability, target, levels), target.sum(), (~target).sum()))
            curves = pixel_curves(*map(np.array, zip(*counts)), per_image=True)
            for ours, name in ((curves.true_rate, "tpr"), (curves.false_rate, "fpr"), (curves.precision, "precision")):
                np.testing.assert_allclose(ours, theirs.get()[name]["dynamic"], atol=1e-9, err_msg=f"seed {seed}")


def test_levels_of_bytes_are_those_of_their_fractions():
    rng = np.random.default_rng(0)
    for levels in (2, 10, 256, 300):
        data, target = rng.integers(0, 256, (30, 40)).astype(np.uint8), rng.random((30, 40)) < 0.3
        for ours, expected in zip(level_counts(data, target, levels), level_counts(data / 255, target, levels)):
            np.testing.assert_array_equal(ours, expected)


def test_components_come_row_by_row_and_touch_at_corners():
    mask = np.zeros((6, 9), bool)
    mask[0, 8] = mask[1, 0] = mask[2, 1] = mask[1, 4] = mask[0, 5] = True
    regions = Regions.of(mask)
    assert regions.area.tolist() == [2, 1, 2]
    assert regions.centroid.tolist() == [[0.5, 4.5], [0, 8], [1.5, 0.5]]


def test_a_perfect_mask_an_empty_one_and_a_false_one():
    target = np.zeros((20, 20), bool)
    target[3:6, 3:6] = target[10:12, 14] = True
    perfect = {name: value[0] for name, value in summed([(target.astype(float), target)]).items()}
    assert all(perfect[name] == 100 for name in ("IoU", "nIoU", "F1", "Pd", "Pd_shooting", "hIoU", "hIoU_exact"))
    assert perfect["Fa"] == perfect["Fa_shooting"] == perfect["loc_interference"] == 0
    empty = {name: value[0] for name, value in summed([(np.zeros(target.shape), target)]).items()}
    assert (empty["Pd"], empty["Fa"], empty["hIoU"], empty["IoU"]) == (0, 0, 0, 0)
    # The published code counts the image without a predicted object as one false object; the exact form does not.
    both = [(target.astype(float), target), (np.zeros(target.shape), np.zeros(target.shape, bool))]
    found = {name: value[0] for name, value in summed(both).items()}
    assert found["hIoU"] == pytest.approx(50)
    assert found["hIoU_exact"] == 100
    false = np.zeros(target.shape)
    false[15:17, 3:5] = 1
    found = {name: value[0] for name, value in summed([(false, target)]).items()}
    assert found["Fa"] == found["Fa_area"] == pytest.approx(1e6 * 4 / 400)
    # DNA-Net's count forgets a false component that is as large as a matched one.
    twin = target.astype(float)
    twin[15:18, 3:6] = 1
    found = {name: value[0] for name, value in summed([(twin, target)]).items()}
    assert (found["Fa"], found["Fa_area"]) == (pytest.approx(1e6 * 9 / 400), 0)
