"""From folders in VOC layouts to dataset dicts: exact content, exact counts on the real sets, every fault."""

import json
import logging
import unicodedata
from collections import Counter

import numpy as np
import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.engine import default_argument_parser
from detectron2.structures import BoxMode
from PIL import Image
from voc_files import VocSet, three_images, voc_xml

from irstd_d2 import get_config
from irstd_d2.data import LAYOUTS, VocLayout, load_voc, read_sky_mask, register_voc_folder, set_skip_bad
from irstd_d2.data.check import check_collection, collect
from irstd_d2.data.convert import read_voc
from irstd_d2.data.datasets import register_own_sets
from irstd_d2.data.faults import get_skip_bad
from irstd_d2.data.layout import FolderIndex, get_layout, list_splits
from irstd_d2.data.voc import scan_voc
from irstd_d2.engine.setup import setup
from irstd_d2.errors import ConfigError, DatasetError


@pytest.fixture
def folder(tmp_path):
    return three_images(tmp_path / "set")


@pytest.fixture
def registered():
    """Names registered by a test, removed behind it."""
    names = []
    yield names
    set_skip_bad(False)
    for name in names:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)


def test_dataset_dict(folder):
    dicts = load_voc(folder.root, "train")
    assert [sample["image_id"] for sample in dicts] == ["b", "a"]
    assert dicts[0] == {
        "file_name": str(folder.image("b")),
        "image_id": "b",
        "height": 24,
        "width": 32,
        "metadata": {"platform": None, "band": None, "width": 32, "height": 24},
        "annotations": [
            {"bbox": [3, 4, 6, 8], "bbox_mode": BoxMode.XYXY_ABS, "category_id": 0, "iscrowd": 0},
            {"bbox": [10, 11, 12, 14], "bbox_mode": BoxMode.XYXY_ABS, "category_id": 0, "iscrowd": 0},
        ],
    }


def test_without_split_all_images_by_name(folder):
    assert [sample["image_id"] for sample in load_voc(folder.root)] == ["a", "b", "c"]


def test_paper_convention(folder):
    exact = load_voc(folder.root, "train")
    paper = load_voc(folder.root, "train", box_convention="paper")
    for one, other in zip(exact, paper):
        boxes = [np.array([obj["bbox"] for obj in sample["annotations"]]) for sample in (one, other)]
        np.testing.assert_array_equal(boxes[0] - 1, boxes[1])
    with pytest.raises(
        ConfigError, match="box_convention is 'voc'; known are 'half_open', 'one_based', 'inclusive', 'paper'"
    ):
        load_voc(folder.root, "train", box_convention="voc")


def test_paper_boxes_at_the_border_are_sound(folder):
    folder.add("a", boxes=((0, 0, 32, 24),))
    dicts = load_voc(folder.root, "train", box_convention="paper")
    assert dicts[1]["annotations"][0]["bbox"] == [-1, -1, 31, 23]


def test_classes_and_difficult(folder):
    folder.xml("a").write_text(voc_xml(name="DRONE", difficult=1))
    folder.xml("b").write_text(voc_xml(name="Bird"))
    bird, drone = load_voc(folder.root, "train", class_names=("bird", "drone"))
    assert [(s["annotations"][0]["category_id"], s["annotations"][0]["iscrowd"]) for s in (bird, drone)] == [
        (0, 0),
        (1, 1),
    ]


def test_tags_and_table(folder):
    folder.xml("a").write_text(voc_xml(extra="<view>Air</view><band_type>LWIR</band_type>"))
    assert load_voc(folder.root, "train")[1]["metadata"] == {
        "platform": "Air",
        "band": "LWIR",
        "width": 32,
        "height": 24,
    }
    (folder.root / "metadata.csv").write_text("id,platform,width,height\na,Space,640,512\n")
    expected = {"platform": "Space", "band": "LWIR", "width": 640, "height": 512}
    sample = load_voc(folder.root, "train")[1]
    assert sample["metadata"] == expected
    assert (sample["width"], sample["height"]) == (32, 24)
    (folder.root / "metadata.tsv").write_text("b\tLand\n")
    table = folder.root.parent / "other.tsv"
    table.write_text("a\tLand\tNIR\n")
    dicts = load_voc(folder.root, "train")
    assert [sample["metadata"]["platform"] for sample in dicts] == ["Land", "Air"]
    dicts = load_voc(folder.root, "train", sidecar=table)
    assert [sample["metadata"]["platform"] for sample in dicts] == [None, "Land"]


def test_missing_table(folder):
    with pytest.raises(DatasetError, match=r"none\.tsv.*check the path of the table"):
        load_voc(folder.root, "train", sidecar=folder.root / "none.tsv")


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_is_found_out_and_loaded(tmp_path, layout):
    voc = VocSet(tmp_path, layout).add("x", suffix=".tif")
    voc.split("train", "x\n")
    assert get_layout(None, tmp_path) is LAYOUTS[layout]
    assert list_splits(tmp_path, LAYOUTS[layout]) == ["train"]
    sample = load_voc(tmp_path, "train")[0]
    assert sample["file_name"] == str(voc.image("x", ".tif"))
    for pattern in reversed(LAYOUTS[layout].sky_masks):  # the first pattern wins over the others
        mask = tmp_path / pattern.format(name="x")
        mask.parent.mkdir(parents=True)
        mask.touch()
        assert load_voc(tmp_path, "train", layout=layout)[0]["sem_seg_file_name"] == str(mask)


def test_own_layout(tmp_path):
    layout = VocLayout(images="img", annotations="ann", split="{split}.list")
    (tmp_path / "img").mkdir()
    (tmp_path / "ann").mkdir()
    (tmp_path / "img" / "q.bmp").touch()
    (tmp_path / "ann" / "q.XML").write_text(voc_xml())
    (tmp_path / "all.list").write_text("q.bmp")
    assert len(load_voc(tmp_path, "all", layout=layout)) == 1


def test_unknown_layouts(tmp_path):
    with pytest.raises(DatasetError, match="unknown layout 'coco'"):
        load_voc(tmp_path, layout="coco")
    with pytest.raises(DatasetError, match="no known layout"):
        load_voc(tmp_path)
    with pytest.raises(DatasetError, match=r"no such folder.*DETECTRON2_DATASETS"):
        load_voc(tmp_path / "none")
    (tmp_path / "instances_all.json").touch()
    with pytest.raises(DatasetError, match=r"name the COCO file itself, such as .*instances_all\.json"):
        load_voc(tmp_path)
    with pytest.raises(DatasetError, match=r"PNGImages: folder: cannot be listed"):
        load_voc(tmp_path, layout="densesirst")


def test_non_ascii_names_in_either_unicode_form(tmp_path):
    composed = unicodedata.normalize("NFC", "été-紅外")
    decomposed = unicodedata.normalize("NFD", composed)
    voc = VocSet(tmp_path).add(decomposed)
    voc.split("train", composed + "\r\n")
    sample = load_voc(tmp_path, "train")[0]
    assert sample["image_id"] == composed
    assert sample["file_name"] == str(voc.image(decomposed))


def test_folder_index_ignores_hidden_and_other_files(tmp_path):
    for name in (".a.png", "a.txt", "b.PNG", "b.tiff", "c"):
        (tmp_path / name).touch()
    index = FolderIndex(tmp_path)
    assert index.stems() == ["b"]
    assert index["b"] == ["b.PNG", "b.tiff"]
    assert index["none"] == []


def test_registration(folder, registered):
    registered.append("voc_loading_test")
    register_voc_folder("voc_loading_test", folder.root, "train", box_convention="paper", class_names=["Target"])
    metadata = MetadataCatalog.get("voc_loading_test")
    assert (metadata.thing_classes, metadata.evaluator_type, metadata.box_convention) == (["Target"], "coco", "paper")
    assert DatasetCatalog.get("voc_loading_test")[0]["annotations"][0]["bbox"] == [2, 3, 5, 7]
    folder.xml("a").unlink()
    with pytest.raises(DatasetError):
        DatasetCatalog.get("voc_loading_test")
    set_skip_bad(True)
    assert len(DatasetCatalog.get("voc_loading_test")) == 1


def test_the_configuration_chooses_skipping(registered, tmp_path):  # `registered` resets the choice
    options = ["DATASETS.SKIP_BAD", "True", "DATASETS.TRAIN", "('densesirst_v2_train',)", "OUTPUT_DIR", str(tmp_path)]
    args = default_argument_parser().parse_args(options)
    assert not get_skip_bad()
    setup(args)
    assert get_skip_bad()


def test_builtin_names():
    names = DatasetCatalog.list()
    splits = ("train", "val", "trainval", "test")
    sets = ("densesirst_v1", "densesirst_v2", "sirstv2", "synthetic_dense", "irstd1k", "nudtsirst", "nuaasirst")
    for version in sets:
        assert {f"{version}_{split}" for split in splits} <= set(names)
    assert {"wideirstd_train", "wideirstd_val", "synthetic_omni_train", "synthetic_omni_val"} <= set(names)
    conventions = {"densesirst_v2_test_paper": "paper", "sirstv2_val": "one_based", "densesirst_v2_test": "half_open"}
    conventions |= {"densesirst_v2_test_quarter": "half_open", "wideirstd_val": "half_open"}
    assert {name: MetadataCatalog.get(name).box_convention for name in conventions} == conventions
    assert MetadataCatalog.get("densesirst_v2_test").thing_classes == ["Target"]


def test_own_sets_are_named_in_the_configuration(tmp_path):
    VocSet(tmp_path / "mine").add("a").split("train", "a\n")
    coco = {"id": 1, "file_name": "a.png", "width": 32, "height": 24}
    content = {"images": [coco], "annotations": [], "categories": [{"id": 1, "name": "Bird"}]}
    (tmp_path / "mine.json").write_text(json.dumps(content))
    entries = (
        ("own_train", str(tmp_path / "mine"), "train"),
        ("own_all", str(tmp_path / "mine"), ""),
        ("own_coco", str(tmp_path / "mine.json"), str(tmp_path)),
    )
    try:
        cfg = get_config(None, ["DATASETS.OWN", str(entries)])
        (tmp_path / "config.yaml").write_text(cfg.dump())
        get_config(tmp_path / "config.yaml")  # the same sets again, as lists
        assert [len(DatasetCatalog.get(name)) for name, _, _ in entries] == [1, 1, 1]
        assert MetadataCatalog.get("own_coco").thing_classes == ["Bird"]
        with pytest.raises(ConfigError, match="'own_all' is another set; choose another name"):
            get_config(None, ["DATASETS.OWN", str((("own_all", "elsewhere", ""),))])
    finally:
        for name, _, _ in entries:
            DatasetCatalog.remove(name)
            MetadataCatalog.remove(name)


@pytest.mark.parametrize("entry", [("a", "b"), ("a", "b", 3), ("", "b", "c"), ("a", "", "c")])
def test_malformed_own_sets(entry):
    with pytest.raises(ConfigError, match=r"write \(name, folder, split\) or \(name, COCO file, images\)"):
        register_own_sets([entry])


@pytest.mark.parametrize(
    ("name", "present", "missing", "page"),
    [
        ("densesirst_v2_train", None, "SIRSTdevkit", "https://github.com/GrokCV/DenseSIRST"),
        ("sirstv2_test", "open-sirst-v2/mixed", "open-sirst-v2/annotations/bboxes", "YimianDai/open-sirst-v2"),
        ("wideirstd_val", "WideIRSTD-Full/VOC2007/Annotations", "VOC2007/PNGImages", "XinyiYing/WideIRSTD-Dataset"),
        ("spaceir_train", "SpaceIR-sen2ships/VOC2007/PNGImages", "VOC2007/Annotations", "prepare_spaceir.py"),
    ],
)
def test_a_missing_builtin_set_is_named_with_its_source(tmp_path, monkeypatch, name, present, missing, page):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    if present:
        (tmp_path / present).mkdir(parents=True)
    for read in (DatasetCatalog.get, collect):
        with pytest.raises(
            DatasetError, match=rf"{missing}: folder: not there.*built-in set.*{page}.*DETECTRON2_DATASETS"
        ):
            read(name)


SPLITS = {
    "densesirst_v1_train": (256, 3613),
    "densesirst_v1_val": (85, 1119),
    "densesirst_v1_trainval": (341, 4732),
    "densesirst_v1_test": (86, 1209),
    "densesirst_v2_train": (512, 6749),
    "densesirst_v2_val": (256, 3452),
    "densesirst_v2_trainval": (768, 10201),
    "densesirst_v2_test": (256, 3454),
}


def sirstv2_copy(root):
    """Three images as SIRST-V2 is published: boxes from 1, and an object without box for "no target"."""
    places = LAYOUTS["sirstv2"]
    for folder in (places.images, places.annotations, "annotations/masks", "splits"):
        (root / folder).mkdir(parents=True)
    targets = {"Misc_1": [(3, 4, 6, 8), (28, 20, 32, 24)], "Misc_2": [(0, 0, 2, 2)], "Misc_3": []}
    for name, boxes in targets.items():
        mask = np.zeros((24, 32), np.uint8)
        for x1, y1, x2, y2 in boxes:
            mask[y1:y2, x1:x2] = 255
        Image.fromarray(mask).save(root / "annotations" / "masks" / f"{name}_pixels0.png")
        Image.fromarray(mask // 2).save(root / places.images / f"{name}.png")
        text = voc_xml(boxes=[[value + 1 for value in box] for box in boxes], filename=f"{name}.png")
        if not boxes:
            text = text.replace("</annotation>", "<object><name>Target</name></object></annotation>")
        (root / places.annotations / f"{name}.xml").write_text(text)
    (root / "splits" / "test_full.txt").write_text("".join(f"{name}\n" for name in targets))
    return targets


def test_sirstv2_boxes_equal_the_masks(tmp_path, monkeypatch, caplog):
    targets = sirstv2_copy(tmp_path / "open-sirst-v2")
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    caplog.set_level(logging.INFO, logger="irstd_d2")
    dicts = DatasetCatalog.get("sirstv2_test")
    assert {s["image_id"]: [tuple(obj["bbox"]) for obj in s["annotations"]] for s in dicts} == targets
    assert "1 objects have no <bndbox>: read as no target" in caplog.text
    folder = load_voc(tmp_path / "open-sirst-v2")  # the layout knows the convention
    assert [s["annotations"] for s in folder] == [s["annotations"] for s in dicts]
    report = check_collection(collect("sirstv2_test"))
    assert (report.faults, [note for note in report.notes if "mask" in note]) == ([], [])


def test_real_densesirst_counts(real_densesirst, monkeypatch):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(real_densesirst))
    sets = {name: DatasetCatalog.get(name) for name in SPLITS}
    assert {name: (len(d), sum(len(s["annotations"]) for s in d)) for name, d in sets.items()} == SPLITS
    everything = load_voc(real_densesirst / "SIRSTdevkit")
    assert len(everything) == 1024
    boxes = np.array([obj["bbox"] for sample in everything for obj in sample["annotations"]])
    assert len(boxes) == 13655
    sizes = Counter(map(tuple, (boxes[:, 2:] - boxes[:, :2]).astype(int).tolist()))
    assert sizes.most_common(1) == [((3, 3), 3681)]
    assert all("sem_seg_file_name" in sample for sample in everything)
    assert all(set(sample["metadata"]) == {"platform", "band", "width", "height"} for sample in everything)
    first = (real_densesirst / "SIRSTdevkit" / "Splits" / "test_v2.txt").read_text().split()
    assert [sample["image_id"] for sample in sets["densesirst_v2_test"]] == first
    paper = DatasetCatalog.get("densesirst_v2_test_paper")
    assert paper[0]["annotations"][0]["bbox"] == [
        v - 1 for v in sets["densesirst_v2_test"][0]["annotations"][0]["bbox"]
    ]


def test_real_boxes_are_exact_in_half_open_coordinates(real_densesirst):
    root = real_densesirst / "SIRSTdevkit"
    inside = outside = total = 0
    for sample in load_voc(root, "val_v1"):
        mask = read_sky_mask(root / "SIRST" / "BinaryMask" / f"{sample['image_id']}_pixels0.png")
        for obj in sample["annotations"]:
            x1, y1, x2, y2 = map(int, obj["bbox"])
            area = mask[y1:y2, x1:x2]
            tight = area.any(0)[[0, -1]].all() and area.any(1)[[0, -1]].all()
            inside += int(tight)
            outside += int(not tight)
            total += 1
    assert total == 1119
    assert outside == 6  # off by one in the set itself


def test_real_omni_counts(omni_mini):
    sets = {split: load_voc(omni_mini, split) for split in ("train", "val")}
    assert {split: len(dicts) for split, dicts in sets.items()} == {"train": 210, "val": 90}
    everything = sets["train"] + sets["val"]
    assert sum(len(sample["annotations"]) for sample in everything) == 407
    assert sum(not sample["annotations"] for sample in everything) == 7
    domains = Counter((s["metadata"]["platform"], s["metadata"]["band"]) for s in everything)
    assert domains == {("Air", "LWIR"): 170, ("Land", "LWIR"): 130}


def test_wideirstd_name_reads_the_same_layout(omni_mini, tmp_path, monkeypatch):
    (tmp_path / "WideIRSTD-Full").symlink_to(omni_mini)
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    assert len(DatasetCatalog.get("wideirstd_val")) == 90


@pytest.mark.parametrize("split", [None, "train"])
def test_annotations_of_images_that_cannot_be_read_are_counted(folder, split):
    for name, suffix in (("x", ".webp"), ("y", ".gif")):
        folder.add(name)
        folder.image(name).rename(folder.image(name, suffix))
    note = "2 XML files have no image of a known kind: x, y"
    assert scan_voc(folder.root, split).notes == (note,)
    assert collect(folder.root).notes[0] == note
    assert read_voc(folder.root).unread["XML files without image"] == 2


@pytest.mark.parametrize("box", [(0.1, 0.2, 0.3, 0.5), (0, 0, 0.25, 1)])
def test_boxes_in_fractions_are_refused(tmp_path, box):
    VocSet(tmp_path).add("a").xml("a").write_text(voc_xml(boxes=[box, box]))
    with pytest.raises(DatasetError, match=r"boxes: all 2 lie within the first pixel: .*Fix: write them in pixels"):
        load_voc(tmp_path)


@pytest.mark.parametrize("box", [(0, 0, 1, 1), (0.5, 0.5, 1.5, 1)])
def test_small_boxes_are_no_fractions(tmp_path, box):
    VocSet(tmp_path).add("a", boxes=[]).xml("a").write_text(voc_xml(boxes=[box]))
    assert load_voc(tmp_path)[0]["annotations"][0]["bbox"] == list(box)
