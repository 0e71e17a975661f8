import datetime
import json
import sqlite3
import struct
from contextlib import closing

import geopandas as gpd
import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import rasterio
import shapely
from affine import Affine

from regnet.errors import InputError, OutputError
from regnet.geo.features import DRIVERS, read_features, read_placed, write_features
from regnet.geo.measures import with_places
from regnet.geo.sources import open_raster

CRS = "EPSG:32618"
DAY, INSTANT = datetime.date(2020, 5, 17), datetime.datetime(2020, 5, 17, 10, 30, tzinfo=datetime.UTC)
SIMPLE = {
    "whole": [2**40 + 1, None, -3],
    "short": [7, 8, None],
    "flag": [True, None, False],
    "day": [DAY, None, datetime.date(1815, 6, 18)],
    "instant": [INSTANT, None, INSTANT],
    "bytes": [b"\x00\xff", None, b""],
    "Straßenname": ["Ä", None, "東京"],
}
PARTS = {
    "numbers": [[1, 2], None, []],
    "words": [["ä"], ["b", "c"], None],
    "pairs": [[[1], [2, 3]], None, [[4]]],
    "record": [{"k": 1, "in": {"s": "ö"}}, None, {"k": 2, "in": None}],
}
TYPES = {
    "short": pa.int32(),
    "instant": pa.timestamp("ms", "UTC"),
    "record": pa.struct([("k", pa.int64()), ("in", pa.struct([("s", pa.string())]))]),
}


def frame_of(columns, shapes=None):
    columns = {name: pa.array(values, TYPES.get(name)) for name, values in columns.items()}
    columns = {name: pd.array(values, pd.ArrowDtype(values.type)) for name, values in columns.items()}
    shapes = shapely.points([1.0, 2, 3], [4, 5, 6], [7, 8, 9]) if shapes is None else shapes
    return gpd.GeoDataFrame(columns, geometry=shapes, crs=CRS)


def values(column):
    return [
        None if value is pd.NA or value is pd.NaT else value
        for value in column.astype(object).where(column.notna(), None)
    ]


@pytest.mark.parametrize("suffix", DRIVERS)
def test_times_that_are_cut_to_milliseconds_are_told(tmp_path, suffix):
    fine, coarse = INSTANT.replace(microsecond=123456), INSTANT.replace(microsecond=123000)
    kinds = {"fine": pa.timestamp("us", "UTC"), "exact": pa.timestamp("ns", "UTC"), "local": pa.timestamp("us")}
    columns = {"fine": [fine, None, coarse], "exact": [coarse, None, coarse]}
    columns["local"] = [value and value.replace(tzinfo=None) for value in columns["fine"]]
    frame = frame_of({"n": [1, 2, 3]})
    for name, column in columns.items():
        frame[name] = pd.array(pa.array(column, kinds[name]), pd.ArrowDtype(kinds[name]))
    path = tmp_path / f"times{suffix}"
    notes = write_features(frame, path)
    cut = [name for name in ("fine", "local") if DRIVERS[suffix]]
    told = [f"{name} is cut to milliseconds, since {DRIVERS[suffix]} does not hold finer times" for name in cut]
    assert notes == told
    found = values(read_features(str(path))["fine"])
    assert [value and pd.Timestamp(value).microsecond for value in found] == [123000 if cut else 123456, None, 123000]


@pytest.mark.parametrize("suffix", DRIVERS)
def test_attributes_come_back_as_they_were(tmp_path, suffix):
    """Whole numbers with gaps, truth, dates, instants, bytes and names beyond ASCII, where the format holds them."""
    path = tmp_path / f"a{suffix}"
    assert write_features(frame_of(SIMPLE), path) == []
    found = read_features(str(path)).sort_values("short")
    wanted = {name: column[:] for name, column in SIMPLE.items()}
    if suffix == ".geojson":
        wanted["bytes"] = ["00FF", None, ""]  # in hexadecimal, as GDAL writes them
    for name in SIMPLE:
        got = values(found[name])
        if suffix == ".fgb" and name == "day":
            got = [value and value.date() for value in got]  # FlatGeobuf holds instants alone
        assert got == wanted[name], name
    kinds = {name: found[name].dtype.pyarrow_dtype for name in ("whole", "short", "flag")}
    assert pa.types.is_integer(kinds["whole"])
    assert pa.types.is_integer(kinds["short"])
    assert pa.types.is_boolean(kinds["flag"])
    assert shapely.get_z(found.geometry.values).tolist() == [7, 8, 9]


def test_lists_are_kept_and_what_a_format_does_not_hold_is_text_that_is_said(tmp_path):
    frame = frame_of(PARTS)
    notes = {suffix: write_features(frame, tmp_path / f"a{suffix}") for suffix in DRIVERS}
    found = {suffix: read_features(str(tmp_path / f"a{suffix}")) for suffix in DRIVERS}
    assert notes[".parquet"] == notes[".geojson"] == []
    for suffix in (".parquet", ".geojson"):
        for name, wanted in PARTS.items():
            got = pa.array(found[suffix][name], from_pandas=True).to_pylist()
            assert got == wanted, (suffix, name)
    numbers = pa.array(found[".gpkg"]["numbers"], from_pandas=True).to_pylist()
    assert numbers == PARTS["numbers"]
    assert [note.split()[0] for note in notes[".gpkg"]] == ["pairs", "record"]
    assert [note.split()[0] for note in notes[".fgb"]] == list(PARTS)
    for name, wanted in PARTS.items():
        texts = values(found[".fgb"][name])
        assert sorted(map(str, texts)) == sorted(
            str(value and json.dumps(value, ensure_ascii=False)) for value in wanted
        )


def test_values_of_several_kinds_stay_what_they_are(tmp_path):
    features = [
        {"type": "Feature", "properties": {"any": value}, "geometry": {"type": "Point", "coordinates": [0, 0]}}
        for value in ({"a": 1}, [1, "x"], None)
    ]
    (tmp_path / "a.geojson").write_text(json.dumps({"type": "FeatureCollection", "features": features}))
    write_features(read_features(str(tmp_path / "a.geojson")), tmp_path / "b.geojson")
    again = json.loads((tmp_path / "b.geojson").read_text())
    assert [feature["properties"]["any"] for feature in again["features"]] == [{"a": 1}, [1, "x"], None]


@pytest.mark.parametrize("suffix", DRIVERS)
@pytest.mark.parametrize(
    ("ids", "numbers"), [(None, [7, 8, 9]), (None, [7, 7, 0]), ([4, 5, 6], [7, 8, 9]), (["a", "b", "c"], [7, 8, 9])]
)
def test_an_attribute_called_id_stays(tmp_path, suffix, ids, numbers):
    """GDAL takes whole numbers of GeoJSON's properties for ids, too, unless features have some beside them."""
    features = [
        {"type": "Feature", "properties": {"id": number}, "geometry": {"type": "Point", "coordinates": [place, 0]}}
        | ({} if ids is None else {"id": ids[place]})
        for place, number in enumerate(numbers)
    ]
    (tmp_path / "a.geojson").write_text(json.dumps({"type": "FeatureCollection", "features": features}))
    found = read_features(str(tmp_path / "a.geojson"))
    assert found["id"].tolist() == numbers
    assert found.index.tolist() == ([4, 5, 6] if ids == [4, 5, 6] else [0, 1, 2])
    assert write_features(found, tmp_path / f"b{suffix}") == []
    again = read_features(str(tmp_path / f"b{suffix}"))
    order = np.argsort(shapely.get_x(again.geometry.values))
    assert again["id"].iloc[order].tolist() == numbers


def test_names_that_a_geopackage_cannot_have_are_changed_and_said(tmp_path):
    columns = {"name": ["x"], "Name": ["y"], "NAME_attribute": ["z"], "geom": ["g"], "Fid": ["f"]}
    frame = gpd.GeoDataFrame(columns, geometry=shapely.points([0], [0]), crs=CRS)
    notes = write_features(frame, tmp_path / "a.gpkg")
    new = {"Name": "Name_attribute_", "geom": "geom_attribute", "Fid": "Fid_attribute"}
    assert notes == [f"the attribute {old} is now called {name}" for old, name in new.items()]
    found = read_features(str(tmp_path / "a.gpkg"))
    assert {name: found[new.get(name, name)].iloc[0] for name in columns} == {n: v[0] for n, v in columns.items()}
    assert write_features(frame, tmp_path / "a.geojson") == []


@pytest.mark.parametrize("kind", [".gpkg", ".tif"])
def test_a_local_crs_is_refused_by_name(tmp_path, kind):
    local, path = 'LOCAL_CS["site",UNIT["metre",1]]', tmp_path / f"site{kind}"
    if kind == ".gpkg":
        gpd.GeoDataFrame(geometry=[shapely.box(0, 0, 9, 9)], crs=local).to_file(path)
    else:
        profile = {"driver": "GTiff", "width": 8, "height": 8, "count": 1, "dtype": "uint8"}
        with rasterio.open(path, "w", crs=local, transform=Affine(1, 0, 5, 0, -1, 9), **profile) as target:
            target.write(np.ones((1, 8, 8), np.uint8))
    with pytest.raises(InputError, match=rf"site{kind}: has a local CRS, which nothing ties to the Earth; assign"):
        (read_placed if kind == ".gpkg" else open_raster)(str(path))


def test_numbers_and_times_that_gdal_does_not_know(tmp_path):
    columns = {"huge": pa.array([2**64 - 1, None], pa.uint64()), "span": pa.array([90, None], pa.duration("s"))}
    columns["fits"] = pa.array([5, None], pa.uint64())
    frame = gpd.GeoDataFrame(
        {name: pd.array(array, pd.ArrowDtype(array.type)) for name, array in columns.items()},
        geometry=shapely.points([0, 1], [0, 1]),
        crs=CRS,
    )
    notes = write_features(frame, tmp_path / "a.gpkg")
    assert [note.split()[0] for note in notes] == ["huge", "span"]
    found = read_features(str(tmp_path / "a.gpkg"))
    assert (found["huge"][1], found["span"][1], found["fits"][1]) == (str(2**64 - 1), "0:01:30", 5)


def test_a_filter_sees_every_attribute_of_a_parquet_file_and_leaves_it_alone(tmp_path):
    path = tmp_path / "a.parquet"
    write_features(frame_of(SIMPLE | PARTS | {"fid": ["x", "x", "y"]}), path)
    found = read_features(str(path), where="whole < 0 or fid = 'z'")
    assert values(found["fid"]) == ["y"]
    assert pa.array(found["pairs"]).to_pylist() == [[[4]]]
    with pytest.raises(InputError, match="check the file and `where`"):
        read_features(str(path), where="whole ==== 1")


def test_a_shapefile_in_any_encoding(tmp_path):
    frame = gpd.GeoDataFrame({"name": ["Straße", "é"]}, geometry=shapely.points([0, 1], [0, 1]), crs=CRS)
    for encoding in ("UTF-8", "ISO-8859-1", "CP1252"):
        frame.to_file(tmp_path / "a.shp", encoding=encoding)
        assert (tmp_path / "a.cpg").read_text() == encoding
        assert values(read_features(str(tmp_path / "a.shp"))["name"]) == ["Straße", "é"]


@pytest.mark.parametrize("suffix", DRIVERS)
def test_every_kind_of_geometry_and_none(tmp_path, suffix):
    """A FlatGeobuf file with a feature that has no geometry used to end the process of its reader."""
    box = shapely.box(0, 0, 1, 1)
    shapes = [box, None, shapely.Polygon(), shapely.MultiPolygon([box]), shapely.Point(1, 2)]
    shapes += [shapely.LineString([(0, 0), (2, 2)]), shapely.GeometryCollection([box, shapely.Point(3, 3)])]
    write_features(frame_of({"n": list(range(7))}, shapes), tmp_path / f"a{suffix}")
    found = read_features(str(tmp_path / f"a{suffix}")).sort_values("n").geometry
    for before, after in zip(shapes, found, strict=True):
        if before is None or before.is_empty:
            assert after is None or after.is_empty
        else:
            assert after.equals(before)


def test_curves_are_drawn_as_lines(tmp_path):
    """A circle in GeoPackage's own form, which nothing at hand writes: put into its table by hand."""
    frame_of({"whole": [2**40 + 1]}, [shapely.box(-1, -1, 1, 1)]).to_file(tmp_path / "a.gpkg")
    arc = struct.pack("<BII10d", 1, 8, 5, -1, 0, 0, 1, 1, 0, 0, -1, -1, 0)
    with closing(sqlite3.connect(tmp_path / "a.gpkg")) as file:
        for (name,) in file.execute("select name from sqlite_master where type = 'trigger'").fetchall():
            file.execute(f'drop trigger "{name}"')
        header = file.execute("select geom from a").fetchone()[0][:40]  # with the bounds
        file.execute("update a set geom = ?", (header + struct.pack("<BII", 1, 10, 1) + arc,))
        file.commit()
    found = read_features(str(tmp_path / "a.gpkg"))
    assert found["whole"].tolist() == [2**40 + 1]
    assert found.geometry.iloc[0].area == pytest.approx(np.pi, rel=1e-3)
    assert found.crs == CRS


MEASURED = [
    "LINESTRING ZM (0 0 1 2, 1 1 3 4)",
    "LINESTRING M (0 0 2, 1 1 4)",
    "POINT M EMPTY",
    "GEOMETRYCOLLECTION ZM (POINT ZM (5 5 7 2), "
    "MULTIPOLYGON ZM (((5 5 7 2, 6 5 8 3, 6 6 9 4, 5 5 7 2))), POINT ZM EMPTY)",
]


@pytest.mark.parametrize("text", MEASURED)
def test_measures_stay_when_places_change(text):
    shape = shapely.from_wkt(text)
    moved = with_places(shape, shapely.get_coordinates(shape) + np.array([10, 20]))
    before, after = (shapely.get_coordinates(one, include_z=True, include_m=True) for one in (shape, moved))
    np.testing.assert_array_equal(after, before + np.array([10, 20, 0, 0]))
    assert shapely.to_wkt(with_places(moved, shapely.get_coordinates(shape))) == shapely.to_wkt(shape)


def test_measures_are_kept_where_the_format_has_them(tmp_path):
    frame = frame_of({"n": [1, 2]}, shapely.from_wkt(MEASURED[:2]))
    for suffix in (".gpkg", ".parquet"):
        assert write_features(frame, tmp_path / f"a{suffix}") == []
        found = read_features(str(tmp_path / f"a{suffix}")).geometry
        assert [shapely.to_wkt(shape) for shape in found] == MEASURED[:2]
    for suffix in (".geojson", ".fgb"):
        assert "measures (M) were left out" in write_features(frame[:1], tmp_path / f"a{suffix}")[0]
        found = read_features(str(tmp_path / f"a{suffix}")).geometry
        assert [shapely.to_wkt(shape) for shape in found] == ["LINESTRING Z (0 0 1, 1 1 3)"]


@pytest.mark.parametrize(
    "texts", [["POINT Z (0 0 1)", "POINT (1 1)"], ["POINT Z (0 0 1)", "LINESTRING Z (0 0 1, 1 1 2)"]]
)
def test_heights_that_would_be_lost_are_refused(tmp_path, texts):
    with pytest.raises(OutputError, match=r"a\.fgb: FlatGeobuf holds the heights.*write another format, \.gpkg"):
        write_features(frame_of({"n": [1, 2]}, shapely.from_wkt(texts)), tmp_path / "a.fgb")
    assert not list(tmp_path.iterdir())
