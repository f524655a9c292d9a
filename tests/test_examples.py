"""The examples, and the Python of the README, run as they stand."""

import importlib
import re
import runpy
from pathlib import Path

import nbclient
import nbformat
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.modeling import (
    BACKBONE_REGISTRY,
    META_ARCH_REGISTRY,
    PROPOSAL_GENERATOR_REGISTRY,
    ROI_HEADS_REGISTRY,
    RetinaNet,
)

import auxdet_d2  # noqa: F401  registers, before the registries are copied
import bafe_d2  # noqa: F401
from auxdet_d2.modeling import AuxDet, MetadataConditionedModel
from irstd_d2.data import MAPPER_REGISTRY
from irstd_d2.evaluation import EVALUATOR_REGISTRY

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(autouse=True)
def _own_registry(monkeypatch):
    """Data sets and mappers that an example registers are forgotten after it."""
    for registry in (DatasetCatalog, MetadataCatalog):
        monkeypatch.setattr(registry, "data", dict(registry.data))
    monkeypatch.setattr(MAPPER_REGISTRY, "_obj_map", dict(MAPPER_REGISTRY._obj_map))


@pytest.fixture
def run(tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    return lambda name: runpy.run_path(str(ROOT / "examples" / f"{name}.py"))


def _assert_metadata_changes_features(result):
    model, sample = result["model"], result["sample"]
    features = []
    model.backbone.register_forward_hook(lambda *args: features.append(args[2]["p2"]))
    with torch.no_grad():
        model([sample])
        model([{**sample, "metadata": {"platform": "Land", "band": "SWIR"}}])
        model([{k: v for k, v in sample.items() if k != "metadata"}])
    assert not torch.equal(features[0], features[1])
    assert not torch.equal(features[0], features[2])


def test_auxdet_backbone_in_faster_rcnn(run):
    result = run("auxdet_backbone_in_faster_rcnn")
    assert type(result["model"]) is AuxDet
    _assert_metadata_changes_features(result)


def test_auxdet_backbone_in_retinanet(run):
    result = run("auxdet_backbone_in_retinanet")
    assert type(result["model"]) is MetadataConditionedModel
    assert isinstance(result["model"].model, RetinaNet)
    _assert_metadata_changes_features(result)


def test_bag_cp_and_exchange(run):
    result = run("bag_cp_and_exchange")
    assert len(result["aug_input"].boxes) >= 9
    assert result["mask_features"].shape == (2, 64, 32, 32)


def test_metadata_in_a_custom_mapper(run):
    samples = run("metadata_in_a_custom_mapper")["samples"]
    assert len(samples) == 4
    for sample in samples:
        assert sample["metadata"]["platform"] == "Land"
        assert sample["metadata"]["band"] == "LWIR"
        assert sample["metadata"]["width"] == sample["width"]


def test_bag_cp_in_a_coco_project(run):
    sample = run("bag_cp_in_a_coco_project")["sample"]
    boxes = sample["instances"].gt_boxes.tensor
    assert len(boxes) >= 9
    assert (boxes[:, 3] <= sample["sem_seg"].shape[0] / 2).all(), "pasted below the sky"


def test_exchange_head_in_mask_rcnn(run):
    losses = run("exchange_head_in_mask_rcnn")["losses"]
    assert {"loss_sky", "loss_mask", "loss_cls", "loss_rpn_cls"} <= set(losses)
    assert all(torch.isfinite(loss) for loss in losses.values())


def test_evaluate_saved_predictions(run):
    result = run("evaluate_saved_predictions")
    targets, hits = len(result["boxes"]), len(result["rows"])
    assert result["results"]["pd_fa"]["Pd"] == pytest.approx(100 * hits / targets)
    assert result["results"]["pd_fa"]["Fa"] == 0
    assert "pd_fa" in result["table"]


def test_train_unet(run):
    result = run("train_unet")
    maps = sorted(result["args"].output.glob("*.png"))
    assert len(maps) == 2
    assert torch.isfinite(result["loss"])


@pytest.mark.slow
def test_the_notebook_runs(monkeypatch):
    """All cells of ``quick_start.ipynb``, with two iterations; the file itself, with its pictures, stays small."""
    path = ROOT / "examples" / "quick_start.ipynb"
    assert path.stat().st_size < 1_000_000
    monkeypatch.setenv("ITERATIONS", "2")
    notebook = nbformat.read(path, as_version=4)
    stored = [cell.outputs for cell in notebook.cells if cell.cell_type == "code"]
    assert sum("image/png" in output.get("data", {}) for outputs in stored for output in outputs) >= 3
    resources = {"metadata": {"path": str(ROOT / "examples")}}
    nbclient.NotebookClient(notebook, timeout=600, kernel_name="python3", resources=resources).execute()
    last = "".join(output.get("text", "") for output in notebook.cells[-1].outputs)
    assert re.search(r"metric +\| tuned +\| fcos_dense", last)
    assert "Target" in "".join(output.get("text", "") for output in notebook.cells[3].outputs)


def test_every_example_has_a_test():
    tests = {name.removeprefix("test_") for name in globals()}
    assert {path.stem for path in (ROOT / "examples").glob("*.py")} <= tests


def test_readme_part_reuse():
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.DOTALL)
    (reuse,) = [block for block in blocks if "build_model" in block]
    namespace: dict = {}
    exec(reuse, namespace)  # noqa: S102  our own README
    assert "pred_boxes" in namespace["result"].get_fields()


def test_readme_names_existing_files():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    for path in re.findall(r"\]\(((?:docs|datasets|benchmarks)/[^)]+|[A-Z]+\.md)\)", text):
        assert (ROOT / path).exists(), path
    for path in re.findall(r"(?:tools|configs|tests)/[\w/]+\.(?:py|sh|yaml)", text):
        assert (ROOT / path).exists(), path


def test_the_page_of_components_is_complete():
    text = (ROOT / "docs" / "components.md").read_text(encoding="utf-8")
    registries = (BACKBONE_REGISTRY, META_ARCH_REGISTRY, PROPOSAL_GENERATOR_REGISTRY, ROI_HEADS_REGISTRY)
    ours = ("irstd_d2", "auxdet_d2", "bafe_d2")
    for registry in (*registries, MAPPER_REGISTRY, EVALUATOR_REGISTRY):
        for name, component in registry:
            if component.__module__.split(".")[0] in ours:
                assert f"`{name}`" in text, name
    for module, names in re.findall(r"^\| `(\w+_d2[\w.]*)\.(\w+)`", text, re.MULTILINE):
        assert hasattr(importlib.import_module(module), names), f"{module}.{names}"


@pytest.mark.parametrize("page", sorted(path.name for path in (ROOT / "docs").glob("*.md")))
def test_pages_name_existing_files(page):
    text = (ROOT / "docs" / page).read_text(encoding="utf-8")
    for target in re.findall(r"\]\((?!https?:)([^)#]+)", text):
        assert (ROOT / "docs" / target).exists(), target
    own = re.sub(r"\(https?:[^)]*\)", "", text)  # without pages of others
    for path in re.findall(r"(?:tools|configs|tests|benchmarks)/[\w/]+\.(?:py|sh|yaml|md)", own):
        assert (ROOT / path).exists(), path
