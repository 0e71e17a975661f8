"""The report of a registered pair."""

import re

import geopandas as gpd
import numpy as np
import shapely

from regnet.files import read_json
from regnet.registration.options import RegisterOptions
from regnet.registration.register import register
from regnet.report.tables import cell
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
