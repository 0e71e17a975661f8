"""One affine transform through SIFT keypoints (Lowe 2004) and RANSAC."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

from regnet.baselines.grey import bytes_bands
from regnet.baselines.grid import affine_field
from regnet.errors import InputError
from regnet.tiles.patch import Patch


def sift(
    patch: Patch,
    *,
    ratio: float,
    threshold_px: float,
    min_matches: int,
) -> NDArray[np.float32]:
    """Estimate one affine displacement of the whole image from matched keypoints of the grey bands.

    Args:
        patch: the pair.
        ratio: a match must be better than the second best by this factor.
        threshold_px: RANSAC's distance of an inlier, px.
        min_matches: fewest inliers that are believed.

    Returns:
        (2, H, W) px.

    Raises:
        InputError: too few matches.
    """
    detector = cv2.SIFT.create()
    found = [
        detector.detectAndCompute(band, np.asarray(valid, dtype=np.uint8))
        for band, valid in zip(bytes_bands(patch), (patch.fixed_valid, patch.moving_valid), strict=True)
    ]
    (fixed_keys, fixed_features), (moving_keys, moving_features) = found
    if fixed_features is None or moving_features is None or len(moving_keys) < 2:
        raise InputError("SIFT found no keypoints; the images are too plain")
    candidates = cv2.BFMatcher().knnMatch(fixed_features, moving_features, k=2)
    matches = [pair[0] for pair in candidates if len(pair) == 2 and pair[0].distance < ratio * pair[1].distance]
    matrix, inliers = None, None
    if len(matches) >= min_matches:
        source = np.array([fixed_keys[match.queryIdx].pt for match in matches])
        target = np.array([moving_keys[match.trainIdx].pt for match in matches])
        cv2.setRNGSeed(0)
        matrix, inliers = cv2.estimateAffine2D(source, target, ransacReprojThreshold=threshold_px)
    if matrix is None or inliers is None or inliers.sum() < min_matches:
        raise InputError(f"SIFT found {len(matches)} matches that do not agree on one transform")
    return affine_field(np.asarray(matrix, np.float64), (patch.fixed.shape[1], patch.fixed.shape[2]))
