"""Exported models that predict metadata, and fields that a file cannot take."""

import pytest
from test_export_graphs import METADATA, assert_equal, build, by_model, images, without_resizing

from irstd_d2.errors import ConfigError
from irstd_d2.export import ExportedDetector, build_graph, export_model

CONFIG = "auxdet/tiny/auxdet_tiny_predict.yaml"


@pytest.mark.parametrize(("format", "options"), [
    ("torchscript", ["MODEL.AUXDET.PREDICT.DOUBT", 0.4]),
    pytest.param("onnx", [], marks=pytest.mark.slow),
])  # fmt: skip
def test_the_exported_model_predicts_what_is_missing(format, options, tmp_path):
    cfg, model = build(CONFIG, options)
    expected = by_model(model, images(), METADATA)
    path = tmp_path / ("model.ts" if format == "torchscript" else "model.onnx")
    export_model(cfg, model, path, format=format)
    detector = without_resizing(ExportedDetector(path))
    assert_equal(expected, detector(images(), METADATA), 0.02, 1e-4)
    predictor = model.backbone.refinement.predictor
    predictor.fill = "none"
    without = by_model(model, images(), METADATA)
    with pytest.raises(AssertionError):
        assert_equal(expected, without, 0.02, 1e-4)


def test_further_fields_are_refused():
    _, model = build("auxdet/tiny/auxdet_tiny.yaml", ["MODEL.METADATA.EXTRA_NUMERIC", ("view_angle=0:90",)])
    with pytest.raises(ConfigError, match="not \\['view_angle'\\]; export a model"):
        build_graph(model)
