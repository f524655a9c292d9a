"""What the code must never do with files of others, and with code itself."""

import ast
import pickle
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
PARTS = ("irstd_d2", "auxdet_d2", "bafe_d2", "tools", "datasets", "benchmarks", "examples", "configs")
SOURCES = [path for part in PARTS for path in sorted((ROOT / part).rglob("*.py"))]

# Code from text, objects from bytes, commands through a shell, XML with entities, names that leave an archive's folder.
CALLS = {
    *("eval", "exec", "compile", "__import__", "input"),
    *("os.system", "os.popen", "subprocess.getoutput", "subprocess.getstatusoutput"),
    *("pickle.load", "pickle.loads", "pickle.Unpickler", "dill.load", "dill.loads", "joblib.load", "marshal.loads"),
    *("cloudpickle.load", "cloudpickle.loads", "shelve.open", "pandas.read_pickle", "torch.hub.load"),
    *("yaml.load", "yaml.unsafe_load", "yaml.full_load", "tempfile.mktemp", "shutil.unpack_archive"),
    *("tarfile.open", "TarFile.extractall", "ZipFile.extractall"),
    *("xml.etree.ElementTree.parse", "xml.etree.ElementTree.fromstring", "xml.etree.ElementTree.XML"),
    *("xml.etree.ElementTree.iterparse", "xml.etree.ElementTree.XMLParser", "xml.dom.minidom.parse"),
}
METHODS = {"extractall", "extract"}


def names_of_imports(tree):
    """What a local name stands for, e.g. ``{"ET": "xml.etree.ElementTree"}``."""
    names = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                if alias.asname:
                    names[alias.asname] = alias.name
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            for alias in node.names:
                names[alias.asname or alias.name] = f"{node.module}.{alias.name}"
    return names


def called(node, names):
    """The full name of what a call calls."""
    function, parts = node.func, []
    while isinstance(function, ast.Attribute):
        parts.append(function.attr)
        function = function.value
    if not isinstance(function, ast.Name):
        return ".".join(["?", *reversed(parts)])
    return ".".join([names.get(function.id, function.id), *reversed(parts)])


def argument(node, name):
    return next((keyword.value for keyword in node.keywords if keyword.arg == name), None)


def dangers(source):
    """Dangerous calls of a Python source, as ``line: name``."""
    tree = ast.parse(source)
    names = names_of_imports(tree)
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        name = called(node, names)
        shell, weights = argument(node, "shell"), argument(node, "weights_only")
        archive = isinstance(node.func, ast.Attribute) and node.func.attr in METHODS
        objects = argument(node, "allow_pickle")
        if (
            name in CALLS
            or archive
            or (shell is not None and not (isinstance(shell, ast.Constant) and shell.value is False))
            or (name == "torch.load" and not (isinstance(weights, ast.Constant) and weights.value is True))
            or (objects is not None and not (isinstance(objects, ast.Constant) and objects.value is False))
        ):
            yield f"{node.lineno}: {name}"


@pytest.mark.parametrize(
    "source",
    [
        "eval('1')",
        "import os\nos.system('ls')",
        "from os import system as run\nrun('ls')",
        "import pickle as p\np.loads(b'')",
        "import subprocess\nsubprocess.run('ls', shell=True)",
        "import subprocess\nsubprocess.run('ls', shell=some)",
        "import torch\ntorch.load('a')",
        "import torch\ntorch.load('a', weights_only=False)",
        "import numpy as np\nnp.load('a', allow_pickle=True)",
        "import yaml\nyaml.load(text)",
        "import tarfile\ntarfile.open('a').extractall()",
        "import xml.etree.ElementTree as ET\nET.parse('a')",
        "from xml.etree.ElementTree import fromstring\nfromstring('a')",
    ],
)
def test_the_search_finds_what_it_looks_for(source):
    assert list(dangers(source))


def test_no_source_evaluates_text_unpickles_or_starts_a_shell():
    assert len(SOURCES) > 100
    found = [f"{path.relative_to(ROOT)}:{line}" for path in SOURCES for line in dangers(path.read_text())]
    assert not found


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
