"""Ten places in Sentinel-2 RGB and Sentinel-1 VH amplitude (modified Copernicus Sentinel data 2020).

`python -m data_prep.s1s2` locates and verifies the files under the data folder, and prints the pairs with their parts.
"""

from __future__ import annotations

from pathlib import Path

from data_prep.common import check_raster, main
from regnet.tiles.options import PairOptions

PARTS = {
    "train": ("047", "060", "102", "142", "176", "247"),
    "validation": ("208",),
    "test": ("258", "270", "282"),
}
SIDE_PX = 1024


def locate(root: Path) -> list[PairOptions]:
    """Find the pairs; the radar's amplitude is taken as its logarithm.

    Args:
        root: folder that holds `s1s2/`.

    Raises:
        InputError: a file is missing or not the one expected.
    """
    pairs = []
    for part, places in PARTS.items():
        for place in places:
            optical, radar = (root / "s1s2" / f"{place}_{sensor}.tif" for sensor in ("s2", "s1"))
            pairs.append(
                PairOptions(
                    name=place,
                    fixed=check_raster(optical, width=SIDE_PX, height=SIDE_PX, bands=3, epsg=3395),
                    moving=check_raster(radar, width=SIDE_PX, height=SIDE_PX, bands=1, epsg=3395),
                    moving_transform="log",
                    part=part,
                )
            )
    return pairs


if __name__ == "__main__":
    main(locate, __doc__)
