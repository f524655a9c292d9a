"""Cards of the zoo: numbers from saved detections, by platform, and a threshold chosen on one half of the images."""

import json
from dataclasses import replace

import cv2
import numpy as np
import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.structures import BoxMode

from irstd_d2 import model_zoo
from irstd_d2.cli import main
from irstd_d2.errors import ConfigError
from irstd_d2.model_zoo.cards import Judged, choose_threshold, half, write_index

NAMES = ("cards_own", "cards_other")
TARGET, FALSE = [10, 10, 4, 4], [30, 30, 4, 4]  # x, y, width, height


@pytest.fixture
def sets(tmp_path):
    """Two sets of twenty images with one target each, the first from two platforms in turn."""
    cv2.imwrite(str(tmp_path / "image.png"), np.full((48, 48), 90, np.uint8))
    for name in NAMES:
        records = [
            {
                "image_id": f"i{i}", "file_name": str(tmp_path / "image.png"), "height": 48, "width": 48,
                "annotations": [{"bbox": TARGET, "bbox_mode": BoxMode.XYWH_ABS, "category_id": 0, "iscrowd": 0}],
                "metadata": {"platform": "AL"[i % 2] if name == NAMES[0] else "A"},
            }
            for i in range(20)
        ]  # fmt: skip
        DatasetCatalog.register(name, lambda records=records: records)
        MetadataCatalog.get(name).set(thing_classes=["Target"])
    yield tmp_path
    for name in NAMES:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)


def write_detections(folder, name, scores):
    """``scores``: image -> (score of the target's detection or ``None``, scores of false alarms)."""
    rows = [
        {"image_id": f"i{i}", "category_id": 0, "bbox": box, "score": score}
        for i, (found, false) in scores.items()
        for box, score in [
            (TARGET, found),
            *(([1 + 6 * (k % 7), 24 + 6 * (k // 7), 4, 4], s) for k, s in enumerate(false)),
        ]
        if score is not None
    ]
    path = folder / "inference" / name / "coco_instances_results.json"
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps(rows))


def judge(folder, name, draws=20):
    from irstd_d2 import get_config
    from irstd_d2.evaluation.rescoring import rescore

    cfg = get_config()
    cfg.TEST.EVALUATORS = ()
    return Judged(rescore([folder], name, cfg)[0], draws)


@pytest.mark.parametrize(
    ("false_scores", "expected", "rate"),
    [
        # The first half (even images) has one false alarm per image at 0.41235; the second half has none, or three.
        ({0: [0.9, 0.8, 0.7, 0.6, 0.5, 0.45, 0.44], 2: [0.43, 0.42, 0.41235, 0.2]}, 0.413, 0.0),
        (
            {0: [0.9] * 5 + [0.3] * 2, 2: [0.8] * 5, 1: [0.95] * 7, 3: [0.95] * 7, 5: [0.95] * 7, 7: [0.95] * 9},
            0.8,
            3.0,
        ),
    ],
)
def test_the_threshold_is_of_one_half_and_judged_on_the_other(sets, false_scores, expected, rate):
    write_detections(sets / "run", NAMES[0], {i: (0.9 if i < 15 else 0.1, false_scores.get(i, [])) for i in range(20)})
    judged = judge(sets / "run", NAMES[0])
    threshold = choose_threshold([judged])
    assert threshold == pytest.approx(expected)
    point = judged.at(threshold, half(20, second=True))
    assert point.false_alarms.value == pytest.approx(rate)
    assert point.pd.value == pytest.approx(70)  # 1, 3, ..., 13 of the ten odd images
    assert point.pd.low < 70 < point.pd.high


def test_a_threshold_of_two_sets_counts_the_images_of_both(sets):
    write_detections(sets / "run", NAMES[0], {0: (0.5, [0.9] * 5 + [0.6] * 20)})
    write_detections(sets / "run", NAMES[1], {0: (0.5, [0.7] * 14 + [0.4] * 9)})
    judged = [judge(sets / "run", name) for name in NAMES]
    assert choose_threshold(judged[:1]) == 0.9
    assert choose_threshold(judged) == 0.7  # 19 false alarms on 20 images
    write_detections(sets / "none", NAMES[0], {0: (None, [0.9] * 11)})
    with pytest.raises(ConfigError, match="no score threshold"):
        choose_threshold([judge(sets / "none", NAMES[0])])


def test_a_card_has_every_set_with_intervals_and_the_index_the_threshold(sets, monkeypatch, capsys):
    folder = sets / "zoo"
    monkeypatch.setattr(model_zoo, "FOLDER", folder)
    packaged = model_zoo._PACKAGE
    entry = replace(
        model_zoo.Entry("fcos_dense", "", ("bafe_d2",)),
        test=(NAMES[0],),
        notes={NAMES[1]: "seen before"},
        fails="Birds.",
    )
    for path in (entry.config_file, entry.weights_file):
        path.parent.mkdir(parents=True)
        path.write_bytes((packaged / path.relative_to(folder)).read_bytes())
    write_index([entry])
    # Of platform A (even images) all are found, of L every second one.
    write_detections(sets / "runs" / "fcos_dense", NAMES[0], {i: (0.9, [0.5]) for i in range(20) if i % 4 != 1})
    write_detections(sets / "runs" / "fcos_dense", NAMES[1], {i: (0.4, []) for i in range(20)})
    arguments = ["zoo", "cards", "--runs-dir", str(sets / "runs"), "--dataset", *NAMES, "--bootstrap", "20"]
    assert main(arguments) == 0
    text = entry.card.read_text()
    (row,) = [line for line in text.splitlines() if "Pd at one" in line]
    cells = [cell.strip() for cell in row.split("|")[2:-1]]
    assert [cell.split(" ")[0] for cell in cells] == ["75.0", "100.0", "100.0", "50.0"]  # own, other, A, L
    assert cells[2] == "100.0 (100.0 to 100.0)"
    assert "seen before" in text
    assert "Birds." in text
    assert model_zoo.entry("fcos_dense").score_thresh == 0.5
    assert model_zoo.entry("fcos_dense").metrics["cards_own/pd_fa/Pd@FAPI1"] == 75.0
    assert model_zoo.entry("fcos_dense").test == (NAMES[0],)
    assert main([*arguments[:-4], "cards_unknown"]) == 2
    assert "cards_unknown" in capsys.readouterr().err
    (sets / "runs" / "fcos_dense").rename(sets / "runs" / "another")
    assert main(arguments) == 2
    assert "run irstd evaluate --weights NAME first" in capsys.readouterr().err
