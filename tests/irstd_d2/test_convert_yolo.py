"""YOLO folders: rounded numbers, faulty lines, sets of other projects."""

import numpy as np
import pytest
from detection_sets import as_set, make_record

from irstd_d2.data.convert import (
    TargetObject,
    detect_format,
    read_yolo,
    write_set,
)
from irstd_d2.data.convert.yolo_format import read_labels
from irstd_d2.errors import DatasetError


@pytest.mark.parametrize("decimals", [4, 6, 8, 17])
def test_rounded_yolo_numbers_are_read_to_the_whole_pixel(tmp_path, decimals):
    rng = np.random.default_rng(decimals)
    width, height = 640, 512
    x1, y1 = rng.integers(0, 600, 50), rng.integers(0, 500, 50)
    boxes = np.stack([x1, y1, x1 + rng.integers(1, 40, 50), y1 + rng.integers(1, 12, 50)], 1).astype(float)
    lines = [
        f"0 {(a + c) / 2 / width:.{decimals}f} {(b + d) / 2 / height:.{decimals}f} "
        f"{(c - a) / width:.{decimals}f} {(d - b) / height:.{decimals}f}\n"
        for a, b, c, d in boxes
    ]
    path = tmp_path / "a.txt"
    path.write_text("\n".join(lines))
    assert [box for _, box in read_labels(path, (width, height), 1)[0]] == [tuple(box) for box in boxes]


def test_coarse_yolo_numbers_are_taken_as_they_are(tmp_path):
    (tmp_path / "a.txt").write_text("0 0.5 0.5 0.5 0.5\n")
    assert read_labels(tmp_path / "a.txt", (101, 50), 1) == ([(0, (25.25, 12.5, 75.75, 37.5))], [])


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("0 .5 .5 .1", "line 2: 4 values, not 5"),
        ("0 .5 .5 .1 .1 .9", "line 2: 6 values, not 5"),
        ("-1 .5 .5 .1 .1", "line 2: class '-1'"),
        ("99999 .5 .5 .1 .1", "line 2: class '99999'"),
        ("2 .5 .5 .1 .1", "line 2: class 2 of 2. Fix: name it in data.yaml"),
        ("0 .5 .5 .1 nan", "line 2: '.5 .5 .1 nan' are not numbers"),
        ("0 .5 .5 .1 x", "line 2: '.5 .5 .1 x' are not numbers"),
        ("0 .5 .5 0 .1", "line 2: '0 .5 .5 0 .1' has no area or leaves the image of 60x40"),
        ("0 .99 .5 .1 .1", "leaves the image of 60x40"),
    ],
)
def test_faulty_yolo_lines(pixels, tmp_path, line, message):
    write_set(as_set(make_record(pixels), class_names=("Target", "Bird")), tmp_path / "out", "yolo")
    path = tmp_path / "out" / "labels" / "a.txt"
    path.write_text(f"0 .5 .5 .1 .1\n{line}\n")
    with pytest.raises(DatasetError) as error:
        read_yolo(tmp_path / "out")
    assert str(path) in str(error.value)
    assert message in str(error.value)


def test_files_that_are_no_text_are_named(pixels, tmp_path):
    write_set(as_set(make_record(pixels), splits={"train": ("a",)}), tmp_path / "out", "yolo")
    for name in ("labels/a.txt", "train.txt"):
        path = tmp_path / "out" / name
        before = path.read_bytes()
        path.write_bytes(before + b"\xff\n")
        with pytest.raises(DatasetError, match=rf"{path}: byte {len(before)}: not UTF-8 text"):
            read_yolo(tmp_path / "out")
        path.write_bytes(before)
    assert len(read_yolo(tmp_path / "out").records) == 1


def test_yolo_folders_of_other_projects(pixels, tmp_path):
    for split in ("train", "val"):
        (tmp_path / "images" / split).mkdir(parents=True)
        (tmp_path / "images" / split / "x.png").write_bytes((pixels / "image.png").read_bytes())
    (tmp_path / "labels" / "val").mkdir(parents=True)
    (tmp_path / "labels" / "val" / "x.txt").write_text("1 0.5 0.5 0.1 0.1\n")
    found = read_yolo(tmp_path)
    assert found.class_names == ("class0", "class1")
    assert {r.name: r.objects for r in found.records} == {
        "train__x": (),
        "val__x": (TargetObject("class1", (27, 18, 33, 22)),),
    }
    description = tmp_path / "data.yaml"
    description.write_text("train: images/train\nval: [images/val]\nnc: 2\nnames: [Bird, Plane]\n")
    found = read_yolo(tmp_path)
    assert found.splits == {"train": ("train__x",), "val": ("val__x",)}
    assert found.records[1].objects[0].class_name == "Plane"
    for text, message in (
        ("names: {1: Bird}", "names: {1: 'Bird'} does not name the classes"),
        ("names: [Bird, Plane]\ntrain: images/test", "train: no images/test"),
        ("names: [Bird, Plane]\ntrain: ../other", "train: no ../other"),
        ("names: [Bird, Plane]\ntrain: images/../../other", "'images/../../other' leads out of"),
        ("names: [Bird, Plane]\nnc: 3", "nc: 3, but 2 names"),
        ("[1", "not YAML"),
        ("3", "not a list of keys"),
    ):
        description.write_text(text)
        with pytest.raises(DatasetError) as error:
            read_yolo(tmp_path)
        assert message in str(error.value)
    description.write_text("names: [Bird, Plane]\ntrain: train.txt")
    (tmp_path / "train.txt").write_text("./images/train/x.png\n\nimages/y.png\n")
    with pytest.raises(DatasetError, match=r"train\.txt: line 3: no image 'images/y\.png'"):
        read_yolo(tmp_path)
    with pytest.raises(DatasetError, match=r"no image\. Fix: a YOLO set has the folders"):
        read_yolo(tmp_path / "labels")


LINE = "0 0.1875 0.1875 0.0625 0.0625\n"  # of an image of 60x40: (9.375, 6.25) to (13.125, 8.75)
BOX = (9.375, 6.25, 13.125, 8.75)


def put(pixels, image, label=None):
    """Write an image, and its text file."""
    image.parent.mkdir(parents=True, exist_ok=True)
    image.write_bytes((pixels / "image.png").read_bytes())
    if label is not None:
        label.parent.mkdir(parents=True, exist_ok=True)
        label.write_text(LINE)


@pytest.mark.parametrize(
    "entries",
    [
        "train: ../train/images\nval: ../valid/images\ntest: ../test/images\n",
        "path: /content/set\ntrain: /content/set/train/images\nval: /content/set/valid/images\ntest: test/images\n",
        "train: set-1/train/images\nval: set-1/valid/images\ntest: set-1/test/images\n",
        "",
    ],
)
def test_roboflow_folders(pixels, tmp_path, entries):
    for split in ("train", "valid", "test"):
        put(pixels, tmp_path / split / "images" / "a.rf.01.png", tmp_path / split / "labels" / "a.rf.01.txt")
    (tmp_path / "data.yaml").write_text(f"{entries}nc: 1\nnames: ['drone']\n")
    assert detect_format(tmp_path) == "yolo"
    found = read_yolo(tmp_path)
    splits = {"train": ("train__a.rf.01",), "val": ("valid__a.rf.01",), "test": ("test__a.rf.01",)}
    assert found.splits == splits
    assert [record.objects for record in found.records] == [(TargetObject("drone", BOX),)] * 3


def test_a_test_split_that_was_not_exported_is_counted(pixels, tmp_path):
    for split in ("train", "valid"):
        put(pixels, tmp_path / split / "images" / "a.png", tmp_path / split / "labels" / "a.txt")
    (tmp_path / "data.yaml").write_text("train: ../train/images\nval: ../valid/images\ntest: ../test/images\n")
    found = read_yolo(tmp_path)
    assert list(found.splits) == ["train", "val"]
    assert list(found.unread) == ["entries of data.yaml for which nothing is there (test: ../test/images)"]


@pytest.mark.parametrize("path", ["../datasets/set", "set", "/home/me/datasets/set", "."])
def test_ultralytics_folders(pixels, tmp_path, path):
    for split in ("train", "val"):
        put(pixels, tmp_path / "images" / split / f"{split}.png", tmp_path / "labels" / split / f"{split}.txt")
    names = "names:\n  0: drone\n  1: bird\n"
    (tmp_path / "data.yaml").write_text(f"path: {path}\ntrain: images/train\nval: images/val\ntest:\n{names}")
    found = read_yolo(tmp_path)
    assert found.splits == {"train": ("train__train",), "val": ("val__val",)}
    assert (found.class_names, len(found.records[1].objects)) == (("drone", "bird"), 1)


@pytest.mark.parametrize(
    ("image", "label", "classes"),
    [
        ("images/a.png", "labels/a.txt", "labels/classes.txt"),
        ("images/a.png", "labels/a.txt", "classes.txt"),
        ("a.png", "a.txt", "classes.txt"),
        ("images/a.png", "images/a.txt", "images/classes.txt"),
        ("a.png", "a.txt", "obj.names"),
    ],
)
def test_class_names_of_labelimg(pixels, tmp_path, image, label, classes):
    put(pixels, tmp_path / image, tmp_path / label)
    (tmp_path / classes).write_text("drone\nbird\n")
    found = read_yolo(tmp_path)
    assert found.class_names == ("drone", "bird")
    assert found.records[0].objects == (TargetObject("drone", BOX),)
    assert found.unread == {}
    (tmp_path / classes).write_text("drone\n\nbird\n")
    with pytest.raises(DatasetError, match=r"line 2: empty\. Fix: name every class number"):
        read_yolo(tmp_path)


@pytest.mark.parametrize(
    ("image", "label"),
    [
        ("images/A.PNG", "labels/A.TXT"),
        ("images/A.png", "labels/a.txt"),
        ("A.PNG", "A.TXT"),
        ("images/bild\u00e4.png", "labels/bilda\u0308.txt"),
        ("train/images/\u56fe 1.png", "train/labels/\u56fe 1.Txt"),
        ("images/a.b.png", "labels/A.b.txt"),
        ("Images/a.png", "Labels/a.txt"),
    ],
)
def test_text_files_of_other_spelling_belong_to_their_image(pixels, tmp_path, image, label):
    put(pixels, tmp_path / image, tmp_path / label)
    (tmp_path / "data.yaml").write_text("names: [Target]\n")
    found = read_yolo(tmp_path)
    assert [len(record.objects) for record in found.records] == [1]
    assert found.unread == {}


@pytest.mark.parametrize(("images", "labels"), [("images", "labels"), ("Images", "Labels"), ("x/IMAGES", "x/LABELS")])
def test_text_files_without_image_are_counted_however_the_folder_is_spelt(pixels, tmp_path, images, labels):
    put(pixels, tmp_path / images / "a.png", tmp_path / labels / "a.txt")
    (tmp_path / labels / "b.txt").write_text(LINE)
    (tmp_path / "notes.txt").write_text("no label")
    assert read_yolo(tmp_path).unread == {"text files without image": 1}


def test_the_exact_name_wins_and_two_others_are_refused(pixels, tmp_path):
    put(pixels, tmp_path / "images/a.png", tmp_path / "labels/a.txt")
    (tmp_path / "labels/A.txt").write_text("")
    found = read_yolo(tmp_path)
    assert len(found.records[0].objects) == 1
    assert found.unread == {"text files without image": 1}
    (tmp_path / "labels/a.txt").rename(tmp_path / "labels/a.TXT")
    with pytest.raises(DatasetError, match=r"A\.txt and a\.TXT both stand for a\.png"):
        read_yolo(tmp_path)


@pytest.mark.parametrize("label", ["label/a.txt", "labels/b.txt"])
def test_a_set_without_any_text_file_of_an_image_is_no_set_without_targets(pixels, tmp_path, label):
    put(pixels, tmp_path / "images/a.png", tmp_path / label)
    (tmp_path / "data.yaml").write_text("names: [Target]\n")
    with pytest.raises(DatasetError, match="none of 1 images has a text file"):
        read_yolo(tmp_path)
    (tmp_path / "labels").mkdir(exist_ok=True)
    (tmp_path / "labels/a.txt").write_text("")
    assert read_yolo(tmp_path).num_objects == 0


def test_all_faults_are_found_and_can_be_left_out(pixels, tmp_path):
    lines = {"a": "0 0.99 0.5 0.04 0.05", "b": "0 0.5 0.5 0.04 0.05", "c": "0 0.5 0.995 0.04 0.05", "d": "0 .5 .5 0 .1"}
    for name, line in lines.items():
        put(pixels, tmp_path / "images" / f"{name}.png", tmp_path / "labels" / f"{name}.txt")
        (tmp_path / "labels" / f"{name}.txt").write_text(f"{line}\n")
    (tmp_path / "labels" / "e.txt").write_text(LINE)
    (tmp_path / "images" / "f.png").write_bytes(b"")
    with pytest.raises(DatasetError, match=r"3 more faults"):
        read_yolo(tmp_path)
    found = read_yolo(tmp_path, skip_bad=True)
    assert [record.name for record in found.records] == ["b"]
    assert found.unread == {
        "text files without image": 1,
        "left out as faulty: box outside the image": 2,
        "left out as faulty: box of zero size": 1,
        "left out as faulty: unreadable image": 1,
    }
    assert len(found.faults) == 4
