"""benchmarks/test_time.py: its rows are what the evaluation itself gives, with what the network predicts shared."""

import runpy

import pytest
import torch
import toy_training as toy
from detectron2.data import DatasetCatalog, MetadataCatalog
from toy_training import TEST

from irstd_d2 import get_config
from irstd_d2.engine import IRSTDTrainer
from irstd_d2.inference import DetectorWithTTA

OPTIONS = [
    *("MODEL.DEVICE", "cpu", "DATASETS.TEST", str((TEST,)), "INPUT.RESIZE_MODE", "scale", "INPUT.SCALE", "2.0"),
    *("TEST.EVALUATORS", "('coco', 'voc_paper', 'pd_fa')", "MODEL.FCOS.SCORE_THRESH_TEST", "0.0"),
]
SKY = ["MODEL.BAFE.SKY_SCORE_POWER", "2.0"]
TTA = ["TEST.AUG.ENABLED", "True", "TEST.AUG.SCALES", "(1.0, 1.5)"]


@pytest.fixture
def script(repo_root):
    return runpy.run_path(str(repo_root / "benchmarks" / "test_time.py"))


@pytest.fixture
def run(tmp_path, repo_root):
    """The folder of a training that averaged its weights, with random ones."""
    toy.register(tmp_path, train=1, test=2)
    cfg = get_config(repo_root / "configs/bafe/tiny/bafe_tiny.yaml", [*OPTIONS, "OUTPUT_DIR", str(tmp_path / "out")])
    torch.manual_seed(1)
    averaged, trained = (IRSTDTrainer.build_model(cfg).state_dict() for _ in range(2))
    torch.save(
        {"model": averaged, "trainer": {"hooks": {"EMAHook": {"trained": trained}}}}, tmp_path / "model_final.pth"
    )
    (tmp_path / "config.yaml").write_text(cfg.dump())
    yield tmp_path
    toy.unregister()
    for name in [name for name in DatasetCatalog.list() if name.startswith(f"{TEST}, ")]:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)


def cells(text):
    return {line.split("|")[1].strip(): [c.strip() for c in line.split("|")[2:-1]] for line in text if "|" in line}


def test_rows_are_those_of_the_evaluation(script, run, capsys):
    arguments = [str(run), "--dataset", TEST]
    for name, options in (("plain", []), ("sky", SKY), ("TTA", TTA)):
        arguments += ["--row", name, *options]
    script["main"](arguments)
    printed = capsys.readouterr().out
    assert "python benchmarks/test_time.py" in printed
    rows = cells(printed.splitlines())
    without = next(name for name in rows if "without the average" in name)
    saved = torch.load(run / "model_final.pth", weights_only=True)
    names = list(script["METRICS"])
    for name, options, weights in (
        ("plain", [], saved["model"]),
        ("sky", SKY, saved["model"]),
        ("TTA", TTA, saved["model"]),
        (without, [], saved["trainer"]["hooks"]["EMAHook"]["trained"]),
    ):
        cfg = get_config(run / "config.yaml", options)
        model = IRSTDTrainer.build_model(cfg).eval()
        model.load_state_dict(weights)
        result = IRSTDTrainer.test(cfg, DetectorWithTTA(cfg, model) if cfg.TEST.AUG.ENABLED else model)
        for metric in ("mAP12", "AP50", "recall50", "best F1"):
            evaluator, key = script["METRICS"][metric].split("/")
            assert rows[name][1 + names.index(metric)] == f"{result[evaluator][key]:.1f}"
    assert [rows[name][0] for name in ("plain", "sky", "TTA", without)] == ["1.0", "1.0", "6.5", "1.0"]
    assert rows["plain"][-1] == ""
    assert rows["sky"][-1].count("to") == 1


def test_what_a_view_gives_is_computed_once(script, run):
    cfg = get_config(run / "config.yaml")
    calls, memory = [], {}
    model = IRSTDTrainer.build_model(cfg).eval()
    model.backbone.register_forward_hook(lambda *_: calls.append(1))
    network = script["OncePerView"](model, memory)
    sample = {"image": torch.rand(3, 64, 64) * 255}
    with torch.no_grad():
        (first,), (second,) = network([sample]), network([dict(sample)])
        assert len(calls) == 1
        network([{"image": torch.rand(3, 64, 64)}])
    assert len(calls) == 2
    assert torch.equal(first["instances"].scores, second["instances"].scores)


def test_large_images_are_left_out_and_the_others_spread(script, run):
    part = script["register_part"](TEST, 64, 1)
    assert part == f"{TEST}, 1 images"
    assert script["register_part"](TEST, 63, 0) == f"{TEST}, 0 images"


def test_other_detectors_are_refused(script, run):
    (run / "config.yaml").write_text(toy.toy_config(run / "out").dump())
    with pytest.raises(SystemExit, match="ToyDetector is neither FCOS nor BAFE-Net"):
        script["main"]([str(run), "--dataset", TEST])
