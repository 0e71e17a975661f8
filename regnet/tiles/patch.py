"""What is read of a pair: a patch of both images with their validity, and a patch with labels, which is a tile."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Patch:
    """A window of a pair on the working grid; beyond the scene the values are 0 and invalid.

    Attributes:
        fixed: (Cf, H, W), each band as (x - median) / (98th - 2nd percentile) of the scene, clipped to -3 to 3.
        moving: (Cm, H, W), likewise; channels of a vector layer stay coverage, 0 to 1.
        fixed_valid: (H, W).
        moving_valid: (H, W).
        structure: (H, W), where the fixed image has something to register by.
    """

    fixed: NDArray[np.float32]
    moving: NDArray[np.float32]
    fixed_valid: NDArray[np.bool_]
    moving_valid: NDArray[np.bool_]
    structure: NDArray[np.bool_]


@dataclass(frozen=True)
class Tile(Patch):
    """A patch with its labels.

    Attributes:
        label_offset: (2, S, S) px, the displacement at which the label says that moving fits fixed.
        true_offset: (2, S, S) px, the displacement at which it does; None where nobody knows.
    """

    label_offset: NDArray[np.float32]
    true_offset: NDArray[np.float32] | None
