"""One affine transform that maximises the enhanced correlation coefficient (Evangelidis and Psarakis 2008)."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

from regnet.baselines.grey import bytes_bands
from regnet.baselines.grid import affine_field
from regnet.errors import InputError
from regnet.tiles.patch import Patch


def ecc(
    patch: Patch,
    *,
    iterations: int,
    epsilon: float,
) -> NDArray[np.float32]:
    """Estimate one affine displacement of the whole image, OpenCV's `findTransformECC` on the grey bands.

    Args:
        patch: the pair.
        iterations: at most.
        epsilon: gain of the coefficient at which it stops.

    Returns:
        (2, H, W) px.

    Raises:
        InputError: it did not converge.
    """
    one, two = bytes_bands(patch)
    matrix = np.eye(2, 3, dtype=np.float32)
    criteria = (cv2.TERM_CRITERIA_EPS | cv2.TERM_CRITERIA_COUNT, iterations, epsilon)
    mask = np.asarray(patch.moving_valid, dtype=np.uint8)
    try:
        # OpenCV's matrix maps places of the template (fixed) to places of the input (moving): a pull, as here.
        _, matrix = cv2.findTransformECC(one, two, matrix, cv2.MOTION_AFFINE, criteria, mask, 5)
    except cv2.error as error:
        raise InputError("ECC did not converge; the pair is too unlike or too far off") from error
    return affine_field(np.asarray(matrix, np.float64), (patch.fixed.shape[1], patch.fixed.shape[2]))
