"""Real pairs that are in place, put out of place by a known random field and written as files."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import rasterio
from numpy.typing import NDArray
from rasterio.windows import Window
from tqdm import tqdm

from data_prep.sentinel2_sample import fetch
from regnet.config import default_cache, default_data_root
from regnet.evaluation.cases import SceneField
from regnet.evaluation.options import FamilyOptions
from regnet.geo.grid import Box
from regnet.tiles.options import PairOptions
from regnet.tiles.pair import PairReader
from regnet.tiles.patch import Patch, displaced

FAMILIES = {
    "smooth": FamilyOptions("smooth", 8.0, 80.0),
    "rough": FamilyOptions("rough", 8.0, 20.0),
    "bent": FamilyOptions("bent", 20.0, 60.0),
    "far": FamilyOptions("far", 40.0, 150.0),
}
"""Kinds of random displacement, as peak and sigma in px."""
STRIP_PX, MARGIN_PX = 500, 80
BIG_PX = 10_000


def sample_pair(band: str = "B11") -> PairOptions:
    """The sample scene: visible bands, and one infrared band."""
    folder = fetch(Path(default_cache()))
    visible = "|".join(str(folder / f"s2_B0{number}.jp2") for number in (2, 3, 4))
    return PairOptions("sample", visible, str(folder / f"s2_{band}.jp2"))


def naip_pair() -> PairOptions:
    """The same ground in 2020 and 2010."""
    folder = Path(default_data_root()) / "naip"
    return PairOptions("naip", str(folder / "20200831.tif"), str(folder / "20100629.tif"))


def buildings_pair() -> PairOptions:
    """A drone image and building outlines."""
    folder = Path(default_data_root()) / "banepa"
    return PairOptions("banepa", str(folder / "image.tif"), str(folder / "buildings.geojson"))


def radar_pair(place: int = 0) -> PairOptions:
    """Sentinel-2 and Sentinel-1 of one of ten places."""
    optical = sorted((Path(default_data_root()) / "s1s2").glob("*_s2.tif"))[place]
    return PairOptions("s1s2", str(optical), str(optical).replace("_s2.tif", "_s1.tif"), moving_transform="log")


@dataclass(frozen=True)
class Source:
    """A real pair, its working grid's pixel size in m (None for fixed's own), and the sides it is repeated to, px."""

    pair: Callable[[], PairOptions]
    gsd_m: float | None = None
    size_px: tuple[int, int] | None = None


SOURCES = {
    "sample_nir": Source(lambda: sample_pair("B08")),
    "sample_swir": Source(sample_pair),
    "banepa_buildings": Source(buildings_pair, 0.26),
    "naip": Source(naip_pair),
    "s1s2": Source(radar_pair),
    "sample_3000": Source(sample_pair, size_px=(3000, 3000)),
    "sample_10000_strip": Source(sample_pair, size_px=(1000, BIG_PX)),
    "sample_10000": Source(sample_pair, size_px=(BIG_PX, BIG_PX)),
}


class Mosaic:
    """A patch repeated along both axes, every other time mirrored, so that it has no seams; invalid beyond its size."""

    def __init__(self, patch: Patch, size_px: tuple[int, int]) -> None:
        self._patch, self._size_px = patch, size_px

    def read(self, row: int, col: int, height: int, width: int) -> Patch:
        """Read a window, which may reach beyond."""
        box = Box(row, col, height, width)
        inside = np.zeros((height, width), np.bool_)
        inside[box.slices_within(self._size_px)] = True
        rows, cols = (
            _mirrored(start, count, side)
            for start, count, side in zip((row, col), (height, width), self._patch.structure.shape, strict=True)
        )
        parts = {name: values[..., rows[:, None], cols] for name, values in vars(self._patch).items()}
        return Patch(**{name: part & inside if part.dtype == np.bool_ else part for name, part in parts.items()})


def _mirrored(start: int, count: int, side: int) -> NDArray[np.intp]:
    place = np.arange(start, start + count) % (2 * side)
    return np.minimum(place, 2 * side - 1 - place)


def write_case(name: str, folder: Path, seed: int = 0, family: str = "smooth") -> None:
    """Write fixed.tif, moving.tif, and truth.tif: dx and dy in px, and 0, 1 or 2 for invalid, plain or with structure.

    Bands are scaled by their percentiles; polygons are drawn as their interior.
    """
    source = SOURCES[name]
    with PairReader(source.pair(), source.gsd_m) as reader:
        patch, crs, transform = reader.read(0, 0, *reader.shape), reader.crs, reader.transform
        if reader.polygons is not None:
            patch = Patch(**(vars(patch) | {"moving": patch.moving[:1]}))
    height, width = source.size_px or patch.structure.shape
    mosaic = Mosaic(patch, (height, width))
    field = SceneField((height, width), FAMILIES[family], np.random.default_rng(seed))
    profile = {"driver": "GTiff", "tiled": True, "height": height, "width": width, "crs": crs, "transform": transform}
    image = profile | {"dtype": "uint16", "nodata": 0}
    with (
        rasterio.open(folder / "fixed.tif", "w", count=len(patch.fixed), **image) as fixed,
        rasterio.open(folder / "moving.tif", "w", count=len(patch.moving), **image) as moving,
        rasterio.open(folder / "truth.tif", "w", count=3, dtype="float32", **profile) as truth,
    ):
        for row in tqdm(range(0, height, STRIP_PX), desc=f"write {name}", unit="strip"):
            count = min(STRIP_PX, height - row)
            place = (row - MARGIN_PX, -MARGIN_PX, count + 2 * MARGIN_PX, width + 2 * MARGIN_PX)
            true = field.window(*place)
            moved = displaced(mosaic.read(*place), true)
            inner = (slice(MARGIN_PX, -MARGIN_PX), slice(MARGIN_PX, -MARGIN_PX))
            valid = (moved.fixed_valid & moved.moving_valid)[inner]
            kind = np.where(valid, np.where(moved.structure[inner], 2, 1), 0)
            window = Window(0, row, width, count)
            fixed.write(as_uint16(moved.fixed, moved.fixed_valid)[:, *inner], window=window)
            moving.write(as_uint16(moved.moving, moved.moving_valid)[:, *inner], window=window)
            truth.write(np.concatenate([true[:, *inner], kind[None]]).astype(np.float32), window=window)


def as_uint16(values: NDArray[np.float32], valid: NDArray[np.bool_]) -> NDArray[np.uint16]:
    """Values of a patch, which lie between -3 and 3, to 2,768 to 62,768; 0 where invalid."""
    return np.where(valid, np.rint(32_768 + 10_000 * values), 0).astype(np.uint16)
