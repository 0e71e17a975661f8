"""Input similarity as a network sees it, for any torch module: Jacobians, kernels, neighbours, sketches, their store.

Source: G. Charpiat, N. Girard, L. Felardos, Y. Tarabalka, "Input Similarity from the Neural Network Perspective",
NeurIPS 2019.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from regnet.lazy import on_demand

if TYPE_CHECKING:
    from regnet.similarity.exact import FunctionRows, cross, gram, kc, kernel_blocks
    from regnet.similarity.gradients import Jacobians
    from regnet.similarity.kernel import (
        correlation_matrices,
        influence_matrices,
        inverse_roots,
        normalised,
        products,
        rotation_invariant,
        scalar,
        self_products,
        whitened,
    )
    from regnet.similarity.linear import SoftCounter
    from regnet.similarity.neighbours import Neighbours, count, nearest_faiss
    from regnet.similarity.readouts import READOUTS, Readout, binary, centre_offset, fisher, forward, log_probabilities
    from regnet.similarity.reference import reference_jacobians
    from regnet.similarity.sketch import Sketcher, sketched_kc
    from regnet.similarity.store import ShardStore, arrays_digest, model_digest

__all__ = [
    "READOUTS",
    "FunctionRows",
    "Jacobians",
    "Neighbours",
    "Readout",
    "ShardStore",
    "Sketcher",
    "SoftCounter",
    "arrays_digest",
    "binary",
    "centre_offset",
    "correlation_matrices",
    "count",
    "cross",
    "fisher",
    "forward",
    "gram",
    "influence_matrices",
    "inverse_roots",
    "kc",
    "kernel_blocks",
    "log_probabilities",
    "model_digest",
    "nearest_faiss",
    "normalised",
    "products",
    "reference_jacobians",
    "rotation_invariant",
    "scalar",
    "self_products",
    "sketched_kc",
    "whitened",
]

__getattr__, __dir__ = on_demand(
    __name__,
    __all__,
    "exact",
    "gradients",
    "kernel",
    "linear",
    "neighbours",
    "readouts",
    "reference",
    "sketch",
    "store",
)
