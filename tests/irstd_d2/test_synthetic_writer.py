import json
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from detectron2.data import DatasetCatalog
from PIL import Image

from irstd_d2 import get_config
from irstd_d2.data import build_mapper, read_image, read_sky_mask
from irstd_d2.data.voc_xml import read_voc_xml
from irstd_d2.errors import ConfigError, DatasetError
from irstd_d2.synthetic import SceneConfig, SceneGenerator, dense_config, write_densesirst, write_wideirstd
from irstd_d2.synthetic import writer as writer_module
from irstd_d2.synthetic.writer import MANIFEST, SPLIT_START

SMALL = SceneConfig(seed=2, size=(64, 64))


def snapshot(folder: Path) -> dict[str, tuple[bytes, int]]:
    return {
        str(path.relative_to(folder)): (path.read_bytes(), path.stat().st_mtime_ns)
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def read(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path))


@pytest.mark.parametrize("bits", [8, 16])
def test_wideirstd_layout(tmp_path, bits):
    config = SceneConfig(seed=3, bits=bits)
    folder = write_wideirstd(tmp_path / "a set", config, train=6, val=3, progress=False)
    assert folder == tmp_path / "a set" / "VOC2007"
    names = {split: (folder / "ImageSets/Main" / f"{split}.txt").read_text().split() for split in ("train", "val")}
    assert names["train"] == [f"train_{i:06d}" for i in range(6)]
    assert names["val"] == [f"val_{i:06d}" for i in range(3)]
    generator = SceneGenerator(config)
    for split, start in (("train", 0), ("val", SPLIT_START["val"])):
        for i, name in enumerate(names[split]):
            scene = generator.scene(start + i)
            np.testing.assert_array_equal(read(folder / "PNGImages" / f"{name}.png"), scene.image)
            mask = read(folder / "Masks" / f"{name}.png")
            np.testing.assert_array_equal(mask, np.where(scene.target_mask > 0, 255, 0))
            sky = Image.open(folder / "SkyMasks" / f"{name}.png")
            assert sky.mode == "P"
            np.testing.assert_array_equal(np.asarray(sky), scene.sky_mask)
            record = read_voc_xml(folder / "Annotations" / f"{name}.xml")
            assert (record.platform, record.band) == (scene.metadata["platform"], scene.metadata["band"])
            assert (record.height, record.width) == scene.image.shape
            assert [list(target.box) for target in record.objects] == scene.boxes.tolist()
            assert {(target.name, target.difficult) for target in record.objects} <= {("Target", False)}


def test_densesirst_layout(tmp_path):
    config = dense_config(seed=4, size=(128, 96))
    folder = write_densesirst(tmp_path, config, train=4, val=2, test=1, progress=False)
    splits = {path.name: path.read_text().split() for path in (folder / "Splits").iterdir()}
    assert splits["trainval_v2.txt"] == splits["train_v2.txt"] + splits["val_v2.txt"]
    assert [len(splits[f"{split}_v2.txt"]) for split in ("train", "val", "trainval", "test")] == [4, 2, 6, 1]
    scene = SceneGenerator(config).scene(SPLIT_START["test"])
    name = splits["test_v2.txt"][0]
    np.testing.assert_array_equal(read(folder / f"PNGImages/{name}.png"), scene.image)
    for task, mask in (("SIRST", scene.target_mask > 0), ("SkySeg", scene.sky_mask)):
        np.testing.assert_array_equal(read(folder / task / "BinaryMask" / f"{name}_pixels0.png"), mask * np.uint8(255))
        palette = Image.open(folder / task / "PaletteMask" / f"{name}.png")
        assert palette.mode == "P"
        np.testing.assert_array_equal(np.asarray(palette), mask)
    assert Image.open(folder / f"SkySeg/PaletteMask/{name}.png").getpalette()[:6] == [0, 0, 0, 128, 0, 0]
    points = np.loadtxt(folder / f"SIRST/Point_label/{name}_pixels0.txt", dtype=int, ndmin=2)
    assert len(points) == len(scene.boxes)
    assert (points >= scene.boxes[:, :2]).all()
    assert (points < scene.boxes[:, 2:]).all()
    record = read_voc_xml(folder / f"SIRST/BBox/{name}.xml")
    assert [list(target.box) for target in record.objects] == scene.boxes.tolist()


def test_default_configurations(tmp_path):
    write_wideirstd(tmp_path, train=1, val=0, progress=False)
    write_densesirst(tmp_path, train=1, val=0, progress=False)
    wide = json.loads((tmp_path / "VOC2007" / MANIFEST).read_text())["config"]
    dense = json.loads((tmp_path / "SIRSTdevkit" / MANIFEST).read_text())["config"]
    assert (wide["domain_conflict"], wide["dense"]) == (SceneConfig().domain_conflict, False)
    assert (dense["domain_conflict"], dense["dense"]) == (0, True)
    assert not (tmp_path / "VOC2007/ImageSets/Main/val.txt").exists()


def test_joint_distribution_on_disk(tmp_path):
    folder = write_wideirstd(
        tmp_path, SceneConfig(size=(64, 64), domain_conflict=1.0), train=150, val=50, progress=False
    )
    records = [read_voc_xml(path) for path in (folder / "Annotations").iterdir()]
    shares = Counter((record.platform, record.band) for record in records)
    assert abs(shares["Space", "NIR"] / 200 - 0.654) < 0.03
    assert abs(shares["Land", "LWIR"] / 200 - 0.181) < 0.03
    assert abs(shares["Air", "LWIR"] / 200 - 0.163) < 0.03


def test_a_set_grows_and_keeps_what_is_there(tmp_path):
    folder = write_wideirstd(tmp_path, SMALL, train=3, val=2, progress=False)
    before = snapshot(folder)
    write_wideirstd(tmp_path, SMALL, train=5, val=2, progress=False)
    after = snapshot(folder)
    kept = [name for name in before if "ImageSets" not in name]
    assert {name: after[name] for name in kept} == {name: before[name] for name in kept}
    fresh = write_wideirstd(tmp_path / "fresh", SMALL, train=5, val=2, progress=False)
    assert {name: data for name, (data, _) in snapshot(fresh).items()} == {
        name: data for name, (data, _) in after.items()
    }


@pytest.mark.parametrize("write", [write_wideirstd, write_densesirst])
def test_goes_on_after_an_interrupt(tmp_path, monkeypatch, write):
    whole = write(tmp_path / "whole", SMALL, train=4, val=1, progress=False)
    real, calls = writer_module.write_atomically, []

    def dies(path, data, **options):
        calls.append(path)
        if len(calls) == 12:
            path.with_name(f".{path.name}.1.part").write_bytes(data[: len(data) // 2])
            raise KeyboardInterrupt
        real(path, data, **options)

    monkeypatch.setattr(writer_module, "write_atomically", dies)
    with pytest.raises(KeyboardInterrupt):
        write(tmp_path / "cut", SMALL, train=4, val=1, progress=False)
    monkeypatch.setattr(writer_module, "write_atomically", real)
    cut = write(tmp_path / "cut", SMALL, train=4, val=1, progress=False)

    def contents(folder):
        return {name: data for name, (data, _) in snapshot(folder).items() if not name.endswith(".part")}

    assert contents(cut) == contents(whole)


def test_a_lost_image_is_written_again(tmp_path):
    folder = write_wideirstd(tmp_path, SMALL, train=2, val=1, progress=False)
    before = {name: data for name, (data, _) in snapshot(folder).items()}
    (folder / "PNGImages/train_000001.png").unlink()
    write_wideirstd(tmp_path, SMALL, train=2, val=1, progress=False)
    assert {name: data for name, (data, _) in snapshot(folder).items()} == before


def test_another_configuration_needs_overwrite(tmp_path):
    folder = write_wideirstd(tmp_path, SMALL, train=3, val=1, progress=False)
    before = snapshot(folder)
    other = replace(SMALL, seed=9, bits=16)
    with pytest.raises(DatasetError, match=r"config\.seed, config\.bits.*--overwrite"):
        write_wideirstd(tmp_path, other, train=2, val=1, progress=False)
    assert snapshot(folder) == before
    write_wideirstd(tmp_path, other, train=2, val=1, overwrite=True, progress=False)
    assert read(folder / "PNGImages/train_000000.png").dtype == np.uint16
    assert not (folder / "PNGImages/train_000002.png").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["VOC2007"]


def test_overwrite_with_the_same_configuration_keeps_the_set(tmp_path):
    folder = write_wideirstd(tmp_path, SMALL, train=2, val=1, progress=False)
    before = snapshot(folder)["PNGImages/train_000000.png"]
    write_wideirstd(tmp_path, SMALL, train=2, val=1, overwrite=True, progress=False)
    assert snapshot(folder)["PNGImages/train_000000.png"] == before


def test_another_version_of_the_generator_is_another_set(tmp_path, monkeypatch):
    write_wideirstd(tmp_path, SMALL, train=1, val=0, progress=False)
    monkeypatch.setattr(writer_module, "GENERATOR_VERSION", writer_module.GENERATOR_VERSION + 1)
    with pytest.raises(DatasetError, match="generator_version"):
        write_wideirstd(tmp_path, SMALL, train=1, val=0, progress=False)


@pytest.mark.parametrize("overwrite", [False, True])
def test_real_data_is_never_touched(tmp_path, overwrite):
    image = tmp_path / "VOC2007" / "PNGImages" / "00001.png"
    image.parent.mkdir(parents=True)
    image.write_bytes(b"real")
    with pytest.raises(DatasetError, match="not a synthetic set"):
        write_wideirstd(tmp_path, SMALL, train=1, val=0, overwrite=overwrite, progress=False)
    assert image.read_bytes() == b"real"


@pytest.mark.parametrize("bits", [8, 16])
def test_registered_sets_give_the_scenes_back(tmp_path, monkeypatch, bits):
    """From the generator through the files, the catalog and the mapper to the sample that a model gets."""
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    configs = {"omni": SceneConfig(seed=6, bits=bits), "dense": dense_config(seed=6, bits=bits)}
    write_wideirstd(tmp_path / "synthetic_omni", configs["omni"], train=5, val=3, progress=False)
    write_densesirst(tmp_path / "synthetic_dense", configs["dense"], train=3, val=2, test=2, progress=False)
    cfg = get_config()
    cfg.INPUT.MIN_SIZE_TRAIN = (0,)  # the original size
    cfg.INPUT.RANDOM_FLIP = "none"
    mapper = build_mapper(cfg, is_train=True)
    for kind, split, count in [("omni", "train", 5), ("omni", "val", 3), ("dense", "val", 2), ("dense", "test", 2)]:
        dicts = DatasetCatalog.get(f"synthetic_{kind}_{split}")
        assert [d["image_id"] for d in dicts] == [f"{split}_{i:06d}" for i in range(count)]
        generator = SceneGenerator(configs[kind])
        for i, record in enumerate(dicts):
            scene = generator.scene(SPLIT_START[split] + i)
            assert record["metadata"] == scene.metadata
            assert [a["bbox"] for a in record["annotations"]] == scene.boxes.tolist()
            assert not any(a["iscrowd"] for a in record["annotations"])
            assert all(a["category_id"] == 0 for a in record["annotations"])
            np.testing.assert_array_equal(read_sky_mask(record["sem_seg_file_name"]) == 1, scene.sky_mask == 1)
            image = read_image(record["file_name"])
            np.testing.assert_allclose(image[..., 0], scene.image / (257 if bits == 16 else 1), atol=1e-3)
            sample = mapper(record)
            assert sample["metadata"] == scene.metadata
            assert sample["image"].shape == (3, *scene.image.shape)
            np.testing.assert_array_equal(sample["sem_seg"].numpy(), scene.sky_mask)
            np.testing.assert_array_equal(sample["instances"].gt_boxes.tensor.numpy(), scene.boxes)


@pytest.mark.parametrize("text", ["{", "[]", '{"config": 3}', ""])
def test_broken_manifest(tmp_path, text):
    manifest = tmp_path / "VOC2007" / MANIFEST
    manifest.parent.mkdir()
    manifest.write_text(text)
    with pytest.raises(DatasetError, match="not a manifest"):
        write_wideirstd(tmp_path, SMALL, train=1, val=0, progress=False)


@pytest.mark.parametrize("counts", [{"train": 0, "val": 0}, {"train": -1, "val": 2}])
def test_bad_counts(tmp_path, counts):
    with pytest.raises(ConfigError, match="0 or more"):
        write_wideirstd(tmp_path, SMALL, **counts, progress=False)


@pytest.mark.slow
def test_several_processes_write_the_same_set(tmp_path):
    one = write_wideirstd(tmp_path / "one", SMALL, train=20, val=5, progress=False)
    two = write_wideirstd(tmp_path / "two", SMALL, train=20, val=5, progress=False, workers=2)
    assert {n: data for n, (data, _) in snapshot(one).items()} == {n: data for n, (data, _) in snapshot(two).items()}
