"""What systems register, and that this package knows none of them by itself."""

import subprocess
import sys
from importlib.metadata import EntryPoint

import pytest
from detectron2.config import CfgNode

from irstd_d2 import System, get_config, load_systems, systems
from irstd_d2.checkpoint import NameMap
from irstd_d2.errors import ConfigError
from irstd_d2.export.graphs import build_graph

SYSTEMS = ("auxdet_d2", "bafe_d2")


def run(code):
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr
    return result.stdout.split()


@pytest.fixture
def only(monkeypatch):
    """Register one system in place of those of this process."""

    def register(system):
        monkeypatch.setattr(systems, "_systems", {system.name: system})

    return register


def test_the_shared_package_loads_no_system():
    code = (
        "import sys, pkgutil, importlib, irstd_d2\n"
        "irstd_d2.get_config()\n"
        "for module in pkgutil.walk_packages(irstd_d2.__path__, 'irstd_d2.'):\n"
        "    importlib.import_module(module.name)\n"
        f"print(*[name for name in sys.modules if name.split('.')[0] in {SYSTEMS}])"
    )
    assert run(code) == []


@pytest.mark.parametrize(("system", "other"), [SYSTEMS, SYSTEMS[::-1]])
def test_the_systems_do_not_know_each_other(system, other):
    code = (
        f"import sys, {system}, irstd_d2\n"
        "irstd_d2.get_config()\n"
        f"import {system}.export, {system}.checkpoint\n"
        f"print(*[name for name in sys.modules if name.split('.')[0] == '{other}'])"
    )
    assert run(code) == []


def test_the_shared_sources_name_no_system(repo_root):
    named = {
        path.relative_to(repo_root).as_posix()
        for path in (repo_root / "irstd_d2").rglob("*.py")
        if any(name in path.read_text(encoding="utf-8") for name in SYSTEMS)
    }
    assert named == set()


def test_installed_systems_are_loaded_by_name():
    code = (
        "import sys, irstd_d2\n"
        "irstd_d2.load_systems()\n"
        "cfg = irstd_d2.get_config()\n"
        "print(*[system.name for system in irstd_d2.systems.registered_systems()])\n"
        "print('AUXDET' in cfg.MODEL, 'BAFE' in cfg.MODEL)"
    )
    assert run(code) == ["auxdet_d2", "bafe_d2", "True", "True"]


def test_keys_are_there_after_the_import_only():
    code = "import irstd_d2\nbefore = irstd_d2.get_config()\nimport auxdet_d2\nafter = irstd_d2.get_config()\n"
    code += "print('AUXDET' in before.MODEL, 'AUXDET' in after.MODEL, 'BAFE' in after.MODEL)"
    assert run(code) == ["False", "True", "False"]


def add_keys(cfg):
    cfg.MODEL.THIRD = CfgNode({"WIDTH": 3})


def test_a_third_system_registers_like_the_others(only, monkeypatch):
    names = NameMap([("a.{p}", "b.{p}")])
    only(System("third", add_keys, checkpoint_names={"third": names}))
    assert get_config(opts=["MODEL.THIRD.WIDTH", 5]).MODEL.THIRD.WIDTH == 5
    assert systems.registered_systems()[0].checkpoint_names["third"] is names


def test_an_unknown_key_names_the_systems_that_are_not_imported(only):
    only(System("third", add_keys))
    with pytest.raises(ConfigError, match=r"MODEL\.AUXDET\.LEEM.* after `import auxdet_d2, bafe_d2`"):
        get_config(opts=["MODEL.AUXDET.LEEM.KERNEL", "1d"])


def test_an_entry_point_loads_its_package(monkeypatch):
    loaded = []

    class Entry(EntryPoint):
        def load(self):
            loaded.append(self.value)

    entry = Entry("third", "third_d2", "irstd_d2.systems")
    monkeypatch.setattr(systems, "entry_points", lambda group: [entry] if group == entry.group else [])
    load_systems()
    assert loaded == ["third_d2"]
    assert systems.installed_systems() == ("third_d2",)


def test_an_installation_without_systems_is_told(monkeypatch):
    monkeypatch.setattr(systems, "entry_points", lambda group: [])
    with pytest.raises(ConfigError, match=r"irstd_d2\.systems.* pip install"):
        load_systems()


def test_export_imports_what_a_system_names(only):
    only(System("third", add_keys, export_module="third_d2.export"))
    with pytest.raises(ModuleNotFoundError, match="third_d2"):
        build_graph(object())
