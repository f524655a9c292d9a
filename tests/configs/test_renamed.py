"""Every name that a configuration had still loads, or the error names what stands in its place."""

from pathlib import Path

import pytest
from ablation.tables import load_tables

from irstd_d2 import get_config
from irstd_d2.errors import ConfigError

HERE = Path(__file__).parent
CONFIGS = HERE.parents[1] / "configs"
OLD = (HERE / "names_of_version_0_3.txt").read_text().splitlines()


def message(path):
    with pytest.raises(ConfigError) as error:
        get_config(path)
    return str(error.value)


def test_every_old_name_loads_or_names_the_new_one():
    tables = load_tables()
    for name in OLD:
        if (CONFIGS / name).is_file():
            continue
        now = message(CONFIGS / name).partition(". It is now ")[2]
        assert now, f"{name} is gone without a line in configs/renamed.tsv"
        if "benchmarks/ablate.py" in now:
            table, row = now.split("benchmarks/ablate.py ")[1].split(",")[0].split(" --rows ")
            assert row in tables[table].rows, now
        elif "benchmarks" not in now:
            assert (CONFIGS / now.split(" ")[0].rstrip(":")).is_file(), now


def test_a_base_and_a_relative_name_are_found_too(tmp_path, monkeypatch):
    mine = tmp_path / "mine.yaml"
    mine.write_text(f"_BASE_: {CONFIGS}/auxdet/tiny/../ablation/table5_m2dm.yaml\n")
    assert "row m2dm of table auxdet-5" in message(mine)
    monkeypatch.chdir(CONFIGS / "baselines")
    assert message("Base-FCOS.yaml").endswith("It is now baselines/fcos_r50_fpn.yaml")


def test_a_name_that_never_was_gets_no_hint():
    assert message(CONFIGS / "auxdet/auxdet_r51_fpn.yaml").endswith("does not exist")
