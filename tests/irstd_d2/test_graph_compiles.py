"""Whole detectors compile as one graph, in the form that is exported.

Not AuxDet: PyTorch does not compile the block in which its backbone sees the metadata; its backbone and heads compile
each (tests/auxdet_d2).
"""

import pytest
import torch
from test_export_graphs import build

from irstd_d2.export import build_graph
from irstd_d2.export.candidates import nms_mask_op
from irstd_d2.export.graphs import example_inputs
from irstd_d2.inference import optimize


@pytest.mark.slow
@pytest.mark.parametrize("name", ["fcos_tiny.yaml", "bafe_tiny.yaml"])
def test_a_detector_compiles_without_a_graph_break(name):
    graph = build_graph(optimize(build(f"bafe/tiny/{name}")[1]), suppress=nms_mask_op)
    inputs = example_inputs(graph, (64, 96), num_images=1)
    torch._dynamo.reset()
    with torch.no_grad():
        expected = graph(*inputs)
        found = torch.compile(graph, fullgraph=True, backend="eager")(*inputs)
    assert (expected[1] >= 0).sum() > 5
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)
