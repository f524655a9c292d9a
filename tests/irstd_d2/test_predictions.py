"""Predictions of other tools: every format gives the same boxes, by the names of images and classes."""

import csv
import json
from types import MappingProxyType

import cv2
import numpy as np
import pytest
from detectron2.structures import BoxMode

from irstd_d2.errors import DatasetError
from irstd_d2.evaluation.ground_truth import GroundTruth
from irstd_d2.evaluation.mask_files import mask_reader
from irstd_d2.evaluation.predictions import from_supervision, read_any_predictions, read_predictions

sv = pytest.importorskip("supervision", reason="supervision is not installed")

BOXES = {
    "a": (np.array([[3, 4, 6, 8], [20, 10, 24, 13.5]]), np.array([0.75, 0.5]), ["bird", "drone"]),
    "0042": (np.array([[1.5, 2, 5, 6]]), np.array([0.25]), ["drone"]),
}
CLASSES = ("drone", "bird")


def make_truth(class_names=CLASSES, category_index=MappingProxyType({7: 0, 3: 1}), folder="set/images"):
    annotation = {"bbox": [3, 4, 6, 8], "bbox_mode": BoxMode.XYXY_ABS, "category_id": 0, "iscrowd": 0}
    dicts = [
        {
            "image_id": image_id,
            "file_name": f"{folder}/{stem}.png",
            "height": 40,
            "width": 50,
            "annotations": annotations,
        }
        for image_id, stem, annotations in ((11, "a", [annotation]), (12, "0042", []), (13, "c", []))
    ]
    return GroundTruth.from_dicts(dicts, class_names, category_index)


IDS = {"a": 11, "0042": 12}


def coco(folder, name_of=lambda stem: {"image_id": IDS[stem]}):
    rows = []
    for stem, (boxes, scores, names) in BOXES.items():
        for (x1, y1, x2, y2), score, name in zip(boxes.tolist(), scores.tolist(), names):
            own = {"drone": 7, "bird": 3}[name]
            rows.append({**name_of(stem), "category_id": own, "bbox": [x1, y1, x2 - x1, y2 - y1], "score": score})
    path = folder / "results.json"
    path.write_text(json.dumps(rows))
    return path


def coco_by_file_name(folder):
    return coco(folder, lambda stem: {"image_id": 9, "file_name": f"elsewhere/{stem}.png"})


def coco_by_stem(folder):
    return coco(folder, lambda stem: {"image_id": int(stem) if stem.isdecimal() else stem})


def coco_document(folder):
    rows = json.loads(coco(folder).read_text())
    names = {7: "Drone", 3: "BIRD"}
    document = {
        "images": [{"id": 1000 + IDS[stem], "file_name": f"{stem}.png"} for stem in IDS],
        "categories": [{"id": 50 + own, "name": name} for own, name in names.items()],
        "annotations": [
            {**row, "image_id": 1000 + row["image_id"], "category_id": 50 + row["category_id"]} for row in rows
        ],
    }
    path = folder / "document.json"
    path.write_text(json.dumps(document))
    return path


def yolo(folder, names=None, sub="labels"):
    (folder / "yolo" / sub).mkdir(parents=True)
    order = ["bird", "drone"] if names else list(CLASSES)
    for stem, (boxes, scores, classes) in BOXES.items():
        lines = []
        for (x1, y1, x2, y2), score, name in zip(boxes.tolist(), scores.tolist(), classes):
            values = (x1 + x2) / 100, (y1 + y2) / 80, (x2 - x1) / 50, (y2 - y1) / 40, score
            lines.append(f"{order.index(name)} " + " ".join(map(repr, values)))
        (folder / "yolo" / sub / f"{stem}.txt").write_text("\n".join(lines) + "\n")
    if names == "classes.txt":
        (folder / "yolo" / sub / names).write_text("bird\ndrone\n")
    elif names:
        (folder / "yolo" / names).write_text("names: {0: bird, 1: drone}\n")
    return folder / "yolo"


def voc(folder):
    (folder / "voc").mkdir()
    for stem, (boxes, scores, names) in BOXES.items():
        objects = "".join(
            f"<object><name>{name}</name><score>{score}</score><bndbox><xmin>{x1}</xmin><ymin>{y1}</ymin>"
            f"<xmax>{x2}</xmax><ymax>{y2}</ymax></bndbox></object>"
            for (x1, y1, x2, y2), score, name in zip(boxes.tolist(), scores.tolist(), names)
        )
        (folder / "voc" / f"{stem}.xml").write_text(f"<annotation>{objects}</annotation>")
    return folder / "voc"


def table(folder, columns):
    path = folder / "table.csv"
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(columns)
        for stem, (boxes, scores, names) in BOXES.items():
            for box, score, name in zip(boxes.tolist(), scores.tolist(), names):
                label = CLASSES.index(name) if "class_id" in columns else name
                writer.writerow([f"any\\folder\\{stem}.png", *box, label, score])
    return path


def own_csv(folder):
    return table(folder, ["file", "xmin", "ymin", "xmax", "ymax", "class", "score"])


def supervision_csv(folder):
    return table(folder, ["image_name", "x_min", "y_min", "x_max", "y_max", "class_id", "confidence"])


def detections(stem, with_names=True):
    boxes, scores, names = BOXES[stem]
    ids = np.array([CLASSES.index(name) for name in names])
    return sv.Detections(
        boxes, confidence=scores, class_id=ids, data={"class_name": np.array(names)} if with_names else {}
    )


def supervision_sink(folder):
    path = folder / "sink.json"
    with sv.JSONSink(str(path)) as sink:
        for stem in BOXES:
            sink.append(detections(stem), {"file_name": f"{stem}.png"})
    return path


FORMATS = {
    "COCO results": (coco, coco_by_file_name, coco_by_stem, coco_document),
    "YOLO text": (
        yolo,
        lambda folder: yolo(folder, sub="."),
        lambda folder: yolo(folder, "classes.txt"),
        lambda folder: yolo(folder, "data.yaml"),
    ),
    "VOC XML": (voc,),
    "CSV": (own_csv,),
    "supervision": (supervision_csv, supervision_sink),
}


def check(found, atol=1e-9):
    assert set(found.boxes) == {11, 12}
    for stem, (boxes, scores, names) in BOXES.items():
        ours = found.boxes[IDS[stem]]
        np.testing.assert_allclose(ours[0], boxes, atol=atol)
        np.testing.assert_allclose(ours[1], scores)
        assert [CLASSES[index] for index in ours[2]] == names
    assert (found.missing, found.surplus) == (1, ())
    assert found.coverage == "1 images have no predictions and count as empty"


@pytest.mark.parametrize(("form", "write"), [(form, write) for form, all_ in FORMATS.items() for write in all_])
def test_every_format_gives_the_same_boxes(tmp_path, form, write):
    found = read_any_predictions(write(tmp_path), make_truth())
    assert found.format == form
    check(found, 1e-6 if form == "supervision" else 1e-9)


@pytest.mark.parametrize("with_names", [True, False])
def test_detections_of_supervision_are_taken_over(with_names):
    check(from_supervision({stem: detections(stem, with_names) for stem in BOXES}, make_truth()), 1e-6)
    with pytest.raises(DatasetError, match="a: detections without confidence"):
        from_supervision({"a": sv.Detections(np.ones((1, 4)))}, make_truth())


def test_names_of_classes_are_translated(tmp_path):
    truth = make_truth(("uav", "bird"))
    with pytest.raises(DatasetError, match=r"class 'drone' is none of the data set's, which are uav, bird.*--rename"):
        read_any_predictions(own_csv(tmp_path), truth)
    found = read_any_predictions(own_csv(tmp_path), truth, aliases={"Drone": "UAV"})
    assert found.boxes[11][2].tolist() == [1, 0]


def test_missing_and_surplus_images_are_counted_and_a_foreign_set_is_refused(tmp_path):
    path = own_csv(tmp_path)
    path.write_text(path.read_text() + "z.png,1,1,2,2,bird,0.5\nz.png,1,1,2,3,bird,0.4\ny.png,1,1,2,2,bird,0.5\n")
    found = read_any_predictions(path, make_truth())
    assert (found.missing, found.surplus) == (1, ("z.png", "y.png"))
    assert "2 predicted images are not in the set, such as z.png" in found.coverage
    path.write_text("file,xmin,ymin,xmax,ymax,score,class\nz.png,1,1,2,2,0.5,bird\n")
    with pytest.raises(DatasetError, match=r"'z.png' is not in the evaluated data set.*called like 'a'"):
        read_any_predictions(path, make_truth())
    path.write_text("file,xmin,ymin,xmax,ymax,score\n")
    assert read_any_predictions(path, make_truth()).missing == 3


def test_an_image_looked_at_without_a_detection_is_not_missing(tmp_path):
    folder = yolo(tmp_path)
    (folder / "labels" / "c.txt").write_text("")
    assert read_any_predictions(folder, make_truth()).missing == 0


def test_a_name_of_two_images_is_refused(tmp_path):
    truth = make_truth()
    files = [type(f)(image, None, 40, 50) for f, image in zip(truth.files, ("x/a.png", "y/a.png", "c.png"))]
    truth = type(truth)(**{**vars(truth), "files": tuple(files)})
    path = tmp_path / "table.csv"
    path.write_text("file,xmin,ymin,xmax,ymax,score,class\na.png,1,1,2,2,0.5,bird\n")
    with pytest.raises(DatasetError, match=r"'a.png' may be any of 2 images"):
        read_any_predictions(path, truth)
    path.write_text("file,xmin,ymin,xmax,ymax,score,class\ny/a.png,1,1,2,2,0.5,bird\n")
    assert list(read_any_predictions(path, truth).boxes) == [12]


# x1, y1, x2, y2 in place of x, y, width, height
CORNERS = '{"image_id": 11, "category_id": 7, "bbox": [30, 31, 34, 35], "score": 1}'


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.json", "[", "cannot be read"),
        ("a.json", "{}", "not a list of objects"),
        ("a.json", '[{"image_id": 11, "category_id": 7, "bbox": [1, 1, 1, 1]}]', "cannot be read: KeyError..score"),
        ("a.json", '[{"image_id": 11, "category_id": 1, "bbox": [1, 1, 1, 1], "score": 1}]', "are 7 .drone., 3 .bird."),
        ("a.csv", "file,xmin\na.png,1\n", "has no column for y1, such as ymin"),
        ("a.csv", "file,xmin,ymin,xmax,ymax,score,class\na.png,1,1,2,2,1,5\n", "class number 5 is outside 0 to 1"),
        ("a/a.txt", "0 0.5 0.5 0.1 0.1\n", "line 1: 5 values, a score is missing"),
        ("a/a.txt", "3 0.5 0.5 0.1 0.1 0.9\n", "class number 3 is outside 0 to 1"),
        ("a/a.xml", "<annotation><object><name>bird</name></object></annotation>", r"object\[0\]: without score"),
        ("a/a.xml", "<annotation><object>", "cannot be read: ParseError"),
        ("a/readme", "", "holds no predictions"),
        ("a.csv", "a.png,1,1,2,2,bird,0.5\n", "has no column for image"),
        (
            "a.csv",
            "file,xmin,ymin,xmax,ymax,score,class\na.png,8,6,3,4,1,bird\na.png,3,4,6,8,1,bird\n",
            "1 of 2 boxes end before they",
        ),
        ("a.csv", "file,xmin,ymin,xmax,ymax,score,class\na.png,0.1,0.2,0.3,1,1,bird\n", "lie within the first pixel"),
        ("a.json", f"[{CORNERS}, {CORNERS}]", "2 of 2 boxes have their centre outside .* = 30, 31, 64, 66"),
        ("a/a.txt", "0 25 20 5 4 0.9\n", "1 of 1 boxes have their centre outside"),
        ("a/a.txt", "0.5 0.5 0.1 0.1 0.9 0\n", "line 1: class 0.5"),
    ],
)
def test_what_is_wrong_is_named(tmp_path, name, content, message):
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    path.write_text(content)
    with pytest.raises(DatasetError, match=message):
        read_any_predictions(path.parent if "/" in name else path, make_truth())


def test_masks_are_found_with_and_without_an_ending(tmp_path):
    for name in ("a_pixels0.png", "0042.tif"):
        cv2.imwrite(str(tmp_path / name), np.zeros((40, 50), np.uint8))
    np.save(tmp_path / "c.npy", np.zeros((40, 50)))
    found = read_any_predictions(tmp_path, make_truth())
    assert {key: path.name for key, path in found.masks.items()} == {11: "a_pixels0.png", 12: "0042.tif", 13: "c.npy"}
    assert (found.format, found.missing, found.coverage) == ("masks", 0, "")
    with pytest.raises(DatasetError, match="are masks, where boxes are needed"):
        read_predictions(tmp_path, make_truth())
    np.save(tmp_path / "a.npy", np.zeros((40, 50)))
    with pytest.raises(DatasetError, match="stands for the same image as"):
        read_any_predictions(tmp_path, make_truth())


@pytest.mark.parametrize(
    ("arrays", "expected"),
    [
        ([np.array([[0, 1]], np.uint8), np.array([[1, 1]], np.uint8)], [[0, 1], [1, 1]]),  # labels
        ([np.array([[0, 1]], np.uint8), np.array([[255, 51]], np.uint8)], [[0, 1 / 255], [1, 0.2]]),
        ([np.array([[0, 65535]], np.uint16)], [[0, 1]]),
        ([np.array([[0.25, 1]], np.float32)], [[0.25, 1]]),
        ([np.array([[False, True]])], [[0, 1]]),
        ([np.array([[[[0, 1]]]], np.int64)], [[0, 1]]),
        ([np.array([[0, 255]], np.int64)], [[0, 1]]),
        ([np.array([[0, 255]], np.uint16), np.array([[51, 0]], np.uint16)], [[0, 1], [0.2, 0]]),  # 8 bits in 16
        ([np.array([[2, 1]], np.uint16), np.array([[0, 300]], np.uint16)], [[2 / 65535, 1 / 65535], [0, 300 / 65535]]),
    ],
)
def test_maps_are_fractions_of_their_range_or_labels(tmp_path, arrays, expected):
    paths = [tmp_path / f"{i}.npy" for i in range(len(arrays))]
    for path, array in zip(paths, arrays):
        np.save(path, array)
    read = mask_reader(paths)
    for path, values in zip(paths, expected):
        found = read(path, (1, 2))
        np.testing.assert_allclose(found / (255 if found.dtype == np.uint8 else 1), [values])


NUMBERED = np.zeros((9, 9), int)
NUMBERED[1:4, 1:4], NUMBERED[1:4, 4:6], NUMBERED[6:8, 6:8] = 1, 2, 3  # the first two touch


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int32])
def test_numbers_of_targets_are_one_mask(tmp_path, caplog, dtype):
    paths = [tmp_path / "a.npy", tmp_path / "b.npy"]
    for path, numbers in zip(paths, (NUMBERED, NUMBERED == 2)):
        np.save(path, numbers.astype(dtype))
    assert np.array_equal(mask_reader(paths)(paths[0], (9, 9)), 255 * (NUMBERED > 0))
    assert "integers from 0 to 3 are read as numbers of targets" in caplog.text
    # Levels around a peak, as of a network that is sure of nothing, are no numbers although they have no gap.
    np.save(paths[1], np.maximum(6 - abs(np.indices((9, 9)) - 4).sum(0), 0).astype(dtype))
    assert mask_reader(paths)(paths[1], (9, 9)).max() == 6


@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_colours_are_targets_where_they_are_flat_and_on_black(tmp_path, suffix):
    path = tmp_path / f"a{suffix}"
    colours = np.array([[0, 0, 0], [10, 0, 90], [0, 100, 20], [7, 7, 120]], np.uint8)
    cv2.imwrite(str(path), colours[NUMBERED])
    assert np.array_equal(mask_reader([path])(path, (9, 9)), 255 * (NUMBERED > 0))
    levels = np.maximum(250 - 60 * abs(np.indices((9, 9)) - 4).sum(0), 0).astype(np.uint8)
    cv2.imwrite(str(path), cv2.merge([levels] * 3))  # gray
    assert np.array_equal(mask_reader([path])(path, (9, 9)), levels)
    for heat in (cv2.COLORMAP_HOT, cv2.COLORMAP_JET):
        cv2.imwrite(str(path), cv2.applyColorMap(levels, heat))
        with pytest.raises(DatasetError, match="a picture in colour"):
            mask_reader([path])(path, (9, 9))


def test_files_that_are_no_predictions_lie_beside_them(tmp_path):
    for name in ("a", "0042", "c"):
        cv2.imwrite(str(tmp_path / f"{name}.png"), np.zeros((40, 50), np.uint8))
    (tmp_path / "log.txt").write_text("epoch 1, loss 0.5\n")
    assert read_any_predictions(tmp_path, make_truth()).format == "masks"
    folder = yolo(tmp_path)
    (folder / "labels" / "log.txt").write_text("epoch 1, loss 0.5\n")
    cv2.imwrite(str(folder / "labels" / "chart.png"), np.zeros((40, 50), np.uint8))
    found = read_any_predictions(folder, make_truth())
    assert (found.format, found.surplus) == ("YOLO text", ("log",))
    (folder / "labels" / "log.txt").unlink()
    check(read_any_predictions(folder, make_truth()), 1e-6)


def test_numbers_that_count_images_are_not_taken_for_names(tmp_path):
    """42 is also written for 0042; beside numbers of no image it is more likely the 42nd."""
    path = tmp_path / "results.json"
    rows = [{"image_id": n, "category_id": 7, "bbox": [1, 1, 2, 2], "score": 0.5} for n in (41, 42)]
    path.write_text(json.dumps(rows[1:]))
    assert list(read_any_predictions(path, make_truth()).boxes) == [12]
    path.write_text(json.dumps(rows))
    with pytest.raises(DatasetError, match=r"image 41 is not in .* numbers seem to count.*file_name"):
        read_any_predictions(path, make_truth())


@pytest.mark.parametrize("delimiter", [";", "\t"])
def test_columns_are_parted_by_other_signs(tmp_path, delimiter):
    path = own_csv(tmp_path)
    path.write_text(path.read_text().replace(",", delimiter))
    check(read_any_predictions(path, make_truth()), 1e-9)


def test_the_column_category_id_holds_the_sets_own(tmp_path):
    path = tmp_path / "table.csv"
    path.write_text("file,xmin,ymin,xmax,ymax,score,category_id\na.png,1,1,2,2,0.5,3\n")
    assert read_any_predictions(path, make_truth()).boxes[11][2].tolist() == [1]
    path.write_text(path.read_text().replace(",3\n", ",1\n"))
    with pytest.raises(DatasetError, match="category 1 is none of the data set's"):
        read_any_predictions(path, make_truth())


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.array([[0, 1.5]]), "values from 0 to 1.5"),
        (np.array([[0, np.nan]]), "values from nan to nan"),
        (np.zeros((1, 3)), "3x1 pixels, its image has 2x1"),
        (np.zeros((2, 2, 2)), "an array of shape"),
        (np.array([[0, 700]]), "integers of type int64"),
        (np.array([[None, 1]], object), "cannot be read"),
    ],
)
def test_maps_that_mean_nothing_are_refused(tmp_path, array, message):
    np.save(tmp_path / "a.npy", array, allow_pickle=True)
    with pytest.raises(DatasetError, match=message):
        mask_reader([tmp_path / "a.npy"])(tmp_path / "a.npy", (1, 2))


@pytest.mark.parametrize(("scores", "warned"), [((97.5, 3), True), ((-1.5, 0.5), True), ((0, 1), False)])
def test_scores_of_another_range_are_pointed_out(tmp_path, caplog, scores, warned):
    path = tmp_path / "table.csv"
    rows = "".join(f"a,3,4,6,8,{score},bird\n" for score in scores)
    path.write_text(f"file,xmin,ymin,xmax,ymax,score,class\n{rows}")
    assert read_any_predictions(path, make_truth()).boxes[11][1].tolist() == list(scores)
    assert ("not 0 to 1: give a score threshold" in caplog.text) == warned


def test_a_few_boxes_beyond_the_edge_are_as_they_are(tmp_path):
    path = tmp_path / "table.csv"
    rows = ["a,3,4,6,8,0.5,bird"] * 9 + ["a,49,39,53,43,0.5,bird"]
    path.write_text("\n".join(["file,xmin,ymin,xmax,ymax,score,class", *rows]))
    assert read_any_predictions(path, make_truth()).boxes[11][0][9].tolist() == [49, 39, 53, 43]


def test_names_of_classes_that_do_not_count_from_0_are_refused(tmp_path):
    (yolo(tmp_path) / "data.yaml").write_text("names: {1: bird, 2: drone}")
    with pytest.raises(DatasetError, match=r"data.yaml: names: .* does not name the classes 0, 1"):
        read_any_predictions(tmp_path / "yolo", make_truth())
