"""Parameters of the rows of Tables 5 and 9 beside those that the paper prints."""

import pytest
from detectron2.modeling import build_model

from irstd_d2 import get_config

ROWS = {
    "table5_baseline": (42_526_543, 42.527),
    "table5_m2dm": (44_366_591, 44.367),
    "table5_leem": (42_722_899, 42.723),
    "table5_m2dm_leem": (45_279_044, 45.279),
    "table9_faster_rcnn": (41_348_181, 41.348),
    "table9_cascade_rcnn": (69_151_841, 69.152),
}


@pytest.mark.parametrize("row", ROWS)
def test_parameters(repo_root, capsys, row):
    config = get_config(repo_root / f"configs/auxdet/ablation/{row}.yaml", ["MODEL.DEVICE", "cpu"])
    count = sum(p.numel() for p in build_model(config).parameters())
    expected, paper = ROWS[row]
    with capsys.disabled():
        print(f"\n{row}: {count:,} parameters (paper: {paper} M)", end="")
    assert count == expected
    assert round(count / 1e6, 3) == paper
