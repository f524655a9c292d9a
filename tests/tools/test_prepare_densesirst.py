import numpy as np
import pytest
from programs import load_program

from irstd_d2.data.layout_writer import densesirst_files
from irstd_d2.data.voc_xml import VocObject, VocRecord


@pytest.fixture(scope="module")
def tool(repo_root):
    return load_program(repo_root / "datasets" / "prepare_densesirst.py")


@pytest.fixture
def download(tmp_path, monkeypatch):
    root = tmp_path / "download/SIRSTdevkit"
    blank = np.zeros((8, 8), np.uint8)
    record = VocRecord(8, 8, None, None, (VocObject("Target", False, (1, 1, 3, 3)),))
    for path, data in densesirst_files("a", blank, record, blank, blank):
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(data)
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path / "sets"))
    return root


def test_counts_are_printed_and_a_part_is_refused(tool, download, tmp_path, capsys):
    assert tool.main([str(download.parent)]) == 1
    output = capsys.readouterr()
    assert [line.split() for line in output.out.splitlines() if line.startswith("PNGImages")] == [
        ["PNGImages", "1", "1024", "needed"]
    ]
    assert "trainval_v2 images 0 of 768" in output.err
    assert not (tmp_path / "sets").exists()


def test_force_links_it(tool, download, tmp_path, capsys):
    assert tool.main([str(download), "--force", "--check-only"]) == 0
    assert not (tmp_path / "sets").exists()
    assert tool.main([str(download), "--force"]) == 0
    assert (tmp_path / "sets/SIRSTdevkit").resolve() == download
    assert "ready as densesirst_v2_train" in capsys.readouterr().out


def test_wrong_folder(tool, tmp_path, capsys):
    assert tool.main([str(tmp_path)]) == 1
    assert "no SIRSTdevkit" in capsys.readouterr().err
