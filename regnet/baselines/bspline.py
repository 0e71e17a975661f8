"""A free-form deformation by cubic B-splines that maximises mutual information (Rueckert 1999, Mattes 2003)."""

from __future__ import annotations

import importlib
from typing import Any

import numpy as np
from numpy.typing import NDArray

from regnet.baselines.grey import grey_bands
from regnet.errors import InputError
from regnet.tiles.patch import Patch


def bspline(
    patch: Patch,
    *,
    knot_px: float,
    iterations: int,
    sample_share: float,
) -> NDArray[np.float32]:
    """Estimate the displacement with SimpleITK (extra `classical`): Mattes mutual information, L-BFGS-B, three levels.

    Args:
        patch: the pair.
        knot_px: distance of the splines' knots, px.
        iterations: at most, at each level.
        sample_share: share of the pixels that the metric is estimated from.

    Returns:
        (2, H, W) px.

    Raises:
        InputError: SimpleITK is not installed, or it did not converge.
    """
    try:
        sitk: Any = importlib.import_module("SimpleITK")
    except ImportError as error:
        raise InputError("SimpleITK is not installed; run `pip install regnet[classical]`") from error
    one, two = (sitk.GetImageFromArray(band) for band in grey_bands(patch))
    height, width = patch.fixed_valid.shape
    mesh = [max(1, round(side / knot_px)) for side in (width, height)]
    transform = sitk.BSplineTransformInitializer(one, mesh)
    method = sitk.ImageRegistrationMethod()
    # One thread, of the filters that it is made of too, and a seed: else the result would differ from run to run.
    sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(1)
    method.SetNumberOfThreads(1)
    method.SetMetricAsMattesMutualInformation(50)
    method.SetMetricSamplingStrategy(method.REGULAR)
    method.SetMetricSamplingPercentage(sample_share, seed=1)
    method.SetMetricFixedMask(sitk.GetImageFromArray(patch.fixed_valid.astype(np.uint8)))
    method.SetMetricMovingMask(sitk.GetImageFromArray(patch.moving_valid.astype(np.uint8)))
    method.SetOptimizerAsLBFGSB(numberOfIterations=iterations)
    method.SetShrinkFactorsPerLevel([4, 2, 1])
    method.SetSmoothingSigmasPerLevel([2, 1, 0])
    method.SetInterpolator(sitk.sitkLinear)
    method.SetInitialTransform(transform, True)
    try:
        found = method.Execute(one, two)
    except RuntimeError as error:
        raise InputError("the B-spline registration failed; the pair is too unlike or too far off") from error
    field = sitk.TransformToDisplacementField(found, sitk.sitkVectorFloat64, one.GetSize())
    # ITK's transforms map places of fixed to places of moving, (x, y): a pull, as here.
    return np.ascontiguousarray(sitk.GetArrayFromImage(field).transpose(2, 0, 1), dtype=np.float32)
