"""One grey band of an image, for methods that know only one."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from regnet.tiles.patch import Patch


def grey_band(image: NDArray[np.float32], valid: NDArray[np.bool_]) -> NDArray[np.float32]:
    """Reduce an image to its first principal component, the one band that keeps most of its contrast.

    Args:
        image: (C, H, W).
        valid: (H, W); pixels elsewhere count for nothing.

    Returns:
        (H, W): of mean 0 and standard deviation 1 over the valid pixels, 0 elsewhere; bright where the bands are
        bright on the whole; 0 everywhere if the image is constant.
    """
    values = image[:, valid].astype(np.float64)
    band = np.zeros(valid.shape, np.float32)
    if values.shape[1] < 2:
        return band
    values -= values.mean(1, keepdims=True)
    _, vectors = np.linalg.eigh(values @ values.T)
    component = vectors[:, -1] @ values * (1 if vectors[:, -1].sum() >= 0 else -1)
    deviation = component.std()
    if deviation > 1e-6:
        band[valid] = component / deviation
    return band


def bytes_band(image: NDArray[np.float32], valid: NDArray[np.bool_]) -> NDArray[np.uint8]:
    """The grey band as OpenCV takes it: -3 to 3 standard deviations become 0 to 255, invalid pixels the mean."""
    scaled = np.clip(grey_band(image, valid) / 6 + 0.5, 0, 1) * 255
    return np.asarray(np.rint(scaled), dtype=np.uint8)


def grey_bands(patch: Patch) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """The grey bands (H, W) of fixed and of moving."""
    return grey_band(patch.fixed, patch.fixed_valid), grey_band(patch.moving, patch.moving_valid)


def bytes_bands(patch: Patch) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """The grey bands (H, W) of fixed and of moving as OpenCV takes them."""
    return bytes_band(patch.fixed, patch.fixed_valid), bytes_band(patch.moving, patch.moving_valid)
