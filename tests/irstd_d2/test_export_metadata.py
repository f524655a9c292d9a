"""Metadata fields that an exported file cannot take."""

import pytest
from test_export_graphs import build

from irstd_d2.errors import ConfigError
from irstd_d2.export import build_graph


def test_further_fields_are_refused():
    _, model = build("auxdet/tiny/auxdet_tiny.yaml", ["MODEL.METADATA.EXTRA_NUMERIC", ("view_angle=0:90",)])
    with pytest.raises(ConfigError, match="not \\['view_angle'\\]; export a model"):
        build_graph(model)
