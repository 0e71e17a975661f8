"""Register multimodal image pairs, and learn to do so from misaligned labels.

`regnet.register(fixed, moving)` registers a pair from Python; `Registration` is what it gives, and `Raster` an array
with its place on the ground. They are loaded when they are first asked for.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from regnet.lazy import on_demand

if TYPE_CHECKING:
    from regnet.registration.arrays import Raster, Registration, register

__all__ = ["Raster", "Registration", "register"]

__getattr__, __dir__ = on_demand(__name__, __all__, "registration.arrays")
