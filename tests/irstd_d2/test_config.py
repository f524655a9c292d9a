"""The configuration as a whole."""

import pytest
import yaml

from irstd_d2 import get_config


def test_a_configuration_cannot_run_code(tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text(f"OUTPUT_DIR: !!python/object/apply:os.mkdir ['{tmp_path}/made']\n", encoding="utf-8")
    with pytest.raises(yaml.constructor.ConstructorError):
        get_config(path)
    assert not (tmp_path / "made").exists()
