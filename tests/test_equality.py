"""Numbers of the published implementations: our models against them, their compact form, and that a change is seen."""

from importlib import import_module
from pathlib import Path

import compact_reference
import numpy as np
import pytest
import torch
from loops import for_every
from programs import load_program

import auxdet_d2
import bafe_d2
from bafe_d2.modeling import LargeSelectiveKernel
from irstd_d2.cli import main
from irstd_d2.cli.check_equality import equality_modules
from irstd_d2.equality import Comparison, Reference, compact_arrays, evaluation, image, read_manifest, tensor_values
from irstd_d2.equality.comparison import paired_differences

FILES = {"auxdet_d2": "auxdet_r50", "bafe_d2": "bafe_r50"}


def failures(comparison):
    return [row for row in comparison.rows if not row.ok]


@pytest.fixture(scope="module")
def compact():
    """Every system compared with the numbers of its package, once."""
    return {name: import_module(module).compare(None) for name, module in equality_modules().items()}


@for_every("name", ["auxdet_d2", "bafe_d2", "metrics"])
def test_models_compute_what_the_published_ones_do(compact, name):
    assert not failures(compact[name])


@pytest.mark.parametrize("name", FILES)
def test_every_array_is_compared(compact, name):
    compared = compact[name].compared
    files = sorted((Path(import_module(name).__file__).parent / "reference").glob("*.npz"))
    assert len(files) == len({file for file, _ in compared})
    for path in files:
        left_out = Reference(path).names() - {array for file, array in compared if file == path.stem}
        # Statistics of norms that never run.
        assert all(array.startswith("after.bbox_head.") for array in left_out), left_out
        assert len(left_out) == (12 if path.stem == "bafe_train_losses" else 0)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["auxdet_d2", "bafe_d2", "metrics"])
def test_models_compute_what_the_published_ones_do_in_every_number(oracle_dir, name):
    assert not failures(import_module(equality_modules()[name]).compare(oracle_dir))


def test_the_compact_form_is_that_of_the_whole_one(oracle_dir):
    sources = sorted(oracle_dir.glob("*.npz"))
    assert len(sources) == 7
    for source in sources:
        expected = compact_reference.compact(source)
        with np.load(compact_reference.target_of(source), allow_pickle=False) as file:
            found = dict(file)
        assert found.keys() == expected.keys(), source
        assert all(np.array_equal(found[name], expected[name]) for name in found), source
    for name in FILES.values():
        source = oracle_dir / f"{name}.manifest.json"
        assert read_manifest(source) == read_manifest(compact_reference.target_of(source))


def test_generated_values_are_those_of_the_reference(oracle_dir):
    fill = load_program(oracle_dir / "fill.py")
    for name in FILES.values():
        rules = read_manifest(oracle_dir / f"{name}.manifest.json").rules
        for key, (shape, rule) in rules.items():
            if np.prod(shape) < 1e5:
                assert np.array_equal(tensor_values(key, shape, rule), fill.fill(key, shape, rule)), key
    assert np.array_equal(image(7, (2, 3)), fill.image(7, (2, 3)))


def test_generated_values_stay():
    """Numbers of today's numpy: another generator would make another model."""
    assert tensor_values("a.weight", (2, 2), "he*0.5").flatten().tolist() == pytest.approx(
        [-0.325624, -0.562119, 0.106906, 0.092146], abs=1e-6
    )
    assert image(1, (3,)).tolist() == pytest.approx([0.345584, 0.821618, 0.330437], abs=1e-6)
    with pytest.raises(ValueError, match="no rule is called 'uniform'"):
        tensor_values("a.weight", (2,), "uniform")


def test_packages_hold_little():
    files = [*Path(auxdet_d2.__file__).parent.glob("reference/*"), *Path(bafe_d2.__file__).parent.glob("reference/*")]
    files.append(Path(evaluation.__file__).parent / evaluation.FILE)
    sizes = [path.stat().st_size for path in files]
    assert len(sizes) == 12
    assert max(sizes) < 2**20
    assert sum(sizes) < 3 * 2**20


@pytest.fixture
def reference(tmp_path):
    """A small array, and a large one in the compact form."""
    rng = np.random.default_rng(0)
    arrays = {"small": rng.standard_normal((2, 3)), "large": rng.standard_normal((4, 8, 64)).astype(np.float32)}
    np.savez(tmp_path / "a.npz", **compact_arrays(arrays, whole=lambda _: False, without=lambda _: False))
    return Reference(tmp_path / "a.npz"), arrays


def test_an_array_equals_itself(reference):
    numbers, arrays = reference
    comparison = Comparison()
    for name, array in arrays.items():
        comparison.values("all", torch.from_numpy(array), numbers, name, 1e-12)
    (row,) = comparison.rows
    assert row.ok
    assert row.numbers == 6 + 2048
    assert numbers.names() == set(arrays)


@for_every("name", ["small", "large"])
@for_every("change", [lambda x: x + 1e-3, lambda x: x * 1.001, lambda x: x[:, :1], lambda x: x * np.nan, np.flip])
def test_a_changed_array_is_seen(reference, name, change):
    numbers, arrays = reference
    comparison = Comparison()
    comparison.values("one", change(arrays[name]).copy(), numbers, name, 5e-5)
    assert len(failures(comparison)) == 1


def test_the_row_shows_the_array_nearest_to_failing():
    comparison = Comparison()
    comparison.add("a", "first", 0.5, 1.0, numbers=1, unit="relative")
    comparison.add("a", "second", 0.2, 0.1, numbers=2, unit="relative")
    comparison.add("a", "third", 0.0, 0.0, numbers=3, unit="relative")
    (row,) = comparison.rows
    assert (row.worst, row.numbers, row.ok) == ("second", 6, False)


def test_detections_are_compared_as_sets():
    expected = np.array([[0, 0, 4, 4, 0.5], [8, 8, 12, 12, 0.5], [0, 0, 4, 4.002, 0.5]])
    boxes, scores = expected[[2, 1, 0], :4], expected[:, 4]
    assert paired_differences(boxes, scores, expected, 0.005, 1e-4) == (pytest.approx(0, abs=1e-9), 0)
    assert paired_differences(boxes[:2], scores[:2], expected, 0.005, 1e-4) == (np.inf, np.inf)
    # One that is found twice does not stand for another.
    assert paired_differences(boxes[[0, 0, 1]], scores, expected[[0, 1, 1]], 0.005, 1e-4)[0] == pytest.approx(
        8, abs=0.01
    )


def test_a_missing_gradient_is_seen(tmp_path):
    sums = {"grad_names": ["a", "b"], "grad_is_none": [False, True], "grad_sum_abssum": [[1.0, 3.0], [0, 0]]}
    np.savez(tmp_path / "g.npz", **{name: np.array(value) for name, value in sums.items()})
    numbers = Reference(tmp_path / "g.npz")
    a = torch.tensor([2.0, -1.0])
    for gradients, ok in (({"a": a}, True), ({"a": None}, False), ({"a": a, "b": a}, False), ({"a": a + 0.01}, False)):
        comparison = Comparison()
        comparison.gradients("all", gradients, numbers)
        assert (not failures(comparison)) == ok


def test_the_command_fails_when_a_model_computes_something_else(monkeypatch, capsys):
    assert main(["check-equality", "metrics"]) == 0
    assert "all within tolerance" in capsys.readouterr().out
    average = evaluation.average_precision
    monkeypatch.setattr(evaluation, "average_precision", lambda *args: average(*args) + 1e-4)
    assert main(["check-equality", "metrics"]) == 1
    out = capsys.readouterr().out
    assert "ABOVE, at eval_map/" in out
    assert "1 rows are above their tolerance" in out


def test_a_changed_module_is_seen(monkeypatch):
    forward = LargeSelectiveKernel.forward
    monkeypatch.setattr(LargeSelectiveKernel, "forward", lambda self, x: forward(self, x) * 1.001)
    comparison = Comparison()
    equality = import_module("bafe_d2.equality")
    equality.compare_modules(comparison, Reference(equality.FOLDER / "bafe_modules.npz"))
    assert "large selective kernel" in {row.what for row in failures(comparison)}


def test_unknown_systems_and_folders_are_named(tmp_path, capsys):
    assert main(["check-equality", "yolo"]) == 2
    assert "known are 'auxdet_d2', 'bafe_d2', 'metrics'" in capsys.readouterr().err
    assert main(["check-equality", "bafe_d2", "--reference", str(tmp_path)]) == 2
    assert "bafe_r50.manifest.json" in capsys.readouterr().err
