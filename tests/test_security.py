"""What the code must never do with files of others. Calls that run text or unpickle are found by ruff's S rules."""

import pickle
import re
import tomllib
import zipfile
from pathlib import Path

import pytest
import torch

from irstd_d2.checkpoint import read_state_dict
from irstd_d2.data.coco import load_coco
from irstd_d2.data.splits import read_split
from irstd_d2.data.voc import load_voc
from irstd_d2.data.voc_xml import read_voc_xml
from irstd_d2.errors import DatasetError

ROOT = Path(__file__).resolve().parents[1]


def test_the_linter_looks_for_dangerous_calls():
    """eval, exec, pickle, shells, torch.load and XML without defusedxml: ruff's rules S, which lint runs."""
    lint = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["ruff"]["lint"]
    assert "S" in lint["select"]
    ignored = {rule for rules in (lint["ignore"], *lint["per-file-ignores"].values()) for rule in rules}
    # Assertions, random numbers and processes of tests and benchmarks; nothing that runs what a file says.
    assert {rule for rule in ignored if rule.startswith("S")} <= {"S101", "S311", "S603", "S607"}
    allowed = [
        line
        for part in ("irstd_d2", "auxdet_d2", "bafe_d2", "tools", "datasets")
        for path in (ROOT / part).rglob("*.py")
        for line in path.read_text(encoding="utf-8").splitlines()
        if re.search(r"noqa: .*\bS(102|30[1-9]|31[02-9]|60[24-9]|614)\b", line)
    ]
    assert not allowed, allowed


def test_scripts_quote_and_stop_at_errors():
    for path in (ROOT / "tools" / "setup.sh", ROOT / ".ci" / "run"):
        text = path.read_text()
        assert "set -euo pipefail" in text, path
        assert "eval " not in text, path


class Evil:
    def __init__(self, trace):
        self.trace = trace

    def __reduce__(self):
        return (Path.touch, (self.trace,))


def hostile_checkpoints(folder, trace):
    """Files that would touch ``trace`` where they are unpickled."""
    torch.save({"model": {"a": torch.ones(1)}, "more": Evil(trace)}, folder / "zip.pth")
    torch.save({"model": Evil(trace)}, folder / "old.pth", _use_new_zipfile_serialization=False)
    (folder / "plain.pth").write_bytes(pickle.dumps(Evil(trace)))
    (folder / "mmdet.pth").write_bytes(pickle.dumps({"state_dict": {}, "meta": Evil(trace)}))
    return sorted(folder.glob("*.pth"))


def test_no_hostile_checkpoint_runs(tmp_path):
    trace = tmp_path / "trace"
    files = hostile_checkpoints(tmp_path, trace)
    assert len(files) == 4
    for path in files:
        with pytest.raises(DatasetError, match=path.name):
            read_state_dict(path)
    assert not trace.exists()
    pickle.loads((tmp_path / "plain.pth").read_bytes())  # noqa: S301  the test's own file does run where it is let
    assert trace.exists()


def test_a_checkpoint_whose_archive_names_lead_elsewhere_writes_nothing(tmp_path):
    path = tmp_path / "folder" / "a.pth"
    path.parent.mkdir()
    torch.save({"model": {"a": torch.ones(1)}}, path)
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("../../escaped", b"x")
        archive.writestr("/escaped", b"x")
    with pytest.raises(DatasetError, match="not in a subdirectory"):
        read_state_dict(path)
    assert sorted(p.name for p in tmp_path.rglob("*")) == ["a.pth", "folder"]


ELSEWHERE = ["../secret", "..", "/etc/passwd", "a/../../secret", "C:\\secret", "..\\secret", "a\0b"]


@pytest.fixture
def folder(tmp_path):
    """A data set of one image, and a file beside it that it must not reach."""
    root = tmp_path / "set"
    for name in ("PNGImages", "Annotations", "ImageSets/Main"):
        (root / name).mkdir(parents=True)
    (tmp_path / "secret.png").write_bytes(b"secret")
    (tmp_path / "secret.xml").write_text("<annotation><size><width>1</width><height>1</height></size></annotation>")
    return root


@pytest.mark.parametrize("name", ELSEWHERE)
def test_names_in_data_files_reach_no_other_folder(folder, name):
    split = folder / "ImageSets" / "Main" / "train.txt"
    split.write_bytes(name.encode() + b"\n")
    names, faults = read_split(split)
    assert not names
    assert "leads out of the image folder" in faults[0].problem
    with pytest.raises(DatasetError, match="leads out of the image folder"):
        load_voc(folder, "train", layout="voc_png")
    if "\0" not in name:
        xml = folder / "Annotations" / "a.xml"
        size = "<size><width>1</width><height>1</height></size>"
        xml.write_text(f"<annotation><filename>{name}</filename>{size}</annotation>")
        if ".." in name:
            with pytest.raises(DatasetError, match=r"filename: .* leads out of the image folder"):
                read_voc_xml(xml)
        else:  # a path of the computer that it was annotated on; no image is found by it
            read_voc_xml(xml)
            split.write_text("a\n")
            with pytest.raises(DatasetError, match=r"PNGImages.a: file: no such image"):
                load_voc(folder, "train", layout="voc_png")
    coco = folder / "a.json"
    text = name.replace("\\", "\\\\").replace("\0", "\\u0000")
    image = f'{{"id": 1, "width": 1, "height": 1, "file_name": "{text}"}}'
    coco.write_text(f'{{"images": [{image}], "annotations": [], "categories": []}}')
    with pytest.raises(DatasetError, match="leads out of the image folder"):
        load_coco(coco, folder)


def test_an_entity_is_neither_read_nor_fetched(folder, monkeypatch):
    opened = []
    real = Path.open
    monkeypatch.setattr(Path, "open", lambda self, *a, **k: opened.append(self) or real(self, *a, **k))
    xml = folder / "Annotations" / "a.xml"
    secret = (folder.parent / "secret.xml").as_uri()
    xml.write_text(f'<!DOCTYPE a [<!ENTITY e SYSTEM "{secret}">]><annotation><view>&e;</view></annotation>')
    opened.clear()
    with pytest.raises(DatasetError, match="a DTD or entities, refused"):
        read_voc_xml(xml)
    assert opened == [xml]


def test_yaml_of_a_configuration_makes_no_objects(tmp_path):
    from irstd_d2 import get_config

    path = tmp_path / "a.yaml"
    path.write_text(f"OUTPUT_DIR: !!python/object/apply:os.mkdir ['{tmp_path / 'trace'}']\n")
    with pytest.raises(Exception, match="python/object/apply"):
        get_config(path, [])
    assert not (tmp_path / "trace").exists()
