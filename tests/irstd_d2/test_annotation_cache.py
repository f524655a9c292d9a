"""The annotation cache: the same records, nothing read twice, every change seen, never in the way."""

import json
import logging
import os
import time
from pathlib import Path

import pytest
from voc_files import voc_xml

from irstd_d2.data import cache
from irstd_d2.data.cache import read_annotations
from irstd_d2.data.voc_xml import VocObject


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    folder = tmp_path / "set" / "Annotations"
    folder.mkdir(parents=True)
    for i in range(5):
        extra = "<view>Air</view><band_type>LWIR</band_type>" if i % 2 else ""
        (folder / f"{i}.xml").write_text(voc_xml(100 + i, 50, [(i, 2.5, i + 3, 8)], extra=extra))
    age(folder)
    return folder


def age(folder, seconds=0.15):
    """Wait until the files of a folder are old enough to be kept."""
    newest = max(path.stat().st_ctime for path in folder.iterdir())
    time.sleep(max(0, newest + seconds - time.time()))


@pytest.fixture
def parsed(monkeypatch):
    """Names of the files that were really read."""
    names = []
    original = cache.parse_voc_xml

    def spy(path):
        names.append(Path(path).name)
        return original(path)

    monkeypatch.setattr(cache, "parse_voc_xml", spy)
    return names


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_second_reading_parses_nothing_and_gives_the_same(folder, parsed):
    first = read_annotations(folder, names(folder))
    assert len(parsed) == 5
    parsed.clear()
    second = read_annotations(folder, names(folder))
    assert parsed == []
    assert second == first
    assert second[0]["1.xml"].platform == "Air"
    assert second[0]["1.xml"].objects == (VocObject("Target", False, (1.0, 2.5, 4.0, 8.0)),)
    assert all(isinstance(v, float) for obj in second[0]["1.xml"].objects for v in obj.box)


def test_without_cache_nothing_is_written(folder, parsed):
    for _ in range(2):
        read_annotations(folder, names(folder), use_cache=False)
    assert len(parsed) == 10
    assert names(folder.parent) == ["Annotations"]


def test_file_beside_the_folder(folder):
    read_annotations(folder, names(folder))
    assert names(folder.parent) == [".Annotations.irstd_d2_cache.json", "Annotations"]
    content = json.loads((folder.parent / ".Annotations.irstd_d2_cache.json").read_text())
    assert content["format"] == "irstd_d2 annotations, version 1"


def test_splits_share_one_file(folder, parsed):
    read_annotations(folder, ["0.xml", "1.xml"])
    read_annotations(folder, ["1.xml", "2.xml"])
    assert parsed == ["0.xml", "1.xml", "2.xml"]
    parsed.clear()
    read_annotations(folder, ["0.xml", "1.xml", "2.xml"])
    assert parsed == []


def test_changed_content_of_equal_size_and_time_is_seen(folder, parsed):
    path = folder / "2.xml"
    before = path.stat()
    read_annotations(folder, names(folder))
    parsed.clear()
    path.write_text(path.read_text().replace("<xmin>2<", "<xmin>3<"))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert path.stat().st_size == before.st_size
    records, _ = read_annotations(folder, names(folder))
    assert parsed == ["2.xml"]
    assert records["2.xml"].objects[0].box[0] == 3


def test_new_and_deleted_files(folder, parsed):
    read_annotations(folder, names(folder))
    (folder / "0.xml").unlink()
    (folder / "9.xml").write_text(voc_xml())
    age(folder)
    parsed.clear()
    records, faults = read_annotations(folder, names(folder))
    assert parsed == ["9.xml"]
    assert (sorted(records), faults) == (["1.xml", "2.xml", "3.xml", "4.xml", "9.xml"], [])
    kept = json.loads((folder.parent / ".Annotations.irstd_d2_cache.json").read_text())["files"]
    assert "0.xml" not in kept


def test_missing_file_is_a_fault_again_and_again(folder):
    for _ in range(2):
        records, faults = read_annotations(folder, ["0.xml", "none.xml"])
        assert list(records) == ["0.xml"]
        assert [fault.file for fault in faults] == [str(folder / "none.xml")]


def test_faulty_file_is_a_fault_again_and_again(folder, parsed):
    (folder / "3.xml").write_text("<annotation>")
    age(folder)
    for _ in range(2):
        records, faults = read_annotations(folder, names(folder))
        assert "3.xml" not in records
        assert len(faults) == 1
    assert parsed.count("3.xml") == 2
    assert parsed.count("0.xml") == 1


def test_file_changed_just_now_is_not_kept(folder, parsed):
    now = time.time_ns() + 10**9  # as if written a moment after the reading began
    os.utime(folder / "1.xml", ns=(now, now))
    read_annotations(folder, names(folder))
    parsed.clear()
    read_annotations(folder, names(folder))
    assert parsed == ["1.xml"]


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"not json",
        b"[]",
        b'{"format": "irstd_d2 annotations, version 0", "files": {}}',
        b'{"format": "irstd_d2 annotations, version 1"}',
        b'{"format": "irstd_d2 annotations, version 1", "files": {"0.xml": [1, 2, 3]}}',
        b'{"format": "irstd_d2 annotations, version 1", "files": {"0.xml": [1, 1, 1, 9, 9, 5, null, []]}}',
        b'{"format": "irstd_d2 annotations, version 1", "files": {"0.xml": [1, 1, 1, "9", 9, null, null, []]}}',
        b'{"format": "irstd_d2 annotations, version 1", "files": {"0.xml": [1, 1, 1, 9, 9, null, null, [[1]]]}}',
        b'{"format": "irstd_d2 annotations, version 1", "files": '
        b'{"0.xml": [1, 1, 1, 9, 9, null, null, [["a", 0, 1, 2, NaN, 4]]]}}',
        b"[" * 200_000,
        b"\x80\x04\x95",  # a pickle
    ],
)
def test_damaged_cache_is_ignored_and_replaced(folder, parsed, content):
    path = folder.parent / ".Annotations.irstd_d2_cache.json"
    path.write_bytes(content)
    records, faults = read_annotations(folder, names(folder))
    assert (len(records), faults) == (5, [])
    parsed.clear()
    read_annotations(folder, names(folder))
    assert parsed == []


def test_oversized_cache_is_ignored(folder, parsed, monkeypatch):
    read_annotations(folder, names(folder))
    monkeypatch.setattr(cache, "MAX_CACHE_BYTES", 10)
    parsed.clear()
    read_annotations(folder, names(folder))
    assert len(parsed) == 5


def test_read_only_folder_uses_the_home_of_the_user(folder, parsed, tmp_path, caplog):
    caplog.set_level(logging.INFO, logger="irstd_d2")
    folder.parent.chmod(0o555)
    try:
        read_annotations(folder, names(folder))
        parsed.clear()
        read_annotations(folder, names(folder))
    finally:
        folder.parent.chmod(0o755)
    assert parsed == []
    assert names(folder.parent) == ["Annotations"]
    assert len(names(tmp_path / "home" / "irstd_d2")) == 1
    assert "cannot be written; the annotation cache is in" in caplog.text


def test_nowhere_to_write_still_reads(folder, parsed, tmp_path, caplog):
    caplog.set_level(logging.INFO, logger="irstd_d2")
    (tmp_path / "home").write_text("a file where the cache folder should be")
    folder.parent.chmod(0o555)
    try:
        records, faults = read_annotations(folder, names(folder))
    finally:
        folder.parent.chmod(0o755)
    assert (len(records), faults) == (5, [])
    assert caplog.text.count("No annotation cache") == 1


def test_disk_full_leaves_the_old_cache_and_no_debris(folder, parsed, monkeypatch, caplog):
    read_annotations(folder, ["0.xml"])
    path = folder.parent / ".Annotations.irstd_d2_cache.json"
    before = path.read_bytes()

    def full(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(cache.os, "fsync", full)
    records, _ = read_annotations(folder, names(folder))
    assert len(records) == 5
    assert path.read_bytes() == before
    assert names(folder.parent) == [path.name, "Annotations"]
    assert "No space left on device" in caplog.text


def test_nine_thousand_files_are_parsed_once(tmp_path, parsed, monkeypatch):
    folder = tmp_path / "set" / "Annotations"
    folder.mkdir(parents=True)
    text = voc_xml(boxes=[(1, 2, 3, 4), (5, 6, 7, 8)])
    file_names = [f"{i:05}.xml" for i in range(9000)]
    for name in file_names:
        (folder / name).write_text(text)
    age(folder)
    expected = cache.parse_voc_xml(folder / file_names[0])
    monkeypatch.setattr(
        cache, "parse_voc_xml", lambda path: (parsed.append(Path(path).name), expected)[1]
    )  # keep it fast
    parsed.clear()
    first, _ = read_annotations(folder, file_names)
    assert len(parsed) == 9000
    second, faults = read_annotations(folder, file_names)
    assert len(parsed) == 9000
    assert second == first
    assert faults == []
