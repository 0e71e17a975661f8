"""Dense optical flow of the grey bands: DIS (Kroeger et al. 2016) and TV-L1 (Zach et al. 2007)."""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from skimage.registration import optical_flow_tvl1

from regnet.baselines.grey import bytes_bands, grey_bands
from regnet.errors import InputError
from regnet.tiles.patch import Patch


def dis(
    patch: Patch,
    *,
    preset: str,
    smooth_steps: int,
) -> NDArray[np.float32]:
    """Estimate the displacement by OpenCV's DIS flow.

    Args:
        patch: the pair.
        preset: ultrafast, fast or medium.
        smooth_steps: iterations of the variational refinement at each scale.

    Returns:
        (2, H, W) px.

    Raises:
        InputError: an image is constant, or too small for the flow's pyramid.
    """
    one, two = bytes_bands(patch)
    _refuse_plain(one, two)
    try:
        engine: Any = cv2.DISOpticalFlow.create(getattr(cv2, f"DISOPTICAL_FLOW_PRESET_{preset.upper()}"))
        engine.setVariationalRefinementIterations(smooth_steps)
        flow = engine.calc(one, two, None)
    except cv2.error as error:
        raise InputError("DIS flow failed; the image is too small") from error
    # Flow tells where a pixel of the first image is seen in the second: a pull, as here.
    return np.ascontiguousarray(flow.transpose(2, 0, 1), dtype=np.float32)


def tvl1(
    patch: Patch,
    *,
    attachment: float,
    tightness: float,
    warps: int,
    iterations: int,
) -> NDArray[np.float32]:
    """Estimate the displacement by scikit-image's TV-L1 flow.

    Args:
        patch: the pair.
        attachment: weight of the images against the smoothness of the flow.
        tightness: how close the two parts of the alternating minimisation stay.
        warps: times that moving is warped, at each scale.
        iterations: of the minimisation, between two warps.

    Returns:
        (2, H, W) px.

    Raises:
        InputError: an image is constant.
    """
    # -3 to 3 standard deviations become 0 to 1, the range that its defaults are made for.
    one, two = (band / 6 + 0.5 for band in grey_bands(patch))
    _refuse_plain(one, two)
    steps = {"num_warp": warps, "num_iter": iterations}
    rows, cols = optical_flow_tvl1(one, two, attachment=attachment, tightness=tightness, **steps, dtype=np.float32)
    return np.stack([cols, rows]).astype(np.float32)


def _refuse_plain(*images: NDArray[np.generic]) -> None:
    if any(np.ptp(image) == 0 for image in images):
        raise InputError("the image is constant; there is nothing to follow")
