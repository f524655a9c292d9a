"""Classes by name: ids, order, groups, subsets and contradictions, in COCO files and VOC folders."""

import json

import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from torch import nn
from voc_files import VocSet, voc_xml

from irstd_d2 import get_config
from irstd_d2.data import (
    ClassTable,
    align_classes,
    class_table,
    load_coco,
    load_voc,
    register_coco_folder,
    register_voc_folder,
)
from irstd_d2.data.classes import check_num_classes, require_same_names
from irstd_d2.data.coco import scan_coco
from irstd_d2.data.datasets import configured_classes, prepare_classes
from irstd_d2.data.voc import scan_voc
from irstd_d2.errors import ConfigError, DatasetError


def coco(path, categories, classes, supercategories=()):
    """A file with one image and one object per entry of ``classes`` (category ids), 10 pixels apart."""
    annotations = [
        {"id": i, "image_id": 1, "category_id": key, "bbox": [10 * i, 5, 4, 4]} for i, key in enumerate(classes)
    ]
    parents = dict(supercategories)
    entries = [{"id": key, "name": name, "supercategory": parents.get(key, "none")} for key, name in categories.items()]
    image = {"id": 1, "file_name": "a.png", "width": 64, "height": 64}
    path.write_text(json.dumps({"images": [image], "annotations": annotations, "categories": entries}))
    return path


@pytest.fixture
def names():
    """Names to register, which are taken out afterwards."""
    used = []
    yield lambda name: used.append(f"classes_test_{name}") or used[-1]
    for name in used:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)


def indices(name):
    return [obj["category_id"] for sample in DatasetCatalog.get(name) for obj in sample["annotations"]]


@pytest.mark.parametrize("categories", [{1: "drone", 2: "bird"}, {90: "drone", 7: "bird"}, {"b": "drone", "a": "bird"}])
def test_own_ids_are_known_to_the_catalog(tmp_path, names, categories):
    name = names("ids")
    register_coco_folder(name, coco(tmp_path / "a.json", categories, list(categories)), tmp_path)
    table = class_table(name)  # before it is loaded
    assert {table.names[index]: key for key, index in table.indices.items()} == {v: k for k, v in categories.items()}
    DatasetCatalog.get(name)
    metadata = MetadataCatalog.get(name)
    assert metadata.thing_dataset_id_to_contiguous_id == table.indices
    assert tuple(metadata.thing_classes) == table.names
    assert [table.names[index] for index in indices(name)] == ["drone", "bird"]
    assert ClassTable.from_json(json.loads(json.dumps(table.to_json()))) == table


def test_sets_with_other_ids_and_order_are_mapped_by_name(tmp_path, names):
    first, second, third = names("a"), names("b"), names("c")
    register_coco_folder(first, coco(tmp_path / "a.json", {1: "drone", 2: "bird"}, [1, 2, 2]), tmp_path)
    register_coco_folder(second, coco(tmp_path / "b.json", {1: "Bird", 2: "drone"}, [1, 2, 2]), tmp_path)
    voc = VocSet(tmp_path / "voc").add("a")
    voc.xml("a").write_text(
        voc_xml(boxes=[(1, 1, 3, 3), (4, 4, 9, 9)]).replace("Target", "bird", 1).replace("Target", "drone")
    )
    register_voc_folder(third, voc.root)
    table = align_classes([first, second, third])
    assert table == ClassTable(("drone", "bird"), {1: 0, 2: 1})
    assert [indices(name) for name in (first, second, third)] == [[0, 1, 1], [1, 0, 0], [1, 0]]
    assert class_table(second).ids == (2, 1)
    assert all(MetadataCatalog.get(name).thing_classes == ["drone", "bird"] for name in (first, second, third))


def test_sets_with_other_classes_name_both_sides_and_the_fix(tmp_path, names):
    first, second = names("a"), names("b")
    register_coco_folder(first, coco(tmp_path / "a.json", {1: "drone", 2: "bird"}, [1, 2]), tmp_path)
    register_coco_folder(second, coco(tmp_path / "b.json", {1: "drone", 2: "plane"}, [1, 2]), tmp_path)
    with pytest.raises(ConfigError, match=r"drone, bird, but the set '\w+_b' has drone, plane; .*DATASETS\.CLASSES"):
        align_classes([first, second])
    align_classes([first, second], ["drone"], subset=True)
    assert [indices(first), indices(second)] == [[0], [0]]
    align_classes([first, second], ["flying"], {"drone": "flying", "bird": "flying", "plane": "flying"}, subset=True)
    assert [indices(first), indices(second)] == [[0, 0], [0, 0]]
    with pytest.raises(ConfigError, match="has the classes ship, but the set"):
        align_classes([first], ["ship"], subset=True)
    with pytest.raises(ConfigError, match="CLASS_ALIASES leads to 'kite', but the classes are drone, bird"):
        align_classes([first], None, {"plane": "kite"})


@pytest.mark.parametrize(
    ("categories", "supercategories", "expected"),
    [
        ({0: "targets", 1: "drone"}, {1: "targets"}, ("drone",)),  # Roboflow
        ({0: "a", 1: "drone", 2: "bird"}, {1: "a", 2: "a"}, ("drone", "bird")),
        ({0: "drone", 1: "drone"}, {1: "drone"}, ("drone",)),  # the project is called like its class
        ({0: "kite", 1: "drone"}, {}, ("kite", "drone")),  # a class that does not occur
        ({1: "drone", 2: "bird"}, {1: "drone", 2: "bird"}, ("drone", "bird")),  # each its own group
    ],
)
def test_groups_of_other_categories_are_no_classes(tmp_path, categories, supercategories, expected):
    path = coco(tmp_path / "a.json", categories, [1], supercategories)
    scan = scan_coco(path, tmp_path)
    assert scan.classes.names == expected
    assert scan.dicts[0]["annotations"][0]["category_id"] == expected.index("drone")
    dropped = expected == ("drone",) and len(set(categories.values())) == 2
    assert any("is only the group" in note for note in scan.notes) == (dropped or "a" in categories.values())


def test_a_subset_of_the_classes_keeps_the_images(tmp_path):
    path = coco(tmp_path / "a.json", {0: "Person", 4: "DontCare"}, [0, 4, 4])
    dicts, classes = load_coco(path, tmp_path, class_names=["person"])
    assert (classes, [len(sample["annotations"]) for sample in dicts]) == (["person"], [1])
    assert dict(scan_coco(path, tmp_path, class_names=["Person"]).left_out) == {"DontCare": 2}
    dicts, _ = load_coco(path, tmp_path, class_names=["Car", "Person"])
    assert dicts[0]["annotations"][0]["category_id"] == 1
    assert scan_coco(path, tmp_path, class_names=["Car", "Person"]).classes.ids == (5, 0)  # 5: no category has it
    with pytest.raises(DatasetError, match="Person, DontCare: none of them is Ship"):
        load_coco(path, tmp_path, class_names=["Ship"])


def test_a_subset_of_the_classes_of_a_voc_folder(tmp_path):
    voc = VocSet(tmp_path).add("a").add("b")
    voc.split("train", "a\nb\n")
    voc.split("val", "b\n")
    boxes = [(1, 1, 3, 3), (4, 4, 9, 9)]
    voc.xml("a").write_text(voc_xml(boxes=boxes).replace("Target", "Person", 1).replace("Target", "DontCare"))
    voc.xml("b").write_text(voc_xml(boxes=boxes[:1]).replace("Target", "DontCare"))
    scan = scan_voc(tmp_path, "train", class_names=["Person"])
    assert [len(sample["annotations"]) for sample in scan.dicts] == [1, 0]
    assert dict(scan.left_out) == {"DontCare": 2}
    assert scan_voc(tmp_path, "val", class_names=["Person"]).dicts[0]["annotations"] == []
    assert scan_voc(tmp_path, "val").classes.names == ("DontCare", "Person")  # of the folder, whatever the split
    with pytest.raises(DatasetError, match=r"of class DontCare, Person, none is of target\. Fix: give the set's own"):
        load_voc(tmp_path, "train", class_names=["Target"])


def test_category_ids_and_names_that_contradict_each_other(tmp_path):
    path = coco(tmp_path / "a.json", {1: "drone"}, [1])
    content = json.loads(path.read_text())
    content["categories"].append({"id": 1, "name": "bird"})
    path.write_text(json.dumps(content))
    with pytest.raises(DatasetError, match=r"categories\[1\]\.id: 1 again, for 'bird'"):
        load_coco(path, tmp_path)


class Detector(nn.Module):
    def __init__(self, num_classes):
        super().__init__()
        self.num_classes = num_classes


def test_num_classes_that_contradict_the_set():
    table = ClassTable.from_names(["drone", "bird"])
    check_num_classes(Detector(2), table, "x")
    wrapped = nn.Module()
    wrapped.model = Detector(1)
    for model, number in ((wrapped, 1), (Detector(3), 3)):
        with pytest.raises(ConfigError, match=rf"NUM_CLASSES is {number}, but x has 2 classes: drone, bird"):
            check_num_classes(model, table, "x")
    roi = nn.Module()
    roi.roi_heads = Detector(80)
    with pytest.raises(ConfigError, match=r"set MODEL\.ROI_HEADS\.NUM_CLASSES to 2"):
        check_num_classes(roi, table, "x")
    with pytest.raises(ConfigError, match="has no num_classes"):
        check_num_classes(nn.Linear(1, 1), table, "x")


def test_order_matters_to_a_model():
    require_same_names(("a", ["drone", "bird"]), ("b", ["Bird", "drone "]))
    with pytest.raises(ConfigError, match=r"set DATASETS\.CLASSES to \('drone', 'bird'\)"):
        require_same_names(("a", ["drone", "bird"]), ("b", ["bird", "drone"]), same_order=True)


def test_the_classes_of_a_run(tmp_path, names):
    first, second = names("a"), names("b")
    files = [
        coco(tmp_path / "a.json", {1: "drone", 2: "bird"}, [1, 2]),
        coco(tmp_path / "b.json", {1: "bird", 2: "drone"}, [1, 2]),
    ]
    own = [(name, str(file), str(tmp_path)) for name, file in zip((first, second), files)]
    options = ["DATASETS.OWN", str(own), "DATASETS.TRAIN", str((first,)), "DATASETS.TEST", str((second,))]
    cfg = get_config(None, options)
    assert configured_classes(cfg).names == ("drone", "bird")
    assert prepare_classes(cfg, train=True).names == ("drone", "bird")
    assert indices(second) == [1, 0]
    # A checkpoint decides; its test set is read in its order.
    trained = ClassTable.from_names(["bird", "drone"])
    assert prepare_classes(cfg, train=False, trained=trained).names == ("bird", "drone")
    assert indices(second) == [0, 1]
    with pytest.raises(ConfigError, match="the checkpoint has the classes ship, but the set"):
        prepare_classes(cfg, train=False, trained=ClassTable.from_names(["ship"]))
    # Without it the training set does, where it is at hand.
    prepare_classes(cfg, train=False)
    assert indices(second) == [1, 0]
    get_config(None, options)  # the sets are still those of the configuration
    chosen = get_config(None, [*options, "DATASETS.CLASSES", "('bird',)"])
    assert prepare_classes(chosen, train=True).names == ("bird",)
    assert [indices(first), indices(second)] == [[0], [0]]
    merged = get_config(None, [*options, "DATASETS.CLASS_ALIASES", "('drone=Target', 'bird=Target')"])
    assert prepare_classes(merged, train=True).names == ("Target",)
    assert [indices(first), indices(second)] == [[0, 0], [0, 0]]
    with pytest.raises(ConfigError, match="CLASS_ALIASES has 'drone'; write"):
        prepare_classes(get_config(None, [*options, "DATASETS.CLASS_ALIASES", "('drone',)"]), train=True)


def test_own_sets_with_own_classes(tmp_path, names):
    voc = VocSet(tmp_path / "voc").add("a")
    voc.xml("a").write_text(voc_xml(boxes=[(1, 1, 3, 3), (4, 4, 9, 9)]).replace("Target", "bird", 1))
    name, every = names("voc"), names("every")
    own = ((name, str(voc.root), "", {"class_names": ("bird",)}), (every, str(voc.root), ""))
    cfg = get_config(None, ["DATASETS.OWN", str(own)])
    (tmp_path / "config.yaml").write_text(cfg.dump())
    get_config(tmp_path / "config.yaml")
    assert (indices(name), MetadataCatalog.get(name).thing_classes) == ([0], ["bird"])
    assert (indices(every), MetadataCatalog.get(every).thing_classes) == ([0, 1], ["bird", "Target"])
    for options, message in (
        ({"classes": ()}, "with box_convention, class"),
        ({"class_names": "bird"}, "write 'class_na"),
    ):
        with pytest.raises(ConfigError, match=message):
            get_config(None, ["DATASETS.OWN", str((("classes_test_x", str(voc.root), "", options),))])
