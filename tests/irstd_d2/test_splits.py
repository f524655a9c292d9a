"""Split files: names in order, every other line a fault."""

import unicodedata

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from irstd_d2.data.faults import FaultKind
from irstd_d2.data.splits import MAX_SPLIT_BYTES, read_split
from irstd_d2.errors import DatasetError


@pytest.fixture
def read(tmp_path):
    def run(data):
        path = tmp_path / "train.txt"
        path.write_bytes(data if isinstance(data, bytes) else data.encode())
        return read_split(path)

    return run


@pytest.mark.parametrize("text", ["a\nb\nc", "a\nb\nc\n", "a\r\nb\r\nc\r\n", "\ufeffa\nb\nc\n", " a\nb \n\tc\n"])
def test_line_ends_and_marks(read, text):
    assert read(text) == (["a", "b", "c"], [])


def test_order_is_kept(read):
    assert read("z\na\nm\n")[0] == ["z", "a", "m"]


def test_image_suffix_is_dropped_and_other_dots_stay(read):
    assert read("a.png\nb.TIF\nc.v2\nd.jpeg.png\n")[0] == ["a", "b", "c.v2", "d.jpeg"]


def test_non_ascii_names_become_nfc(read):
    assert read(unicodedata.normalize("NFD", "été") + "\n紅外\n")[0] == ["été", "紅外"]


def test_faulty_lines(read):
    names, faults = read("a\n\nb\na\n../etc/passwd\n/abs\nsub/c\n..\\d\na.png\n\n")
    assert names == ["a", "b"]
    assert [(f.kind, f.field) for f in faults] == [
        (FaultKind.EMPTY_LINE, "line 2"),
        (FaultKind.DUPLICATE_LINE, "line 4"),
        (FaultKind.UNSAFE_NAME, "line 5"),
        (FaultKind.UNSAFE_NAME, "line 6"),
        (FaultKind.UNSAFE_NAME, "line 7"),
        (FaultKind.UNSAFE_NAME, "line 8"),
        (FaultKind.DUPLICATE_LINE, "line 9"),
        (FaultKind.EMPTY_LINE, "line 10"),
    ]
    assert "first on line 1" in faults[1].problem


def test_empty_file(read):
    with pytest.raises(DatasetError, match="no image name"):
        read(b"")


def test_not_text(read):
    with pytest.raises(DatasetError, match=r"byte 2: not UTF-8 text"):
        read(b"ab\xff\xfe")


def test_too_large(tmp_path):
    path = tmp_path / "train.txt"
    with path.open("wb") as file:
        file.truncate(MAX_SPLIT_BYTES + 1)
    with pytest.raises(DatasetError, match="larger than 64 MiB"):
        read_split(path)


def test_missing(tmp_path):
    with pytest.raises(DatasetError, match=r"val\.txt: file: cannot be opened.*DETECTRON2_DATASETS"):
        read_split(tmp_path / "val.txt")


NAMES = st.text(st.characters(codec="utf-8", exclude_characters="\r\n/\\\0:"), min_size=1, max_size=8)


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(lines=st.lists(st.one_of(NAMES, st.sampled_from(["", "a", "b", "../x", "a/b"])), min_size=1, max_size=20))
def test_every_line_is_a_name_or_a_fault(tmp_path, lines):
    path = tmp_path / "train.txt"
    path.write_text("\n".join(lines) + "\n", encoding="utf-8", newline="")
    names, faults = read_split(path)
    text_lines = path.read_bytes().decode("utf-8-sig").removesuffix("\n").split("\n")
    assert len(names) + len(faults) == len(text_lines)
    assert len(set(names)) == len(names)
    assert all(name and "/" not in name and name not in (".", "..") for name in names)


@settings(deadline=None, max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.binary(max_size=60))
def test_any_bytes(tmp_path, data):
    path = tmp_path / "train.txt"
    path.write_bytes(data)
    try:
        names, faults = read_split(path)
    except DatasetError as error:
        assert error.file == str(path)  # noqa: PT017  both outcomes are right
    else:
        assert names or faults


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("seq1/a", "names a folder, but images are found by bare names"),
        ("JPEGImages\\a.png", "names a folder, but images are found by bare names"),
        ("seq1/../../a", "leads out of the image folder"),
        ("/data/a", "leads out of the image folder"),
    ],
)
def test_paths_say_what_is_wrong_with_them(tmp_path, line, problem):
    (tmp_path / "train.txt").write_text(line + "\n")
    names, (fault,) = read_split(tmp_path / "train.txt")
    assert names == []
    assert problem in fault.problem
    assert (fault.kind, fault.field) == (FaultKind.UNSAFE_NAME, "line 1")
