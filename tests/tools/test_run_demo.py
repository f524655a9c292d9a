"""The demo's own functions; .ci/run runs it as a whole."""

import importlib
import json

import pytest


@pytest.fixture
def demo(repo_root, monkeypatch):
    monkeypatch.syspath_prepend(repo_root / "tools")
    return importlib.import_module("run_demo")


@pytest.mark.parametrize(
    ("line", "shown"),
    [
        ("[11/28] d2.utils.events: eta: 0:01:02  iter: 19  total_loss: 1", "iteration 19, about 0:01:02 left"),
        ("Inference done 5/20. 0.1 s/iter. ETA=0:00:09", "about 0:00:09 left"),
        ("files:  33%|###  | 1/3 [00:05<00:10,  5.44s/file]", "about 00:10 left"),
    ],
)
def test_a_step_shows_the_time_that_is_left(demo, tmp_path, caplog, line, shown):
    log = tmp_path / "log"
    log.write_text(f"eta: 9:99:99  iter: 1\n{line}\n")
    with caplog.at_level("INFO"):
        demo.show_progress(log, start=22)
        demo.show_progress(log, start=log.stat().st_size)
    assert [message.strip() for message in caplog.messages] == [shown]


def test_real_images_are_for_models_of_such_data(demo, tmp_path, monkeypatch):
    monkeypatch.setattr(demo, "ZOO", tmp_path / "index.json")
    assert "no model of satellite images" in demo.detect_real_images(tmp_path, {})[0]
    (tmp_path / "index.json").write_text(json.dumps({"ships": {"data": ["spaceir_train"]}, "drones": {"data": []}}))
    commands = []

    def run(title, command, log, environment):
        commands.append(command)
        folder = tmp_path / "detections" / "ships"
        folder.mkdir(parents=True)
        (folder / "detections.json").write_text('[{"image_id": "a"}, {"image_id": "a"}]')

    monkeypatch.setattr(demo, "run", run)
    found = demo.detect_real_images(tmp_path, {})
    assert found == [f"ships: 2 targets in 1 images; {tmp_path / 'detections' / 'ships'}"]
    assert commands[0][commands[0].index("--weights") + 1] == "ships"


def test_images_that_ship_are_there(repo_root):
    images = list((repo_root / "examples" / "images").glob("*.png"))
    assert len(images) == 3
    assert sum(path.stat().st_size for path in images) < 1_000_000
    assert "MIT" in (repo_root / "examples" / "images" / "README.md").read_text()
