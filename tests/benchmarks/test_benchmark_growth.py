"""Growth of cost: the fitted exponent, and a quick run."""

import pytest
from PIL import Image


@pytest.fixture
def growth(repo_root, monkeypatch):
    monkeypatch.syspath_prepend(repo_root / "benchmarks")
    import growth

    return growth


@pytest.mark.parametrize("power", [0.0, 1.0, 2.0])
def test_the_exponent_is_that_of_the_large_sizes(growth, power):
    x = [1, 10, 100, 500, 1000, 2000]
    y = [max(5.0 * v**power, 5.0 * 250**power) for v in x]  # below 250 a fixed cost
    assert growth.growth_exponent(x, y) == pytest.approx(power)


def test_a_quick_run_writes_a_table_and_a_plot(growth, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    table, plot = tmp_path / "a" / "growth.md", tmp_path / "b" / "growth.png"
    growth.main(["--quick", "--output", str(table), "--plot", str(plot)])
    text = table.read_text(encoding="utf-8")
    assert text.strip() == capsys.readouterr().out.strip()
    for name in ("AuxDet", "BAFE-Net", "region targets", "IoU targets", "FCOS targets", "BAG-CP", "auxiliary encoder"):
        assert name in text, name
    with Image.open(plot) as image:
        assert min(image.size) > 200
