"""The zoo: an entry from a training's folder, read back without pickle; what is wrong with it is said."""

import hashlib
import json

import numpy as np
import pytest
import torch
from detectron2.modeling import build_model
from PIL import Image

import irstd_d2
from irstd_d2 import get_config, model_zoo
from irstd_d2.checkpoint import load_plain
from irstd_d2.cli import main
from irstd_d2.data.classes import ClassTable
from irstd_d2.errors import ConfigError, DatasetError
from irstd_d2.model_zoo import adding

CONFIGS = {"plain": "configs/baselines/tiny/fcos_tiny.yaml", "aware": "configs/auxdet/tiny/auxdet_tiny.yaml"}
PACKAGED = model_zoo.FOLDER  # before tests set another
CLASSES = ClassTable(("Drone", "Bird"), {4: 0, 2: 1})


@pytest.fixture(autouse=True)
def zoo(tmp_path, repo_root, monkeypatch):
    """An empty zoo, and the project as the current folder."""
    monkeypatch.chdir(repo_root)
    monkeypatch.setattr(model_zoo, "FOLDER", tmp_path / "zoo")
    return tmp_path / "zoo"


def write_run(folder, config, options=(), classes=None, checkpoint="model_best.pth", seed=0):
    folder.mkdir(parents=True, exist_ok=True)
    cfg = get_config(config, ["MODEL.DEVICE", "cpu", *options])
    (folder / "config.yaml").write_text(cfg.dump())
    rows = [
        {"iteration": 9, "bbox/AP50": 70.0, "pd_fa/threshold@FAPI1": 0.4567},
        {"iteration": 19, "bbox/AP50": 60.0, "pd_fa/threshold@FAPI1": 0.2},
        {"iteration": 20, "total_loss": 1.0},
    ]
    (folder / "metrics.json").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    torch.manual_seed(seed)
    model = build_model(cfg)
    if hasattr(model, "head"):
        torch.nn.init.constant_(model.head.cls_logits.bias, 0.5)  # reports targets without training
    content = {"model": model.state_dict(), "iteration": 19}
    torch.save(content | ({"classes": classes.to_json()} if classes else {}), folder / checkpoint)
    return model.eval()


@pytest.fixture
def two_classes(tmp_path):
    run = tmp_path / "run"
    model = write_run(run, CONFIGS["plain"], ["MODEL.FCOS.NUM_CLASSES", "2"], CLASSES)
    arguments = ["--name", "drones", "--license", "CC0", "--commit", "abc", "--data", "mine", "--description", "Drones"]
    assert main(["zoo", "add", str(run), *arguments]) == 0
    return model


def test_an_entry_has_all_that_its_model_needs(two_classes, zoo, capsys):
    assert model_zoo.names() == ["drones"]
    entry = model_zoo.entry("drones")
    assert (entry.license, entry.commit, entry.data, entry.requires) == ("CC0", "abc", ("mine",), ())
    assert entry.score_thresh == 0.457
    assert entry.metrics == {"bbox/AP50": 70.0, "pd_fa/threshold@FAPI1": 0.4567}
    content = load_plain(entry.weights_file)
    assert content["classes"] == [{"id": 4, "name": "Drone"}, {"id": 2, "name": "Bird"}]
    assert content["input"]["resize_mode"] == "fixed"
    assert (content["iteration"], content["license"]) == (20, "CC0")
    assert entry.weights_file.read_bytes()[8:9] == b"{"  # the header of safetensors
    assert hashlib.sha256(entry.weights_file.read_bytes()).hexdigest() == entry.sha256
    cfg = model_zoo.get_config("drones")
    assert str(entry.weights_file) == cfg.MODEL.WEIGHTS
    assert "AUXDET" not in entry.config_file.read_text()
    assert "_BASE_" not in entry.config_file.read_text()
    loaded = model_zoo.get("drones", device="cpu")
    for name, tensor in two_classes.state_dict().items():
        torch.testing.assert_close(loaded.state_dict()[name], tensor, rtol=1e-3, atol=1e-6)
    assert not loaded.training
    random = model_zoo.get("drones", pretrained=False, device="cpu")
    assert not torch.equal(random.head.cls_logits.weight, loaded.head.cls_logits.weight)
    capsys.readouterr()
    assert main(["zoo"]) == 0
    assert "drones " in capsys.readouterr().out
    assert main(["zoo", "show", "drones"]) == 0
    assert "bbox/AP50             | 70.0" in capsys.readouterr().out


def test_a_name_is_enough_to_detect(two_classes):
    predictor = irstd_d2.Predictor("drones", device="cpu", score_thresh=0.0)
    assert predictor.classes == CLASSES
    found = predictor(np.random.default_rng(0).integers(0, 256, (60, 70), dtype=np.uint8))
    assert len(found)
    assert set(found.classes) <= {"Drone", "Bird"}
    assert {row["category_id"] for row in found.to_coco()} <= {4, 2}
    assert irstd_d2.Predictor("drones", device="cpu").score_thresh == 0.457


def test_systems_are_named_by_the_entry(tmp_path, zoo):
    write_run(tmp_path / "run", CONFIGS["aware"], ["DATASETS.CLASSES", "('Target',)"])
    entry = adding.add_run(tmp_path / "run", "aware", license="CC0", commit="", opts=["INPUT.HIGH_BIT_DEPTH", "minmax"])
    assert model_zoo.get_config("aware").INPUT.HIGH_BIT_DEPTH == "minmax"
    assert entry.requires == ("auxdet_d2",)
    assert load_plain(entry.weights_file)["metadata"]["PLATFORMS"] == ["Air", "Space", "Land"]
    assert "BAFE" not in entry.config_file.read_text()
    model_zoo.get("aware", device="cpu")
    index = json.loads((zoo / "index.json").read_text())
    index["aware"]["requires"] = ["absent_system"]
    (zoo / "index.json").write_text(json.dumps(index))
    with pytest.raises(ConfigError, match="aware needs the detection system absent_system"):
        model_zoo.get_config("aware")


def test_what_cannot_be_an_entry(tmp_path, zoo, monkeypatch):
    add = lambda run, name="x", **more: adding.add_run(run, name, license="", commit="", **more)  # noqa: E731
    run = tmp_path / "run"
    with pytest.raises(DatasetError, match="name the folder of a finished training"):
        add(run)
    write_run(run, CONFIGS["plain"], classes=CLASSES)
    with pytest.raises(ConfigError, match=r"NUM_CLASSES is 1, but .* has 2 classes"):
        add(run)
    with pytest.raises(ConfigError, match="lower-case"):
        add(run, "../x")
    write_run(tmp_path / "other", CONFIGS["aware"])
    with pytest.raises(ConfigError, match=r"lacks \d+ tensors"):
        add(run, weights=tmp_path / "other" / "model_best.pth")
    write_run(run, CONFIGS["plain"], ["DATASETS.CLASSES", "('a',)"])
    monkeypatch.setattr(adding, "MAX_BYTES", 1000)
    with pytest.raises(ConfigError, match="at most"):
        add(run)
    (run / "metrics.json").write_text("")
    with pytest.raises(ConfigError, match="holds no evaluation"):
        add(run)
    assert model_zoo.names() == []
    assert not list(zoo.rglob("*.safetensors"))


def test_damaged_and_unknown_weights_are_refused(two_classes):
    path = model_zoo.entry("drones").weights_file
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(DatasetError, match="sha256"):
        model_zoo.get_config("drones")
    with pytest.raises(DatasetError, match="cannot be read"):
        load_plain(path)
    with pytest.raises(ConfigError, match="'dornes' is not a model of the zoo; it has drones"):
        model_zoo.get("dornes")
    with pytest.raises(ConfigError, match="neither a file nor a model of the zoo; the zoo has drones"):
        irstd_d2.Predictor("nothing.pth")


def test_a_checkpoint_brings_the_configuration_of_its_training(tmp_path):
    write_run(tmp_path / "run", CONFIGS["plain"], ["DATASETS.CLASSES", "('a',)"], checkpoint="model_final.pth")
    predictor = irstd_d2.Predictor(tmp_path / "run" / "model_final.pth", device="cpu")
    assert predictor.classes.names == ("a",)
    (tmp_path / "run" / "config.yaml").unlink()
    with pytest.raises(ConfigError, match="give --config-file"):
        irstd_d2.Predictor(tmp_path / "run" / "model_final.pth", device="cpu")


def test_configurations_are_found_by_file_path_below_configs_and_name(two_classes, repo_root, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("configs/bafe/fcos_r18_fpn.yaml", "bafe/fcos_r18_fpn.yaml"):
        assert model_zoo.find_config(name) == str(repo_root / "configs/bafe/fcos_r18_fpn.yaml")
    assert model_zoo.find_config("drones") == str(model_zoo.entry("drones").config_file)
    with pytest.raises(ConfigError, match="neither a file"):
        model_zoo.find_config("bafe/none.yaml")


def test_half_precision_keeps_what_it_cannot_hold(tmp_path):
    from irstd_d2.checkpoint.safe import read_safetensors, write_safetensors

    weights = {
        "matrix": torch.full((2, 2), 0.1),
        "huge": torch.full((2, 2), 1e6),
        "norm": torch.tensor([1e-7, 70000.0]),
        "count": torch.tensor(3),
    }
    write_safetensors(tmp_path / "a.safetensors", weights, {"license": "ü"})
    back = read_safetensors(tmp_path / "a.safetensors")
    assert back["license"] == "ü"
    assert torch.equal(back["model"]["matrix"], weights["matrix"].half().float())
    for name in ("huge", "norm", "count"):
        assert torch.equal(back["model"][name], weights[name])


@pytest.mark.parametrize("name", model_zoo.names())
def test_raw_frames_need_no_option(name, monkeypatch):
    """Counts of a 14-bit sensor in 16 bits, and floats of any range, are stretched in every model that is packaged."""
    monkeypatch.setattr(model_zoo, "FOLDER", PACKAGED)
    assert model_zoo.get_config(name).INPUT.HIGH_BIT_DEPTH == "auto"


def test_the_kind_of_an_image_in_memory_does_not_matter(monkeypatch):
    monkeypatch.setattr(model_zoo, "FOLDER", PACKAGED)
    predictor = irstd_d2.Predictor("fcos_dense", device="cpu", score_thresh=0.2, tile=0)
    rng = np.random.default_rng(0)
    pixels = rng.integers(40, 60, (64, 80)).astype(np.uint8)
    pixels[30:33, 40:43] = 255
    pixels[:8, :8], pixels[-8:, -8:] = 0, 255  # the whole range, which others are stretched to
    expected = predictor(pixels)
    assert len(expected)
    counts = pixels.astype(np.uint16)
    kinds = {
        "16 bits": counts * 257,
        "14 bits": counts * 20 + 2000,
        "float": pixels / 255.0,
        "float of any range": pixels * 0.5 - 20,
        "big-endian": (counts * 257).astype(">u2"),
        "PIL": Image.fromarray(counts * 257),
        "PIL of floats": Image.fromarray(pixels.astype(np.float32)),
        "tensor": torch.from_numpy(pixels)[None],
        "tensor of floats": torch.from_numpy(pixels).float()[None].expand(3, -1, -1),
    }
    for kind, image in kinds.items():
        found = predictor(image)
        assert len(found) == len(expected), kind
        assert np.allclose(found.boxes, expected.boxes, atol=0.05), kind
        assert np.allclose(found.scores, expected.scores, atol=1e-3), kind
    for image in (np.where(pixels == 0, np.nan, pixels), np.full((4, 4), np.inf)):
        with pytest.raises(DatasetError, match="NaN or infinite"):
            predictor(image)
