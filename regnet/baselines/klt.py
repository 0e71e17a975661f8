"""Corners tracked from fixed to moving (Lucas and Kanade 1981, Shi and Tomasi 1994, pyramidal as in Bouguet 2000)."""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from regnet.baselines.grey import bytes_bands
from regnet.baselines.grid import from_points
from regnet.errors import InputError
from regnet.tiles.patch import Patch


def klt(
    patch: Patch,
    *,
    window_px: int,
    corners_per_megapixel: int,
    back_px: float,
    sigma_px: float,
) -> NDArray[np.float32]:
    """Track corners of the grey bands there and back, and spread the displacements of those that return.

    Args:
        patch: the pair.
        window_px: side of the window that is tracked, px.
        corners_per_megapixel: at most so many corners.
        back_px: a corner must come back to within this distance, px.
        sigma_px: Gaussian by which the points' displacements are spread, px.

    Returns:
        (2, H, W) px.

    Raises:
        InputError: no corner could be tracked.
    """
    one, two = bytes_bands(patch)
    count = max(64, corners_per_megapixel * one.size // 1_000_000)
    corners = cv2.goodFeaturesToTrack(one, count, 0.001, 5, mask=np.asarray(patch.fixed_valid, dtype=np.uint8))
    if corners is None:
        raise InputError("KLT found no corners; the image is too plain")
    window: dict[str, Any] = {"winSize": (window_px, window_px), "maxLevel": 3}
    track: Any = cv2.calcOpticalFlowPyrLK
    there, seen, _ = track(one, two, corners, None, **window)
    back, seen_back, _ = track(two, one, there, None, **window)
    start, end = corners[:, 0].astype(np.float64), there[:, 0].astype(np.float64)
    kept = (seen[:, 0] > 0) & (seen_back[:, 0] > 0) & (np.hypot(*(back[:, 0] - corners[:, 0]).T) < back_px)
    cols, rows = np.rint(end).astype(int).T
    inside = (cols >= 0) & (rows >= 0) & (cols < one.shape[1]) & (rows < one.shape[0])
    kept &= inside
    kept[kept] &= patch.moving_valid[rows[kept], cols[kept]]
    if not kept.any():
        raise InputError("KLT could track no corner there and back; the images are too unlike")
    return from_points(start[kept], (end - start)[kept], (one.shape[0], one.shape[1]), sigma_px)
