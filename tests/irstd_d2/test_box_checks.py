"""What the check says of boxes as a whole: repeated ones, sets off by one, conventions that masks or edges show."""

import json

import cv2
import numpy as np
import pytest
from PIL import Image
from voc_files import VocSet, voc_xml

from irstd_d2.cli import main
from irstd_d2.data.check import check_collection, collect

TARGETS = [[(3, 4, 6, 8), (20, 10, 22, 13)], [(10, 11, 12, 14)], [(0, 0, 3, 3)]]


def masked_set(root, offset):
    """Three images with target masks, whose boxes are written with ``offset`` added to the four coordinates."""
    folder = root / "VOC2007"
    for place in ("PNGImages", "Annotations", "Masks"):
        (folder / place).mkdir(parents=True)
    for name, boxes in zip("abc", TARGETS):
        mask = np.zeros((24, 32), np.uint8)
        for x1, y1, x2, y2 in boxes:
            mask[y1:y2, x1:x2] = 255
        cv2.imwrite(str(folder / "Masks" / f"{name}.png"), mask)
        Image.fromarray(mask // 2 + 20).save(folder / "PNGImages" / f"{name}.png")
        written = [tuple(np.add(box, offset).tolist()) for box in boxes]
        (folder / "Annotations" / f"{name}.xml").write_text(voc_xml(boxes=written))
    return root


def notes_of(source, **options):
    report = check_collection(collect(source, **options))
    assert report.faults == []
    return report.notes


@pytest.mark.parametrize(("offset", "name"), [((1, 1, 1, 1), "one_based"), ((1, 1, 0, 0), "inclusive")])
def test_masks_give_the_convention_away_in_one_line(tmp_path, offset, name):
    masked_set(tmp_path, offset)
    where = ", ".join(f"{value:+d}" for value in offset)
    (note,) = [note for note in notes_of(tmp_path) if "mask" in note]
    assert note == (
        f"4 of 4 boxes differ from their masks in the same way, by ({where}) in xmin, ymin, xmax, ymax: the boxes are "
        f"{name}, read as half_open; give --box-convention {name} (DATASETS.OWN: {{'box_convention': '{name}'}})"
    )
    assert notes_of(tmp_path, box_convention=name) == []
    back = notes_of(tmp_path, box_convention="paper")
    assert (name == "one_based") == (back == [])


def test_a_shift_that_no_convention_explains_and_what_else_is_wrong(tmp_path):
    masked_set(tmp_path, (0, 2, 0, 2))
    first = tmp_path / "VOC2007" / "Annotations" / "a.xml"
    first.write_text(voc_xml(boxes=[(3, 6, 6, 10), (20, 12, 22, 15), (1, 20, 3, 22)]))
    notes = notes_of(tmp_path)
    assert notes[0].startswith("4 of 4 boxes differ from their masks in the same way, by (+0, +2, +0, +2)")
    assert "no other convention explains it: correct the whole set" in notes[0]
    assert notes[1] == "a: object[2].bndbox (1, 20, 3, 22) holds no pixel of the target mask"


def test_boxes_that_are_off_in_several_ways_have_a_line_each(tmp_path):
    masked_set(tmp_path, (0, 0, 0, 0))
    (tmp_path / "VOC2007" / "Annotations" / "a.xml").write_text(voc_xml(boxes=[(4, 5, 7, 9), (20, 10, 22, 13)]))
    notes = notes_of(tmp_path)
    assert notes[0].startswith("a: object[0].bndbox (4, 5, 7, 9) shifted by (1, 1) from its mask")
    assert len(notes) == 2


def plain_set(root, boxes):
    voc = VocSet(root).add("a")
    voc.xml("a").write_text(voc_xml(boxes=boxes))
    return root


@pytest.mark.parametrize(
    ("boxes", "suspicious"),
    [
        ([(1, 1, 4, 4), (29, 21, 32, 24)], True),  # both corners, counted from 1
        ([(5, 1, 8, 3), (30, 5, 32, 9)], True),
        ([(0, 1, 4, 4), (29, 21, 32, 24)], False),
        ([(1, 1, 4, 4), (20, 20, 22, 22)], False),
        ([(2, 2, 4, 4), (29, 21, 32, 24)], False),
    ],
)
def test_the_edge_of_the_image_gives_the_convention_away(tmp_path, boxes, suspicious):
    plain_set(tmp_path, boxes)
    notes = notes_of(tmp_path)
    assert any("--box-convention inclusive" in note for note in notes) == suspicious
    if suspicious:
        assert notes_of(tmp_path, box_convention="inclusive") == []


def lit_set(root, targets, added, blur=0.0):
    """Images without masks, each with the same targets, whose corners are written with ``added`` to them."""
    voc, rng = VocSet(root), np.random.default_rng(0)
    for name in "abc":
        pixels = rng.normal(40, 2, (48, 64))
        for x1, y1, x2, y2 in targets:
            pixels[y1:y2, x1:x2] = 200
        pixels = cv2.GaussianBlur(pixels, (0, 0), blur) if blur else pixels
        written = [tuple(np.add(box, added).tolist()) for box in targets]
        voc.add(name, width=64, height=48, boxes=written)
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(voc.image(name))
    return root


SMALL = [(10, 10, 14, 14), (40, 30, 43, 33)]
MIXED = [(5, 7, 7, 8), (20, 20, 29, 26), (50, 10, 53, 14)]


@pytest.mark.parametrize("targets", [SMALL, MIXED])
@pytest.mark.parametrize("blur", [0.0, 0.7])
@pytest.mark.parametrize(
    ("added", "name"), [((0, 0, 0, 0), "half_open"), ((1, 1, 1, 1), "one_based"), ((1, 1, 0, 0), "inclusive")]
)
def test_the_light_gives_the_convention_away(tmp_path, targets, blur, added, name):
    if name == "inclusive":  # a side of one pixel has no area, and is a fault with the same advice
        targets = [box for box in targets if min(box[2] - box[0], box[3] - box[1]) > 1]
    lit_set(tmp_path, targets, added, blur)
    notes = notes_of(tmp_path)
    if name == "half_open":
        assert notes == []
        return
    (note,) = notes
    assert f"the boxes seem to be {name}, read as half_open" in note
    assert f"--box-convention {name}" in note
    assert notes_of(tmp_path, box_convention=name) == []


@pytest.mark.parametrize("with_masks", [False, True])
@pytest.mark.parametrize(
    ("added", "name"), [((0, 0, 0, 0), "half_open"), ((1, 1, 1, 1), "one_based"), ((1, 1, 0, 0), "inclusive")]
)
def test_a_conversion_says_how_it_read_boxes_and_what_contradicts_it(tmp_path, capsys, added, name, with_masks):
    source = tmp_path / "source"
    if with_masks:
        voc = VocSet(source, "wideirstd")
        (source / "VOC2007" / "Masks").mkdir()
        for image in "ab":
            voc.add(image, width=64, height=48, boxes=[tuple(np.add(box, added).tolist()) for box in SMALL])
            mask = np.zeros((48, 64), np.uint8)
            for x1, y1, x2, y2 in SMALL:
                mask[y1:y2, x1:x2] = 255
            Image.fromarray(mask).save(source / "VOC2007" / "Masks" / f"{image}.png")
        voc.split("train", "a\nb\n")
    else:
        lit_set(source, SMALL, added, 0.0)
    assert main(["convert", str(source), str(tmp_path / "plain"), "--to", "coco"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "boxes: read as half_open, pixels from 0, xmax and ymax the last ones plus one" in lines
    if name == "half_open":
        assert not any(line.startswith("warning") for line in lines)
        return
    assert lines[-1].startswith("warning: ")
    assert f"{name}, read as half_open" in lines[-1]
    assert f"--box-convention {name}" in lines[-1]
    right = ["convert", str(source), str(tmp_path / "right"), "--to", "coco", "--box-convention", name]
    assert main(right) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1].startswith(f"boxes: read as {name}, pixels from 1")


def test_light_that_is_off_in_several_ways_or_missing_says_nothing(tmp_path):
    lit_set(tmp_path, SMALL, (1, 1, 1, 1))
    (tmp_path / "Annotations" / "b.xml").write_text(voc_xml(64, 48, boxes=[(9, 9, 13, 13), (39, 29, 42, 32)]))
    (tmp_path / "Annotations" / "c.xml").write_text(voc_xml(64, 48, boxes=SMALL))
    assert notes_of(tmp_path) == []
    lit_set(tmp_path, SMALL[:1], (1, 1, 1, 1))
    for name in "abc":  # one lit box of five
        elsewhere = [(x, 40, x + 3, 43) for x in (5, 15, 25, 35)]
        (tmp_path / "Annotations" / f"{name}.xml").write_text(voc_xml(64, 48, boxes=[(11, 11, 15, 15), *elsewhere]))
        pixels = np.full((48, 64), 40, np.uint8)
        pixels[10:14, 10:14] = 200
        Image.fromarray(pixels).save(tmp_path / "PNGImages" / f"{name}.png")
    assert notes_of(tmp_path) == []


@pytest.mark.parametrize("names", [("Target", "Target"), ("Target", "drone")])
def test_repeated_boxes(tmp_path, names):
    plain_set(tmp_path, [(3, 4, 6, 8), (10, 10, 14, 14), (3, 4, 6, 8), (3, 4, 6, 8), (3, 4, 6, 9)])
    text = (tmp_path / "PNGImages").parent / "Annotations" / "a.xml"
    text.write_text(text.read_text().replace("Target", names[1], 1))
    assert notes_of(tmp_path) == [
        "a: object[2] repeats object[0]: (3, 4, 6, 8)",
        "a: object[3] repeats object[0]: (3, 4, 6, 8)",
    ]


def test_repeated_boxes_of_other_formats(tmp_path):
    Image.fromarray(np.full((24, 32), 30, np.uint8)).save(tmp_path / "a.png")
    box = {"image_id": 1, "category_id": 1, "bbox": [3, 4, 3, 4]}
    content = {
        "images": [{"id": 1, "file_name": "a.png", "width": 32, "height": 24}],
        "annotations": [{"id": i, **box} for i in range(2)],
        "categories": [{"id": 1, "name": "drone"}],
    }
    (tmp_path / "a.json").write_text(json.dumps(content))
    assert notes_of(tmp_path / "a.json") == ["1: object[1] repeats object[0]: (3, 4, 6, 8)"]


def test_many_lines_of_one_kind_are_counted(tmp_path):
    boxes = [(10 + i % 5, 2, 12 + i % 5, 4) for i in range(1235)]
    report = check_collection(collect(plain_set(tmp_path, boxes)))
    assert len(report.notes) == 1230
    text = str(report)
    assert text.count("repeats object") == 20
    assert "  ... and 1,210 more of this kind" in text
    plain_set(tmp_path / "bad", [(5, 5, 5, 7)] * 50)
    text = str(check_collection(collect(tmp_path / "bad")))
    assert text.count("has no area") == 20
    assert "Faults: 50 x box of zero size" in text
    assert "  ... and 30 more of this kind" in text
