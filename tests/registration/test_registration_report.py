"""The report of a registered pair."""

import re

import geopandas as gpd
import numpy as np
import pandas as pd
import rasterio
import shapely
from matplotlib.quiver import QuiverKey
from rasterio.windows import Window

from regnet.files import read_json
from regnet.geo.grid import Box
from regnet.registration.options import RegisterOptions
from regnet.registration.register import register
from regnet.report import registration as module
from regnet.report.before_after import largest, together
from regnet.report.tables import cell
from regnet.report.view import View, look
from regnet.tiles.options import PairOptions
from regnet.tiles.pair import PairReader
from tests.registration.conftest import CRS, GSD, ORIGIN, write_raster
from tests.registration.test_register import buildings

SECTIONS = (
    "Overview",
    "Before and after",
    "Displacement",
    "Expected error",
    "Expected and made errors",
    "Tie points",
    "Settings",
    "Software",
)


def test_it_holds_all_it_shows(done):
    page = (done[0] / "report.html").read_text()
    for title in SECTIONS:
        assert f"<h2>{title}</h2>" in page
    assert len(re.findall(r'<img src="data:image/webp;base64,', page)) == 4
    assert 'class="note"' not in page
    assert re.findall(r'(?:src|href)="(?!data:|#)[^"]*"|url\(|@import|<script', page) == []


def test_it_says_what_the_outputs_say(done):
    page, summary = (done[0] / "report.html").read_text(), read_json(done[0] / "summary.json")
    assert f"{summary['share_registered']:.0%} of the ground" in page
    assert f"<dd>{cell(summary['shift_median_px'])}</dd>" in page
    assert f"<dt>within the 90 % bound</dt><dd>{summary['check']['within_90']:.0%}</dd>" in page
    ties = gpd.read_file(done[0] / "tie_points.gpkg")
    for status, count in ties["status"].value_counts().items():
        assert f"<td>{status}</td><td>{count}</td>" in page
    assert "moving.tif onto fixed.tif" in page


def test_it_opens_in_a_browser(done, browse):
    shown = browse(done[0] / "report.html")
    assert 'data-loaded="4/4"' in shown
    assert 'data-overflow="0"' in shown


def test_of_polygons_it_shows_the_outlines(tmp_path):
    shapes, image = buildings()
    fixed = write_raster(tmp_path / "fixed.tif", image)
    offset = np.array([5, -3])
    wrong = [shapely.transform(shape, lambda xy: np.array(ORIGIN) + (xy + offset) * [GSD, -GSD]) for shape in shapes]
    gpd.GeoDataFrame({"n": range(len(wrong))}, geometry=wrong, crs=CRS).to_file(tmp_path / "houses.gpkg")
    register(RegisterOptions(fixed, str(tmp_path / "houses.gpkg"), global_stage=False), tmp_path / "out")
    page = (tmp_path / "out" / "report.html").read_text()
    assert "lines of moving over fixed" in page
    assert re.search(r"<dt>features moved</dt><dd>\d+</dd>", page)
    assert len(re.findall(r'<img src="data:image/webp;base64,', page)) == 4


def test_what_is_the_same_before_and_after_has_the_same_shade(tmp_path, scene):
    """Though some of it is missing afterwards, and with it the brightest ground."""
    bright = scene.copy()
    bright[:100] += 6000
    fixed, moving = write_raster(tmp_path / "fixed.tif", scene), write_raster(tmp_path / "moving.tif", bright)
    cut = np.where(np.arange(360)[:, None] < 100, 0, bright).astype("uint16")
    after = write_raster(tmp_path / "after.tif", cut, nodata=0)
    with PairReader(PairOptions("pair", fixed, moving)) as reader:
        shown = together(reader, reader.with_moving(after), Box(0, 0, 360, 400))
    np.testing.assert_array_equal(shown[0][100:], shown[1][100:])


def test_radar_and_optics_are_as_bright_and_as_rich_in_contrast(tmp_path, scene):
    """Most of the optical image is dark beside a few bright roofs; the radar image is bright."""
    rng = np.random.default_rng(0)
    roofs = np.where(rng.random(scene.shape) < 0.02, 60000, scene // 16).astype("uint16")
    speckle = (scene * rng.gamma(4, size=scene.shape)).astype("float32")
    fixed, moving = write_raster(tmp_path / "fixed.tif", roofs), write_raster(tmp_path / "moving.tif", speckle)
    with PairReader(PairOptions("pair", fixed, moving, moving_transform="log")) as reader:
        shown, _ = together(reader, reader, Box(0, 0, 224, 224))
    squares = shown[..., 0].reshape(4, 56, 4, 56)
    turn = np.indices((4, 4)).sum(0) % 2
    for image in (0, 1):
        shades = np.moveaxis(squares, 2, 1)[turn == image]
        assert 0.4 < shades.mean() < 0.6
        assert np.ptp(np.percentile(shades, (25, 75))) > 0.4  # 0.5 if each shade is as frequent as the others


def test_figures_show_where_there_are_data(tmp_path, scene):
    fixed = write_raster(tmp_path / "fixed.tif", scene)
    part = write_raster(tmp_path / "part.tif", scene[200:280, 100:180], (ORIGIN[0] + 1000, ORIGIN[1] - 2000))
    field = write_raster(tmp_path / "field.tif", np.stack([np.ones(scene.shape)] * 2 + [np.full(scene.shape, np.inf)]))
    with rasterio.open(field, "r+") as target:
        target.write(np.full((80, 80), 0.5), 3, window=Window(100, 200, 80, 80))
    with PairReader(PairOptions("pair", fixed, part)) as reader:
        view = look(reader, tmp_path / "field.tif")
        assert (view.seen, view.box) == (Box(200, 100, 80, 80), Box(184, 84, 112, 112))
        assert view.fixed.shape == (112, 112, 3)
        assert np.isfinite(view.field[2]).sum() == 80 * 80
        assert largest(view) == [view.seen]
        assert [float(place[0]) for place in view.places({"col": np.array([140]), "row": np.array([240])})] == [56, 56]


def test_arrows_have_a_key_and_ground_without_data_is_not_called_rejected(tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(module, "as_picture", lambda figure, *_: drawn.append(figure.axes[0]))
    statuses = ["matched"] * 3 + ["no clear gain", "no data", "no data"]
    ties = pd.DataFrame({"status": statuses, "col": range(6), "row": range(6), "dx_px": [3.0] * 4 + [np.nan] * 2})
    view = View(Box(0, 0, 64, 64), Box(0, 0, 64, 64), 1.0, 10.0, np.zeros((64, 64, 3)), np.zeros((3, 64, 64)))
    module._displacement(tmp_path, view, ties.assign(dy_px=ties["dx_px"]))
    dots, arrows = drawn[0].collections
    assert len(dots.get_offsets()) == 1
    assert len(arrows.U) == 3
    assert [key.label for key in drawn[0].artists if isinstance(key, QuiverKey)] == ["2 px"]
