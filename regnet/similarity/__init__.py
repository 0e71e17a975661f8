"""Input similarity as a network sees it, for any torch module: Jacobians, kernels, neighbours, sketches.

Source: G. Charpiat, N. Girard, L. Felardos, Y. Tarabalka, "Input Similarity from the Neural Network Perspective",
NeurIPS 2019.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from regnet.lazy import on_demand

if TYPE_CHECKING:
    from regnet.similarity.exact import cross, gram
    from regnet.similarity.gradients import Jacobians
    from regnet.similarity.kernel import (
        correlation_matrices,
        influence_matrices,
        inverse_roots,
        normalised,
        rotation_invariant,
        scalar,
        self_products,
    )
    from regnet.similarity.linear import SoftCounter
    from regnet.similarity.neighbours import Neighbours, count
    from regnet.similarity.readouts import READOUTS, Readout
    from regnet.similarity.sketch import Sketcher, sketched_kc

__all__ = [
    "READOUTS",
    "Jacobians",
    "Neighbours",
    "Readout",
    "Sketcher",
    "SoftCounter",
    "correlation_matrices",
    "count",
    "cross",
    "gram",
    "influence_matrices",
    "inverse_roots",
    "normalised",
    "rotation_invariant",
    "scalar",
    "self_products",
    "sketched_kc",
]

__getattr__, __dir__ = on_demand(
    __name__, __all__, "exact", "gradients", "kernel", "linear", "neighbours", "readouts", "sketch"
)
