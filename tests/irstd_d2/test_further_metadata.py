"""Metadata fields beyond platform, band and size, from the files to a sample."""

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from voc_files import VocSet

from irstd_d2.data import IRSTDDatasetMapper
from irstd_d2.data.coco import load_coco
from irstd_d2.data.sidecar import SidecarEntry, read_sidecar, read_table
from irstd_d2.data.voc import load_voc
from irstd_d2.inference.inputs import MetadataLookup

TABLE = "id,view_angle,Band,season,width,view_angle\na,30,LWIR,summer,9,99\nb,,NIR,,,\nc,45\n"


def table(folder, text=TABLE):
    path = Path(folder) / "metadata.csv"
    path.write_text(text)
    return path


def test_columns_of_other_names(tmp_path):
    entries, further, faults = read_table(table(tmp_path))
    assert entries["a"] == SidecarEntry(None, "LWIR", 9, None)
    assert further == {"a": {"view_angle": "30", "season": "summer"}, "b": {}, "c": {"view_angle": "45"}}
    assert faults == []
    assert read_sidecar(tmp_path / "metadata.csv") == (entries, [])


@pytest.mark.parametrize("text", ["a,Air,LWIR,3,4,9,9\n", "id,platform,view\na,Air,Land\n"])
def test_no_further_columns(tmp_path, text):
    assert read_table(table(tmp_path, text)).further == {}


@settings(deadline=None)
@given(st.lists(st.tuples(st.text("abc", max_size=3), st.text("xyz 1.", max_size=4)), max_size=5))
def test_what_is_written_is_read(tmp_path_factory, cells):
    cells = dict(cells)
    cells.pop("", None)
    folder = tmp_path_factory.mktemp("table")
    path = table(folder, ",".join(["id", *(f"k{name}" for name in cells)]) + "\n" + ",".join(["a", *cells.values()]))
    expected = {f"k{name}": value.strip() for name, value in cells.items() if value.strip()}
    assert read_table(path).further.get("a", {}) == expected


def test_faulty_lines_give_nothing(tmp_path):
    entries, further, faults = read_table(table(tmp_path, "id,width,season\na,wide,summer\nb,3,winter\n"))
    assert list(entries) == list(further) == ["b"]
    assert [fault.field for fault in faults] == ["line 2"]


def test_they_reach_the_samples_of_a_voc_set(tmp_path):
    VocSet(tmp_path).add("a").add("b", extra="<view>Land</view>")
    table(tmp_path, "id,view_angle,platform\na,30,Air\n")
    first, second = load_voc(tmp_path)
    assert first["metadata"] == {"view_angle": "30", "platform": "Air", "band": None, "width": 32, "height": 24}
    assert set(second["metadata"]) == {"platform", "band", "width", "height"}
    mapped = IRSTDDatasetMapper(is_train=False, augmentations=[])(first)
    assert mapped["metadata"] == first["metadata"]


def test_they_reach_the_samples_of_a_coco_file(tmp_path):
    fields = {"view_angle": 30.5, "season": "summer", "platform": "Moon", "none": None, "lens": {"f": 2}, "on": True}
    image = {"id": 1, "file_name": "a.png", "width": 9, "height": 8, "platform": "Air"}
    images = [
        {**image, "metadata": fields},
        {**image, "id": 2, "file_name": "b.png", "metadata": "left by another program"},
    ]
    path = tmp_path / "set.json"
    path.write_text(json.dumps({"images": images, "annotations": [], "categories": []}))
    (first, second), _ = load_coco(path, tmp_path)
    own = {"platform": "Air", "band": None, "width": 9, "height": 8}
    assert first["metadata"] == {"view_angle": 30.5, "season": "summer", **own}
    assert second["metadata"] == own


def test_they_are_found_for_images_without_annotations(tmp_path):
    look = MetadataLookup({"band": "NIR"}, table(tmp_path))
    assert look(Path("a.png")) == {"view_angle": "30", "season": "summer", "width": 9, "band": "NIR"}
    assert look(Path("c.png")) == {"view_angle": "45", "band": "NIR"}
