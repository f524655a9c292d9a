"""A platform is held out, and a few of its images come back."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))

import leave_one_out
from leave_one_out import main, own_sets

from irstd_d2.data.datasets import register_own_sets
from irstd_d2.errors import ConfigError
from tests.voc_files import VocSet

AIR, LAND = ["air0", "air1", "air2"], [f"land{i}" for i in range(6)]
TEST = ["air9", "land9", "land8"]


@pytest.fixture
def two_sets(tmp_path, monkeypatch):
    """Air and Land in one set, Space in the other, as the real ones have them."""
    roots = {"WideIRSTD-matched": (AIR + LAND, TEST), "SpaceIR-sen2ships": (["space0"], ["space9"])}
    for folder, (train, val) in roots.items():
        voc = VocSet(tmp_path / folder, "wideirstd")
        for name in (*train, *val):
            view = name[:-1].capitalize()
            extra = f"<view>{view}</view><band_type>{'NIR' if view == 'Space' else 'LWIR'}</band_type>"
            voc.add(name, 64, 48, boxes=((20, 10, 26, 15),), extra=extra)
        voc.split("train", "\n".join(train))
        voc.split("val", "\n".join(val))
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    known = set(DatasetCatalog.list())
    yield tmp_path
    for name in set(DatasetCatalog.list()) - known:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)


def images(sets):
    register_own_sets(sets)
    return [str(record["image_id"]) for name, *_ in sets for record in DatasetCatalog.get(name)]


def test_lists_hold_out_the_platform(two_sets):
    sets = own_sets("Land", [2, 5], 2, two_sets / "out")
    assert images(sets["others"]) == [*AIR, "space0"]
    assert sorted(images(sets["test"])) == ["land8", "land9"]
    few, more, other = (images(sets[key]) for key in ("2_0", "5_0", "5_1"))
    assert set(few) < set(more) < set(LAND)
    assert (len(few), len(more)) == (2, 5)
    assert more != other
    assert own_sets("Land", [2, 5], 2, two_sets / "out") == sets  # again, over what is there
    assert images(own_sets("Space", [1], 1, two_sets / "space")["others"]) == AIR + LAND
    with pytest.raises(ConfigError, match="--images 7: wideirstd_matched_train has 6 of Land"):
        own_sets("Land", [7], 1, two_sets / "out")


def test_every_number_of_images_goes_on_from_the_others_and_is_compared(two_sets, monkeypatch, capsys):
    rows = []

    def train(row, seed, output, options):
        rows.append((row, seed))
        return output / f"{row.name}_{seed}", 0.0

    monkeypatch.setattr(leave_one_out, "train", train)
    monkeypatch.setattr(leave_one_out, "detect", lambda run, dataset, output, only: {only[0]: Path(run.name)})
    compared = []
    monkeypatch.setattr(leave_one_out, "compared", lambda folders, _: compared.append(folders) or [["x"] * 5])
    command = ["--platform", "Land", "--images", "2", "5", "--seeds", "2", "--output", str(two_sets / "out")]
    assert main([*command, "--only-seed", "1"]) == 0
    assert [(row.name, seed) for row, seed in rows] == [(f"{n}_{c}", 1) for n in ("right", "none") for c in (0, 2, 5)]
    assert not compared
    assert not capsys.readouterr().out
    assert main(command) == 0
    assert len(rows) == 6 + 12
    for row, seed in rows[6:]:
        options = dict(zip(row.options[::2], row.options[1::2]))
        network, count = row.name.split("_")
        base = str((two_sets / "out" / f"{network}_0_{seed}" / "model_final.pth").resolve())
        assert options.get("MODEL.WEIGHTS") == (base if count != "0" else None)
        assert options.get("INPUT.METADATA_DROPOUT_ALL") == ("1.0" if network == "none" else None)
        assert f"_{seed}'" in options["DATASETS.OWN"] or count == "0"
    assert [list(folders[0]) for folders in compared] == [[f"{c}, none", f"{c}, right"] for c in (0, 2, 5)]
    assert compared[1][1] == {"2, none": Path("none_2_1"), "2, right": Path("right_2_1")}
    assert "| images of Land, metadata" in capsys.readouterr().out
