"""Resampling over images, against repeating the images by hand."""

import numpy as np
import pytest

from irstd_d2.evaluation.average_precision import average_precision, precision_recall, voc_verdicts
from irstd_d2.evaluation.bootstrap import (
    average_precision_interval,
    compare_runs,
    image_draws,
    resampled_average_precision,
)
from irstd_d2.evaluation.matching import detection_table, target_table


def random_rows(seed, quality, num_images=40):
    """Targets, and detections that hit each with probability ``quality``, beside false ones."""
    rng = np.random.default_rng(seed)
    targets, boxes, scores = [], [], []
    for _ in range(num_images):
        corner = rng.integers(0, 90, (rng.integers(0, 4), 2)).astype(float)
        target = np.concatenate([corner, corner + 4], 1)
        hits = target[rng.random(len(target)) < quality]
        noise = rng.integers(0, 90, (3, 2)).astype(float)
        targets.append(target)
        boxes.append(np.concatenate([hits, np.concatenate([noise, noise + 4], 1)]))
        scores.append(np.concatenate([0.4 + 0.6 * rng.random(len(hits)), 0.7 * rng.random(3)]))
    return targets, boxes, scores


def plain_ap(targets, boxes, scores):
    table, truth = detection_table(boxes, scores), target_table(targets)
    curve = precision_recall(voc_verdicts(table, truth), table.scores, len(truth))
    return average_precision(curve)


def test_weights_equal_repeated_images():
    targets, boxes, scores = random_rows(0, 0.6)
    weights = image_draws(40, 5)
    assert (weights.sum(1) == 40).all()
    values = resampled_average_precision(detection_table(boxes, scores), target_table(targets), 40, weights)
    for value, weight in zip(values, weights):
        index = np.repeat(np.arange(40), weight)
        assert value == pytest.approx(plain_ap(*([rows[i] for i in index] for rows in (targets, boxes, scores))))


def test_interval_holds_the_value_and_narrows_with_more_images():
    widths = []
    for num_images in (20, 320):
        targets, boxes, scores = random_rows(1, 0.6, num_images)
        interval = average_precision_interval(
            detection_table(boxes, scores), target_table(targets), num_images, draws=300
        )
        assert interval.value == pytest.approx(plain_ap(targets, boxes, scores))
        assert interval.low < interval.value < interval.high
        widths.append(interval.high - interval.low)
    assert widths[1] < widths[0] / 2


def test_a_better_run_is_told_from_an_equal_one():
    targets, boxes, scores = random_rows(2, 0.5, 100)
    truth, run = target_table(targets), detection_table(boxes, scores)
    rng = np.random.default_rng(3)
    better_boxes = [np.concatenate([t[rng.random(len(t)) < 0.95], b[-3:]]) for t, b in zip(targets, boxes)]
    better_scores = [np.concatenate([0.4 + 0.6 * rng.random(len(b) - 3), s[-3:]]) for b, s in zip(better_boxes, scores)]
    result = compare_runs(run, detection_table(better_boxes, better_scores), truth, 100, draws=200)
    assert result.difference.low > 0
    assert result.p_value < 0.02
    same = compare_runs(run, run, truth, 100, draws=50)
    assert same.difference.value == same.difference.low == same.difference.high == 0
    assert same.p_value == 1


def test_draws_without_targets_and_wrong_sizes():
    truth, run = target_table([[[0, 0, 3, 3]], []]), detection_table([[[0, 0, 3, 3]], []], [[0.5], []])
    values = resampled_average_precision(run, truth, 2, np.array([[1, 1], [0, 2]]))
    assert values[0] == 1
    assert np.isnan(values[1])
    with pytest.raises(ValueError, match="weights are for 3 images, the data set has 2"):
        resampled_average_precision(run, truth, 2, np.ones((1, 3), int))
