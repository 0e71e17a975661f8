"""Errors of a displacement or of tie points against the truth, in px."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

PCK_PX = (1, 2, 3, 5)


def epe(predicted: NDArray[np.floating], true: NDArray[np.floating]) -> NDArray[np.floating]:
    """End-point error: length of the difference, channel axis first.

    Args:
        predicted: (2, ...) px.
        true: (2, ...) px.

    Returns:
        (...) px.
    """
    length: NDArray[np.floating] = np.hypot(predicted[0] - true[0], predicted[1] - true[1])
    return length


def summarise(errors_px: NDArray[np.floating]) -> dict[str, float]:
    """Summarise end-point errors.

    Args:
        errors_px: any shape; NaN is left out.

    Returns:
        `epe_mean_px`, `epe_median_px`, `epe_p95_px`, `ce90_px` (90 % of the errors are at most this), `pck_<t>px`
        (share of errors up to t px) and `count`. All but `count` are NaN when there is no error.
    """
    finite = errors_px[np.isfinite(errors_px)]
    if finite.size == 0:
        names = ["epe_mean_px", "epe_median_px", "epe_p95_px", "ce90_px", *(f"pck_{t}px" for t in PCK_PX)]
        return {**dict.fromkeys(names, float("nan")), "count": 0}
    median, ce90, p95 = (float(value) for value in np.percentile(finite, [50, 90, 95]))
    return {
        "epe_mean_px": float(finite.mean(dtype=np.float64)),
        "epe_median_px": median,
        "epe_p95_px": p95,
        "ce90_px": ce90,
        **{f"pck_{t}px": float((finite <= t).mean()) for t in PCK_PX},
        "count": int(finite.size),
    }
