"""Fixtures for several rooms: the installed console script, a miniature pair and a miniature run of it."""

from __future__ import annotations

import os
import resource
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
from scipy.ndimage import gaussian_filter

from data_prep import sentinel2_sample
from regnet import cli
from regnet.config import default_cache, default_data_root
from regnet.tiles.options import PairOptions, PrepareOptions, SplitOptions
from regnet.tiles.prepare import prepare
from regnet.tiles.store import TileStore
from regnet.training.fit import Fit

Regnet = Callable[..., "subprocess.CompletedProcess[str]"]

MINI_SETTINGS = (
    "prepare.tile_px=64",
    "prepare.stride_px=32",
    "prepare.split.rule=columns",
    "prepare.split.test_share=0.3",
    "prepare.split.validation_share=0.2",
    "prepare.split.gap_px=8",
    "prepare.noise={kind: tile, sigma_px: 1.0}",
    "model={width: 8, levels: 2, descriptor_channels: 4}",
    "training={epochs: 1, steps: 2, batch: 2, familiarity_tiles: 4}",
    "similarity.max_tiles=12",
    "similarity.max_query_tiles=4",
    "evaluate.parts=[test]",
    "evaluate.context_px=8",
    "report.dpi=50",
    "report.queries=2",
    "report.nearest=3",
)


@contextmanager
def full_disk(most_bytes: int) -> Iterator[None]:
    """The kernel itself refuses: no file that this process writes may grow beyond so many bytes."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (most_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)


def run_process(*command: str, folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a command in a folder, with one thread."""
    return subprocess.run(
        command,
        cwd=folder,
        env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
        capture_output=True,
        text=True,
        timeout=300,
    )


@pytest.fixture(scope="session")
def regnet() -> Regnet:
    """Run the installed console script in a folder."""
    return partial(run_process, str(Path(sys.executable).with_name("regnet")))


@pytest.fixture(scope="session")
def torchrun() -> Regnet:
    """Run the installed console script, or a script of one's own, in two processes."""
    start = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
    console = ("--no-python", str(Path(sys.executable).with_name("regnet")))

    def run(*arguments: str, folder: Path) -> subprocess.CompletedProcess[str]:
        own = arguments[0].endswith(".py")
        return run_process(*start, *(() if own else console), *arguments, folder=folder)

    return run


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Regnet:
    """Run a command in this process, which saves its start, in the test's own folder."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        monkeypatch.setattr(sys, "argv", ["regnet", *arguments])
        code = cli.main()
        return subprocess.CompletedProcess(arguments, code, *capfd.readouterr())

    return run


@pytest.fixture(scope="session")
def mini_pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Two rasters of one made-up place in different modalities: fixed has three bands, moving one, inverted."""
    folder = tmp_path_factory.mktemp("pair")
    generator = np.random.default_rng(0)
    ground = gaussian_filter(generator.standard_normal((224, 320)), 2.0)
    ground = (ground - ground.min()) / np.ptp(ground)
    noise = generator.normal(0, 0.01, (3, *ground.shape))
    write_raster(folder / "fixed.tif", (2000 * (ground + noise)).clip(0).astype(np.uint16))
    write_raster(folder / "moving.tif", (250 * (1 - ground[None] ** 2)).astype(np.uint8))
    return folder / "fixed.tif", folder / "moving.tif"


def write_raster(path: Path, image: np.ndarray) -> None:
    """Write (C, H, W) with 10 m pixels somewhere in UTM zone 33."""
    profile = {
        "driver": "GTiff",
        "count": len(image),
        "height": image.shape[1],
        "width": image.shape[2],
        "dtype": image.dtype,
        "crs": "EPSG:32633",
        "transform": rasterio.transform.from_origin(500_000, 5_000_000, 10, 10),
    }
    with rasterio.open(path, "w", **profile) as target:
        target.write(image)


@pytest.fixture(scope="session")
def mini_store(mini_pair: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Callable[..., TileStore]:
    """Prepare tiles of the miniature pair, which is split by columns; settings are those of `PrepareOptions`."""

    def prepared(**settings: Any) -> TileStore:
        folder = tmp_path_factory.mktemp("store") / "prepare"
        pairs = [PairOptions("mini", *(str(path) for path in mini_pair))]
        split = SplitOptions(rule="columns", test_share=0.3, validation_share=0.2, gap_px=8)
        prepare(PrepareOptions(pairs=pairs, split=split, **settings), folder)
        return TileStore.open(folder)

    return prepared


@pytest.fixture(scope="session")
def mini_settings(mini_pair: tuple[Path, Path]) -> list[str]:
    """Overrides that make a run of the miniature pair take seconds."""
    fixed, moving = mini_pair
    return [f"prepare.pairs=[{{name: mini, fixed: {fixed}, moving: {moving}}}]", *MINI_SETTINGS]


@pytest.fixture(scope="session")
def mini_run(
    regnet: Regnet, mini_settings: list[str], tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, subprocess.CompletedProcess[str]]:
    """A whole miniature run: its folder, and what the command printed."""
    folder = tmp_path_factory.mktemp("run")
    return folder / "mini", regnet("run", *mini_settings, "output_dir=mini", folder=folder)


@contextmanager
def killed_in_epoch(number: int) -> Iterator[None]:
    """Within it a training goes on until this epoch begins, and is interrupted there."""
    whole = Fit._epoch

    def killed(self: Fit, epoch: int) -> dict[str, Any]:
        if epoch == number:
            raise KeyboardInterrupt
        return whole(self, epoch)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Fit, "_epoch", killed)
        with pytest.raises(KeyboardInterrupt):
            yield


def missing_data(reason: str) -> None:
    """Skip a test for want of data, or fail it where REGNET_REQUIRE_DATA=1 says that they must be there."""
    if os.environ.get("REGNET_REQUIRE_DATA") == "1":
        pytest.fail(f"{reason}, and REGNET_REQUIRE_DATA=1")
    pytest.skip(f"{reason}; set REGNET_DATA to the folder of the data sets")


@pytest.fixture(scope="session")
def data_root() -> Path:
    """Folder of the real data."""
    root = Path(default_data_root())
    if not (root / "s1s2").is_dir():
        missing_data(f"no real data at {root}")
    return root


@pytest.fixture(scope="session")
def vgg_file(data_root: Path) -> Path:
    """Weights of VGG16's trunk in its authors' convention, beside the real data."""
    path = data_root.parent / "weights" / "vgg16_oxford_conv1-3_bgr_caffe.pth"
    if not path.is_file():
        missing_data(f"no weights at {path}")
    return path


@pytest.fixture(scope="session")
def sample_scene() -> Path:
    """Folder of the Sentinel-2 sample's six bands; fetched only where data are required."""
    cache = Path(default_cache())
    if os.environ.get("REGNET_REQUIRE_DATA") == "1":
        return sentinel2_sample.fetch(cache)
    folder = cache / "sentinel2_sample"
    if not sentinel2_sample.is_whole(folder, sentinel2_sample.BANDS):
        missing_data(f"no sample scene at {folder} (python -m data_prep.sentinel2_sample fetches it)")
    return folder


@pytest.fixture(scope="session")
def write_geotiff() -> Callable[..., str]:
    """Write (C, H, W) to a GeoTIFF and give its path; anything of the profile can be overridden, None leaves it out."""

    def write(path: Path, image: np.ndarray, mask: np.ndarray | None = None, **profile: object) -> str:
        given = {
            "count": len(image),
            "height": image.shape[1],
            "width": image.shape[2],
            "dtype": image.dtype.name,
            "crs": "EPSG:32618",
            "transform": rasterio.transform.from_origin(400_000, 4_000_000, 10, 10),
        } | profile
        chosen = {key: value for key, value in given.items() if value is not None}
        with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True), rasterio.open(path, "w", driver="GTiff", **chosen) as target:
            target.write(image)
            if mask is not None:
                target.write_mask(mask)
        return str(path)

    return write


@pytest.fixture
def raster_file(tmp_path: Path, write_geotiff: Callable[..., str]) -> Callable[..., str]:
    """Write a GeoTIFF of this name into the test's own folder."""
    return lambda name, image, **settings: write_geotiff(tmp_path / name, image, **settings)


@pytest.fixture
def browse(tmp_path: Path) -> Callable[[Path], str]:
    """Open a page in headless Chromium; gives its DOM, told how many pictures were decoded and how far it overflows."""
    browser = shutil.which("chromium") or shutil.which("chromium-browser")
    if browser is None:
        if os.environ.get("REGNET_REQUIRE_CHROMIUM") == "1":
            pytest.fail("chromium is not installed, and REGNET_REQUIRE_CHROMIUM=1")
        pytest.skip("chromium is not installed")
    script = "<script>addEventListener('load',()=>{const d=document.documentElement,i=[...document.images];"
    script += "d.dataset.loaded=i.filter(p=>p.complete&&p.naturalWidth>0).length+'/'+i.length;"
    script += "d.dataset.overflow=d.scrollWidth-d.clientWidth})</script>"
    flags = [
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-quic",
        "--no-first-run",
        "--disable-background-networking",
        "--disable-component-update",
        "--disable-sync",
        "--window-size=500,900",
        "--virtual-time-budget=10000",
        "--dump-dom",
    ]

    def show(page: Path) -> str:
        probed = tmp_path / "probed.html"
        probed.write_text(page.read_text().replace("</body>", f"{script}</body>"))
        shown = subprocess.run(
            [browser, *flags, f"--user-data-dir={tmp_path / 'profile'}", probed.as_uri()],
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert shown.returncode == 0, shown.stderr
        return shown.stdout

    return show
