"""Test-time augmentation: exact views, results in the original image, all detectors; merging against plain loops."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from detectron2.modeling import RetinaNet
from detectron2.structures import Boxes, Instances
from hypothesis import given, settings
from hypothesis import strategies as st
from loops import for_every
from torch import distributed, nn
from torch.nn.parallel import DistributedDataParallel

from irstd_d2 import get_config
from irstd_d2.engine import IRSTDTrainer
from irstd_d2.errors import ConfigError
from irstd_d2.inference import DetectorWithTTA
from irstd_d2.inference.merging import merge_views, nms_thresh_of

ALL = {"scales": (1.0, 2.0), "flip": True, "vertical_flip": True}


class SpotDetector(nn.Module):
    """Finds the box of all bright pixels of the image it is shown, with a score by the place of its lower left corner.

    Its sem_seg is the image, so that what comes back can be compared with what went in.
    """

    def __init__(self):
        super().__init__()
        self.seen = []
        self.dead = nn.Parameter(torch.zeros(1))

    def forward(self, samples):
        self.seen.append(samples)
        return [self.detect(sample) for sample in samples]

    def detect(self, sample):
        pixels, size = sample["image"][0], (sample["height"], sample["width"])
        y, x = torch.nonzero(pixels > 0.5, as_tuple=True)
        box = torch.zeros(0, 4)
        if len(x):
            box = torch.stack([x.min(), y.min(), x.max() + 1, y.max() + 1])[None].float()
            factors = size[1] / pixels.shape[1], size[0] / pixels.shape[0]
            box = box * torch.tensor([*factors, *factors])
        shown = nn.functional.interpolate(sample["image"][None, :2], size, mode="area")[0]
        return {"instances": instances(box, torch.full((len(box),), 0.5), size=size), "sem_seg": shown}


def instances(boxes, scores, classes=None, size=(100, 100)):
    found = Instances(size)
    found.pred_boxes = Boxes(torch.as_tensor(boxes, dtype=torch.float32).reshape(-1, 4))
    found.scores = torch.as_tensor(scores, dtype=torch.float32)
    found.pred_classes = torch.as_tensor(classes if classes is not None else [0] * len(scores), dtype=torch.long)
    return found


def spot(height, width, x1, y1, x2, y2):
    image = torch.zeros(3, height, width)
    image[:, y1:y2, x1:x2] = 1
    return image


@given(st.data())
@settings(deadline=None, max_examples=25)
def test_every_view_finds_the_box_where_it_is(data):
    """Mirrored and enlarged, whatever the size of the image in the network and of the original."""
    height, width = data.draw(st.integers(4, 30)), data.draw(st.integers(4, 30))
    y1, x1 = data.draw(st.integers(0, height - 1)), data.draw(st.integers(0, width - 1))
    y2, x2 = data.draw(st.integers(y1 + 1, height)), data.draw(st.integers(x1 + 1, width))
    factor = data.draw(st.integers(1, 3))  # original pixels per pixel of the network's input
    model = SpotDetector()
    tta = DetectorWithTTA(model, **ALL, merge="nms", nms_thresh=0.999)
    sample = {"image": spot(height, width, x1, y1, x2, y2), "height": factor * height, "width": factor * width}
    (result,) = tta([sample])
    found = result["instances"]
    assert found.image_size == (factor * height, factor * width)
    # One box: all eight views agree to the last pixel, or suppression at 0.999 would leave several.
    torch.testing.assert_close(found.pred_boxes.tensor, factor * torch.tensor([[x1, y1, x2, y2]]).float())
    assert sum(len(samples) for samples in model.seen) == 8


def test_the_views_of_an_image():
    image = torch.arange(2 * 3 * 3, dtype=torch.float32).reshape(3, 2, 3)
    metadata = {"platform": "Air", "width": 3, "height": 2}
    sample = {"image": image, "height": 20, "width": 30, "metadata": metadata, "image_id": "a"}
    views = DetectorWithTTA(SpotDetector(), **ALL).views(sample)
    assert [tuple(v.sample["image"].shape) for v in views] == [(3, 2, 3)] * 4 + [(3, 4, 6)] * 4
    for view, expected in zip(views, (image, image.flip(2), image.flip(1), image.flip(1, 2))):
        assert torch.equal(view.sample["image"], expected)
    assert all(v.sample["metadata"] is metadata for v in views)
    assert all((v.sample["height"], v.sample["width"], v.sample["image_id"]) == (20, 30, "a") for v in views)
    assert sample["image"] is image


def test_sizes_by_factor_and_by_shorter_edge():
    sample = {"image": torch.rand(3, 40, 60)}
    tta = DetectorWithTTA(SpotDetector(), scales=(0.5, 1.0), min_sizes=(20, 30, 80), max_size=90, flip=False)
    views = tta.views(sample)
    # 20 is the half; the longer edge of 80 would be 120.
    assert [tuple(v.sample["image"].shape[1:]) for v in views] == [(20, 30), (40, 60), (30, 45), (60, 90)]
    assert all((v.sample["height"], v.sample["width"]) == (40, 60) for v in views)


def test_an_image_of_one_pixel_and_no_detection():
    found = DetectorWithTTA(SpotDetector(), scales=(0.5, 1.0))([{"image": torch.zeros(3, 1, 1)}])[0]["instances"]
    assert (len(found), found.image_size) == (0, (1, 1))


def test_views_of_one_size_are_batched_over_images():
    model = SpotDetector()
    samples = [{"image": spot(h, 8, 1, 1, 3, 4 + i)} for i, h in enumerate((6, 12, 6))]
    results = DetectorWithTTA(model, scales=(1.0, 2.0), flip=True, batch_size=3)(samples)
    shapes = [[tuple(s["image"].shape[1:]) for s in batch] for batch in model.seen]
    assert all(len(set(batch)) == 1 for batch in shapes)
    assert sorted(map(len, shapes)) == [1, 1, 2, 2, 3, 3]
    for i, result in enumerate(results):
        assert result["instances"].pred_boxes.tensor.tolist() == [[1, 1, 3, 4 + i]]


def test_maps_come_back_as_they_were_and_are_averaged():
    image = torch.rand(3, 5, 7)
    (result,) = DetectorWithTTA(SpotDetector(), flip=True, vertical_flip=True)([{"image": image}])
    torch.testing.assert_close(result["sem_seg"], image[:2])

    class Growing(SpotDetector):
        def detect(self, sample):
            self.calls = getattr(self, "calls", 0) + 1
            return {**super().detect(sample), "sem_seg": torch.full((2, 5, 7), float(self.calls))}

    (result,) = DetectorWithTTA(Growing(), flip=True, vertical_flip=True)([{"image": image}])
    assert (result["sem_seg"] == 2.5).all()


def plain_vote(views, threshold):
    """``merge_views`` with ``vote``, in loops."""

    def iou(a, b):
        w = max(0, min(a[2], b[2]) - max(a[0], b[0]))
        h = max(0, min(a[3], b[3]) - max(a[1], b[1]))
        union = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - w * h
        return w * h / union if union else 0

    rows = [
        (score, box, kind, view)
        for view, part in enumerate(views)
        for box, score, kind in zip(part.pred_boxes.tensor.tolist(), part.scores.tolist(), part.pred_classes.tolist())
    ]
    rows.sort(key=lambda row: -row[0])
    kept = []
    for row in rows:
        if all(row[2] != other[2] or iou(row[1], other[1]) <= threshold for other in kept):
            kept.append(row)
    groups = [[row] for row in kept]
    for row in rows:
        if row in kept:
            continue
        overlaps = [iou(row[1], other[1]) if row[2] == other[2] else -1 for other in kept]
        groups[int(np.argmax(overlaps))].append(row)
    merged = []
    for group in groups:
        weight = sum(row[0] for row in group)
        box = [sum(row[0] * row[1][i] for row in group) / weight for i in range(4)]
        best = [max((row[0] for row in group if row[3] == view), default=0) for view in range(len(views))]
        merged.append((sum(best) / len(views), *box, group[0][2]))
    return sorted(merged, key=lambda row: -row[0])


@for_every("seed", range(20))
def test_votes_are_those_of_plain_loops(seed):
    rng = np.random.default_rng(seed)
    views = []
    for _ in range(4):
        count = rng.integers(0, 25)
        corner = rng.uniform(0, 20, (count, 2))
        boxes = np.concatenate([corner, corner + rng.uniform(3, 9, (count, 2))], 1)
        views.append(instances(boxes, rng.uniform(0.01, 1, count), rng.integers(0, 2, count)))
    merged = merge_views(views, 0.4, vote=True)
    rows = torch.cat([merged.scores[:, None], merged.pred_boxes.tensor, merged.pred_classes[:, None]], 1)
    np.testing.assert_allclose(rows.numpy(), np.reshape(plain_vote(views, 0.4), (-1, 6)), rtol=1e-4, atol=1e-4)


def test_a_vote_in_figures():
    """Two views see a target half a pixel apart, one of them twice; the third sees it not."""
    views = [
        instances([[10, 10, 14, 14], [11, 10, 15, 14], [50, 50, 53, 53]], [0.6, 0.2, 0.9]),
        instances([[11, 10, 15, 14]], [0.3]),
        instances([], []),
    ]
    merged = merge_views(views, 0.5, vote=True)
    torch.testing.assert_close(merged.scores, torch.tensor([0.3, 0.3]))
    spot, other = sorted(merged.pred_boxes.tensor.tolist())
    np.testing.assert_allclose(spot, [10 + 0.5 / 1.1, 10, 14 + 0.5 / 1.1, 14], rtol=1e-6)
    np.testing.assert_allclose(other, [50, 50, 53, 53], rtol=1e-6)
    best = merge_views(views, 0.5, vote=False)
    assert best.pred_boxes.tensor.tolist() == [[50, 50, 53, 53], [10, 10, 14, 14]]
    torch.testing.assert_close(best.scores, torch.tensor([0.9, 0.6]))


def test_boxes_without_area_and_scores_of_zero_stay_finite():
    views = [instances([[5, 5, 5, 5], [5, 5, 5, 5], [1, 1, 4, 4]], [0.5, 0.4, 0.0])] * 2
    merged = merge_views(views, 0.5, vote=True)
    assert torch.isfinite(merged.pred_boxes.tensor).all()
    assert merged.pred_boxes.tensor[-1].tolist() == [1, 1, 4, 4]
    assert merged.scores.tolist()[-1] == 0


def test_the_best_are_kept():
    class Many(nn.Module):
        def forward(self, samples):
            boxes = [[i, 0, i + 1, 1] for i in range(0, 60, 2)]
            return [{"instances": instances(boxes, torch.linspace(0.1, 0.9, 30))} for _ in samples]

    found = DetectorWithTTA(Many(), flip=False, max_detections=7)([{"image": torch.zeros(3, 100, 100)}])[0]["instances"]
    assert found.scores.tolist() == pytest.approx(torch.linspace(0.1, 0.9, 30).flip(0)[:7].tolist())


DETECTORS = [
    "baselines/tiny/fcos_tiny",
    "baselines/tiny/faster_rcnn_tiny",
    "bafe/tiny/bafe_tiny",
    "auxdet/tiny/auxdet_tiny",
    "bafe/tiny/auxbafe_tiny",
]


def real_detector(repo_root, config, *options):
    torch.manual_seed(3)
    cfg = get_config(repo_root / f"configs/{config}.yaml", ["MODEL.DEVICE", "cpu", *options])
    cfg.MODEL.FCOS.SCORE_THRESH_TEST = 0.0
    model = IRSTDTrainer.build_model(cfg).eval()
    head = dict(model.named_modules()).get("head")
    if hasattr(head, "cls_logits"):
        nn.init.normal_(head.cls_logits.weight, std=0.1)
    return cfg, model


def rows(result):
    found = result["instances"]
    return torch.cat([found.pred_boxes.tensor, found.scores[:, None], found.pred_classes[:, None]], 1)


def two_samples():
    pixels = [torch.rand(3, 96, 128) * 255, torch.rand(3, 64, 96) * 255]
    known = [{"platform": "Air", "band": "LWIR", "width": 256, "height": 192}, {}]
    return [
        {"image": image, "height": 2 * image.shape[1], "width": 2 * image.shape[2], "metadata": metadata}
        for image, metadata in zip(pixels, known)
    ]


@for_every("config", DETECTORS)
def test_one_plain_view_changes_nothing(repo_root, config):
    cfg, model = real_detector(repo_root, config)
    cfg.TEST.AUG.FLIP = False
    samples = two_samples()
    with torch.no_grad():
        for merge in ("nms", "vote"):
            cfg.TEST.AUG.MERGE = merge
            tta = DetectorWithTTA(cfg, model)
            assert not tta.training
            for sample, result in zip(samples, tta(samples)):
                (expected,) = model([sample])
                torch.testing.assert_close(rows(result), rows(expected), rtol=1e-5, atol=1e-4)
                assert len(rows(result)) > 0
                assert ("sem_seg" in result) == ("sem_seg" in expected)
                if "sem_seg" in expected:
                    torch.testing.assert_close(result["sem_seg"], expected["sem_seg"])


@for_every("config", ["bafe/tiny/bafe_tiny", "auxdet/tiny/auxdet_tiny"])
def test_the_mirror_image_gives_the_mirrored_result(repo_root, config):
    """Its views are the same in another order."""
    cfg, model = real_detector(repo_root, config)
    cfg.TEST.AUG.SCALES = (1.0, 1.3)
    tta = DetectorWithTTA(cfg, model)
    sample = two_samples()[0]
    with torch.no_grad():
        (straight,), (mirrored,) = tta([sample]), tta([{**sample, "image": sample["image"].flip(2)}])
    expected = rows(straight)
    expected[:, [2, 0]] = sample["width"] - expected[:, [0, 2]]
    found = rows(mirrored)
    assert len(found) == len(expected) > 0
    distance = torch.cdist(found[:, :5], expected[:, :5], compute_mode="donot_use_mm_for_euclid_dist")
    nearest, partner = distance.min(1)
    assert nearest.max() < 0.01
    assert sorted(partner.tolist()) == list(range(len(found)))
    if "sem_seg" in straight:
        torch.testing.assert_close(mirrored["sem_seg"].flip(2), straight["sem_seg"])


def test_settings_come_from_the_configuration(repo_root):
    options = ["TEST.AUG.SCALES", "(0.5, 1.5)", "TEST.AUG.MIN_SIZES", "(64,)", "TEST.AUG.FLIP", "False"]
    options += ["TEST.AUG.VERTICAL_FLIP", "True", "TEST.AUG.MERGE", "nms", "MODEL.FCOS.NMS_THRESH_TEST", "0.3"]
    cfg, model = real_detector(repo_root, DETECTORS[0], *options, "TEST.DETECTIONS_PER_IMAGE", "9")
    tta = DetectorWithTTA(cfg, model)
    assert (tta.vote, tta.nms_thresh, tta.max_detections, len(tta.resizes)) == (False, 0.3, 9, 3)
    assert tta.flips == [(False, False), (True, False)]


def test_the_detectors_own_suppression_counts(repo_root):
    cfg = get_config(None, ["MODEL.RETINANET.NMS_THRESH_TEST", 0.1, "MODEL.FCOS.NMS_THRESH_TEST", 0.2])
    cfg.MODEL.ROI_HEADS.NMS_THRESH_TEST = 0.3
    assert nms_thresh_of(cfg, RetinaNet.__new__(RetinaNet)) == 0.1
    assert nms_thresh_of(cfg, SpotDetector()) == 0.2
    assert nms_thresh_of(cfg, SimpleNamespace(roi_heads=None)) == 0.3


@for_every(
    ("options", "message"),
    [
        ({"scales": ()}, r"TEST\.AUG\.SCALES and TEST\.AUG\.MIN_SIZES are empty"),
        ({"scales": (1.0, -2.0)}, r"TEST\.AUG\.SCALES is \(1\.0, -2\.0\)"),
        ({"min_sizes": (0,)}, r"TEST\.AUG\.MIN_SIZES is \(0,\)"),
        ({"merge": "sum"}, r"TEST\.AUG\.MERGE is 'sum'; known are 'vote', 'nms'"),
    ],
)
def test_settings_that_cannot_work_are_refused(options, message):
    with pytest.raises(ConfigError, match=message):
        DetectorWithTTA(SpotDetector(), **options)


def test_masks_are_refused():
    cfg = get_config(None, ["MODEL.MASK_ON", True])
    with pytest.raises(ConfigError, match="MASK_ON"):
        DetectorWithTTA(cfg, SpotDetector())


def test_a_distributed_model_is_unwrapped():
    distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)
    try:
        model = SpotDetector()
        tta = DetectorWithTTA(get_config(), DistributedDataParallel(model))
    finally:
        distributed.destroy_process_group()
    assert tta.model is model
