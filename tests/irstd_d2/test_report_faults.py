"""The report is written whatever a run lacks, and runs nothing that a run holds."""

import re
import shutil

import pytest
from report_runs import Page, make_run, register_set, report

from irstd_d2.errors import DatasetError
from irstd_d2.evaluation.collection import PREDICTIONS_FILE
from irstd_d2.reporting import Options
from irstd_d2.reporting.run import load_run


@pytest.fixture
def data_set(tmp_path):
    yield from register_set(tmp_path)


def test_no_detections_at_all(tmp_path, data_set):
    run = make_run(tmp_path / "a", data_set)
    (run / "inference" / data_set[0] / PREDICTIONS_FILE).write_text("[]")
    text = report([run], tmp_path, Options(gallery=1, examples=1, draws=10))
    assert "0 false alarms, 12 missed targets" in text
    Page(text)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[{", "cannot be read"),
        ('[{"image_id": "elsewhere", "category_id": 0, "bbox": [1, 1, 2, 2], "score": 1}]', "elsewhere"),
        (
            '[{"image_id": "im0", "category_id": 7, "bbox": [1, 1, 2, 2], "score": 1}]',
            "which are 0 (target)",
        ),
        ('[{"image_id": "im0", "category_id": 0, "bbox": [1, 1, 2, 2], "score": NaN}]', "not finite"),
    ],
)
def test_predictions_that_cannot_be_judged_are_named(tmp_path, data_set, content, message):
    bad = make_run(tmp_path / "bad", data_set)
    (bad / "inference" / data_set[0] / PREDICTIONS_FILE).write_text(content)
    text = report([bad], tmp_path)
    assert message in re.search(r"<li>bad is left out: (.*?)</li>", text, re.DOTALL)[1]
    assert "Curves" not in text


def test_a_run_that_cannot_be_judged_does_not_stop_the_others(tmp_path, data_set):
    bad, good = make_run(tmp_path / "bad", data_set), make_run(tmp_path / "good", data_set)
    (bad / "inference" / data_set[0] / PREDICTIONS_FILE).write_text("[{")
    text = report([bad, good], tmp_path)
    assert "<li>bad is left out" in text
    assert '<th scope="col">good</th>' in text
    assert "Curves" in text


def test_a_data_set_that_is_not_here(tmp_path, data_set):
    run = make_run(tmp_path / "a", data_set)
    (run / "inference" / data_set[0]).rename(run / "inference" / "never_registered")
    text = report([run], tmp_path)
    assert "The data set cannot be loaded" in text
    assert "never_registered" in text
    assert "total_loss" in text


def test_missing_pieces_become_notes(tmp_path):
    (tmp_path / "empty").mkdir()
    text = report([tmp_path / "empty"], tmp_path, Options(features=1))
    for note in ("No config.yaml", "No metrics.json", f"No {PREDICTIONS_FILE}", "No feature maps and sky masks"):
        assert note in text
    assert "there are no metrics" in text
    assert "No environment in log.txt." in text
    Page(text)
    with pytest.raises(DatasetError, match="is not a folder"):
        load_run(tmp_path / "nowhere")


def test_history_survives_what_an_interrupted_run_leaves(tmp_path, data_set):
    folder = make_run(tmp_path / "a", data_set, iterations=3)
    path = folder / "metrics.json"
    path.write_text('{"iteration": 1, "total_loss": 9}\n\n{"iteration": 1, "total_loss": 2}\n{"iteration": 2, "lr": ')
    run = load_run(folder)
    assert run.series("total_loss") == ([1], [2])
    assert "metrics.json ends within a line: the run was stopped while writing it." in run.notes
    assert "The training stopped after iteration 2 of 3; tools/train_net.py --resume goes on with it." in run.notes
    (folder / "model_final.pth").touch()
    assert not any("stopped after" in note for note in load_run(folder).notes)
    path.write_text('{"iteration": 1\n[1]\n{"lr": 1}\n{"iteration": "x"}\n{"iteration": 2, "lr": "<b>"}\n')
    run = load_run(folder)
    assert "Lines of metrics.json that are not log entries are left out: 1, 2, 3, 4." in run.notes
    assert run.series("lr") == ([], [])
    assert run.iterations == 0
    shutil.rmtree(folder / "inference")
    Page(report([folder], tmp_path))


def test_a_configuration_that_is_not_yaml_is_shown_as_text(tmp_path, data_set):
    folder = make_run(tmp_path / "a", data_set)
    (folder / "config.yaml").write_text("a: [<b>")
    shutil.rmtree(folder / "inference")
    run = load_run(folder)
    assert run.settings == {}
    assert any(note.startswith("config.yaml is not YAML") for note in run.notes)
    assert '<pre tabindex="0">a: [&lt;b&gt;</pre>' in report([folder], tmp_path)
    for text in ("- 1", "DATASETS: 3", "DATASETS: {TEST: []}", "SOLVER: {MAX_ITER: many}"):
        (folder / "config.yaml").write_text(text)
        assert load_run(folder).name == "a"


def test_a_configuration_runs_no_code(tmp_path, data_set):
    folder = make_run(tmp_path / "a", data_set)
    shutil.rmtree(folder / "inference")
    mark = tmp_path / "ran"
    (folder / "config.yaml").write_text(f'A: !!python/object/apply:os.mkdir ["{mark}"]\n')
    report([folder], tmp_path, Options(features=1))
    assert not mark.exists()


def test_predictions_directly_under_inference_belong_to_the_configured_test_set(tmp_path, data_set):
    folder = make_run(tmp_path / "a", data_set)
    name = data_set[0]
    path = folder / "inference" / name / PREDICTIONS_FILE
    path.rename(folder / "inference" / path.name)
    (folder / "log.txt").unlink()
    run = load_run(folder)
    assert list(run.predictions) == [name]
    assert run.environment == ""
    (folder / "config.yaml").unlink()
    run = load_run(folder)
    assert run.predictions == {}
    assert any("its data set is unknown" in note for note in run.notes)


def test_predictions_in_a_folder_that_is_a_link_are_found(tmp_path, data_set):
    folder, name = make_run(tmp_path / "a", data_set), data_set[0]
    (folder / "inference" / name).rename(tmp_path / "elsewhere")
    (folder / "inference" / name).symlink_to(tmp_path / "elsewhere")
    assert list(load_run(folder).predictions) == [name]


@pytest.mark.parametrize("other", ["inference_TTA", "inner/inference"])
def test_of_two_predictions_of_a_set_the_first_is_shown_and_the_other_named(tmp_path, data_set, other):
    folder, name = make_run(tmp_path / "a", data_set), data_set[0]
    first = folder / "inference" / name / PREDICTIONS_FILE
    shutil.copytree(first.parent, folder / other / name)
    run = load_run(folder)
    assert run.predictions == {name: first}
    (note,) = [note for note in run.notes if "left out" in note]
    assert note.startswith(f"{other}/{name}/{PREDICTIONS_FILE} is left out, as inference/{name}/{PREDICTIONS_FILE} is")
    for own in (folder / other, (folder / other).parent):
        if own != folder:
            assert load_run(own).predictions == {name: folder / other / name / PREDICTIONS_FILE}


def test_only_the_sets_that_are_asked_for_are_shown(tmp_path, data_set):
    run, name = make_run(tmp_path / "a", data_set), data_set[0]
    shutil.copytree(run / "inference" / name, run / "inference" / "of_an_earlier_model")
    options = {"gallery": 0, "examples": 0, "draws": 0}
    for wanted, notes in (((), 1), ((name,), 0), ((name, "of_an_earlier_model"), 1)):
        text = report([run], tmp_path, Options(**options, data_sets=wanted))
        assert text.count("The data set cannot be loaded") == notes
        assert "Curves" in text
