"""Side-car tables."""

from collections import Counter

import cv2
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from voc_files import three_images, voc_xml

from irstd_d2.data import load_voc
from irstd_d2.data.convert import read_masks, read_yolo
from irstd_d2.data.sidecar import MAX_SIDECAR_BYTES, SidecarEntry, read_sidecar, read_table
from irstd_d2.errors import DatasetError
from irstd_d2.inference.inputs import MetadataLookup


@pytest.fixture
def read(tmp_path):
    def run(data):
        path = tmp_path / "metadata.tsv"
        path.write_bytes(data if isinstance(data, bytes) else data.encode())
        return read_sidecar(path)

    return run


def test_real_table(shared_dir):
    entries, faults = read_sidecar(shared_dir / "data" / "wideirstd_metadata.tsv")
    assert faults == []
    assert len(entries) == 8851
    assert entries["00001"] == SidecarEntry("Air", "LWIR", 256, 256)
    joint = Counter((entry.platform, entry.band) for entry in entries.values())
    assert round(joint["Space", "NIR"] / 8851, 2) == 0.65
    assert set(joint) == {("Space", "NIR"), ("Land", "LWIR"), ("Air", "LWIR"), ("Space", "SWIR")}


@pytest.mark.parametrize("separator", ["\t", ","])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_without_header(read, separator, end):
    rows = [["a", "Air", "LWIR", "320", "240", "9"], ["b", "Space", "NIR", "512", "512", "4"]]
    entries, faults = read(end.join(separator.join(row) for row in rows))
    assert faults == []
    assert entries == {"a": SidecarEntry("Air", "LWIR", 320, 240), "b": SidecarEntry("Space", "NIR", 512, 512)}


def test_header_in_any_order(read):
    text = "\ufeffBand_Type,area,view,file_name\nNIR,4,Space,x\n"
    assert read(text) == ({"x": SidecarEntry("Space", "NIR", None, None)}, [])


def test_empty_cells_short_rows_and_blank_lines(read):
    entries, faults = read("a,,LWIR,,240\n\nb\n,,,,\n")
    assert faults == []
    assert entries == {"a": SidecarEntry(None, "LWIR", None, 240), "b": SidecarEntry(None, None, None, None)}


def test_quoted_cells(read):
    assert read('"a,1",Air,"LW""IR",3,4\n')[0] == {"a,1": SidecarEntry("Air", 'LW"IR', 3, 4)}


def test_faulty_rows(read):
    text = (
        "a,Air,LWIR,wide,240\nb,Air,LWIR,-1,2\n,Air,LWIR,1,1\nc,Air,LWIR,9,9\nc,Land,NIR,8,8\nd,Air,LWIR,99999999,1\n"
    )
    entries, faults = read(text)
    assert entries == {"c": SidecarEntry("Air", "LWIR", 9, 9)}
    assert [(fault.field, fault.problem) for fault in faults] == [
        ("line 1", "width 'wide' is not a size in pixels"),
        ("line 2", "width '-1' is not a size in pixels"),
        ("line 3", "no id"),
        ("line 5", "id 'c' again"),
        ("line 6", "width '99999999' is not a size in pixels"),
    ]


def test_overlong_cell_is_a_fault_and_reading_goes_on(read):
    entries, faults = read("id,view\na," + "x" * 200_000 + "\nb,Air\n")
    assert list(entries) == ["b"]
    assert [fault.field for fault in faults] == ["line 2"]


def test_faults_count_the_header(read):
    assert read("id,width\na,0\n")[1][0].field == "line 2"


def test_not_text_missing_or_too_large(read, tmp_path):
    with pytest.raises(DatasetError, match="not UTF-8"):
        read(b"\xff\xff")
    with pytest.raises(DatasetError, match="cannot be opened"):
        read_sidecar(tmp_path / "none.tsv")
    with (tmp_path / "big.tsv").open("wb") as file:
        file.truncate(MAX_SIDECAR_BYTES + 1)
    with pytest.raises(DatasetError, match="larger than"):
        read_sidecar(tmp_path / "big.tsv")


CELLS = st.one_of(st.sampled_from(["", "Air", "LWIR", "256", "-1", '"', "nan", "id", "紅"]), st.text(max_size=5))


@settings(deadline=None, max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rows=st.lists(st.lists(CELLS, max_size=7), max_size=8), separator=st.sampled_from("\t,"))
def test_any_table(tmp_path, rows, separator):
    path = tmp_path / "metadata.tsv"
    path.write_text("\n".join(separator.join(row) for row in rows), encoding="utf-8", errors="replace", newline="")
    entries, faults = read_sidecar(path)
    assert len(entries) + len(faults) <= len(path.read_text(encoding="utf-8").replace("\r", "\n").split("\n"))
    for key, entry in entries.items():
        assert key
        assert entry.platform != ""
        assert entry.band != ""
        assert entry.width is None or entry.width > 0


@pytest.mark.parametrize("column", ["plattform", "platfrom", "Bnad", "bands", "widht", "hight"])
def test_misspelt_columns_are_refused(tmp_path, column):
    path = tmp_path / "table.csv"
    path.write_text(f"id,{column}\na,1\n")
    with pytest.raises(DatasetError, match=f"table.csv: line 1: the column '{column}' is nearly"):
        read_sidecar(path)


@pytest.mark.parametrize("column", ["platform_id", "view_angle", "brightness", "scene", "gsd", "weight"])
def test_other_columns_are_no_misspelt_fields(tmp_path, column):
    path = tmp_path / "table.csv"
    path.write_text(f"id,{column}\na,1\n")
    assert read_table(path).further == {"a": {column: "1"}}


@pytest.mark.parametrize(
    "text", ["id;view;band\na;Air;LW,IR\n", "a;Air;LW,IR\n", "band;id;platform\nLW,IR;a.png;Air\n"]
)
def test_semicolons_part_columns_where_they_are_more(read, text):
    assert read(text) == ({"a": SidecarEntry("Air", "LW,IR", None, None)}, [])


@pytest.mark.parametrize("header", ["img,band,platform", "picture;view", "# id\tband_type"])
def test_a_header_without_ids_is_refused(read, header):
    with pytest.raises(
        DatasetError, match=r"line 1: names no column of ids: .*Fix: call the column of image names one of"
    ):
        read(f"{header}\na,LWIR,Air\n")


@pytest.mark.parametrize("key", ["images/a.png", "0a", "b"])
def test_a_table_of_other_images_is_refused_by_every_reader(tmp_path, key):
    root = three_images(tmp_path / "voc").root
    table = tmp_path / "table.csv"
    table.write_text(f"id,platform\n{key},Air\nz,Air\n")
    for folder in ("images", "masks", "labels"):
        (tmp_path / "set" / folder).mkdir(parents=True)
    cv2.imwrite(str(tmp_path / "set" / "images" / "a.png"), np.zeros((9, 9), np.uint8))
    cv2.imwrite(str(tmp_path / "set" / "masks" / "a.png"), np.zeros((9, 9), np.uint8))
    (tmp_path / "set" / "labels" / "a.txt").touch()
    readers = [
        lambda: read_masks(tmp_path / "set", sidecar=table),
        lambda: read_yolo(tmp_path / "set", sidecar=table),
        lambda: MetadataLookup(table=table).check_images([tmp_path / "a.png"]),
    ]
    readers += [lambda: load_voc(root, sidecar=table)] if key != "b" else []  # which is an image there
    for read in readers:
        with pytest.raises(DatasetError, match=r"table.csv: ids: none of 2, .* is one of . images.*such as 'a'"):
            read()
    table.write_text("id,platform\na,Air\nz,Air\n")
    for read in readers:
        read()


def test_xml_files_of_other_images_are_refused(tmp_path):
    (tmp_path / "b.xml").write_text(voc_xml())
    lookup = MetadataLookup(xml_folder=tmp_path)
    with pytest.raises(DatasetError, match="none of 1, such as 'b', is one of 2 images"):
        lookup.check_images([tmp_path / "a.png", tmp_path / "c.png"])
    lookup.check_images([tmp_path / "a.png", tmp_path / "b.png"])
