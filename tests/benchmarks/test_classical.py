"""The classical filters: what they must and must not answer to."""

import numpy as np
import pytest
from programs import load_program


@pytest.fixture(scope="module")
def classical(repo_root):
    return load_program(repo_root / "benchmarks" / "classical.py")


@pytest.mark.parametrize("name", ["top_hat", "lcm", "mpcm"])
def test_a_small_bright_target_is_the_best_detection(classical, name):
    rng = np.random.default_rng(0)
    image = rng.normal(80, 2, (96, 128)).astype(np.float32)
    image[40:43, 70:73] += 60
    boxes, scores = classical.components(classical.FILTERS[name](image), 4.0, 100)
    x, y, width, height = boxes[0]
    assert abs(x + width / 2 - 71.5) <= 1
    assert abs(y + height / 2 - 41.5) <= 1
    assert (np.diff(scores) <= 0).all()
    assert 0 < scores[-1] <= scores[0] < 1


@pytest.mark.parametrize("name", ["top_hat", "mpcm"])
def test_a_slope_and_an_edge_are_no_targets(classical, name):
    """Away from noise, top-hat and MPCM answer to what is bright on all sides only."""
    image = np.tile(np.linspace(0, 200, 128, dtype=np.float32), (96, 1))
    image[:, 64:] += 30
    image[40:43, 20:23] += 20
    found = classical.FILTERS[name](image)
    assert found[38:45, 18:25].max() > 5 * found[:, 60:70].max() - 1e-3
