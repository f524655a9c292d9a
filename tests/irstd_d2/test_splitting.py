"""Splits at random, and merged metadata tables."""

import csv
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from voc_files import VocSet

from irstd_d2.data.convert import ImageRecord, TargetObject
from irstd_d2.data.convert.metadata_tables import Conflict, merge_metadata, read_metadata
from irstd_d2.data.convert.splitting import groups_by_pattern, make_splits, stratum_of
from irstd_d2.data.sidecar import SidecarEntry, format_sidecar, read_column, read_sidecar, read_table
from irstd_d2.errors import ConfigError, DatasetError

images = st.dictionaries(st.text("abcdef", min_size=1, max_size=4), st.sampled_from("XYZ"), min_size=1, max_size=80)
shares = st.dictionaries(st.sampled_from(["train", "val", "test"]), st.floats(0.05, 10), min_size=1)


@given(images, shares, st.integers(0, 5))
@settings(max_examples=100, deadline=None)
def test_single_images_are_within_one_of_their_share_in_every_stratum(strata, ratios, seed):
    splits = make_splits(strata, ratios, seed=seed)
    assert sorted(name for names in splits.values() for name in names) == sorted(strata)
    assert list(splits) == list(ratios)
    for stratum, size in Counter(strata.values()).items():
        for split, names in splits.items():
            share = size * ratios[split] / sum(ratios.values())
            assert abs(sum(strata[name] == stratum for name in names) - share) < 1 + 1e-6
    shuffled = dict(reversed(strata.items()))
    assert make_splits(shuffled, ratios, seed=seed) == splits


@given(images, shares, st.integers(0, 5))
@settings(max_examples=100, deadline=None)
def test_no_group_is_in_two_splits(strata, ratios, seed):
    groups = {name: name[0] for name in strata if name[0] != "a"}
    splits = make_splits(strata, ratios, groups=groups, seed=seed)
    assert sorted(name for names in splits.values() for name in names) == sorted(strata)
    found = [{groups[name] for name in names if name in groups} for names in splits.values()]
    assert sum(map(len, found)) == len(set(groups.values()))


def test_groups_are_balanced_and_the_seed_matters():
    strata = {f"s{sequence:02d}_{i}": "AB"[sequence % 2] for sequence in range(20) for i in range(10)}
    groups = groups_by_pattern(list(strata), r"^(s\d+)_")
    results = [make_splits(strata, {"train": 7, "val": 2, "test": 1}, groups=groups, seed=seed) for seed in (0, 0, 1)]
    assert results[0] == results[1] != results[2]
    for splits in results:
        assert [len(names) for names in splits.values()] == [140, 40, 20]
        assert Counter(strata[name] for name in splits["train"]) == {"A": 70, "B": 70}


def test_a_group_is_not_mixed_with_an_image_of_its_name():
    splits = make_splits({"a": 0, "b": 0, "c": 0}, {"x": 1, "y": 2}, groups={"b": "a", "c": "a"})
    assert splits == {"x": ["a"], "y": ["b", "c"]}


def test_patterns():
    assert groups_by_pattern(["a_1", "a_2", "b"], r"^\w_") == {"a_1": "a_", "a_2": "a_"}
    with pytest.raises(ConfigError, match="cannot be read"):
        groups_by_pattern(["a"], "(")
    with pytest.raises(ConfigError, match=r"'x\+' fits none of 1 names, e\.g\. 'a'"):
        groups_by_pattern(["a"], "x+")


@pytest.mark.parametrize("ratios", [{}, {"train": 0.0}, {"train": 1.0, "val": -1.0}])
def test_bad_shares(ratios):
    with pytest.raises(ConfigError, match="give a positive number for every split"):
        make_splits({"a": 0}, ratios)


def test_nothing_to_split():
    with pytest.raises(ConfigError, match="no image to split"):
        make_splits({}, {"train": 1})


def test_strata(tmp_path):
    record = ImageRecord("a", tmp_path, (30, 20), platform="Air", original_size=(300, 200))
    assert stratum_of(record, ["platform", "band", "resolution", "empty"]) == (
        "Air",
        "unknown",
        "300x200",
        "without target",
    )
    seen = ImageRecord("b", tmp_path, (30, 20), (TargetObject("Target", (0, 0, 1, 1)),))
    assert stratum_of(seen, ["resolution", "empty"]) == ("30x20", "with targets")
    with pytest.raises(ConfigError, match="by weather; use some of platform"):
        stratum_of(record, ["weather"])


cells = st.none() | st.text(
    st.characters(blacklist_categories=["C", "Z"], blacklist_characters="\t"), min_size=1, max_size=6
)
entries = st.builds(SidecarEntry, cells, cells, st.none() | st.integers(1, 9999), st.none() | st.integers(1, 9999))


@given(table=st.dictionaries(st.text("abc,\"'. 1", min_size=1, max_size=6).filter(lambda k: k.strip() == k), entries))
@pytest.mark.parametrize("separator", [",", "\t"])
def test_written_tables_are_read_as_they_were(tmp_path_factory, separator, table):
    path = tmp_path_factory.getbasetemp() / "table.csv"
    path.write_bytes(format_sidecar(table, separator))
    assert read_sidecar(path) == (table, [])


def test_columns(tmp_path):
    path = tmp_path / "scenes.csv"
    path.write_text('file_name,area,Scene\na.png,3,"one, two"\nb,4,\nc\n,5,x\n')
    assert read_column(path, "scene") == {"a": "one, two"}
    with pytest.raises(
        DatasetError, match=r"scenes\.csv: line 1: no column 'place'.* Fix: it has file_name, area, scene"
    ):
        read_column(path, "place")
    path.write_text("a,b\n")
    with pytest.raises(DatasetError, match="no column of ids"):
        read_column(path, "b")


@pytest.mark.parametrize("separator", [",", "\t"])
def test_quoted_names_of_columns(tmp_path, separator):
    path = tmp_path / "scenes.csv"
    path.write_text(f'id{separator}"place{separator} time" {separator}"Scene"\na.png{separator}here{separator}sea\n')
    assert read_column(path, "scene") == {"a": "sea"}
    assert read_column(path, f"place{separator} time") == {"a": "here"}
    assert read_table(path).further == {"a": {f"place{separator} time": "here", "Scene": "sea"}}


def test_endless_cells_of_a_table(tmp_path):
    path, endless = tmp_path / "scenes.csv", "x" * (csv.field_size_limit() + 1)
    path.write_text(f"id,scene\na,1\nb,{endless}\n")
    with pytest.raises(DatasetError, match=r"scenes\.csv: line 3: field larger"):
        read_column(path, "scene")
    path.write_text(f"id,{endless}\na,Land\n")
    assert [fault.field for fault in read_sidecar(path)[1]] == ["line 1"]
    with pytest.raises(DatasetError, match="line 1"):
        read_column(path, "scene")


def test_merging():
    first = {"a": SidecarEntry("Air", None, 10, None), "c": SidecarEntry(None, None, None, None)}
    second = {"a": SidecarEntry("air", "LWIR", 12, 9), "b": SidecarEntry("Land", "NIR", 1, 1)}
    merged = merge_metadata({"one": first, "two": second})
    assert merged.entries == {
        "a": SidecarEntry("Air", "LWIR", 10, 9),
        "b": SidecarEntry("Land", "NIR", 1, 1),
        "c": SidecarEntry(None, None, None, None),
    }
    assert merged.conflicts == [Conflict("a", "width", ("10", "one"), ("12", "two"))]
    assert str(merged.conflicts[0]) == "a: width is '10' in one, '12' in two"
    assert merged.unknown == {"platform": 1, "band": 1, "width": 1, "height": 1}
    assert merged.missing == []
    merged = merge_metadata({"two": second, "one": first}, wanted=["b", "x", "y"])
    assert merged.entries == {"b": second["b"]}
    assert (merged.missing, merged.conflicts) == (["x", "y"], [])


def test_metadata_of_xml_files(tmp_path):
    voc = VocSet(tmp_path).add("a", extra="<view>Air</view>").add("b", width=9)
    voc.xml("c").write_text("torn")
    found, faults = read_metadata(tmp_path / "Annotations")
    assert found == {"a": SidecarEntry("Air", None, 32, 24), "b": SidecarEntry(None, None, 9, 24)}
    assert [fault.file for fault in faults] == [str(voc.xml("c"))]
    with pytest.raises(DatasetError, match="no XML file"):
        read_metadata(tmp_path / "PNGImages")
