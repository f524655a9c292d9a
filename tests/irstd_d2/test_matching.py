"""Matching and the metrics on top of it, against slow plain versions and the papers' implementation."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from plain_metrics import labelled, plain_centre, plain_curve_ap, plain_pd_fa, plain_voc, random_case

from irstd_d2.evaluation.average_precision import (
    EXACT,
    PAPER,
    VOCProtocol,
    average_precision,
    precision_recall,
    voc_verdicts,
)
from irstd_d2.evaluation.bootstrap import resampled_metrics
from irstd_d2.evaluation.coco_evaluation import coco_metrics
from irstd_d2.evaluation.detection_probability import centre_verdicts, operating_curve
from irstd_d2.evaluation.ground_truth import GroundTruth
from irstd_d2.evaluation.matching import (
    NO_TARGET,
    close_pairs,
    detection_table,
    match_greedy,
    pair_iou,
    target_table,
)
from irstd_d2.evaluation.table_evaluation import CentreDistanceEvaluator


def test_voc_equals_a_plain_version():
    for seed in range(200):
        with labelled(f"seed {seed}"):
            check_voc_equals_a_plain_version(seed)


def check_voc_equals_a_plain_version(seed):
    targets, detections = random_case(seed)
    threshold = (0.25, 0.5, 0.75)[seed % 3]
    legacy = bool(seed % 2)
    verdicts = voc_verdicts(detections, targets, threshold, VOCProtocol(legacy_widths=legacy))
    true, false = plain_voc(detections, targets, threshold, int(legacy))
    np.testing.assert_array_equal(verdicts.true, true)
    np.testing.assert_array_equal(verdicts.false, false)
    num_targets = int((~targets.ignored).sum())
    curve = precision_recall(verdicts, detections.scores, num_targets)
    for mode in ("area", "11points"):
        if num_targets:
            assert average_precision(curve, mode) == pytest.approx(
                plain_curve_ap(true, false, num_targets, mode), abs=1e-12
            )


@pytest.mark.parametrize("scores", ["stable", "unique_scores"])
@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("threshold", [0.5, 0.75])
@pytest.mark.parametrize("mode", ["area", "11points"])
def test_voc_equals_the_papers_implementation(voc_metric, mode, threshold, legacy, scores):
    images = voc_metric["images"]
    expected = voc_metric["results"][f"eval_map/{mode}/iou{threshold}/legacy={legacy}/{scores}"]
    targets = target_table([i["gt"] for i in images], None, [i["difficult"] for i in images])
    column = "scores" if scores == "stable" else "scores_unique"
    detections = detection_table([i["det"] for i in images], [i[column] for i in images])
    protocol = VOCProtocol(legacy_widths=legacy, dtype=np.float32)
    verdicts = voc_verdicts(detections, targets, threshold, protocol)
    curve = precision_recall(verdicts, detections.scores, int((~targets.ignored).sum()), np.float32)
    assert average_precision(curve, mode) == pytest.approx(expected["mAP"], abs=1e-6)
    assert curve.max_recall == pytest.approx(expected["max_recall"], abs=1e-6)
    assert curve.last_precision == pytest.approx(expected["last_precision"], abs=1e-6)


def test_a_shifted_three_pixel_target_shows_the_difference_between_protocols():
    target, shifted = np.array([[10.0, 10, 13, 13]]), np.array([[11.0, 10, 14, 13]])
    assert pair_iou(target, shifted)[0] == 0.5
    assert pair_iou(target, shifted, legacy_widths=True)[0] == pytest.approx(0.6)


def test_protocols_have_names():
    assert (PAPER.name, EXACT.name, VOCProtocol(legacy_widths=True).name) == ("paper", "exact", "custom")


def test_no_second_choice_when_the_best_target_is_taken():
    targets = target_table([[[0, 0, 10, 10], [2, 0, 12, 10]]])
    detections = detection_table([[[0, 0, 10, 10], [0, 0, 10, 10]]], [[0.9, 0.8]])
    verdicts = voc_verdicts(detections, targets, 0.5)
    assert verdicts.true.tolist() == [True, False]
    assert verdicts.false.tolist() == [False, True]
    assert verdicts.target.tolist() == [0, NO_TARGET]


@pytest.mark.parametrize("mode", ["area", "11points"])
def test_empty_sets_are_defined(mode):
    nothing = target_table([np.zeros((0, 4))] * 2)
    one = target_table([[[0, 0, 3, 3]], np.zeros((0, 4))])
    no_detection = detection_table([np.zeros((0, 4))] * 2, [[]] * 2)
    detections = detection_table([[[0, 0, 3, 3]], [[5, 5, 9, 9]]], [[0.5], [0.6]])
    curve = precision_recall(voc_verdicts(no_detection, one), no_detection.scores, 1)
    assert average_precision(curve, mode) == 0
    assert (curve.max_recall, curve.last_precision) == (0, 0)
    curve = precision_recall(voc_verdicts(detections, nothing), detections.scores, 0)
    assert np.isnan(average_precision(curve, mode))
    assert voc_verdicts(detections, nothing).false.all()


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_scores_that_are_not_finite_are_refused(bad):
    with pytest.raises(ValueError, match=r"1 detections .* first in image 1"):
        detection_table([[[0, 0, 1, 1]], [[0, 0, 1, 1]]], [[0.5], [bad]])
    with pytest.raises(ValueError, match="not finite"):
        detection_table([[[0, 0, bad, 1]]], [[0.5]])
    with pytest.raises(ValueError, match="1 boxes but 2 scores"):
        detection_table([[[0, 0, 1, 1]]], [[0.5, 0.1]])


def test_unknown_mode_is_refused():
    targets, detections = random_case(0)
    curve = precision_recall(voc_verdicts(detections, targets), detections.scores, 3)
    with pytest.raises(ValueError, match="area"):
        average_precision(curve, "coco")


@given(st.integers(0, 10**6), st.integers(1, 12), st.integers(1, 8))
@settings(max_examples=200, deadline=None)
def test_greedy_matching_equals_the_sequential_rule(seed, num_detections, num_targets):
    rng = np.random.default_rng(seed)
    admissible = rng.random((num_detections, num_targets)) < 0.6
    quality = rng.integers(0, 4, (num_detections, num_targets)).astype(float)
    free, expected = set(range(num_targets)), []
    for i in range(num_detections):
        choices = [j for j in sorted(free) if admissible[i, j]]
        best = max(choices, key=lambda j, i=i: (quality[i, j], -j), default=NO_TARGET)
        expected.append(best)
        free.discard(best)
    d, t = np.nonzero(admissible)
    assert match_greedy(d, t, quality[d, t], num_detections, num_targets).tolist() == expected


def test_pd_fa_equals_a_plain_version_at_every_threshold():
    for seed in range(200):
        with labelled(f"seed {seed}"):
            check_pd_fa_equals_a_plain_version_at_every_threshold(seed)


def check_pd_fa_equals_a_plain_version_at_every_threshold(seed):
    targets, detections = random_case(seed)
    pixels = [100 * (i + 1) for i in range(6)]
    curve = operating_curve(detections, targets, pixels)
    assert curve.num_pixels == 2100
    for i, threshold in enumerate(curve.scores):
        found, false, area = plain_pd_fa(detections, targets, threshold, 3.0)
        assert (curve.found[i], curve.false_alarms[i]) == (found, false)
        assert curve.false_pixels[i] == pytest.approx(area)
        at = curve.at_score(threshold)
        assert at["Pd"] == pytest.approx(found / max(curve.num_targets, 1))
        assert at["Fa"] == pytest.approx(area / 2100)
        assert at["Fa_boxes"] == pytest.approx(false / 2100)
        reached = curve.pd_at_fa([area / 2100])[0]
        allowed = [f for f, pixels in zip(curve.found, curve.false_pixels) if pixels <= area]
        assert reached == max(allowed) / max(curve.num_targets, 1)
        missed = curve.num_targets - found
        assert at["F1"] == pytest.approx(2 * found / max(2 * found + false + missed, 1))


def test_pd_fa_by_hand():
    targets = target_table([[[10, 10, 13, 13], [20, 20, 23, 23]], [[5, 5, 8, 8]]])
    detections = detection_table([[[13, 10, 16, 13], [10, 10, 13, 13]], [[40, 40, 42, 45]]], [[0.9, 0.8], [0.7]])
    verdicts = centre_verdicts(detections, targets)
    assert verdicts.target.tolist() == [0, NO_TARGET, NO_TARGET]  # exactly three pixels away still counts
    assert verdicts.false.tolist() == [False, True, True]
    curve = operating_curve(detections, targets, [100, 100])
    np.testing.assert_allclose(curve.pd, [1 / 3, 1 / 3, 1 / 3])
    np.testing.assert_allclose(curve.fa_pixels, [0, 9 / 200, 19 / 200])
    assert curve.best_f1() == (0.5, 0.9)
    np.testing.assert_allclose(curve.false_alarms_per_image([0.3, 0.5]), [0, np.inf])
    np.testing.assert_allclose(curve.pd_at_fa([0, 9 / 200, 1]), [1 / 3] * 3)
    assert curve.at_score(0.95)["Pd"] == 0


def test_operating_curve_without_detections():
    curve = operating_curve(detection_table([np.zeros((0, 4))], [[]]), target_table([[[0, 0, 3, 3]]]), [64])
    assert curve.best_f1() == (0.0, float("inf"))
    assert curve.at_score(0.5) == {"Pd": 0.0, "Fa": 0.0, "Fa_boxes": 0.0, "precision": 0.0, "F1": 0.0}
    assert np.isinf(curve.false_alarms_per_image([0.5])).all()
    assert curve.pd_at_fa([0, 1]).tolist() == [0, 0]


def test_cocos_rule_gives_cocos_numbers():
    for seed in range(200):
        with labelled(f"seed {seed}"):
            check_cocos_rule_gives_cocos_numbers(seed)


def check_cocos_rule_gives_cocos_numbers(seed):
    targets, detections = random_case(seed, max_detections=(9, 40)[seed % 2])
    limit = (100, 3)[seed // 2 % 2]
    metric = resampled_metrics(max_detections=limit)["bbox/AP"]
    found = metric.values(metric.outcomes(detections, targets, np.ones(6, int), 2), np.ones((1, 6), int))
    expected = coco_metrics(detections, targets, 6, num_classes=2, max_detections=limit)
    assert 100 * found[0] == pytest.approx(expected["AP"], abs=1e-9, nan_ok=True)


def test_average_precision_by_centre_distance_equals_a_plain_version():
    for seed in range(200):
        with labelled(f"seed {seed}"):
            check_average_precision_by_centre_distance_equals_a_plain_version(seed)


def check_average_precision_by_centre_distance_equals_a_plain_version(seed):
    targets, detections = random_case(seed)
    evaluator = CentreDistanceEvaluator(GroundTruth.from_dicts([], ("a", "b")), distances=(1, 2, 3, 5))
    found = evaluator.compute(detections, targets, np.ones(6, int))
    by_distance = []
    for distance in evaluator.distances:
        by_class = []
        for category in range(2):
            t, d = targets.category == category, detections.category == category
            count = int((t & ~targets.ignored).sum())
            if count:
                verdicts = plain_centre(detections.rows(d), targets.rows(t), distance)
                by_class.append(100 * plain_curve_ap(*verdicts, count, "area"))
        by_distance.append(np.mean(by_class))
        assert found[f"AP@{distance}px"] == pytest.approx(by_distance[-1])
    assert found["AP"] == pytest.approx(np.mean(by_distance))


def test_pairs_are_found_in_portions(monkeypatch):
    targets, detections = random_case(3, num_classes=1, max_targets=20, max_detections=30)
    whole = close_pairs(detections, targets, pair_iou, 0.1)
    assert len(whole[0]) == 19
    for portion in (1, 7):
        monkeypatch.setattr("irstd_d2.evaluation.matching._PAIRS_AT_ONCE", portion)
        for a, b in zip(whole, close_pairs(detections, targets, pair_iou, 0.1), strict=True):
            np.testing.assert_array_equal(a, b)
