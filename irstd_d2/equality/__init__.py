"""Whether a model computes what a published implementation computes.

Reference numbers were written down by running the published code on weights and inputs that ``generator`` makes again
from names and seeds alone. A system compares its model with its numbers in the module that it registers as
``equality_module``: its function ``compare(folder=None)`` gives a ``Comparison``; ``irstd check-equality`` runs all.
"""

from .comparison import Comparison, Row, our_names
from .generator import image, published_state, tensor_values
from .reference import Manifest, Reference, compact_arrays, read_manifest
from .sizes import compare_sizes

__all__ = [
    "Comparison",
    "Manifest",
    "Reference",
    "Row",
    "compact_arrays",
    "compare_sizes",
    "image",
    "our_names",
    "published_state",
    "read_manifest",
    "tensor_values",
]
