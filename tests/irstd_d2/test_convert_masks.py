"""Target masks as a format: components, what they cannot hold, sets as they are published."""

import cv2
import numpy as np
import pytest
from detection_sets import HEIGHT, WIDTH, as_set, make_record
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from irstd_d2.data.convert import (
    TargetObject,
    read_coco,
    read_masks,
    read_voc,
    write_set,
)
from irstd_d2.data.segmentation import decode
from irstd_d2.data.target_masks import component_boxes, label_boxes, number_targets, read_target_labels
from irstd_d2.errors import DatasetError


@given(mask=st.integers(0, 2**36 - 1))
@settings(max_examples=100, deadline=None)
def test_components_are_those_of_a_flood_fill(mask):
    grid = np.array([int(bit) for bit in f"{mask:036b}"]).reshape(6, 6)
    left, expected = {(int(y), int(x)) for y, x in zip(*grid.nonzero())}, set()
    while left:
        component, edge = set(), {left.pop()}
        while edge:
            component |= edge
            edge = {(y + dy, x + dx) for y, x in edge for dy in (-1, 0, 1) for dx in (-1, 0, 1)} & left
            left -= edge
        ys, xs = zip(*component)
        expected.add((min(xs), min(ys), max(xs) + 1, max(ys) + 1))
    assert sorted({tuple(box) for box in component_boxes(grid).tolist()}) == sorted(expected)


def test_masks_count_what_they_cannot_hold(pixels, tmp_path):
    touching = make_record(pixels, "touching", [(0, 0, 3, 3), (3, 3, 5, 5), (10, 10, 12, 12)])
    fraction = make_record(pixels, "fraction", [(1.5, 2, 4, 5)])
    difficult = make_record(pixels, "difficult", objects=(TargetObject("Bird", (1, 1, 2, 2), True),))
    found = as_set(touching, fraction, difficult, class_names=("Bird", "Target"))
    report = write_set(found, tmp_path / "out", "mask")
    assert report.lost == {
        "boxes that are not the bounds of one target in the mask": 1,
        "difficult marks": 1,
        "class names": 5,
    }
    assert "lost, as the format cannot hold it: 5 x class names, 1 x boxes that" in str(report)
    again = {r.name: [o.box for o in r.objects] for r in read_masks(tmp_path / "out").records}
    assert again == {
        "difficult": [(1, 1, 2, 2)],
        "fraction": [(1, 2, 4, 5)],
        "touching": [(0, 0, 3, 3), (3, 3, 5, 5), (10, 10, 12, 12)],
    }


def test_target_masks_are_kept_where_there_is_a_place(pixels, tmp_path):
    mask = np.zeros((HEIGHT, WIDTH), np.uint8)
    mask[4, 3], mask[5, 4] = 255, 255  # one component across a corner
    cv2.imwrite(str(tmp_path / "mask.png"), mask)
    record = make_record(pixels, boxes=[(3, 4, 5, 6)], target_mask=tmp_path / "mask.png")
    assert not write_set(as_set(record), tmp_path / "omni", "voc", layout="wideirstd").lost
    assert not write_set(as_set(record), tmp_path / "masks", "mask").lost
    for again in (read_voc(tmp_path / "omni"), read_masks(tmp_path / "masks")):
        (record_again,) = again.records
        assert (cv2.imread(str(record_again.target_mask), 0) == mask).all()
        assert [obj.box for obj in record_again.objects] == [(3, 4, 5, 6)]
    assert not write_set(as_set(record), tmp_path / "coco", "coco").lost
    (record_again,) = read_coco(tmp_path / "coco").records
    assert (decode(record_again.objects[0].outline, (WIDTH, HEIGHT)) == (mask > 0)).all()
    for target_format in ("voc", "yolo"):
        report = write_set(as_set(record), tmp_path / target_format, target_format)
        assert report.lost == {"target masks (their boxes are kept)": 1}
    plain = make_record(pixels, boxes=[(0, 0, 2, 3)], sky_mask=pixels / "sky.png")
    assert write_set(as_set(plain), tmp_path / "v2", "voc", layout="sirstv2").lost == {"sky masks": 1}
    assert read_voc(tmp_path / "v2").records[0].objects == plain.objects  # boxes from 1 in the files
    assert "<xmin>1</xmin>" in next((tmp_path / "v2").rglob("*.xml")).read_text()


def test_masks_of_many_kinds(tmp_path):
    path = tmp_path / "mask.png"
    for pixels_of_mask in (
        np.array([[0, 1], [0, 0]], np.uint8),
        np.array([[0, 65535], [9, 0]], np.uint16),
        np.stack([np.array([[0, 255], [100, 0]], np.uint8)] * 3, axis=2),
    ):
        cv2.imwrite(str(path), pixels_of_mask)
        assert read_target_labels(path, (2, 2)).labels.tolist() == [[0, 1], [0, 0]]
    assert read_target_labels(path, (2, 2)).left_out == 1
    low = read_target_labels(path, (2, 2), threshold=0.1)
    assert (low.labels.tolist(), low.left_out) == ([[0, 1], [1, 0]], 0)
    cv2.imwrite(str(path), np.zeros((2, 2), np.uint8))
    assert not read_target_labels(path, (2, 2)).labels.any()
    with pytest.raises(DatasetError, match=r"mask\.png: size: 2x2 pixels, but its image has 3x2"):
        read_target_labels(path, (3, 2))


class TestValuesOfMasks:
    """Each square is a target of 3x3 pixels; the last two touch."""

    PLACES = ((1, 1), (8, 1), (1, 8), (10, 8), (13, 8))

    def boxes(self, path, **options):
        labels, left_out = read_target_labels(path, (20, 14), **options)
        return sorted(map(tuple, label_boxes(labels).tolist())), left_out

    def draw(self, values, dtype=np.uint8, places=PLACES):
        mask = np.zeros((14, 20), dtype)
        for value, (x, y) in zip(values, places):
            mask[y : y + 3, x : x + 3] = value
        return mask

    def squares(self, count=5):
        return sorted((x, y, x + 3, y + 3) for x, y in self.PLACES[:count])

    @pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
    def test_numbers_of_instances(self, tmp_path, dtype):
        cv2.imwrite(str(tmp_path / "m.png"), self.draw((3, 1, 2, 4, 5), dtype))
        assert self.boxes(tmp_path / "m.png") == (self.squares(), 0)

    def test_any_values_that_do_not_touch(self, tmp_path):
        cv2.imwrite(str(tmp_path / "m.png"), self.draw((30, 255, 17, 90)))
        assert self.boxes(tmp_path / "m.png") == (self.squares(4), 0)

    def test_any_values_that_touch_are_said_or_counted(self, tmp_path):
        cv2.imwrite(str(tmp_path / "m.png"), self.draw((200, 200, 200, 200, 90)))
        assert self.boxes(tmp_path / "m.png") == (self.squares(4), 9)
        assert self.boxes(tmp_path / "m.png", values="labels") == (self.squares(), 0)

    def test_colours_and_palettes_with_a_border(self, tmp_path):
        numbers = self.draw((1, 2, 3, 4, 5))
        picture = Image.fromarray(numbers).convert("P")
        picture.putpalette([0, 0, 0, *np.random.default_rng(0).integers(1, 256, 765)])
        picture.convert("RGB").save(tmp_path / "colours.png")
        assert self.boxes(tmp_path / "colours.png", values="labels") == (self.squares(), 0)
        numbers[7, 1:4] = 255  # Pascal VOC marks borders so
        picture.putdata(numbers.reshape(-1))
        picture.save(tmp_path / "palette.png")
        assert self.boxes(tmp_path / "palette.png") == (self.squares(), 3)

    def test_soft_edges_and_compression_are_gray_levels(self, tmp_path):
        binary = cv2.resize(self.draw((255, 255, 255)), None, fx=8, fy=8, interpolation=cv2.INTER_NEAREST)
        Image.fromarray(binary).save(tmp_path / "m.jpg", quality=80)
        found, _ = read_target_labels(tmp_path / "m.jpg", (160, 112))
        assert (found == (binary > 0)).all()
        soft = cv2.resize(binary, (20, 14), interpolation=cv2.INTER_AREA)
        soft[0, 0] = 100
        cv2.imwrite(str(tmp_path / "m.png"), cv2.GaussianBlur(soft, (3, 3), 0.5))
        assert self.boxes(tmp_path / "m.png", values="levels")[0] == self.squares(3)

    @pytest.mark.parametrize("count", [3, 300])
    def test_touching_targets_survive_the_way_through_a_file(self, pixels, tmp_path, count):
        boxes = [(4 * (i % 20), 3 * (i // 20), 4 * (i % 20) + 4, 3 * (i // 20) + 3) for i in range(count)]
        masks = []
        for x1, y1, x2, y2 in boxes:
            masks.append(np.zeros((50, 90), bool))
            masks[-1][y1:y2, x1:x2] = True
        cv2.imwrite(str(tmp_path / "m.png"), number_targets(masks, (90, 50)))
        labels, left_out = read_target_labels(tmp_path / "m.png", (90, 50))
        assert (sorted(map(tuple, label_boxes(labels).tolist())), left_out) == (sorted(boxes), 0)


@pytest.fixture
def mask_folder(tmp_path):
    """As IRSTD-1K is published: two folders and lists of names."""
    root = tmp_path / "IRSTD-1K"
    for folder in ("IRSTD1k_Img", "IRSTD1k_Label"):
        (root / folder).mkdir(parents=True)
    for i in range(3):
        mask = np.zeros((20, 30), np.uint8)
        mask[i : i + 2, 5:8] = 255
        cv2.imwrite(str(root / "IRSTD1k_Img" / f"XDU{i}.png"), np.full((20, 30), 50, np.uint8))
        cv2.imwrite(str(root / "IRSTD1k_Label" / f"XDU{i}{'_pixels0' if i else ''}.png"), mask)
    (root / "trainval.txt").write_text("XDU0\nXDU2.png\n")
    (root / "lists").mkdir()
    (root / "lists" / "test_IRSTD-1K.txt").write_text("XDU1\n")
    return root


def test_a_published_mask_set(mask_folder):
    places = {"images": "IRSTD1k_Img", "masks": "IRSTD1k_Label"}
    found = read_masks(mask_folder, **places)
    assert found.splits == {"trainval": ("XDU0", "XDU2")}
    assert {record.name: record.objects[0].box for record in found.records} == {
        "XDU0": (5, 0, 8, 2),
        "XDU2": (5, 2, 8, 4),
    }
    found = read_masks(mask_folder, **places, splits={"test": "lists/test_IRSTD-1K.txt"}, class_name="ship")
    assert found.splits == {"test": ("XDU1",)}
    assert found.records[0].objects == (TargetObject("ship", (5, 1, 8, 3)),)
    assert len(read_masks(mask_folder, **places, splits={}).records) == 3
    table = mask_folder / "table.csv"
    table.write_text("id,platform,width\nXDU1,Land,300\n")
    (record,) = read_masks(mask_folder, **places, splits={"t": "lists/test_IRSTD-1K.txt"}, sidecar=table).records
    assert (record.platform, record.band, record.original_size) == ("Land", None, (300, 20))
    table.write_text("id,width\nXDU1,wide\n")
    with pytest.raises(DatasetError, match=r"table\.csv: line 2: width 'wide'"):
        read_masks(mask_folder, **places, sidecar=table)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda root: (root / "IRSTD1k_Label" / "XDU0.png").unlink(), r"XDU0: file: no such mask\. Fix: add the mask"),
        (
            lambda root: (root / "IRSTD1k_Img" / "XDU0.bmp").touch(),
            r"XDU0\.bmp: file: XDU0\.bmp, XDU0\.png all stand for",
        ),
        (
            lambda root: cv2.imwrite(str(root / "IRSTD1k_Label/XDU0.png"), 255 - 255 * np.eye(20, 30, dtype=np.uint8)),
            r"XDU0\.png: pixels: 97% of the pixels belong to targets; is it inverted\?",
        ),
        (
            lambda root: cv2.imwrite(
                str(root / "IRSTD1k_Label/XDU0.png"), np.eye(20, 30, dtype=np.uint8)[:, :, None] * [0, 0, 0, 255]
            ),
            r"XDU0\.png: pixels: black, with the mask in its alpha channel",
        ),
        (lambda root: (root / "trainval.txt").write_text(""), r"trainval\.txt: file: no image name"),
    ],
)
def test_faulty_mask_sets_name_the_file(mask_folder, damage, message):
    damage(mask_folder)
    with pytest.raises(DatasetError, match=message):
        read_masks(mask_folder, images="IRSTD1k_Img", masks="IRSTD1k_Label")


class TestAccount:
    """What is read and what is left out adds up to what is there."""

    @pytest.fixture
    def root(self, tmp_path):
        for folder in ("images", "masks"):
            (tmp_path / "set" / folder).mkdir(parents=True)
        for name in "abcdef":
            cv2.imwrite(str(tmp_path / f"set/images/{name}.png"), np.full((20, 30), 50, np.uint8))
            cv2.imwrite(str(tmp_path / f"set/masks/{name}.png"), np.zeros((20, 30), np.uint8))
        (tmp_path / "set/train.txt").write_text("a\nb\nc\nd\n")
        return tmp_path / "set"

    def test_images_in_no_list_and_masks_without_image(self, root):
        (root / "images/f.png").unlink()
        found = read_masks(root)
        assert len(found.records) == 4
        assert found.unread == {"images in no list": 1, "masks without an image": 1}

    def test_all_faults_at_once_or_left_out_and_counted(self, root, caplog):
        for name in "bc":
            cv2.imwrite(str(root / f"masks/{name}.png"), np.zeros((20, 29), np.uint8))
        (root / "masks/d.png").write_bytes(b"no image")
        with pytest.raises(DatasetError, match=r"b\.png: size: 29x20 pixels.*; 2 more faults listed above"):
            read_masks(root)
        assert [name for name in "bcd" if f"masks/{name}.png: " in caplog.text] == ["b", "c", "d"]
        found = read_masks(root, skip_bad=True)
        assert found.splits == {"train": ("a",)}
        assert found.unread == {"images in no list": 2, "left out as faulty: image and mask that do not fit": 3}

    @pytest.mark.parametrize("line", ["seq1/a", "../a", "images\\a", "images/a.png"])
    def test_lines_with_a_path_name_file_and_line(self, root, line):
        (root / "train.txt").write_text(f"b\n{line}\n")
        with pytest.raises(DatasetError, match=r"train\.txt: line 2: "):
            read_masks(root)
        found = read_masks(root, skip_bad=True)
        assert found.unread == {"images in no list": 5, "left out as faulty: unsafe file name": 1}

    def test_voc_folders_alike(self, tmp_path):
        for folder in ("JPEGImages", "Annotations", "ImageSets/Main"):
            (tmp_path / folder).mkdir(parents=True)
        for name in "abc":
            cv2.imwrite(str(tmp_path / f"JPEGImages/{name}.png"), np.full((20, 30), 50, np.uint8))
            xml = "<annotation><size><width>30</width><height>20</height></size></annotation>"
            (tmp_path / f"Annotations/{name}.xml").write_text(xml)
        lines = tmp_path / "ImageSets/Main/train.txt"
        lines.write_text("JPEGImages/a.png\nb\n")
        with pytest.raises(DatasetError, match=r"train\.txt: line 1: "):
            read_voc(tmp_path)
        assert read_voc(tmp_path, skip_bad=True).unread == {
            "images in no list": 2,
            "left out as faulty: unsafe file name": 1,
        }


@pytest.mark.parametrize(("inner", "left_out"), [((1,), 2), ((1, 2), 2), ((3,), 0)])
def test_low_numbers_beside_255_are_counted_where_they_are_left_out(tmp_path, inner, left_out):
    mask = np.full((4, 4), 255, np.uint8)
    mask[0] = mask[3] = 0
    mask[1, 1], mask[1, 2] = inner[0], inner[-1]
    cv2.imwrite(str(tmp_path / "m.png"), mask)
    found = read_target_labels(tmp_path / "m.png", (4, 4))
    assert (int(found.labels.sum()), found.left_out) == (6, left_out)  # 3 may be noise of a compression


@pytest.mark.parametrize("colours", [((0, 0, 255), (0, 255, 0)), ((64, 0, 128), (64, 0, 0)), ((0, 200, 90), (1, 1, 1))])
def test_targets_of_flat_colours_that_touch_are_two(tmp_path, colours):
    mask = np.zeros((12, 14, 3), np.uint8)
    mask[2:6, 3:7], mask[2:6, 7:10] = colours
    cv2.imwrite(str(tmp_path / "m.png"), mask)
    found = read_target_labels(tmp_path / "m.png", (14, 12))
    assert sorted(label_boxes(found.labels).tolist()) == [[3, 2, 7, 6], [7, 2, 10, 6]]
    cv2.imwrite(str(tmp_path / "m.png"), cv2.GaussianBlur(mask, (3, 3), 1))  # edges are no targets of their own
    assert len(label_boxes(read_target_labels(tmp_path / "m.png", (14, 12)).labels)) <= 2
