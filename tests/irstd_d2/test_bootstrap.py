"""Resampling over images, against repeating the images by hand."""

import numpy as np
import pytest
from plain_metrics import labelled

from irstd_d2.evaluation.average_precision import PAPER, average_precision, precision_recall, voc_verdicts
from irstd_d2.evaluation.bootstrap import (
    compare_metric,
    image_draws,
    metric_interval,
    resampled_metrics,
)
from irstd_d2.evaluation.coco_evaluation import coco_metrics
from irstd_d2.evaluation.ground_truth import GroundTruth
from irstd_d2.evaluation.matching import detection_table, target_table
from irstd_d2.evaluation.table_evaluation import (
    CentreDistanceEvaluator,
    DetectionProbabilityEvaluator,
    VOCDetectionEvaluator,
)

AP = resampled_metrics()["voc_exact/AP50_area"]


def outcomes(boxes, scores, targets, num_images):
    return AP.outcomes(detection_table(boxes, scores), target_table(targets), np.ones(num_images, int), 1)


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
    values = AP.values(outcomes(boxes, scores, targets, 40), weights)
    for value, weight in zip(values, weights):
        index = np.repeat(np.arange(40), weight)
        assert value == pytest.approx(plain_ap(*([rows[i] for i in index] for rows in (targets, boxes, scores))))


def test_interval_holds_the_value_and_narrows_with_more_images():
    widths = []
    for num_images in (20, 320):
        targets, boxes, scores = random_rows(1, 0.6, num_images)
        interval = metric_interval(AP, outcomes(boxes, scores, targets, num_images), draws=300)
        assert interval.value == pytest.approx(plain_ap(targets, boxes, scores))
        assert interval.low < interval.value < interval.high
        widths.append(interval.high - interval.low)
        half = metric_interval(AP, outcomes(boxes, scores, targets, num_images), draws=300, level=0.5)
        assert interval.low < half.low < interval.value < half.high < interval.high
    assert widths[1] < widths[0] / 2


def test_a_better_run_is_told_from_an_equal_one():
    targets, boxes, scores = random_rows(2, 0.5, 100)
    run = outcomes(boxes, scores, targets, 100)
    rng = np.random.default_rng(3)
    better_boxes = [np.concatenate([t[rng.random(len(t)) < 0.95], b[-3:]]) for t, b in zip(targets, boxes)]
    better_scores = [np.concatenate([0.4 + 0.6 * rng.random(len(b) - 3), s[-3:]]) for b, s in zip(better_boxes, scores)]
    better = outcomes(better_boxes, better_scores, targets, 100)
    result = compare_metric(AP, run, better, draws=200)
    assert result.difference.low > 0
    assert result.p_value < 0.02
    half = compare_metric(AP, run, better, draws=200, level=0.5)
    assert half.difference.value == result.difference.value
    assert result.difference.low < half.difference.low < half.difference.high < result.difference.high
    same = compare_metric(AP, run, run, draws=50)
    assert same.difference.value == same.difference.low == same.difference.high == 0
    assert same.p_value == 1


def test_draws_without_targets_have_no_value():
    values = AP.values(outcomes([[[0, 0, 3, 3]], []], [[0.5], []], [[[0, 0, 3, 3]], []], 2), np.array([[1, 1], [0, 2]]))
    assert values[0] == 1
    assert np.isnan(values[1])


def random_tables(seed, num_images=8):
    """Two classes, difficult targets, equal scores; images of different sizes, in lists that can be repeated."""
    rng = np.random.default_rng(seed)
    images = []
    for _ in range(num_images):
        target = rng.integers(0, 30, (rng.integers(0, 5), 2))
        found = rng.integers(0, 30, (rng.integers(0, 8), 2))
        found[: len(target)] = target[: len(found)] + rng.integers(-1, 2, found[: len(target)].shape)
        images.append(
            {
                "targets": np.concatenate([target, target + 4], 1),
                "target_class": rng.integers(0, 2, len(target)),
                "ignored": rng.random(len(target)) < 0.2,
                "boxes": np.concatenate([found, found + rng.integers(3, 6, found.shape)], 1),
                "scores": rng.integers(1, 6, len(found)) / 5,
                "class": rng.integers(0, 2, len(found)),
                "pixels": rng.integers(900, 2000),
            }
        )
    return images


def as_tables(images):
    def column(name):
        return [image[name] for image in images]

    return (
        detection_table(column("boxes"), column("scores"), column("class")),
        target_table(column("targets"), column("target_class"), column("ignored")),
        np.array(column("pixels")),
    )


def evaluated(detections, targets, pixels):
    """The same metrics from the evaluators, as fractions."""
    truth = GroundTruth.from_dicts([], ("a", "b"))
    evaluators = (
        VOCDetectionEvaluator(truth),
        VOCDetectionEvaluator(truth, protocol=PAPER),
        DetectionProbabilityEvaluator(truth),
        CentreDistanceEvaluator(truth),
    )
    results = {e.name: e.compute(detections, targets, pixels) for e in evaluators}
    results["bbox"] = coco_metrics(detections, targets, len(pixels), num_classes=2)
    found = {}
    for name in resampled_metrics():
        evaluator, _, metric = name.partition("/")
        found[name] = results[evaluator][metric] / (1e6 if metric == "Fa" else 100)
    return found


@pytest.mark.parametrize("ties", [True, False])
def test_every_metric_is_the_evaluators_on_repeated_images(ties):
    for seed in range(20):
        with labelled(f"seed {seed}"):
            check_every_metric_on_repeated_images(seed, ties)


def check_every_metric_on_repeated_images(seed, ties):
    images = random_tables(seed)
    if not ties:
        rng = np.random.default_rng(seed)
        images = [{**image, "scores": rng.random(len(image["scores"]))} for image in images]
    tables = as_tables(images)
    weights = np.concatenate([np.ones((1, 8), int), image_draws(8, 3, seed)])
    values = {name: m.values(m.outcomes(*tables, 2), weights) for name, m in resampled_metrics().items()}
    whole = {name: value[0] for name, value in values.items()}
    assert whole == pytest.approx(evaluated(*tables), rel=1e-6, nan_ok=True)
    for draw, weight in enumerate(weights):
        expected = evaluated(*as_tables([image for image, times in zip(images, weight) for _ in range(times)]))
        for name, expectation in expected.items():
            # Among equal scores precision depends on the order, which repeating images changes.
            if not ties or name.startswith("pd_fa"):
                assert values[name][draw] == pytest.approx(expectation, rel=1e-6, nan_ok=True), name


def test_two_runs_are_compared_in_every_metric():
    images = random_tables(1, 60)
    perfect = [
        {**i, "boxes": i["targets"], "scores": np.full(len(i["targets"]), 0.9), "class": i["target_class"]}
        for i in images
    ]
    for name, metric in resampled_metrics().items():
        first, second = (metric.outcomes(*as_tables(run), 2) for run in (images, perfect))
        interval = metric_interval(metric, second, draws=50)
        assert interval.value == interval.low == interval.high == (0 if name.endswith("Fa") else pytest.approx(1))
        found = compare_metric(metric, first, second, draws=100)
        better = -1 if name.endswith("Fa") else 1
        assert min(better * found.difference.low, better * found.difference.high) > 0
        assert found.p_value == pytest.approx(1 / 101)
        back = compare_metric(metric, second, first, draws=100)
        assert back.difference.value == -found.difference.value
        same = compare_metric(metric, first, first, draws=20)
        assert (same.difference.value, same.p_value) == (0, 1)


@pytest.mark.parametrize("num_images", [0, 3])
def test_without_targets_there_is_nothing_to_compare(num_images):
    empty = [{**image, "targets": np.zeros((0, 4)), "target_class": [], "ignored": []} for image in random_tables(0, 3)]
    tables = as_tables(empty[:num_images])
    for name, metric in resampled_metrics().items():
        outcomes = metric.outcomes(*tables, 2)
        interval = metric_interval(metric, outcomes, draws=10)
        found = compare_metric(metric, outcomes, outcomes, draws=10)
        if name.endswith("Fa") and num_images:  # false alarms need no targets
            assert interval.value > 0
            assert found.p_value == 1
        else:
            assert np.isnan([interval.value, interval.low, interval.high, found.p_value]).all()


def test_runs_of_equal_quality_are_rarely_told_apart():
    metric = resampled_metrics()["voc_exact/AP50_area"]
    p_values, covered = [], []
    for seed in range(60):
        targets, boxes, scores = random_rows(seed, 0.5, 60)
        rng = np.random.default_rng(seed + 1000)
        other = [np.concatenate([t[rng.random(len(t)) < 0.5], b[-3:]]) for t, b in zip(targets, boxes)]
        other_scores = [np.concatenate([0.4 + 0.6 * rng.random(len(b) - 3), 0.7 * rng.random(3)]) for b in other]
        truth = target_table(targets)
        runs = [
            metric.outcomes(detection_table(*run), truth, np.ones(60, int), 1)
            for run in ((boxes, scores), (other, other_scores))
        ]
        found = compare_metric(metric, *runs, draws=100, seed=seed)
        p_values.append(found.p_value)
        covered.append(found.difference.low <= 0 <= found.difference.high)
    # Uniform p: binomial(60, 0.1) exceeds 12 with a probability below one percent; so does a mean beyond 0.4 to 0.6.
    assert sum(p <= 0.1 for p in p_values) <= 12
    assert 0.4 < np.mean(p_values) < 0.6
    assert np.mean(covered) > 0.85
