"""Checkpoint conversion: both ways, strict, and deaf to code in files."""

import os
import re
from pathlib import Path

import pytest
import torch
import torchvision
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.modeling import build_model
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

import auxdet_d2
import bafe_d2
from bafe_d2.checkpoint import NEVER_RUN as NEVER_RUN_PATTERNS
from irstd_d2 import get_config
from irstd_d2.checkpoint import NameMap, NamingError, read_state_dict
from irstd_d2.cli import main
from irstd_d2.equality import read_manifest
from irstd_d2.errors import DatasetError

NEVER_RUN = tuple(pattern.removesuffix("{p}") for pattern in NEVER_RUN_PATTERNS)


@pytest.fixture
def convert():
    def run(*arguments):
        return main(["convert-checkpoint", *map(str, arguments)])

    return run


@pytest.mark.parametrize(
    ("system", "model", "never_run"), [(auxdet_d2, "auxdet", 2), (bafe_d2, "bafe", 850_339)], ids=["auxdet", "bafe"]
)
def test_published_file_to_model_and_back(convert, repo_root, tmp_path, caplog, system, model, never_run):
    published = read_manifest(Path(system.__file__).parent / f"reference/{model}_r50.manifest.json").state
    torch.save({"state_dict": published, "meta": {"epoch": 12}}, tmp_path / "in.pth")
    with caplog.at_level("INFO"):
        convert(model, tmp_path / "in.pth", tmp_path / "out.pth")
    dropped = int(caplog.text.split(" numbers that never run")[0].rsplit(" ", 1)[1])
    assert dropped >= never_run  # with the statistics of their norms
    config = repo_root / f"configs/{model}/{model}_r50_fpn.yaml"
    detector = build_model(get_config(config, ["MODEL.DEVICE", "cpu"]))
    with caplog.at_level("WARNING"):
        caplog.clear()
        DetectionCheckpointer(detector).load(str(tmp_path / "out.pth"))
    assert "not found" not in caplog.text
    assert "Unexpected" not in caplog.text
    weight = detector.backbone.bottom_up.res4[2].conv2.weight
    assert torch.equal(weight, published["backbone.layer3.2.conv2.weight"])

    torch.save({"model": detector.state_dict()}, tmp_path / "trained.pth")
    caplog.clear()
    with caplog.at_level("INFO"):
        convert(model, tmp_path / "trained.pth", tmp_path / "back.pth", "--reverse")
    back = torch.load(tmp_path / "back.pth", weights_only=True)["state_dict"]
    # What the published code asks for when it loads strictly: every name, in its shape, and no other.
    assert {name: (v.shape, v.dtype) for name, v in back.items()} == {
        name: (v.shape, v.dtype) for name, v in published.items()
    }
    renamed = set(published) - {name for name in published if name.startswith(NEVER_RUN)}
    assert all(torch.equal(back[name], published[name]) for name in renamed)
    added = 2 if model == "auxdet" else len(published) - len(renamed)
    assert f"added {added} tensors that never run" in caplog.text


@pytest.mark.parametrize("depth", [18, 50])
def test_torchvision_resnet_becomes_the_backbone(convert, repo_root, tmp_path, depth):
    source = getattr(torchvision.models, f"resnet{depth}")(weights=None).eval()
    torch.save(source.state_dict(), tmp_path / "in.pth")
    convert("resnet", tmp_path / "in.pth", tmp_path / "out.pth")
    config = get_config(repo_root / f"configs/auxdet/auxdet_r{depth}_fpn.yaml", ["MODEL.DEVICE", "cpu"])
    detector = build_model(config).eval()
    DetectionCheckpointer(detector).load(str(tmp_path / "out.pth"))
    image = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        x = source.maxpool(source.relu(source.bn1(source.conv1(image))))
        x = source.layer4(source.layer3(source.layer2(source.layer1(x))))
        torch.testing.assert_close(detector.backbone.bottom_up(image)["res5"], x, rtol=1e-4, atol=1e-5)


def test_a_file_of_another_model_is_refused(convert, tmp_path, capsys):
    torch.save({"state_dict": {"encoder.weight": torch.zeros(2)}}, tmp_path / "in.pth")
    assert convert("bafe", tmp_path / "in.pth", tmp_path / "out.pth") == 2
    assert "1 tensors have no counterpart: encoder.weight" in capsys.readouterr().err
    assert convert("berf", tmp_path / "in.pth", tmp_path / "out.pth") == 2
    assert "MODEL is 'berf'; known are 'auxdet', 'bafe', 'cascade_rpn'" in capsys.readouterr().err
    assert not (tmp_path / "out.pth").exists()


@pytest.mark.parametrize(
    ("source", "target", "problem"),
    [
        ("in.pth", "in.pth", "would replace the file that is read"),
        ("link.pth", "in.pth", "would replace the file that is read"),
        ("in.pth", "out.safetensors", r"call it \.pth"),
    ],
)
def test_what_would_be_lost_or_misread_is_not_written(convert, tmp_path, capsys, source, target, problem):
    torch.save({"conv1.weight": torch.zeros(2)}, tmp_path / "in.pth")
    (tmp_path / "link.pth").symlink_to("in.pth")
    before = (tmp_path / "in.pth").read_bytes()
    assert convert("resnet", tmp_path / source, tmp_path / target) == 2
    assert re.search(problem, capsys.readouterr().err)
    assert (tmp_path / "in.pth").read_bytes() == before
    assert not (tmp_path / "out.safetensors").exists()


@pytest.mark.parametrize(
    ("name", "content", "problem"),
    [
        ("gone.pth", None, r"cannot be opened \(No such file"),
        ("text.pth", b"hello", r"damaged or no checkpoint \(KeyError"),
        ("empty.pth", b"", r"damaged or no checkpoint \(EOFError\)"),
        ("cut.pth", b"PK\x03\x04" + bytes(400), "damaged or no checkpoint"),
    ],
)
def test_what_is_no_checkpoint_is_called_so(convert, tmp_path, capsys, name, content, problem):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    assert convert("resnet", tmp_path / name, tmp_path / "out.pth") == 2
    assert re.search(rf"{name}: file: .*{problem}", capsys.readouterr().err)


class Evil:
    def __init__(self, trace):
        self.trace = trace

    def __reduce__(self):
        return (os.mkdir, (str(self.trace),))


def test_code_in_a_file_does_not_run(tmp_path):
    torch.save({"state_dict": {"a": torch.zeros(1)}, "extra": Evil(tmp_path / "trace")}, tmp_path / "in.pth")
    with pytest.raises(DatasetError, match="not plain tensors"):
        read_state_dict(tmp_path / "in.pth")
    assert not (tmp_path / "trace").exists()


# Beside all bytes, those that mean something in a pickle: what a damaged file ends in is any error.
pickle_bytes = st.lists(st.sampled_from(b"}]()ajhXKMJGcR0.tqubse\x80\x02\x03\x8a\xffPl"), max_size=40).map(bytes)


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@given(content=st.binary(max_size=60) | pickle_bytes)
@example(content=b"")
@example(content=b"junk")  # struct.error
@example(content=b"0")  # IndexError
@example(content=b"X\x01\x00\x00\x00\xff.")  # UnicodeDecodeError
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_damaged_files_are_named(tmp_path, content):
    (tmp_path / "in.pth").write_bytes(content)
    with pytest.raises(DatasetError, match=r"in\.pth"):
        read_state_dict(tmp_path / "in.pth")


def test_a_file_without_tensors_is_refused(tmp_path):
    torch.save({"epoch": 3}, tmp_path / "in.pth")
    with pytest.raises(DatasetError, match="holds no tensors"):
        read_state_dict(tmp_path / "in.pth")


def test_two_tensors_of_one_name_are_refused():
    names = NameMap([("a.{p}", "c.{p}"), ("b.{p}", "c.{p}")])
    with pytest.raises(NamingError, match=r"two tensors become 'c\.w'"):
        names.to_ours({"a.w": torch.zeros(1), "b.w": torch.zeros(1)})
