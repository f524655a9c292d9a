"""Which image and class a row of predictions is of: ids, names with folders, classes, what irstd detect writes."""

import json
import logging

import numpy as np
import pytest

from irstd_d2.data.classes import ClassTable
from irstd_d2.errors import DatasetError
from irstd_d2.evaluation.ground_truth import GroundTruth
from irstd_d2.evaluation.predictions import from_supervision, read_any_predictions
from irstd_d2.inference.results import ImageResult, write_results


def make_set(ids, names, class_names=("target",), category_index=None):
    dicts = [
        {"image_id": image_id, "file_name": f"root/{name}", "height": 40, "width": 50}
        for image_id, name in zip(ids, names)
    ]
    return GroundTruth.from_dicts(dicts, class_names, category_index)


def rows_of(*images, **values):
    return [{"image_id": image, "category_id": 0, "bbox": [3, 4, 3, 4], "score": 0.5, **values} for image in images]


def read_json(folder, rows, truth):
    path = folder / "rows.json"
    path.write_text(json.dumps(rows))
    return read_any_predictions(path, truth)


def read_csv(folder, text, truth, aliases=None):
    path = folder / "rows.csv"
    path.write_text(text)
    return read_any_predictions(path, truth, aliases=aliases)


@pytest.mark.parametrize(
    ("ids", "predicted"),
    [((1, 2, 3), (0, 1, 2)), ((1, 2, 3), (0, 2)), ((0, 1, 2), (1, 3)), ((7, 8, 9), (8, 10)), ((1, 2, 3), ("0", "1"))],
)
def test_ids_that_count_from_elsewhere_are_refused(tmp_path, ids, predicted):
    """Each would be judged by the targets of its neighbour."""
    truth = make_set(ids, ("a.png", "b.png", "c.png"))
    with pytest.raises(DatasetError, match=r"not in the evaluated data set, .* from 0 where the set does from 1.*"):
        read_json(tmp_path, rows_of(*predicted), truth)
    found = read_json(tmp_path, rows_of(*predicted, ids[0], ids[-1]), truth)  # a larger set's: no shift fits
    assert len(found.surplus) == 1


def test_a_class_may_be_called_by_a_digit(tmp_path):
    truth = make_set([5], ["a.png"], ("1", "2"))

    def classes(column, *labels, aliases=None):
        lines = "".join(f"a.png,{label},.5,3,4,6,8\n" for label in labels)
        found = read_csv(tmp_path, f"image,{column},score,xmin,ymin,xmax,ymax\n{lines}", truth, aliases)
        return found.boxes[5][2].tolist()

    assert classes("class", "1", "2", "0") == [0, 1, 0]  # 0 is the name of none
    assert classes("class_id", "1", "0") == [1, 0]
    assert classes("class", "0", "3", aliases={"0": "2", "3": "1"}) == [1, 0]
    assert classes("class_id", "0", aliases={"0": "2"}) == [1]


def test_a_detection_without_a_class_needs_a_set_of_one(tmp_path):
    table = "image,score,xmin,ymin,xmax,ymax{}\na.png,.5,3,4,6,8{}\n"
    sv = pytest.importorskip("supervision", reason="supervision is not installed")
    found = sv.Detections(np.array([[3.0, 4, 6, 8]]), confidence=np.array([0.5]))
    one, two = (make_set([5], ["a.png"], names) for names in (["target"], ["drone", "bird"]))
    for text in (table.format("", ""), table.format(",class", ",")):
        assert read_csv(tmp_path, text, one).boxes[5][2].tolist() == [0]
        with pytest.raises(DatasetError, match="a detection has no class, the data set has drone, bird"):
            read_csv(tmp_path, text, two)
    assert from_supervision({"a": found}, one).boxes[5][2].tolist() == [0]
    with pytest.raises(DatasetError, match="a detection has no class"):
        from_supervision({"a": found}, two)


def test_images_of_one_name_are_told_apart_by_their_folders(tmp_path):
    truth = make_set([1, 2, 3], ["s1/0001.png", "s2/0001.png", "s2/s1/0002.png"])
    for prefix in ("", "./", "/somewhere/else/", "C:\\sets\\"):
        rows = [row for name in ("s2/0001.png", "s1/0002.png") for row in rows_of(9, file_name=prefix + name)]
        assert sorted(read_json(tmp_path, rows, truth).boxes) == [2, 3]
    with pytest.raises(DatasetError, match=r"'0001\.png' may be any of 2 images"):
        read_json(tmp_path, rows_of(9, file_name="0001.png"), truth)
    del rows[0]["image_id"], rows[1]["image_id"]
    assert sorted(read_json(tmp_path, rows, truth).boxes) == [2, 3]


def test_a_file_without_a_header_holds_no_predictions(tmp_path):
    with pytest.raises(DatasetError, match="no column for image"):
        read_csv(tmp_path, "", make_set([5], ["a.png"]))


RESULTS = [
    ImageResult("a", "a.png", None, (50, 40), {}, [[3.14159, 4, 6.5, 8.01], [-1, 0, 3, 2]], [0.99999, 0.99998], [0, 1]),
    ImageResult("clip_000000", "in/clip.avi", 0, (50, 40), {}, [[5, 5, 9, 9]], [0.123456], [1]),
    ImageResult("clip_000001", "in/clip.avi", 1, (50, 40), {}, [[6, 5, 10, 9]], [0.7], [0]),
]  # fmt: skip


@pytest.mark.parametrize("written", ["detections.json", "detections.csv", "voc", "yolo"])
def test_what_irstd_detect_writes_is_read_as_it_was(tmp_path, written):
    """By a set that has the classes in another order, under each other's ids; frames are images of their own."""
    write_results(tmp_path, RESULTS, ClassTable(("bird", "drone"), {1: 0, 2: 1}), ("json", "csv", "voc", "yolo"))
    names = ["a.png", "clip.avi", "clip_000000.png", "clip_000001.png"]
    truth = make_set([11, 12, 13, 14], names, ("drone", "bird"), {1: 0, 2: 1})
    found = read_any_predictions(tmp_path / written, truth)
    assert sorted(found.boxes) == [11, 13, 14]
    for image, result in zip((11, 13, 14), RESULTS):
        boxes, scores, classes = found.boxes[image]
        np.testing.assert_allclose(boxes, result.boxes, atol=1e-5)
        np.testing.assert_allclose(scores, result.scores, atol=1e-7)
        assert [truth.class_names[index] for index in classes] == [("bird", "drone")[i] for i in result.classes]


def test_files_of_earlier_detections_are_named(tmp_path, caplog):
    table = ClassTable(("bird", "drone"), {1: 0, 2: 1})
    write_results(tmp_path, RESULTS, table, ("voc", "yolo"))
    write_results(tmp_path, RESULTS, table, ("voc", "yolo"))
    assert not caplog.text
    with caplog.at_level(logging.WARNING):
        write_results(tmp_path, RESULTS[1:2], table, ("json", "voc"))
    (message,) = caplog.messages
    assert message.startswith(f"{tmp_path / 'voc'} holds 2 files of earlier runs, such as a.xml")
