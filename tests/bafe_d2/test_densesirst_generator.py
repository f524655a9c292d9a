"""The generator of dense sets: its layout, its rules, that it repeats itself byte for byte and survives interrupts."""

import multiprocessing
import shutil
import time

import cv2
import numpy as np
import pytest
from detectron2.data import DatasetCatalog
from PIL import Image

from bafe_d2.data import PasteRule, TargetLibrary
from bafe_d2.data import densesirst_generator as module
from bafe_d2.data.densesirst_generator import (
    MANIFEST,
    RECIPES,
    GeneratorConfig,
    generate_densesirst,
    generate_image,
    read_sparse_set,
)
from irstd_d2.data import read_sky_mask
from irstd_d2.data.check import check_collection, collect
from irstd_d2.data.image_io import read_raw
from irstd_d2.data.voc_xml import VocObject, VocRecord, format_voc_xml, read_voc_xml
from irstd_d2.errors import ConfigError, DatasetError

NAMES = ("gray8", "gray16", "colour", "no_sky", "alpha")


def write_sparse(root):
    """Five images with one target each, in plain VOC form with sky masks, split into train and val."""
    rng = np.random.default_rng(0)
    for folder in ("PNGImages", "Annotations", "SkyMasks", "ImageSets/Main"):
        (root / folder).mkdir(parents=True)
    for i, name in enumerate(NAMES):
        top = 65535 if name == "gray16" else 255
        shape = {"colour": (72, 96, 3), "alpha": (72, 96, 4)}.get(name, (72, 96))
        image = (rng.random(shape) * 0.3 * top).astype(np.uint16 if top > 255 else np.uint8)
        box = (10 + i, 20, 14 + i, 23)
        image[20:23, 10 + i : 14 + i] = int(0.9 * top)
        cv2.imwrite(str(root / f"PNGImages/{name}.png"), image)
        sky = np.zeros((72, 96), np.uint8)
        sky[: 0 if name == "no_sky" else 60] = 255
        cv2.imwrite(str(root / f"SkyMasks/{name}.png"), sky)
        difficult = name == "colour"
        record = VocRecord(96, 72, "Land" if i else None, "LWIR" if i else None, (VocObject("Target", difficult, box),))
        (root / f"Annotations/{name}.xml").write_bytes(format_voc_xml(record, f"{name}.png"))
    (root / "ImageSets/Main/train.txt").write_text("gray16\ngray8\ncolour\n")
    (root / "ImageSets/Main/val.txt").write_text("no_sky\nalpha\n")
    return root


@pytest.fixture
def sparse(tmp_path):
    return write_sparse(tmp_path / "sparse")


def contents(folder):
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def generate(sparse, output, config=None, **options):
    return generate_densesirst(read_sparse_set(sparse), output, config, progress=False, **options)


@pytest.mark.parametrize("recipe", RECIPES)
def test_layout_and_rules(sparse, tmp_path, recipe):
    folder = generate(sparse, tmp_path / "out", RECIPES[recipe])
    assert folder == tmp_path / "out" / "SIRSTdevkit"
    names = {path.name for path in (folder / "Splits").iterdir()}
    assert names == {"train_v2.txt", "trainval_v2.txt", "val_v2.txt"}
    assert (folder / "Splits/train_v2.txt").read_text() == "gray16\ngray8\ncolour\n"
    assert (folder / "Splits/trainval_v2.txt").read_text().split() == ["gray16", "gray8", "colour", "no_sky", "alpha"]
    for name in NAMES:
        source, result = read_raw(sparse / f"PNGImages/{name}.png"), read_raw(folder / f"PNGImages/{name}.png")
        source = source[:, :, :3] if source.ndim == 3 else source
        assert result.dtype == source.dtype
        assert result.shape == source.shape
        sky = read_sky_mask(folder / f"SkySeg/BinaryMask/{name}_pixels0.png")
        np.testing.assert_array_equal(sky, read_sky_mask(sparse / f"SkyMasks/{name}.png"))
        palette = Image.open(folder / f"SkySeg/PaletteMask/{name}.png")
        assert palette.mode == "P"
        np.testing.assert_array_equal(np.asarray(palette), sky)
        targets = read_sky_mask(folder / f"SIRST/BinaryMask/{name}_pixels0.png")
        np.testing.assert_array_equal(np.asarray(Image.open(folder / f"SIRST/PaletteMask/{name}.png")), targets)

        before = read_voc_xml(sparse / f"Annotations/{name}.xml")
        record = read_voc_xml(folder / f"SIRST/BBox/{name}.xml")
        assert record.objects[:1] == before.objects
        assert (record.platform, record.band) == (before.platform, before.band)
        assert (record.height, record.width) == source.shape[:2]
        boxes = np.array([item.box for item in record.objects]).astype(int)
        points = np.loadtxt(folder / f"SIRST/Point_label/{name}_pixels0.txt", dtype=int, ndmin=2)
        assert (points >= boxes[:, :2]).all()
        assert (points < boxes[:, 2:]).all()

        changed = result != source if source.ndim == 2 else (result != source).any(-1)
        x1, y1, x2, y2 = boxes[0]
        assert not changed[y1:y2, x1:x2].any()
        assert targets[y1:y2, x1:x2].all()
        assert not (changed & (sky == 0)).any()
        if name == "no_sky":
            assert not changed.any()
            assert len(boxes) == 1
            continue
        low, high = RECIPES[recipe].rule.targets
        assert low <= len(boxes) - 1 <= 3 * high
        inside = np.zeros(changed.shape, bool)
        for x1, y1, x2, y2 in boxes:
            part = targets[y1:y2, x1:x2]
            assert part[0].any() and part[-1].any() and part[:, 0].any() and part[:, -1].any()  # noqa: PT018
            inside[y1:y2, x1:x2] = True
        assert not (targets[~inside]).any()
        faint = changed & (targets == 0)
        assert faint.any() == RECIPES[recipe].rule.halo


def test_loads_under_the_registered_names_and_passes_the_check(sparse, tmp_path, monkeypatch):
    folder = generate(sparse, tmp_path / "out")
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path / "out"))
    dicts = DatasetCatalog.get("densesirst_v2_train")
    assert [sample["image_id"] for sample in dicts] == ["gray16", "gray8", "colour"]
    assert all(len(sample["annotations"]) > 8 for sample in dicts)
    assert all(sample["sem_seg_file_name"].endswith("_pixels0.png") for sample in dicts)
    report = check_collection(collect(folder))
    assert list(report.faults) == []
    assert not any("target mask" in note for note in report.notes), report.notes


@pytest.mark.slow
def test_number_of_processes_does_not_matter(sparse, tmp_path):
    one = contents(generate(sparse, tmp_path / "one"))
    assert contents(generate(sparse, tmp_path / "two", jobs=2)) == one


def test_order_does_not_matter(sparse, tmp_path):
    one = contents(generate(sparse, tmp_path / "one"))
    source = read_sparse_set(sparse)
    backwards = generate_densesirst(
        type(source)(source.title, source.dicts[::-1], source.splits, []),
        tmp_path / "three",
        library=TargetLibrary.from_dicts(source.dicts),
        progress=False,
    )
    assert contents(backwards) == one
    other = contents(generate(sparse, tmp_path / "four", GeneratorConfig(seed=1)))
    assert other["PNGImages/gray8.png"] != one["PNGImages/gray8.png"]
    assert other["PNGImages/no_sky.png"] == one["PNGImages/no_sky.png"]


def test_one_image_does_not_depend_on_the_others_nor_on_the_global_generator(sparse):
    source = read_sparse_set(sparse)
    library = TargetLibrary.from_dicts(source.dicts)
    np.random.seed(5)
    state = np.random.get_state()[1].copy()
    first = generate_image(source.dicts[0], None, library, GeneratorConfig())
    assert (np.random.get_state()[1] == state).all()
    np.random.seed(6)
    again = generate_image(source.dicts[0], None, library, GeneratorConfig())
    np.testing.assert_array_equal(first.image, again.image)
    np.testing.assert_array_equal(first.boxes, again.boxes)
    assert first.pasted == len(first.boxes) - 1


def test_gain_darkens_what_is_pasted_and_nothing_else(sparse, tmp_path):
    one = generate(sparse, tmp_path / "one")
    dark = generate(sparse, tmp_path / "dark", GeneratorConfig(gain=0.5))
    before, bright, half = (read_raw(folder / "PNGImages/gray16.png").astype(int) for folder in (sparse, one, dark))
    pasted = (bright > before) & (bright < 65535)
    assert pasted.sum() > 20
    np.testing.assert_allclose((half - before)[pasted], (bright - before)[pasted] / 2, atol=1)
    assert contents(one / "SIRST") == contents(dark / "SIRST")


@pytest.mark.parametrize("after", [3, 9, 20])
def test_goes_on_after_an_interrupt(sparse, tmp_path, monkeypatch, after):
    whole = contents(generate(sparse, tmp_path / "whole"))
    real, calls = module.write_atomically, []

    def dies(path, data):
        calls.append(path)
        if len(calls) == after:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.with_name(f".{path.name}.partial").write_bytes(data[: len(data) // 2])
            raise KeyboardInterrupt
        real(path, data)

    monkeypatch.setattr(module, "write_atomically", dies)
    with pytest.raises(KeyboardInterrupt):
        generate(sparse, tmp_path / "cut")
    monkeypatch.setattr(module, "write_atomically", real)
    written = []
    monkeypatch.setattr(module, "write_atomically", lambda path, data: (written.append(path.name), real(path, data)))
    assert contents(generate(sparse, tmp_path / "cut")) == whole
    done = (after - 1) // 7  # images with all of their seven files
    assert len(written) == 7 * (5 - done) + 3


@pytest.mark.slow
def test_goes_on_after_a_kill(sparse, tmp_path):
    """As above with a process that gets no chance to tidy up."""
    for i in range(12):
        for folder, suffix in (("PNGImages", "png"), ("SkyMasks", "png"), ("Annotations", "xml")):
            shutil.copyfile(sparse / f"{folder}/gray8.{suffix}", sparse / f"{folder}/more{i}.{suffix}")
    for path in (sparse / "ImageSets/Main").iterdir():
        path.unlink()
    whole = contents(generate(sparse, tmp_path / "whole"))
    worker = multiprocessing.get_context("fork").Process(target=generate, args=(sparse, tmp_path / "cut"))
    worker.start()
    boxes = tmp_path / "cut/SIRSTdevkit/SIRST/BBox"
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and not (boxes.is_dir() and any(boxes.glob("*.xml"))):
        time.sleep(0.002)
    worker.kill()
    worker.join()
    done = len(list(boxes.glob("*.xml")))
    assert 1 <= done < 17
    assert contents(generate(sparse, tmp_path / "cut")) == whole


def test_a_second_run_writes_no_image(sparse, tmp_path, monkeypatch):
    folder = generate(sparse, tmp_path / "out")
    times = {path: path.stat().st_mtime_ns for path in (folder / "PNGImages").iterdir()}
    generate(sparse, tmp_path / "out", jobs=2)
    assert {path: path.stat().st_mtime_ns for path in (folder / "PNGImages").iterdir()} == times
    (folder / "PNGImages/alpha.png").unlink()
    generate(sparse, tmp_path / "out")
    assert (folder / "PNGImages/alpha.png").exists()


def test_other_parameters_or_another_source_need_overwrite(sparse, tmp_path):
    generate(sparse, tmp_path / "out")
    with pytest.raises(DatasetError, match=r"config\.seed.*--overwrite"):
        generate(sparse, tmp_path / "out", GeneratorConfig(seed=1))
    with pytest.raises(DatasetError, match=r"config\.rule"):
        generate(sparse, tmp_path / "out", GeneratorConfig(rule=PasteRule(areas=(1, 1))))
    before = (sparse / "Annotations/alpha.xml").read_text()
    (sparse / "Annotations/alpha.xml").write_text(before.replace("<ymax>23", "<ymax>24"))
    with pytest.raises(DatasetError, match=r"config\.library, config\.source"):
        generate(sparse, tmp_path / "out")
    folder = generate(sparse, tmp_path / "out", GeneratorConfig(seed=1), overwrite=True)
    assert '"seed": 1' in (folder / MANIFEST).read_text()


def test_a_downloaded_set_is_never_touched(sparse, tmp_path):
    image = tmp_path / "out/SIRSTdevkit/PNGImages/Misc_1.png"
    image.parent.mkdir(parents=True)
    image.write_bytes(b"real")
    for overwrite in (False, True):
        with pytest.raises(DatasetError, match="not a generated set"):
            generate(sparse, tmp_path / "out", overwrite=overwrite)
    assert image.read_bytes() == b"real"


def test_sky_masks_of_another_folder(sparse, tmp_path):
    moved = tmp_path / "masks"
    (sparse / "SkyMasks").rename(moved)
    with pytest.raises(DatasetError, match=r"5 of 5 images have none, .*--sky-masks"):
        read_sparse_set(sparse)
    with pytest.raises(DatasetError, match="no such folder"):
        read_sparse_set(sparse, sky_masks=tmp_path / "absent")
    (moved / "gray8.png").rename(moved / "gray8_pixels0.png")
    (moved / "alpha.png").unlink()
    with pytest.raises(DatasetError, match="1 of 5 images have none, alpha"):
        read_sparse_set(sparse, sky_masks=moved)
    source = read_sparse_set(sparse, sky_masks=moved, skip_bad=True)
    assert {sample["image_id"] for sample in source.dicts} == set(NAMES) - {"alpha"}
    assert source.splits["val"] == ["no_sky"]
    with pytest.raises(DatasetError, match="not one that can be used"):
        read_sparse_set(sparse, skip_bad=True)


def test_existing_target_masks_are_kept(sparse, tmp_path):
    """A dense set is a source too, with its masks."""
    first = generate(sparse, tmp_path / "first", GeneratorConfig(rule=PasteRule(areas=(1, 1))))
    mask = cv2.imread(str(first / "SIRST/BinaryMask/gray8_pixels0.png"), -1)
    mask[20, 10] = 0  # a target that is no full box
    cv2.imwrite(str(first / "SIRST/BinaryMask/gray8_pixels0.png"), mask)
    second = generate(first, tmp_path / "second", GeneratorConfig(seed=3))
    result = cv2.imread(str(second / "SIRST/BinaryMask/gray8_pixels0.png"), -1)
    assert result[20, 10] == 0
    assert (result[mask > 0] == 255).all()
    assert (result > 0).sum() > (mask > 0).sum()


def test_without_splits_all_images_are_for_training(sparse, tmp_path):
    for path in (sparse / "ImageSets/Main").iterdir():
        path.unlink()
    folder = generate(sparse, tmp_path / "out")
    assert [path.name for path in (folder / "Splits").iterdir()] == ["trainval_v2.txt"]
    assert (folder / "Splits/trainval_v2.txt").read_text().split() == sorted(NAMES)


def test_split_names():
    from irstd_d2.data.check import Collection

    splits = {"train_full": ["a"], "val_full": ["b"], "test_full": [], "train_v1": ["b"], "mini": ["a"]}
    source = Collection("", [], splits, [])
    assert module.official_splits(source) == {
        "train_v2": ["a"],
        "val_v2": ["b"],
        "train_v1": ["b"],
        "mini": ["a"],
        "trainval_v2": ["a", "b"],
    }


def test_deep_images_get_16_bits(sparse, tmp_path):
    (sparse / "PNGImages/gray8.png").unlink()
    Image.fromarray(np.full((72, 96), 0.25, np.float32)).save(sparse / "PNGImages/gray8.tif")
    folder = generate(sparse, tmp_path / "out")
    result = read_raw(folder / "PNGImages/gray8.png")
    assert result.dtype == np.uint16
    assert result.reshape(-1).min() == round(0.25 * 65535)


def test_wrong_sizes_and_values_are_named(sparse, tmp_path):
    cv2.imwrite(str(sparse / "SkyMasks/gray8.png"), np.zeros((72, 95), np.uint8))
    with pytest.raises(DatasetError, match=r"gray8\.png: size: 95x72 pixels, but annotated as 96x72"):
        generate(sparse, tmp_path / "out")
    with pytest.raises(ConfigError, match="0 processes"):
        generate(sparse, tmp_path / "out", jobs=0)
    for path in (sparse / "Annotations").iterdir():
        path.write_bytes(format_voc_xml(VocRecord(96, 72, None, None, ()), path.stem))
    with pytest.raises(DatasetError, match="not one target to paste"):
        generate(sparse, tmp_path / "other")
