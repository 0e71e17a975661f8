"""Does the identity behind the denoising factor hold, and do a tile's neighbours agree with its prediction?

Source: Charpiat et al. 2019, section 5: at a stationary point of the L2 loss `sum_j K_ij (prediction_j - label_j) = 0`.
"""

from __future__ import annotations

import numpy as np

from regnet.denoising.factor import kernel_mean
from regnet.denoising.operators import Array, Operator


def neighbour_shift(kernel: Operator, predictions: Array) -> Array:
    """How far every prediction is from the kernel mean of the predictions, (n,) px, from (n, d) px."""
    result: Array = np.linalg.norm(predictions - kernel_mean(kernel, predictions), axis=1)
    return result


def stationarity_residual(kernel: Operator, predictions: Array, labels: Array) -> Array:
    """How far the kernel means of predictions and labels are apart, (n,) px; 0 at a stationary point.

    The denoising factor means nothing where this is not small against the noise of the labels.
    """
    result: Array = np.linalg.norm(kernel_mean(kernel, predictions - labels), axis=1)
    return result
