"""Banepa, Nepal: a drone orthomosaic (OpenAerialMap, CC-BY-4.0) and OpenStreetMap's building outlines (ODbL).

`python -m data_prep.banepa` locates and verifies the files under the data's folder, and prints the pair.
"""

from __future__ import annotations

from pathlib import Path

from data_prep.common import check_raster, main
from regnet.errors import InputError
from regnet.geo.sources import raster_grid
from regnet.geo.vector import read_polygons
from regnet.tiles.options import PairOptions

BUILDINGS = 1466


def locate(root: Path) -> list[PairOptions]:
    """Find the image and the buildings.

    Args:
        root: folder that holds `banepa/`.

    Raises:
        InputError: a file is missing or not the one expected.
    """
    image, buildings = root / "banepa" / "image.tif", root / "banepa" / "buildings.geojson"
    fixed = check_raster(image, width=3072, height=4096, bands=3, epsg=3857)
    count = len(read_polygons(str(buildings), raster_grid(fixed)).outlines)
    if count != BUILDINGS:
        raise InputError(f"{buildings}: has {count} buildings where {BUILDINGS} were expected; fetch it again")
    return [PairOptions(name="banepa", fixed=fixed, moving=str(buildings))]


if __name__ == "__main__":
    main(locate, __doc__)
