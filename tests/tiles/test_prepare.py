import errno
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from itertools import combinations, product
from pathlib import Path

import geopandas as gpd
import numpy as np
import pytest
import shapely
from rasterio.transform import from_origin
from scipy.ndimage import gaussian_filter

from regnet.errors import ConfigError, InputError, OutputError, RegnetError, StoreError
from regnet.files import read_json, write_json
from regnet.tiles.options import NoiseOptions, PairOptions, PrepareOptions, SplitOptions
from regnet.tiles.pair import PairReader
from regnet.tiles.prepare import prepare
from regnet.tiles.store import TileStore

Write = Callable[..., str]


@pytest.fixture(scope="module")
def options(write_geotiff: Write, tmp_path_factory: pytest.TempPathFactory) -> PrepareOptions:
    folder, generator = tmp_path_factory.mktemp("pair"), np.random.default_rng(0)
    image = gaussian_filter(generator.standard_normal((2, 280, 380)), (0, 2, 2)) * 1000 + 500
    fixed = write_geotiff(folder / "f.tif", image.astype(np.float32))
    coarse = 100 - image[:1].reshape(1, 140, 2, 190, 2).mean((2, 4)).astype(np.float32)
    moving = write_geotiff(folder / "m.tif", coarse, transform=from_origin(400_000, 4_000_000, 20, 20))
    return PrepareOptions(
        pairs=[PairOptions("hills", fixed, moving)],
        tile_px=48,
        stride_px=24,
        split=SplitOptions(block_px=84, gap_px=12),
        noise=NoiseOptions("knots", sigma_px=2, spacing_px=16),
    )


@pytest.fixture(scope="module")
def prepared(options: PrepareOptions, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run") / "prepare"
    prepare(options, folder)
    return folder


@pytest.fixture
def store(prepared: Path, tmp_path: Path) -> TileStore:
    shutil.copytree(prepared, tmp_path / "run" / "prepare")
    return TileStore.open(tmp_path / "run" / "prepare")


def test_tiles_are_windows_of_the_scene(store: TileStore, options: PrepareOptions) -> None:
    scene = store.scene("hills")
    whole = scene.read(0, 0, *scene.shape)
    with PairReader(options.pairs[0]) as reader:
        direct = reader.read(0, 0, *reader.shape)
    np.testing.assert_allclose(whole.fixed, direct.fixed, atol=1.5e-3)  # stored in half precision
    np.testing.assert_allclose(whole.moving, direct.moving, atol=1.5e-3)
    for name in ("fixed_valid", "moving_valid", "structure"):
        assert (getattr(whole, name) == getattr(direct, name)).all()
    for position in (0, len(store) // 2, len(store) - 1):
        tile, row = store.tile(position), store.index.iloc[position]
        window = np.s_[row["row"] : row["row"] + 48, row["col"] : row["col"] + 48]
        assert (tile.fixed == whole.fixed[:, *window]).all()
        assert (tile.structure == whole.structure[window]).all()
        assert tile.fixed.dtype == tile.moving.dtype == tile.label_offset.dtype == np.float32
        assert tile.fixed_valid.dtype == bool


def test_index_tells_what_the_tiles_hold(store: TileStore) -> None:
    index = store.index
    written = gpd.read_parquet(store.folder / "index.parquet")
    assert written["split"].tolist() == index["part"].tolist()
    np.testing.assert_array_equal(np.stack(written["label_offset"]), index[["label_dx_px", "label_dy_px"]])
    np.testing.assert_array_equal(np.stack(written["true_offset"]), np.zeros((len(index), 2)))
    assert index["tile_id"].tolist() == list(range(len(store)))
    assert set(index["part"]) == {"train", "validation", "test", "shifted"}
    assert sum(len(store.tiles(part)) for part in ("train", "validation", "test", "shifted")) == len(store)
    blocks = store.blocks.set_index("block_id")
    for position, row in enumerate(index.itertuples()):
        block = blocks.loc[row.region]
        assert block["part"] == row.part
        assert block["row"] <= row.row <= row.row + 48 <= block["row"] + block["height"]
        assert block["col"] <= row.col <= row.col + 48 <= block["col"] + block["width"]
        assert block.geometry.buffer(1e-6).contains(row.geometry)
        if position % 20 == 0:
            tile = store.tile(position)
            assert tile.true_offset is not None
            assert not tile.true_offset.any()
            assert (row.label_dx_px, row.label_dy_px) == pytest.approx(tuple(tile.label_offset[:, 24, 24]))
            assert (row.true_dx_px, row.true_dy_px) == (0, 0)
            both = tile.fixed_valid & tile.moving_valid
            assert row.valid_share == pytest.approx(both.mean())
            assert row.structure_share == pytest.approx((both & tile.structure).mean())
    row = index.iloc[3]
    left, top = 400_000 + 10 * row["col"], 4_000_000 - 10 * row["row"]
    assert row.geometry.bounds == pytest.approx((left, top - 480, left + 480, top))
    assert index.crs.to_epsg() == 32618


def test_tiles_are_found_by_their_ids(store: TileStore) -> None:
    ids = store.index["tile_id"].to_numpy()
    np.testing.assert_array_equal(store.positions(ids[[5, 0, 5]]), [5, 0, 5])
    with pytest.raises(StoreError, match="has not all the tiles"):
        store.positions([int(ids.max()) + 1])


def test_no_tile_of_another_part_is_nearer_than_the_gap(store: TileStore) -> None:
    rows = store.index[["row", "col", "part"]].to_numpy()
    for (row, col, part), (other_row, other_col, other) in product(rows, rows):
        if part != other:
            assert max(abs(row - other_row), abs(col - other_col)) >= 48 + 12


def test_labels_of_overlapping_tiles_agree(store: TileStore) -> None:
    rows = store.index[["row", "col"]].to_numpy()
    neighbours = [(i, j) for i, j in product(range(60), range(60)) if (rows[j] - rows[i]).tolist() == [0, 24]]
    assert neighbours
    for one, other in neighbours[:10]:
        np.testing.assert_allclose(
            store.tile(one).label_offset[..., 24:], store.tile(other).label_offset[..., :24], atol=1e-5
        )
    labels = np.stack([store.tile(position).label_offset for position in range(len(store))])
    assert 1.0 < labels.std() < 2.1  # 2 px at the knots, less between


def test_another_noise_seed_keeps_the_tiles(store: TileStore, options: PrepareOptions, tmp_path: Path) -> None:
    prepare(replace(options, noise=replace(options.noise, seed=5)), tmp_path / "other")
    other = TileStore.open(tmp_path / "other")
    columns = ["pair", "row", "col", "part", "region"]
    assert other.index[columns].equals(store.index[columns])
    assert np.abs(other.index["label_dx_px"] - store.index["label_dx_px"]).max() > 1


def test_the_same_settings_make_the_same_store(store: TileStore, options: PrepareOptions, tmp_path: Path) -> None:
    prepare(options, tmp_path / "again")
    again = TileStore.open(tmp_path / "again")
    assert again.index.equals(store.index)
    assert (again.tile(7).label_offset == store.tile(7).label_offset).all()
    assert (again.tile(7).fixed == store.tile(7).fixed).all()


def test_unknown_truth_stays_unknown(options: PrepareOptions, tmp_path: Path) -> None:
    prepare(replace(options, pairs=[replace(options.pairs[0], truth="unknown")]), tmp_path / "p")
    store = TileStore.open(tmp_path / "p")
    assert store.tile(0).true_offset is None
    assert store.index[["true_dx_px", "true_dy_px"]].isna().all(axis=None)
    assert gpd.read_parquet(store.folder / "index.parquet")["true_offset"].isna().all()
    assert np.isfinite(store.tile(0).label_offset).all()


def test_whole_pairs_to_parts_in_several_crs(options: PrepareOptions, raster_file: Write, tmp_path: Path) -> None:
    pair = options.pairs[0]
    image = np.random.default_rng(1).random((2, 96, 96)).astype(np.float32)
    far = raster_file("far.tif", image, crs="EPSG:32633")
    pairs = [replace(pair, part="train"), PairOptions("far", far, far, moving_bands=[2], part="test")]
    prepare(replace(options, pairs=pairs, split=SplitOptions("pairs"), min_structure=0), tmp_path / "p")
    store = TileStore.open(tmp_path / "p")
    assert store.pairs == ["hills", "far"]
    assert store.index.groupby("pair")["part"].unique().map(list).to_dict() == {"hills": ["train"], "far": ["test"]}
    assert store.index.crs.to_epsg() == 4326
    here = store.index[store.index["pair"] == "far"].to_crs("EPSG:32633").geometry.iloc[0]
    assert here.bounds == pytest.approx((400_000, 3_999_520, 400_480, 4_000_000), abs=0.01)
    assert store.tile(int(store.tiles("test")[0])).moving.shape == (1, 48, 48)


def test_vector_pair_with_object_noise(options: PrepareOptions, tmp_path: Path) -> None:
    fields = [
        shapely.box(x, y, x + 300, y + 250)
        for x in range(400_100, 403_500, 400)
        for y in range(3_997_300, 3_999_700, 350)
    ]
    gpd.GeoDataFrame({"n": range(len(fields))}, geometry=fields, crs="EPSG:32618").to_file(tmp_path / "f.gpkg")
    pair = replace(options.pairs[0], moving=str(tmp_path / "f.gpkg"))
    prepare(replace(options, pairs=[pair], noise=NoiseOptions("object", sigma_px=3)), tmp_path / "p")
    store = TileStore.open(tmp_path / "p")
    assert store.moving_channels == ["interior", "edge", "vertex"]
    tile = store.tile(len(store) // 2)
    offsets = {tuple(offset) for offset in tile.label_offset[:, tile.moving[0] == 1].T.round(4).tolist()}
    assert 2 <= len(offsets) <= 12


@pytest.mark.parametrize(
    ("changes", "kind", "says"),
    [
        ({"pairs": []}, ConfigError, "pairs is empty"),
        ({"tile_px": 8}, ConfigError, r"prepare\.tile_px=8 is out of range"),
        ({"min_valid": 1.5}, ConfigError, r"prepare\.min_valid=1\.5 is out of range"),
        ({"noise": NoiseOptions("object")}, ConfigError, "needs polygons"),
        ({"split": SplitOptions("pairs")}, ConfigError, "needs the part of every pair; give pair hills one"),
        ({"split": SplitOptions("blocks", block_px=500)}, ConfigError, "choose smaller blocks"),
        ({"tile_px": 96, "stride_px": 96}, ConfigError, "no tile of 96 px"),
        ({"gsd_m": 1.0}, InputError, "finer than fixed's own"),
    ],
)
def test_settings_that_cannot_be_met(
    options: PrepareOptions, tmp_path: Path, changes: dict[str, object], kind: type[RegnetError], says: str
) -> None:
    with pytest.raises(kind, match=says) as caught:
        prepare(replace(options, **changes), tmp_path / "prepare")  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)
    assert not [path for path in tmp_path.iterdir() if "prepare" in path.name]


def test_pairs_that_do_not_go_together(options: PrepareOptions, tmp_path: Path) -> None:
    pair = options.pairs[0]
    with pytest.raises(ConfigError, match="'hills' is not unique"):
        prepare(replace(options, pairs=[pair, pair]), tmp_path / "p")
    other = replace(pair, name="one-band", fixed_bands=[1])
    with pytest.raises(InputError, match="pair one-band has 1 fixed channels and pair hills has 2"):
        prepare(replace(options, pairs=[pair, other]), tmp_path / "p")
    pairs = [replace(pair, part="train"), replace(pair, name="b", fixed="nowhere.tif")]
    with pytest.raises(ConfigError, match="give pair b one"):  # before a file is read
        prepare(replace(options, pairs=pairs, split=SplitOptions("pairs")), tmp_path / "p")


def test_images_without_common_valid_ground(options: PrepareOptions, raster_file: Write, tmp_path: Path) -> None:
    image = np.random.default_rng(0).random((1, 280, 380)).astype(np.float32) + 1
    west, east = image.copy(), image.copy()
    west[..., 190:], east[..., :190] = 0, 0
    paths = [raster_file(f"{name}.tif", half, nodata=0) for name, half in (("west", west), ("east", east))]
    with pytest.raises(InputError, match="no valid pixel in common"):
        prepare(replace(options, pairs=[PairOptions("a", *paths)]), tmp_path / "p")


def test_values_that_look_like_no_data_are_told_of(
    options: PrepareOptions, raster_file: Write, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    image = np.random.default_rng(0).random((1, 280, 380)).astype(np.float32)
    image[:, :100] = -9999
    pair = replace(options.pairs[0], moving=raster_file("undeclared.tif", image))
    prepare(replace(options, pairs=[pair]), tmp_path / "p")
    told = capsys.readouterr().err
    assert "prepare hills: " in told
    assert "of band undeclared is -9999, which looks like no data" in told


def test_a_run_that_fails_leaves_the_older_store(
    store: TileStore, options: PrepareOptions, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = store.tile(3).label_offset

    def full_disk(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(gpd.GeoDataFrame, "to_parquet", full_disk)
    with pytest.raises(OutputError, match=r"No space left on device.*free some space"):
        prepare(replace(options, seed=9, noise=NoiseOptions()), store.folder)
    assert (TileStore.open(store.folder).tile(3).label_offset == before).all()
    assert [path.name for path in store.folder.parent.iterdir()] == ["prepare"]


def test_a_killed_run_leaves_the_older_store(store: TileStore, options: PrepareOptions) -> None:
    script = (
        "import os, signal, sys\nfrom pathlib import Path\nimport regnet.tiles.prepare as stage\n"
        "from regnet.tiles.options import *\n"
        "stage.find_tiles = lambda *_: os.kill(os.getpid(), signal.SIGKILL)\n"
        f"stage.prepare({options!r}, Path({str(store.folder)!r}))\n"
    )
    killed = subprocess.run([sys.executable, "-c", script], env={**os.environ, "OMP_NUM_THREADS": "1"}, check=False)
    assert killed.returncode == -signal.SIGKILL
    assert len(TileStore.open(store.folder)) == len(store)
    prepare(replace(options, tile_px=40), store.folder)
    assert TileStore.open(store.folder).tile_px == 40
    assert [path.name for path in store.folder.parent.iterdir()] == ["prepare"]


def test_a_folder_that_cannot_be_written(options: PrepareOptions, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    for folder in (tmp_path / "file" / "prepare", tmp_path / "file" / "run" / "prepare"):
        with pytest.raises(OutputError, match="cannot be written"):
            prepare(options, folder)
    assert (tmp_path / "file").read_text() == "in the way"


def test_stores_that_are_not_whole_are_refused(store: TileStore) -> None:
    folder = store.folder
    manifest = read_json(folder / "manifest.json")
    with pytest.raises(StoreError, match="no tile store"):
        TileStore.open(folder / "elsewhere")
    with pytest.raises(StoreError, match="has no pair plains; it has hills"):
        store.scene("plains")
    write_json(folder / "manifest.json", manifest | {"version": 0})
    with pytest.raises(StoreError, match="another version"):
        TileStore.open(folder)
    write_json(folder / "manifest.json", manifest | {"tiles": 3})
    with pytest.raises(StoreError, match="do not fit"):
        TileStore.open(folder)
    write_json(folder / "manifest.json", {"version": manifest["version"]})
    with pytest.raises(StoreError, match="damaged"):
        TileStore.open(folder)
    write_json(folder / "manifest.json", manifest)
    index = (folder / "index.parquet").read_bytes()
    (folder / "index.parquet").write_bytes(index[:300])
    with pytest.raises(StoreError, match="damaged"):
        TileStore.open(folder)
    (folder / "index.parquet").write_bytes(index)
    TileStore.open(folder)
    next(path for path in (folder / "tiles.zarr" / "label_offset").rglob("*") if path.is_file()).unlink()
    with pytest.raises(StoreError, match="cut short"):
        TileStore.open(folder)
    (folder / "manifest.json").write_text('{"version"')
    with pytest.raises(StoreError, match="damaged"):
        TileStore.open(folder)


@pytest.mark.parametrize(
    ("split", "parts", "refused"),
    [
        (SplitOptions("pairs"), ("train", "test"), True),
        (SplitOptions("pairs"), ("train", "train"), False),
        (SplitOptions("columns", validation_share=0.1, test_share=0.3, gap_px=16), (None, None), False),
    ],
)
def test_ground_of_two_pairs_belongs_to_one_part(
    options: PrepareOptions, tmp_path: Path, split: SplitOptions, parts: tuple[str | None, ...], refused: bool
) -> None:
    """The same place at two times: what is tested on in one pair must not be trained on in the other."""
    pairs = [replace(options.pairs[0], name=name, part=part) for name, part in zip("ab", parts, strict=True)]
    options = replace(options, pairs=pairs, split=split, tile_px=32, min_structure=0)
    if refused:
        with pytest.raises(ConfigError, match="a and b show the same ground, train in one and test in the other"):
            prepare(options, tmp_path / "p")
        return
    prepare(options, tmp_path / "p")
    blocks = TileStore.open(tmp_path / "p").blocks
    ground = {part: shapely.union_all(shapes.geometry.to_numpy()) for part, shapes in blocks.groupby("part")}
    for one, two in combinations(ground.values(), 2):
        assert one.intersection(two).area == 0
