"""The examples, and the Python of the README, run as they stand."""

import re
import runpy
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[1]
EXAMPLES = sorted(path.name for path in (ROOT / "examples").glob("*.py"))


@pytest.mark.parametrize("name", EXAMPLES)
def test_example(name):
    torch.manual_seed(0)
    result = runpy.run_path(str(ROOT / "examples" / name))
    if name == "auxdet_backbone_in_faster_rcnn.py":
        model, sample = result["model"], result["sample"]
        assert type(model).__name__ == "MetadataConditionedGeneralizedRCNN"
        features = []
        model.backbone.register_forward_hook(lambda *args: features.append(args[2]["p2"]))
        with torch.no_grad():
            model([sample])
            model([{**sample, "metadata": {"platform": "Land", "band": "LWIR"}}])
            model([{k: v for k, v in sample.items() if k != "metadata"}])
        assert not torch.equal(features[0], features[1])
        assert not torch.equal(features[0], features[2])
    if name == "bag_cp_and_exchange.py":
        assert len(result["aug_input"].boxes) >= 9
        assert result["mask_features"].shape == (2, 64, 32, 32)


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
