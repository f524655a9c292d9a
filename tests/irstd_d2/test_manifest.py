import json

import pytest

from irstd_d2.errors import DatasetError
from irstd_d2.manifest import claim_folder

WANTED = {"version": 1, "config": {"seed": 0, "size": (3, 4)}}


def claim(folder, wanted=WANTED, **options):
    claim_folder(folder, "made.json", wanted, kind="made set", **options)


def test_an_empty_or_absent_folder_is_claimed_once(tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty/.hidden").write_text("")
    for name in ("empty", "absent/below"):
        claim(tmp_path / name)
        manifest = tmp_path / name / "made.json"
        assert json.loads(manifest.read_text()) == {"version": 1, "config": {"seed": 0, "size": [3, 4]}}
        before = manifest.stat().st_mtime_ns
        claim(tmp_path / name)
        assert manifest.stat().st_mtime_ns == before


def test_what_differs_is_named_and_replaced_on_request(tmp_path):
    folder = tmp_path / "set"
    claim(folder)
    (folder / "image.png").write_bytes(b"old")
    other = {"version": 2, "config": {"seed": 0, "size": (3, 5)}}
    with pytest.raises(DatasetError, match=r"version, config\.size.*--overwrite"):
        claim(folder, other)
    assert (folder / "image.png").exists()
    claim(folder, other, overwrite=True)
    assert [path.name for path in tmp_path.rglob("*")] == ["set", "made.json"]


@pytest.mark.parametrize("overwrite", [False, True])
def test_other_files_are_left_alone(tmp_path, overwrite):
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(DatasetError, match="not a made set"):
        claim(tmp_path, overwrite=overwrite)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


@pytest.mark.parametrize("text", ["{", "[]", '{"config": 3}'])
def test_a_damaged_manifest_is_no_manifest(tmp_path, text):
    (tmp_path / "made.json").write_text(text)
    with pytest.raises(DatasetError, match="not a manifest"):
        claim(tmp_path, overwrite=True)
