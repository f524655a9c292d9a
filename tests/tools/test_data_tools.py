"""The command lines that convert, split and merge."""

import json

import cv2
import numpy as np
import pytest
import yaml
from programs import load_program
from voc_files import VocSet

from irstd_d2.data.check import collect
from irstd_d2.data.convert import read_coco, read_masks, read_voc, read_yolo


@pytest.fixture(scope="module")
def tool(repo_root):
    def load(name):
        module = load_program(repo_root / "tools" / f"{name}.py")
        return lambda *arguments: module.main(list(map(str, arguments)))

    return load


@pytest.fixture
def voc(tmp_path):
    """Ten images of five sequences; even ones are Air, odd ones Land."""
    voc = VocSet(tmp_path / "set")
    for i in range(10):
        platform = ("Air", "Land")[i % 2]
        voc.add(
            f"s{i // 2}_{i}",
            extra=f"<view>{platform}</view><band_type>LWIR</band_type>",
            boxes=((3, 4, 6, 8),) * (i > 0),
        )
    return voc


def test_convert(tool, voc, tmp_path, capsys):
    convert = tool("convert_dataset")
    voc.split("val", "s0_0\ns0_1\n")
    assert convert(voc.root, tmp_path / "coco", "--to", "coco", "--band", "NIR") == 0
    assert f"Wrote {tmp_path / 'coco'}: 2 images, 1 targets; splits: val 2" in capsys.readouterr().out
    assert [record.band for record in read_coco(tmp_path / "coco").records] == ["LWIR", "LWIR"]
    assert convert(tmp_path / "coco", tmp_path / "yolo", "--to", "yolo") == 0
    assert convert(tmp_path / "yolo", tmp_path / "mask", "--to", "mask") == 0
    assert convert(tmp_path / "mask", tmp_path / "omni", "--to", "voc", "--to-layout", "wideirstd", "--link") == 0
    assert not collect(tmp_path / "omni").faults
    found = read_voc(tmp_path / "omni")
    assert found.splits == {"val": ("s0_0", "s0_1")}
    assert found.records[1].objects == read_voc(voc.root).records[1].objects
    assert convert(voc.root, tmp_path / "coco", "--to", "coco") == 2
    assert "pass --overwrite" in capsys.readouterr().err
    assert convert(tmp_path / "nothing", tmp_path / "x", "--to", "coco") == 2
    assert "no such folder" in capsys.readouterr().err


def test_convert_a_mask_set_with_its_own_folders(tool, tmp_path, capsys):
    for folder in ("Img", "Label"):
        (tmp_path / "raw" / folder).mkdir(parents=True)
        cv2.imwrite(str(tmp_path / "raw" / folder / "XDU1.png"), np.eye(20, dtype=np.uint8) * 255)
    (tmp_path / "raw" / "test_all.txt").write_text("XDU1\n")
    places = ("--from", "mask", "--images", "Img", "--masks", "Label", "--split", "test=test_all.txt")
    assert (
        tool("convert_dataset")(tmp_path / "raw", tmp_path / "out", *places, "--to", "voc", "--platform", "Land") == 0
    )
    (record,) = read_voc(tmp_path / "out").records
    assert (record.platform, record.objects[0].box) == ("Land", (0, 0, 20, 20))
    with pytest.raises(SystemExit):
        tool("convert_dataset")(tmp_path / "raw", tmp_path / "x", "--to", "voc", "--split", "test")
    assert "is not NAME=FILE" in capsys.readouterr().err


def test_convert_a_registered_set(tool, voc, tmp_path, monkeypatch):
    root = tmp_path / "datasets" / "synthetic_omni"
    assert tool("convert_dataset")(voc.root, root, "--to", "voc", "--to-layout", "wideirstd") == 0
    lists = root / "VOC2007" / "ImageSets" / "Main"
    lists.mkdir(parents=True)
    (lists / "val.txt").write_text("s1_2\n")
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path / "datasets"))
    assert tool("convert_dataset")("synthetic_omni_val", tmp_path / "yolo", "--to", "yolo") == 0
    found = read_yolo(tmp_path / "yolo")
    assert (found.splits, found.class_names) == ({"synthetic_omni_val": ("s1_2",)}, ("Target",))


def test_split_a_voc_folder(tool, voc, capsys):
    split = tool("split_dataset")
    assert split(voc.root, "--ratio", "train=8", "val=2") == 0
    assert "Air         LWIR    4        1" in capsys.readouterr().out
    found = read_voc(voc.root)
    assert {name: len(names) for name, names in found.splits.items()} == {"train": 8, "val": 2}
    assert split(voc.root, "--ratio", "train=8", "val=2") == 2
    assert "train.txt: file: exists. Fix: choose other names, or pass --overwrite" in capsys.readouterr().err
    options = ("--overwrite", "--stratify", "--group-pattern", r"^(s\d)_", "--seed", "3")
    assert split(voc.root, "--ratio", "train=0.6", "val=0.4", *options) == 0
    assert "5 groups of 10 images stay together; 0 images stand alone" in capsys.readouterr().out
    sequences = [{name[:2] for name in names} for names in read_voc(voc.root).splits.values()]
    assert not sequences[0] & sequences[1]
    assert list(map(len, sequences)) == [3, 2]


def test_split_by_a_column(tool, voc, tmp_path, capsys):
    split, table = tool("split_dataset"), tmp_path / "scenes.csv"
    table.write_text(
        "id,scene\n" + "".join(f"{r.name}.png,{i // 9}\n" for i, r in enumerate(read_voc(voc.root).records))
    )
    options = ("--group-column", "scene", "--table", table)
    assert split(voc.root, "--ratio", "a=1", "b=1", "c=1", *options) == 2
    assert "no image is left for c: give fewer splits, or smaller groups" in capsys.readouterr().err
    assert not read_voc(voc.root).splits
    assert split(voc.root, "--ratio", "a=1", "b=1", *options) == 0
    assert sorted(map(len, read_voc(voc.root).splits.values())) == [1, 9]
    table.write_text("id,scene\nx,1\n")
    assert split(voc.root, "--ratio", "a=1", "b=1", "--overwrite", *options) == 2
    assert "none of the 10 images" in capsys.readouterr().err
    assert split(voc.root, "--ratio", "a=1", "--group-column", "scene") == 2
    assert "--table FILE" in capsys.readouterr().err


@pytest.mark.parametrize("text", ["train", "train=x", "train=0", "=1", "a/b=1", "a=inf"])
def test_bad_shares(tool, tmp_path, text, capsys):
    with pytest.raises(SystemExit):
        tool("split_dataset")(tmp_path, "--ratio", text)
    assert "is not NAME=SHARE" in capsys.readouterr().err


def test_split_the_other_formats(tool, voc, tmp_path, capsys):
    convert, split = tool("convert_dataset"), tool("split_dataset")
    for name in ("coco", "mask", "yolo"):
        assert convert(voc.root, tmp_path / name, "--to", name) == 0
    path = tmp_path / "coco" / "instances_all.json"
    content = json.loads(path.read_text())
    content["images"][0]["camera"] = "mine"
    path.write_text(json.dumps(content | {"licenses": ["free"]}))
    assert split(tmp_path / "coco", "--ratio", "train=8", "val=2") == 0  # its only file
    parts = [json.loads((tmp_path / "coco" / f"instances_all_{name}.json").read_text()) for name in ("train", "val")]
    assert [len(part["images"]) for part in parts] == [8, 2]
    assert sum(len(part["annotations"]) for part in parts) == 9
    assert all(part["licenses"] == ["free"] for part in parts)
    assert [entry.get("camera") for part in parts for entry in part["images"]].count("mine") == 1
    assert split(tmp_path / "coco", "--ratio", "train=8", "val=2") == 2
    assert "name the one COCO file to split" in capsys.readouterr().err
    assert split(tmp_path / "mask", "--ratio", "train=8", "val=2") == 0
    assert split(tmp_path / "yolo", "--ratio", "train=8", "val=2") == 0
    for found in (read_masks(tmp_path / "mask"), read_yolo(tmp_path / "yolo")):
        assert {name: len(names) for name, names in found.splits.items()} == {"train": 8, "val": 2}
    assert yaml.safe_load((tmp_path / "yolo" / "data.yaml").read_text())["names"] == {0: "Target"}


@pytest.mark.parametrize("name", ["data.yaml", "data.yml", "dataset.yaml"])
def test_the_description_of_a_yolo_folder_keeps_its_name_and_loses_old_splits(tool, voc, tmp_path, name):
    root = tmp_path / "yolo"
    assert tool("convert_dataset")(voc.root, root, "--to", "yolo") == 0
    (root / "data.yaml").unlink()
    (root / "test.txt").write_text("./images/s0_0.png\n./images/s0_1.png\n")
    description = {"train": "images", "val": "images", "test": "test.txt", "names": ["drone"], "license": "free"}
    (root / name).write_text(yaml.safe_dump(description))
    assert tool("split_dataset")(root, "--ratio", "train=8", "val=2") == 0
    expected = {"train": "train.txt", "val": "val.txt", "names": ["drone"], "license": "free"}
    assert [path.name for path in root.glob("*.y*ml")] == [name]
    assert yaml.safe_load((root / name).read_text()) == expected
    found = read_yolo(root)
    assert (found.class_names, {split: len(names) for split, names in found.splits.items()}) == (
        ("drone",), {"train": 8, "val": 2}
    )  # fmt: skip


@pytest.mark.parametrize("form", ["voc", "mask"])
def test_lists_that_are_not_replaced_are_named(tool, voc, tmp_path, capsys, form):
    root = tmp_path / "out"
    assert tool("convert_dataset")(voc.root, root, "--to", form) == 0
    lists = root / "ImageSets" / "Main" if form == "voc" else root
    lists.mkdir(parents=True, exist_ok=True)
    (lists / "test.txt").write_text("s0_0\n")
    assert tool("split_dataset")(root, "--ratio", "train=8", "val=2") == 0
    assert "Not replaced: test.txt, which may name images" in capsys.readouterr().out
    assert tool("split_dataset")(root, "--ratio", "train=7", "val=2", "test=1", "--overwrite") == 0
    assert "Not replaced" not in capsys.readouterr().out


def test_merge(tool, voc, tmp_path, capsys):
    merge, out = tool("merge_metadata"), tmp_path / "metadata.csv"
    table = tmp_path / "table.tsv"
    table.write_text("s0_0\tSpace\tNIR\t320\t240\nother\tAir\tLWIR\t1\t1\n")
    assert merge(out, voc.root / "Annotations", table, "--images", voc.root / "PNGImages") == 1
    captured = capsys.readouterr()
    assert captured.out.splitlines()[:2] == [
        "Conflicts: 4",
        f"  s0_0: platform is 'Air' in {voc.root / 'Annotations'}, 'Space' in {table}",
    ]
    assert "pass --accept-conflicts" in captured.err
    assert not out.exists()
    (tmp_path / "list.txt").write_text("s0_0\nunseen\n")
    assert merge(out, table, voc.root / "Annotations", "--images", tmp_path / "list.txt", "--accept-conflicts") == 0
    assert out.read_text() == "id,platform,band,width,height\ns0_0,Space,NIR,320,240\n"
    assert "Images in no source: 1\n  unseen" in capsys.readouterr().out
    assert merge(tmp_path / "all.tsv", table) == 0
    assert (tmp_path / "all.tsv").read_text().splitlines()[1] == "other\tAir\tLWIR\t1\t1"


def test_merge_of_tables_of_other_images(tool, tmp_path, capsys):
    (tmp_path / "a.csv").write_text("id,view\n7,Air\n")
    (tmp_path / "images.txt").write_text("007\n008\n")
    options = (tmp_path / "out.csv", tmp_path / "a.csv", "--images", tmp_path / "images.txt")
    assert tool("merge_metadata")(*options) == 2
    assert "a.csv: ids: none of 1, such as '7', is one of 2 images" in capsys.readouterr().err
    (tmp_path / "a.csv").write_text("id,view\n007,Air\n")
    assert tool("merge_metadata")(*options) == 0


def test_merge_with_faults(tool, tmp_path, capsys):
    table, out = tmp_path / "table.csv", tmp_path / "out.csv"
    table.write_text("id,band,width\na,NIR,wide\nb,,3\n")
    assert tool("merge_metadata")(out, table) == 2
    captured = capsys.readouterr()
    assert "Faults: 1\n" in captured.out
    assert "line 2: width 'wide'" in captured.out
    assert not out.exists()
    assert tool("merge_metadata")(out, table, "--skip-bad") == 0
    assert "Unknown band: 1 of 1 images" in capsys.readouterr().out
    assert tool("merge_metadata")(out, tmp_path / "absent.csv") == 2
    assert "absent.csv: file: cannot be opened" in capsys.readouterr().err
    assert tool("merge_metadata")(table / "x.csv", table, "--skip-bad") == 2
    assert "could not be written" in capsys.readouterr().err
