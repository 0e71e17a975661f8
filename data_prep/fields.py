"""Danish field parcels (Danish Agricultural Agency) and a Sentinel-2 image of the same year (Copernicus).

`python -m data_prep.fields` locates and verifies the files under the data's folder, and prints the pair.
"""

from __future__ import annotations

from pathlib import Path

from data_prep.common import check_raster, main
from regnet.errors import InputError
from regnet.geo.sources import raster_grid
from regnet.geo.vector import read_polygons
from regnet.tiles.options import PairOptions

PARCELS = 276


def locate(root: Path) -> list[PairOptions]:
    """Find the image and the parcels.

    Args:
        root: folder that holds `fields/`.

    Raises:
        InputError: a file is missing or not the one expected.
    """
    image, parcels = root / "fields" / "image.tif", root / "fields" / "fields.shp"
    fixed = check_raster(image, width=452, height=413, bands=3, epsg=32632)
    count = len(read_polygons(str(parcels), raster_grid(fixed)).outlines)
    if count != PARCELS:
        raise InputError(f"{parcels}: has {count} parcels where {PARCELS} were expected; fetch it again")
    return [PairOptions(name="fields", fixed=fixed, moving=str(parcels))]


if __name__ == "__main__":
    main(locate, __doc__)
