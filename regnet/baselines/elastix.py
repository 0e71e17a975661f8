"""An affine transform, then a free-form deformation, by elastix (Klein et al. 2010; Shamonin et al. 2014)."""

from __future__ import annotations

import importlib
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from numpy.typing import NDArray

from regnet.baselines.grey import grey_bands
from regnet.errors import InputError
from regnet.tiles.patch import Patch

RESOLUTIONS = 3


def elastix(
    patch: Patch,
    *,
    knot_px: float,
    iterations: int,
    samples: int,
) -> NDArray[np.float32]:
    """Estimate the displacement with itk-elastix (extra `classical`): its own default settings, on the grey bands.

    Mattes mutual information, adaptive stochastic gradient descent, three levels, bending energy as the penalty of the
    splines.

    Args:
        patch: the pair.
        knot_px: distance of the splines' knots, px.
        iterations: at each level.
        samples: pixels that the metric is estimated from at each iteration.

    Returns:
        (2, H, W) px.

    Raises:
        InputError: itk-elastix is not installed, an image is constant, or the registration failed.
    """
    try:
        itk: Any = importlib.import_module("itk")
        method = itk.elastix_registration_method
    except (ImportError, AttributeError) as error:
        raise InputError("itk-elastix is not installed; run `pip install regnet[classical]`") from error
    bands = grey_bands(patch)
    if not all(band.any() for band in bands):
        raise InputError("the image is constant; there is nothing to register")
    one, two = (itk.image_from_array(band) for band in bands)
    masks = [itk.image_from_array(valid.astype(np.uint8)) for valid in (patch.fixed_valid, patch.moving_valid)]
    settings = itk.ParameterObject.New()
    for kind, spacing in (("affine", ()), ("bspline", (knot_px,))):
        values = settings.GetDefaultParameterMap(kind, RESOLUTIONS, *spacing)
        values["MaximumNumberOfIterations"] = [str(iterations)]
        values["NumberOfSpatialSamples"] = [str(samples)]
        values["WriteResultImage"] = ["false"]
        # A seed, and one thread below: else the result would differ from run to run.
        values["RandomSeed"] = ["1"]
        settings.AddParameterMap(values)
    try:
        _, found = method(
            one,
            two,
            parameter_object=settings,
            fixed_mask=masks[0],
            moving_mask=masks[1],
            number_of_threads=1,
            log_to_console=False,
        )
        with TemporaryDirectory() as folder:  # transformix leaves a file, wherever it is told to
            field = itk.transformix_deformation_field(two, found, output_directory=folder, log_to_console=False)
    except RuntimeError as error:
        raise InputError("elastix failed; the pair is too unlike, too far off or too plain") from error
    # elastix maps places of fixed to places of moving, (x, y): a pull, as here.
    return np.ascontiguousarray(np.asarray(field).transpose(2, 0, 1), dtype=np.float32)
