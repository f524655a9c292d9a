"""Size and cost of models, beside what the papers print."""

from .complexity import Complexity, analyze, build_on_cpu, count_parameters
from .zoo import ModelEntry, describe_model, entries, module_table, render_zoo

__all__ = [
    "Complexity",
    "ModelEntry",
    "analyze",
    "build_on_cpu",
    "count_parameters",
    "describe_model",
    "entries",
    "module_table",
    "render_zoo",
]
