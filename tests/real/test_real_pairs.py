"""Real pairs brought onto one grid: the geometry is right to a fraction of a pixel, and the masks say what one sees."""

from pathlib import Path

import numpy as np
import pytest
import rasterio
from numpy.typing import NDArray
from scipy.ndimage import gaussian_gradient_magnitude
from skimage.registration import phase_cross_correlation

from data_prep import banepa, fields
from regnet.tiles.options import PairOptions, PrepareOptions, SplitOptions
from regnet.tiles.pair import PairReader
from regnet.tiles.prepare import prepare
from regnet.tiles.store import TileStore

pytestmark = pytest.mark.real


def offset_px(fixed: NDArray[np.float32], moving: NDArray[np.float32], window_px: int = 128) -> NDArray[np.float64]:
    """Median (dx, dy) at which the edges of moving fit those of fixed, over windows; pull, as everywhere."""
    edges = [gaussian_gradient_magnitude(image.mean(axis=0), 1.0) for image in (fixed, moving)]
    found = []
    for row in range(0, fixed.shape[1] - window_px + 1, window_px):
        for col in range(0, fixed.shape[2] - window_px + 1, window_px):
            one, other = (edge[row : row + window_px, col : col + window_px] for edge in edges)
            shift, _, _ = phase_cross_correlation(one - one.mean(), other - other.mean(), upsample_factor=20)
            found.append((-shift[1], -shift[0]))
    return np.median(found, axis=0)


def test_offset_is_found_where_there_is_one() -> None:
    image = gaussian_gradient_magnitude(np.random.default_rng(0).random((1, 300, 300)), (0, 2, 2)).astype(np.float32)
    assert offset_px(image[:, 20:276, 20:276], image[:, 23:279, 18:274]) == pytest.approx([2, -3], abs=0.06)


def test_band_of_20_m_lies_on_the_bands_of_10_m(sample_scene: Path) -> None:
    def path(*bands: str) -> str:
        return "|".join(str(sample_scene / f"s2_{band}.jp2") for band in bands)

    # Half a pixel is what taking the corners for the same would cost.
    for moving in (path("B11"), path("B12")):
        with PairReader(PairOptions("s2", path("B04"), moving)) as reader:
            patch = reader.read(100, 100, 896, 896)
        assert patch.moving_valid.all()
        assert np.abs(offset_px(patch.fixed, patch.moving)).max() < 0.2


def test_sample_scene_is_split_by_kinds_of_ground(sample_scene: Path, tmp_path: Path) -> None:
    fixed = "|".join(str(sample_scene / f"s2_{band}.jp2") for band in ("B02", "B03", "B04"))
    prepare(PrepareOptions([PairOptions("s2", fixed, str(sample_scene / "s2_B11.jp2"))], stride_px=128), tmp_path / "p")
    store = TileStore.open(tmp_path / "p")
    structure = store.scene("s2").read(0, 0, 1947, 1933).structure
    assert structure.shape == store.scene("s2").shape
    assert structure[800:1900, 1600:1930].mean() < 0.05  # open sea
    assert structure[1700:1900, 1250:1450].mean() < 0.05  # lagoon
    assert structure[400:800, 300:700].mean() > 0.85  # farmland
    assert structure[1260:1510, 800:1050].mean() > 0.6  # marsh
    blocks = store.blocks
    # The barrier beach and the marsh lie in the south-east, the farmland in the north-west.
    inland = blocks["col"] + blocks["width"] / 2 + 0.5 * (blocks["row"] + blocks["height"] / 2)
    shifted = blocks["part"] == "shifted"
    assert shifted.sum() >= 3
    assert inland[shifted].min() > inland[~shifted].median()
    count = store.index["part"].value_counts()
    assert count["train"] == count.max()
    assert count.min() >= 10


def test_landsat_of_another_zone_lies_on_sentinel_2(data_root: Path) -> None:
    folder = data_root / "cross_crs"
    pair = PairOptions(
        "coast",
        str(folder / "2023-10-09-22-28-02_S2_ms.tif"),
        str(folder / "2023-06-30-22-01-55_L9_ms.tif"),
        fixed_bands=[1, 2, 3, 4],
        moving_bands=[1, 2, 3, 4],
    )
    with PairReader(pair) as reader:
        assert reader.gsd_m == pytest.approx(10, rel=1e-3)
        patch = reader.read(0, 0, *reader.shape)
    assert np.isfinite(patch.moving).all()
    assert 0.85 < patch.moving_valid.mean() < 0.95  # the corners that Landsat's turned frame does not reach
    assert not patch.moving_valid[400:, :20].any()
    land = np.s_[:, 60:380, 180:436]
    assert np.abs(offset_px(patch.fixed[land], patch.moving[land], 128)).max() < 1.5


def test_naip_grids_a_metre_apart(data_root: Path) -> None:
    paths = [str(data_root / "naip" / name) for name in ("20100629.tif", "20200831.tif")]
    with PairReader(PairOptions("naip", *paths)) as reader:
        assert reader.gsd_m == pytest.approx(5, rel=2e-3)
        patch = reader.read(0, 0, *reader.shape)
    assert patch.moving_valid.mean() > 0.99
    assert np.abs(offset_px(patch.fixed, patch.moving)).max() < 1.0


def test_radar_is_read_with_its_logarithm(data_root: Path) -> None:
    paths = [str(data_root / "s1s2" / f"258_{sensor}.tif") for sensor in ("s2", "s1")]
    with PairReader(PairOptions("258", *paths, moving_transform="log")) as reader:
        patch = reader.read(0, 0, *reader.shape)
        assert reader.gsd_m == pytest.approx(8.6, rel=0.05)  # 10 m of EPSG:3395 at 29 degrees north
    assert patch.moving_valid.all()
    with rasterio.open(paths[1]) as source:
        raw = np.log(source.read().clip(1).astype(np.float64))
    inner = np.abs(patch.moving) < 0.4  # neither clipped nor floored
    slope, intercept = np.polyfit(raw[inner], patch.moving[inner], 1)
    np.testing.assert_allclose(patch.moving[inner], slope * raw[inner] + intercept, atol=1e-3)


def fit(edges: NDArray[np.float64], outline: NDArray[np.float32], reach: int = 6) -> tuple[int, int]:
    """Shift (dx, dy) of the outline, px, at which it lies on the strongest edges."""
    height, width = outline.shape
    inner = outline[reach : height - reach, reach : width - reach]
    scores = {
        (dx, dy): float((edges[reach + dy : height - reach + dy, reach + dx : width - reach + dx] * inner).sum())
        for dy in range(-reach, reach + 1)
        for dx in range(-reach, reach + 1)
    }
    return max(scores, key=lambda shift: scores[shift])


def test_building_outlines_lie_on_the_roofs(data_root: Path) -> None:
    with PairReader(banepa.locate(data_root)[0], gsd_m=0.264) as reader:
        assert reader.polygons is not None
        assert len(reader.polygons.outlines) == 1466
        assert reader.shape == (2048, 1536)
        patch = reader.read(512, 256, 1024, 1024)
    assert 0.3 < patch.moving[0].mean() < 0.7
    edges = gaussian_gradient_magnitude(patch.fixed.mean(axis=0, dtype=np.float64), 1.0)
    assert np.abs(fit(edges, patch.moving[1])).max() <= 2


def test_parcel_outlines_lie_on_the_fields(data_root: Path) -> None:
    with PairReader(fields.locate(data_root)[0]) as reader:
        assert reader.polygons is not None
        assert (len(reader.polygons.outlines), reader.polygons.dropped) == (276, 0)
        patch = reader.read(0, 0, *reader.shape)
    edges = gaussian_gradient_magnitude(patch.fixed.mean(axis=0, dtype=np.float64), 1.0)
    assert np.abs(fit(edges, patch.moving[1])).max() <= 1


def test_banepa_by_columns_with_noise(data_root: Path, tmp_path: Path) -> None:
    options = PrepareOptions(
        banepa.locate(data_root), gsd_m=0.5, tile_px=96, split=SplitOptions("columns", test_share=0.3333)
    )
    prepare(options, tmp_path / "p")
    store = TileStore.open(tmp_path / "p")
    test, train = (store.blocks[store.blocks["part"] == part].iloc[0] for part in ("test", "train"))
    assert test["col"] - (train["col"] + train["width"]) == 32
    assert train["width"] / store.scene("banepa").shape[1] == pytest.approx(2 / 3, abs=0.03)
    assert set(store.index["part"]) == {"train", "validation", "test"}
