"""Metrics of classes of images and of targets, against slow plain versions, libraries and counts by hand."""

import cv2
import numpy as np
import pytest
from detectron2.structures import BoxMode
from hypothesis import given, settings
from hypothesis import strategies as st
from plain_metrics import labelled, plain_centre, plain_curve_ap, plain_pd_fa, plain_voc, random_case

from irstd_d2.data.statistics import local_contrast
from irstd_d2.errors import DatasetError
from irstd_d2.evaluation.average_precision import EXACT, PAPER
from irstd_d2.evaluation.breakdown import AREA_BOUNDS, NO_CLASS, TARGET_KEYS, Breakdown, ImageFiles, image_breakdown
from irstd_d2.evaluation.coco_evaluation import coco_metrics, coco_part_metrics
from irstd_d2.evaluation.ground_truth import GroundTruth
from irstd_d2.evaluation.table_evaluation import (
    CentreDistanceEvaluator,
    DetectionProbabilityEvaluator,
    TableEvaluator,
    VOCDetectionEvaluator,
)

IMAGES = 6
PIXELS = np.array([100, 200, 300, 400, 500, 600])
TRUTH = GroundTruth.from_dicts([{"image_id": i, "height": 10, "width": 10} for i in range(IMAGES)], ("a", "b"))


def random_breakdown(seed):
    """Random classes of targets and detections; images have pixels of both classes, of one, or of none."""
    targets, detections = random_case(seed, IMAGES)
    rng = np.random.default_rng(seed + 10**6)
    pixels = PIXELS * rng.integers(0, 3, (2, IMAGES))
    possible = np.vstack([np.ones(IMAGES), pixels]) > 0  # a box can only be of a class that its image has pixels of

    def classes(table):
        drawn = rng.integers(-1, 2, len(table))
        return np.where(possible[drawn + 1, table.image], drawn, NO_CLASS)

    return targets, detections, Breakdown(("x", "y"), classes(targets), classes(detections), pixels)


def voc_reference(detections, targets, one, target_in, detection_in):
    """AP of area mode and recall, averaged over classes with targets, in percent."""
    rows = []
    for category in range(2):
        t, d = targets.category == category, detections.category == category
        judged = int((~targets.ignored & np.array(target_in, bool) & t).sum())
        if judged:
            part = [np.array(flags, bool)[keep].tolist() for flags, keep in ((target_in, t), (detection_in, d))]
            true, false = plain_voc(detections.rows(d), targets.rows(t), 0.5, one, *part)
            counted = int(true.sum() + false.sum())
            rows.append(
                (
                    100 * plain_curve_ap(true, false, judged, "area"),
                    100 * true.sum() / judged,
                    100 * true.sum() / max(counted, 1),
                )
            )
    return np.mean(rows, 0) if rows else np.full(3, np.nan)


def test_every_metric_of_a_class_equals_a_plain_version():
    for seed in range(200):
        with labelled(f"seed {seed}"):
            check_every_metric_of_a_class(seed)


def check_every_metric_of_a_class(seed):
    targets, detections, breakdown = random_breakdown(seed)
    protocol, one = (EXACT, 0) if seed % 2 else (PAPER, 1)
    voc = VOCDetectionEvaluator(TRUTH, protocol=protocol).compute_parts(detections, targets, breakdown)
    pd_fa = DetectionProbabilityEvaluator(TRUTH, score_thresh=0.3).compute_parts(detections, targets, breakdown)
    centre = CentreDistanceEvaluator(TRUTH, distances=(2,)).compute_parts(detections, targets, breakdown)
    for index in range(2):
        target_in, detection_in = ((c == index).tolist() for c in (breakdown.targets, breakdown.detections))
        expected = voc_reference(detections, targets, one, target_in, detection_in)
        found = [voc[index][name] for name in ("AP50_area", "recall50", "precision50")]
        np.testing.assert_allclose(found, expected, rtol=1e-6)  # the papers' protocol is single precision

        hits, false, area = plain_pd_fa(detections, targets, 0.3, 3.0, target_in, detection_in)
        judged = int((~targets.ignored & (breakdown.targets == index)).sum())
        pixels = max(breakdown.pixels[index].sum(), 1)
        assert pd_fa[index]["Pd"] == pytest.approx(100 * hits / judged if judged else np.nan, nan_ok=True)
        assert pd_fa[index]["Fa"] == pytest.approx(1e6 * area / pixels)
        assert pd_fa[index]["Fa_boxes"] == pytest.approx(1e6 * false / pixels)

        rows = []
        for category in range(2):
            t, d = targets.category == category, detections.category == category
            count = int((~targets.ignored & (breakdown.targets == index) & t).sum())
            if count:
                part = (breakdown.targets[t] == index).tolist(), (breakdown.detections[d] == index).tolist()
                verdicts = plain_centre(detections.rows(d), targets.rows(t), 2, *part)
                rows.append(100 * plain_curve_ap(*verdicts, count, "area"))
        assert centre[index]["AP@2px"] == pytest.approx(np.mean(rows) if rows else np.nan, nan_ok=True)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10**6))
def test_coco_parts_are_those_of_both_libraries_and_its_own_areas(seed):
    targets, detections, breakdown = random_breakdown(seed)
    fast, slow = (
        coco_part_metrics(detections, targets, breakdown, num_classes=2, use_faster=faster) for faster in (True, False)
    )
    for a, b in zip(fast, slow, strict=True):
        assert a == pytest.approx(b, abs=1e-9, nan_ok=True)
    files = ImageFiles(None, None, 10, 10)
    areas = Breakdown(
        tuple(AREA_BOUNDS),
        *(TARGET_KEYS["size"].measure(files, table.boxes)[0] for table in (targets, detections)),
        pixels=np.ones((4, IMAGES)),
    )
    whole = coco_metrics(detections, targets, IMAGES, num_classes=2)
    for name, part in zip(AREA_BOUNDS, coco_part_metrics(detections, targets, areas, num_classes=2), strict=True):
        for metric in ("AP50", "recall50"):
            assert part[metric] == pytest.approx(whole[f"{metric}-{name}"], abs=1e-9, nan_ok=True)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10**6))
def test_a_group_of_images_is_judged_as_if_it_were_the_data_set(seed):
    targets, detections = random_case(seed, IMAGES)
    first = np.random.default_rng(seed).random(IMAGES) < 0.5
    breakdown = image_breakdown({"first": first, "rest": ~first}, PIXELS, detections, targets)
    for index, images in enumerate((first, ~first)):
        number = np.cumsum(images) - 1
        t, d = images[targets.image], images[detections.image]
        alone_t, alone_d = targets.rows(t), detections.rows(d)
        alone_t.image[:], alone_d.image[:] = number[alone_t.image], number[alone_d.image]
        for evaluator in (VOCDetectionEvaluator(TRUTH), DetectionProbabilityEvaluator(TRUTH)):
            part = evaluator.compute_parts(detections, targets, breakdown)[index]
            assert part == pytest.approx(evaluator.compute(alone_d, alone_t, PIXELS[images]), nan_ok=True)
        coco = coco_part_metrics(detections, targets, breakdown, num_classes=2)[index]
        alone = coco_metrics(alone_d, alone_t, int(images.sum()), num_classes=2)
        assert coco == pytest.approx({name: alone[name] for name in coco}, nan_ok=True)


def test_sizes_include_their_lower_bound_only():
    edges = np.array([2, 3, 4, 5, 9, 31, 32])
    boxes = np.stack([np.zeros(7), np.zeros(7), edges, edges], 1).astype(float)
    classes, pixels = TARGET_KEYS["size"].measure(ImageFiles(None, None, 5, 8), boxes)
    assert classes.tolist() == [0, 1, 1, 2, 3, 3, NO_CLASS]
    assert pixels.tolist() == [40] * 4


@pytest.fixture
def pictures(tmp_path):
    """An image of 30x20 pixels whose left half is sky, with one open row, and targets of known contrast."""
    image = np.full((20, 30), 100, np.uint16)
    image[4:7, 4:7] = 110
    image[4:7, 20:23] = 300
    mask = np.zeros((20, 30), np.uint8)
    mask[:, :15], mask[15] = 1, 255
    files = ImageFiles(str(tmp_path / "image.png"), str(tmp_path / "mask.png"), 20, 30)
    cv2.imwrite(files.image, image)
    cv2.imwrite(files.sky_mask, mask)
    return files


BOXES = np.array([[4, 4, 7, 7], [20, 4, 23, 7], [10, 14, 13, 17.5]], float)


def test_contrast_and_sky_come_from_the_pixels(pictures):
    classes, pixels = TARGET_KEYS["contrast"].measure(pictures, BOXES)
    assert classes.tolist() == [0, 3, 0]
    assert pixels.tolist() == [600] * 4
    image = cv2.imread(pictures.image, cv2.IMREAD_UNCHANGED)
    assert local_contrast(image, BOXES)[:2] == pytest.approx([1.1, 3])
    classes, pixels = TARGET_KEYS["sky"].measure(pictures, BOXES)
    assert classes.tolist() == [0, 1, NO_CLASS]  # the centre of the last lies in the open row
    assert pixels.tolist() == [19 * 15, 19 * 15]
    outside = np.array([[-9, -9, 1, 1], [28, 18, 90, 90]], float)
    assert TARGET_KEYS["sky"].measure(pictures, outside)[0].tolist() == [0, 1]


def test_colour_and_missing_pixels(pictures):
    cv2.imwrite(pictures.image, np.dstack([cv2.imread(pictures.image, cv2.IMREAD_UNCHANGED)] * 3))
    assert TARGET_KEYS["contrast"].measure(pictures, BOXES)[0].tolist() == [0, 3, 0]
    nothing = ImageFiles(None, None, 20, 30)
    classes, pixels = TARGET_KEYS["sky"].measure(nothing, BOXES)
    assert (classes.tolist(), pixels.tolist()) == ([NO_CLASS] * 3, [0, 0])
    assert TARGET_KEYS["contrast"].measure(nothing, BOXES[:0])[0].shape == (0,)
    with pytest.raises(DatasetError, match=r"images without files have no contrast.*take 'contrast' out"):
        TARGET_KEYS["contrast"].measure(nothing, BOXES)
    wrong = ImageFiles(pictures.image, pictures.sky_mask, 30, 20)
    for key, name in (("contrast", "image"), ("sky", "mask")):
        with pytest.raises(DatasetError, match=rf"{name}\.png: size: 30x20 pixels, but annotated as 20x30"):
            TARGET_KEYS[key].measure(wrong, BOXES)


def truth_of(pictures):
    annotations = [
        {"bbox": box, "bbox_mode": BoxMode.XYXY_ABS, "category_id": 0, "iscrowd": 0} for box in BOXES[:2].tolist()
    ]
    record = {"file_name": pictures.image, "sem_seg_file_name": pictures.sky_mask, "height": 20, "width": 30}
    return GroundTruth.from_dicts(
        [{**record, "image_id": "a", "annotations": annotations}, {**record, "image_id": "b", "annotations": []}]
    )


def test_an_evaluator_breaks_down_by_what_the_pixels_show(pictures):
    evaluator = DetectionProbabilityEvaluator(truth_of(pictures), group_by=("sky", "contrast", "size"))
    # Found: the dim target in the sky. False: two of 2x2 in the sky, one on the ground, one in the open row.
    false = np.array([[1, 15, 3, 17], [11, 8, 13, 10], [20, 12, 24, 16], [20, 15, 25, 16]], float)
    evaluator.add("a", np.concatenate([BOXES[:1], false]), np.linspace(0.9, 0.6, 5), np.zeros(5, int))
    results = evaluator.evaluate()["pd_fa"]
    assert results["Pd"] == 50
    assert (results["sky/sky/Pd"], results["sky/non-sky/Pd"]) == (100, 0)
    per_pixel = 1e6 / (2 * 19 * 15)  # both images count, the second without predictions
    assert results["sky/sky/Fa"] == pytest.approx(8 * per_pixel)
    assert results["sky/non-sky/Fa_boxes"] == pytest.approx(per_pixel)
    assert (results["contrast/<1.2/Pd"], results["contrast/>=2/Pd"]) == (100, 0)
    assert results["contrast/<1.2/Fa_boxes"] == pytest.approx(4e6 / 1200)
    assert results["size/9-25/Pd"] == 50
    assert results["size/<9/Fa"] == pytest.approx(1e6 * (4 + 4 + 5) / 1200)
    assert results["size/9-25/Fa"] == pytest.approx(1e6 * 16 / 1200)


def test_classes_that_do_not_occur_have_no_numbers(pictures):
    evaluator = VOCDetectionEvaluator(truth_of(pictures), group_by=("size", "sky"))
    results = evaluator.evaluate()["voc_exact"]
    assert np.isnan(results["size/25-81/AP50_area"])
    assert results["size/9-25/AP50_area"] == results["sky/sky/AP50_area"] == 0

    class Counting(TableEvaluator):
        def compute(self, detections, targets, image_pixels):
            return {"images": float(len(image_pixels))}

    empty = Counting(GroundTruth.from_dicts([]), group_by=("size", "sky", "platform"))
    results = empty.evaluate()["table"]
    assert set(results.values()) == {0}
    assert list(results) == [
        "images",
        *(f"size/{name}/images" for name in AREA_BOUNDS),
        "sky/sky/images",
        "sky/non-sky/images",
    ]
