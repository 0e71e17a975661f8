import geopandas as gpd
import numpy as np
import pyogrio
import pytest
import shapely
import shapely.affinity

from regnet.geo.features import read_features
from regnet.registration.apply import apply
from regnet.registration.options import ApplyOptions
from regnet.registration.vectors import sample_points
from tests.registration.conftest import CRS
from tests.registration.test_apply import SHAPE, SHIFT, bands_of, constant, in_pixels, on_ground, rotation, write_field

BOX = shapely.box(40, 40, 60, 60)


@pytest.fixture
def field(tmp_path):
    return write_field(tmp_path / "displacement.tif", constant())


def layer(path, shapes, crs=CRS, **columns):
    frame = gpd.GeoDataFrame(columns | {"n": range(len(shapes))}, geometry=shapes, crs=CRS).to_crs(crs)
    frame.to_parquet(path) if path.suffix == ".parquet" else frame.to_file(path)
    return str(path)


def moved(field, target, suffix=".gpkg", **settings):
    output = f"{target}.moved{suffix}"
    applied = apply(ApplyOptions(field, target, output, **settings))
    return read_features(output).sort_values("n"), applied


@pytest.mark.parametrize("rule", ["rigid", "joined", "vertices"])
@pytest.mark.parametrize("suffix", [".gpkg", ".geojson", ".fgb", ".parquet"])
def test_heights_stay_where_places_move(tmp_path, field, rule, suffix):
    kinds = [BOX, shapely.LineString([(80, 90), (100, 90)]), shapely.Point(20, 30)]
    flat = [on_ground(shape) for shape in kinds[: 1 if suffix == ".fgb" else 3]]
    count = len(shapely.get_coordinates(flat))
    heights = np.arange(count) + 0.25
    points = np.column_stack([shapely.get_coordinates(flat), heights])
    high = shapely.transform(shapely.force_3d(flat), lambda _: points, include_z=True)
    target = layer(tmp_path / f"high{suffix}", high, crs="EPSG:32617")
    frame, _ = moved(field, target, suffix, polygons=rule)
    found = frame.to_crs(CRS).geometry.values
    np.testing.assert_allclose(shapely.get_coordinates(found, include_z=True)[:, 2], heights, atol=1e-6)
    before, after = (shapely.get_coordinates([in_pixels(shape) for shape in shapes]) for shapes in (flat, found))
    np.testing.assert_allclose(after, before - SHIFT, atol=0.02)


def test_what_is_odd_moves_too_and_stays_what_it_is(tmp_path, field):
    """Valid shapes stay valid; a polygon that crosses itself keeps its shape; nothing stays nothing."""
    odd = {
        "collection": shapely.GeometryCollection([BOX, shapely.LineString([(1, 1), (60, 60)]), shapely.Point()]),
        "parts": shapely.MultiPolygon([shapely.box(100, 100, 110, 110), shapely.box(130, 100, 140, 110)]),
        "bow tie": shapely.Polygon([(10, 10), (30, 30), (30, 10), (10, 30)]),
        "holes": shapely.box(20, 20, 250, 240) - shapely.box(60, 60, 200, 200) - shapely.box(30, 30, 40, 40),
        "points": shapely.MultiPoint([(1, 1), (200, 200)]),
        "no length": shapely.LineString([(50, 50), (50, 50)]),
        "no area": shapely.Polygon([(50, 50), (50, 50), (70, 50), (50, 50)]),
        "none": None,
        "empty": shapely.Polygon(),
        "country": shapely.box(-5000, -5000, 5000, 5000),
    }
    target = layer(tmp_path / "odd.gpkg", [shape and on_ground(shape) for shape in odd.values()])
    for rule in ("rigid", "vertices"):
        frame, _ = moved(field, target, polygons=rule)
        status = dict(zip(odd, frame["regnet_status"], strict=True))
        assert [name for name in odd if status[name] == "empty"] == ["none", "empty"]
        assert status["country"] == "abstained"
        for (name, before), after in zip(odd.items(), frame.geometry, strict=True):
            if status[name] == "moved":
                wanted = shapely.affinity.translate(before, *-SHIFT)
                places = [shapely.get_coordinates(shape) for shape in (on_ground(wanted), after)]
                np.testing.assert_allclose(*places, atol=1e-3)
                assert after.geom_type == before.geom_type
                assert after.is_valid == before.is_valid, name


@pytest.mark.parametrize("rule", ["rigid", "joined", "vertices"])
def test_what_is_valid_stays_valid_under_a_field_that_turns(tmp_path, rule):
    """Slivers and long outlines, in another CRS than the field's."""
    field = write_field(tmp_path / "d.tif", bands_of(*rotation(20, 1.2, (3.0, 1.0))))
    slivers = [shapely.Polygon([(x, 60), (x + 40, 60.001), (x + 39, 60.4), (x, 60.002)]) for x in range(20, 200, 30)]
    round_ones = [shapely.Point(x, 150).buffer(12, 200) for x in range(30, 240, 22)]
    target = layer(tmp_path / "thin.gpkg", [on_ground(shape) for shape in slivers + round_ones], crs="EPSG:4326")
    frame, applied = moved(field, target, polygons=rule)
    assert applied.features == {"moved": len(frame)}
    assert frame.geometry.is_valid.all()


BEND = 4e-4


def bent(points):
    """Where the inverse of `bending` takes places (n, 2): just down, by what depends on the column alone."""
    return points - np.column_stack([np.zeros(len(points)), BEND * (points[:, 0] - 150) ** 2])


@pytest.fixture
def bending(tmp_path):
    """A displacement that bends horizontal edges of 200 px by 4 px, and whose inverse is known."""
    down = np.broadcast_to(BEND * (np.arange(SHAPE[1]) + 0.5 - 150) ** 2, SHAPE)
    return write_field(tmp_path / "bending.tif", np.stack([np.zeros(SHAPE), down, np.full(SHAPE, 0.1)]))


def test_long_edges_bend_and_walls_between_neighbours_stay_theirs(tmp_path, bending):
    upper, lower = shapely.box(50, 60, 250, 120), shapely.box(50, 120, 250, 200) - shapely.box(90, 150, 210, 180)
    line = shapely.LineString([(50, 100), (250, 100)])
    target = layer(tmp_path / "parcels.gpkg", [on_ground(shape) for shape in (upper, lower.reverse(), line)])
    frame, _ = moved(bending, target, polygons="vertices")
    found = [in_pixels(shape) for shape in frame.geometry]
    for before, after in zip((upper, lower, line), found, strict=True):
        wanted = shapely.transform(shapely.segmentize(before, 1), bent)
        assert shapely.hausdorff_distance(after, wanted, densify=0.01) < 0.15
        assert len(shapely.get_coordinates(after)) <= 8 * len(shapely.get_coordinates(before))
    assert shapely.intersection(*found[:2]).area == 0
    assert len(shapely.union_all(found[:2]).interiors) == 1
    rigid, _ = moved(bending, target, polygons="rigid")
    assert [len(shape.exterior.coords) for shape in rigid.geometry[:2]] == [5, 5]


def test_vertices_are_added_with_their_height_and_measure(tmp_path, bending):
    place = shapely.get_coordinates(on_ground(shapely.LineString([(50, 100), (250, 100)])))
    (left, y), (right, _) = place
    high = shapely.from_wkt(f"LINESTRING ZM ({left} {y} 10 0, {right} {y} 30 1)")
    frame = gpd.GeoDataFrame({"n": [0]}, geometry=[high], crs=CRS)
    pyogrio.write_dataframe(frame, tmp_path / "high.gpkg", use_arrow=True)  # which alone knows measures
    frame, _ = moved(bending, str(tmp_path / "high.gpkg"))
    found = frame.geometry.iloc[0]
    x, _, z, m = (np.array(values) for values in shapely.get_coordinates(found, include_z=True, include_m=True).T)
    share = (x - left) / (right - left)
    assert len(share) > 5
    np.testing.assert_allclose(z, 10 + 20 * share, atol=1e-6)
    np.testing.assert_allclose(m, share, atol=1e-6)


def test_the_error_of_what_goes_as_a_whole_holds_what_it_does_not_follow(tmp_path):
    """Under a turn of 0.1 a square's places are 0.1 times their distance from its middle off its offset."""
    turn = np.array([[0.0, 0.1], [-0.1, 0.0]])
    field = write_field(tmp_path / "d.tif", bands_of(np.eye(2) + turn, -turn @ [100, 100]))
    target = layer(tmp_path / "a.gpkg", [on_ground(shapely.box(60, 60, 140, 140))])
    frames = [moved(field, target, polygons=rule)[0] for rule in ("rigid", "vertices")]
    rigid, bent = (frame["regnet_expected_error_px"].iloc[0] for frame in frames)
    places = sample_points(shapely.box(60, 60, 140, 140)) - 100
    apart = np.median(np.hypot(*places.T)) * 0.1
    assert rigid == pytest.approx(np.hypot(bent, apart), rel=0.03)


def test_what_crosses_the_border_goes_with_what_is_inside(tmp_path, field):
    shares = {0.4: "moved", 0.1: "abstained"}
    shapes = [on_ground(shapely.box(-20 * (1 - share), 50, 20 * share, 70)) for share in shares]
    frame, _ = moved(field, layer(tmp_path / "a.gpkg", shapes))
    assert list(frame["regnet_status"]) == list(shares.values())


def test_attributes_with_our_names_get_others_and_that_is_said(tmp_path, field):
    target = layer(tmp_path / "a.gpkg", [on_ground(BOX)], regnet_status=["mine"], Regnet_DX_px=[5])
    frame, applied = moved(field, target)
    assert (frame["regnet_status_attribute"].iloc[0], frame["Regnet_DX_px_attribute"].iloc[0]) == ("mine", 5)
    assert frame["regnet_status"].iloc[0] == "moved"
    assert "the attribute regnet_status is now called regnet_status_attribute" in applied.notes[0]
    frame, _ = moved(field, f"{target}.moved.gpkg")
    assert list(frame["regnet_status_attribute"]) == ["mine"]
    assert list(frame["regnet_status_attribute_"]) == ["moved"]


def test_of_several_layers_those_that_stay_are_named(tmp_path, field):
    path = tmp_path / "layers.gpkg"
    for name in ("houses", "walls"):
        gpd.GeoDataFrame({"n": [0]}, geometry=[on_ground(BOX)], crs=CRS).to_file(path, layer=name)
    for chosen, other in ((None, "walls"), ("walls", "houses")):
        frame, applied = moved(field, str(path), layer=chosen)
        assert len(frame) == 1
        assert f"of its layers, {other} stayed where they are" in applied.notes[0]
    assert len(pyogrio.list_layers(f"{path}.moved.gpkg")) == 1


def test_a_layer_of_the_whole_earth(tmp_path, field):
    """Most of it has no place in fixed's CRS."""
    house = gpd.GeoSeries([on_ground(BOX)], crs=CRS).to_crs(4326)[0]
    shapes = [house, shapely.Point(179, -80), shapely.box(-180, -90, 180, 90), shapely.Point(-75, 89)]
    gpd.GeoDataFrame({"n": range(4)}, geometry=shapes, crs=4326).to_file(tmp_path / "earth.gpkg")
    frame, applied = moved(field, str(tmp_path / "earth.gpkg"))
    assert applied.features["moved"] == 1
    for before, after in zip(shapes[1:], frame.geometry[1:], strict=True):
        assert after.equals_exact(before, 1e-9)


def test_points_along_a_line_are_those_of_the_library():
    zigzag = shapely.LineString([(0, 0), (10, 0), (10, 3), (0, 30)])
    found = sample_points(zigzag)
    assert shapely.LineString(found).equals_exact(shapely.segmentize(zigzag, 2.0), 1e-9)
