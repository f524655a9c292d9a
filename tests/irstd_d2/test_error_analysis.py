"""Classes of errors by hand, their account, and what mending them gives."""

import numpy as np
import pytest
from detectron2.structures import BoxMode
from plain_metrics import random_case

from irstd_d2.evaluation.average_precision import average_precision, precision_recall, voc_verdicts
from irstd_d2.evaluation.error_analysis import CLASSES, NO_ERROR, analyse_errors
from irstd_d2.evaluation.ground_truth import GroundTruth
from irstd_d2.evaluation.matching import detection_table


def make_truth(targets, size=100):
    annotations = [{"bbox": b, "bbox_mode": BoxMode.XYXY_ABS, "category_id": 0, "iscrowd": 0} for b in targets]
    return GroundTruth.from_dicts([{"image_id": 0, "height": size, "width": size, "annotations": annotations}])


def errors(targets, boxes, scores=None, threshold=0.0):
    scores = np.linspace(0.9, 0.5, len(boxes)) if scores is None else scores
    return analyse_errors(
        detection_table([np.reshape(boxes, (-1, 4))], [scores]), make_truth(targets), threshold=threshold
    )


TARGET = [50, 50, 54, 54]


@pytest.mark.parametrize(
    ("targets", "boxes", "expected"),
    [
        ([TARGET], [TARGET, [50, 50, 54, 55]], "duplicate"),
        ([TARGET], [TARGET, [52, 52, 56, 56]], "duplicate"),  # near a target that is found
        ([TARGET], [[51, 51, 55, 55]], "off by 2 pixels"),
        ([TARGET], [[52.5, 50, 56.5, 54]], "off by 3 pixels"),
        ([[50, 50, 51, 51]], [[50.75, 50, 51.75, 51]], "off by 1 pixel"),
        ([TARGET], [[47, 47, 57, 57]], "size"),
        ([TARGET, [57, 50, 61, 54]], [[49, 49, 62, 55]], "merged neighbours"),
        ([[50, 50, 60, 60]], [[50, 50, 54, 54]], "part of a target"),
        ([[50, 50, 60, 60]], [[0, 30, 4, 34]], "edge of the image"),
        ([TARGET], [[20, 20, 24, 24]], "clutter"),
        ([], [[20, 20, 24, 24]], "clutter"),
    ],
)
def test_a_false_alarm_falls_in_its_class(targets, boxes, expected):
    found = errors(targets, boxes)
    assert CLASSES[found.detections[-1]] == expected
    (row,) = [row for row in found.rows if row.name == expected]
    assert row.false_alarms == 1


@pytest.mark.parametrize(
    ("targets", "boxes", "expected"),
    [
        ([TARGET], [], ["missed otherwise"]),
        ([[0, 50, 4, 54]], [], ["missed at the edge"]),
        ([TARGET, [55, 50, 59, 54]], [], ["missed beside another"] * 2),
        ([TARGET, [62, 50, 66, 54]], [], ["missed otherwise"] * 2),
        ([TARGET], [[51, 51, 55, 55]], ["off by 2 pixels"]),
        ([TARGET, [57, 50, 61, 54]], [[49, 49, 62, 55]], ["merged neighbours"] * 2),
        ([TARGET, [57, 50, 61, 54]], [TARGET], [None, "missed beside another"]),
    ],
)
def test_a_miss_has_the_class_of_what_explains_it(targets, boxes, expected):
    found = errors(targets, boxes)
    assert [None if index == NO_ERROR else CLASSES[index] for index in found.targets] == expected


def test_mending_by_hand():
    # One of two targets is found, after a false alarm; the other has a box two pixels off.
    other = [20, 20, 24, 24]
    found = errors([TARGET, other], [[80, 80, 84, 84], TARGET, [22, 20, 26, 24]])
    assert found.average_precision == pytest.approx(100 * 0.5 * 0.5)
    gain = {row.name: row.ap_gain for row in found.rows}
    assert gain["clutter"] == pytest.approx(100 * 0.5 - 25)
    # Found at the third place: precision 1/2 and 2/3, envelope 2/3 for both.
    assert gain["off by 2 pixels"] == pytest.approx(100 * 2 / 3 - 25)
    assert [row.name for row in found.rows] == ["off by 2 pixels", "clutter"]
    # From a threshold on there are fewer false alarms and more misses; the gains stay.
    strict = errors([TARGET, other], [[80, 80, 84, 84], TARGET, [22, 20, 26, 24]], threshold=0.85)
    rows = {row.name: row for row in strict.rows}
    assert (rows["clutter"].false_alarms, rows["off by 2 pixels"].false_alarms) == (1, 0)
    assert rows["missed otherwise"].misses == 2
    assert rows["clutter"].ap_gain == pytest.approx(gain["clutter"])


def test_perfect_and_empty_runs():
    assert errors([TARGET], [TARGET]).rows == ()
    nothing = errors([TARGET], [])
    assert nothing.average_precision == 0
    assert [(row.name, row.misses, row.ap_gain) for row in nothing.rows] == [("missed otherwise", 1, 100)]
    assert np.isnan(errors([], [TARGET]).average_precision)


def test_every_error_is_counted_once_and_mending_all_never_hurts():
    for seed in range(60):
        targets, detections = random_case(seed, num_images=4)
        truth = GroundTruth.from_dicts([{"image_id": i, "height": 40, "width": 40} for i in range(4)], ("a", "b"))
        truth = type(truth)(**{**vars(truth), "targets": targets})
        found = analyse_errors(detections, truth)
        false, missed, aps = 0, 0, []
        for category in range(2):
            d, t = detections.rows(detections.category == category), targets.rows(targets.category == category)
            verdicts = voc_verdicts(d, t)
            false += verdicts.false.sum()
            missed += (~t.ignored).sum() - verdicts.true.sum()
            if (~t.ignored).any():
                curve = precision_recall(verdicts, d.scores, int((~t.ignored).sum()))
                aps.append(average_precision(curve))
        assert sum(row.false_alarms for row in found.rows) == false == (found.detections != NO_ERROR).sum(), seed
        assert sum(row.misses for row in found.rows) == missed == (found.targets != NO_ERROR).sum(), seed
        if aps:
            assert found.average_precision == pytest.approx(100 * np.mean(aps)), seed
            assert all(row.ap_gain >= -1e-9 for row in found.rows), seed
