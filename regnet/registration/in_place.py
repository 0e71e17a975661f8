"""Whether ground that was left as it is lies in place already, or nobody knows, and what is said of a registration."""

from __future__ import annotations

import geopandas as gpd
import numpy as np

from regnet.registration.calibration import BOUND_90
from regnet.registration.common_shift import CommonShift
from regnet.registration.ties import MATCHED, OVERALL, STATUSES, UNCLEAR

SURE_PX, MOST = 1.0, 0.5
"""Ground is known to lie in place if the errors expected of more than the second share of it are below the first."""


def in_place_px(ties: gpd.GeoDataFrame, common: CommonShift) -> float | None:
    """How far ground that was left as it is can be off, at most.

    Places tell it that were matched and found off by no more than such a match may be wrong by. A shift of the whole
    pair that is not believed counts as found; the errors hold what it leaves open.

    Args:
        ties: tie points with what was found there, before abstention.
        common: the shift of the whole pair.

    Returns:
        Median over these places of the bounds that are right nine times in ten, px; None if it is not known.
    """
    left = ties[~ties["status"].isin([STATUSES[code] for code in (MATCHED, OVERALL)]) & ties["dx_px"].notna()]
    dx, dy = ((1 - common.taken) * shift for shift in common.found_px)
    found = np.hypot(left["dx_px"] + dx, left["dy_px"] + dy)
    error = left["expected_error_px"]
    sure = (left["status"] == STATUSES[UNCLEAR]) & (error < SURE_PX) & (found <= BOUND_90 * error)
    if sure.sum() <= MOST * len(left):
        return None
    return float(np.median(np.hypot(found, BOUND_90 * error)[sure]))


def outcome(share: float, place_px: float | None) -> str:
    """What became of a pair, in a few words.

    Args:
        share: of the ground with data in both images that was registered.
        place_px: as `in_place_px` tells it.
    """
    lies = f"already lies in place to {place_px:.1f} px" if place_px is not None else ""
    if share == 0:
        return f"left as it is: {f'it {lies}' if lies else 'no match that can be trusted'}"
    registered = f"registered {share:.0%} of the area" if share >= 0.005 else "registered less than 1% of the area"
    return f"{registered}; the rest {lies}" if lies else registered
