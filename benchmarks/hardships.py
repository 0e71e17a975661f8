"""Pairs that are hard in one respect each: `python -m benchmarks.hardships --json FILE`.

Real pairs that are in place, displaced by a known field: pixels of moving 2 to 10 times as large as fixed's, pairs
that are turned and stretched as well, a sensor's jitter along rows or on a slant, gaps in moving of any size, radar far
away, tiny crops, and clouds that moved over ground that did not. `none` and `error` are mean end-point errors, px, of
doing nothing and of `register`, which leaves in place what it abstains from; `within_50` and `within_90` are the shares
of what is registered within the bounds that it states.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import rasterio
from affine import Affine
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter, gaussian_filter1d

from benchmarks.pairs import FAMILIES, as_uint16, naip_pair, radar_pair, sample_pair
from regnet.displacement import random_field
from regnet.registration.calibration import BOUND_90
from regnet.registration.options import RegisterOptions
from regnet.registration.register import register
from regnet.tiles.options import PairOptions
from regnet.tiles.pair import PairReader
from regnet.tiles.patch import Patch, displaced

Field = NDArray[np.float32]
MARGIN_PX = 80
CORNER, SIDE = (200, 700), 640
"""Row and column of the crops of the sample scene, farmland, woods and a town, and their side."""


def smooth(shape: tuple[int, int], seed: int) -> Field:
    """A random field of the family of that name."""
    family = FAMILIES["smooth"]
    return random_field(shape, family.peak_px, family.sigma_px, np.random.default_rng(seed))


def turned(degrees: float, stretch: float, shift: tuple[float, float]) -> Callable[[tuple[int, int], int], Field]:
    """That field beyond a similarity about the middle."""

    def draw(shape: tuple[int, int], seed: int) -> Field:
        angle, middle = math.radians(degrees), np.array(shape[::-1]) / 2
        turn = stretch * np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
        places = np.mgrid[: shape[0], : shape[1]][::-1] + 0.5 - middle[:, None, None]
        whole = np.einsum("ij,jhw->ihw", turn - np.eye(2), places) + np.array(shift)[:, None, None]
        return np.asarray(whole + smooth(shape, seed), np.float32)

    return draw


def jitter(degrees: float) -> Callable[[tuple[int, int], int], Field]:
    """Lines shaken by 1 px a component, waves of about 40 px, at an angle to the rows."""

    def draw(shape: tuple[int, int], seed: int) -> Field:
        rows, cols = np.mgrid[: shape[0], : shape[1]]
        angle, many = math.radians(degrees), sum(shape)
        shaken = gaussian_filter1d(np.random.default_rng(seed).normal(size=(2, 2 * many)), 40 / 6)
        shaken /= shaken.std(1, keepdims=True)
        line = many + rows * math.cos(angle) - cols * math.sin(angle)
        return np.stack([np.interp(line, np.arange(2 * many), one) for one in shaken]).astype(np.float32)

    return draw


def still(shape: tuple[int, int], _: int) -> Field:
    """Nothing."""
    return np.zeros((2, *shape), np.float32)


def with_gaps(patch: Patch, _: int) -> Patch:
    """Slanting gaps in moving, two fifths of it, as of a scanner whose line corrector failed."""
    rows, cols = np.mgrid[: patch.structure.shape[0], : patch.structure.shape[1]]
    return replace(patch, moving_valid=patch.moving_valid & ((rows + 0.15 * cols) % 40 >= 16))


def with_salt(patch: Patch, seed: int) -> Patch:
    """One pixel in ten of moving without a value."""
    hidden = np.random.default_rng(seed).random(patch.structure.shape) < 0.1
    return replace(patch, moving_valid=patch.moving_valid & ~hidden)


def with_clouds(patch: Patch, seed: int) -> Patch:
    """Clouds over a twentieth of both images, in moving 12 px farther down and 4 to the right."""
    noise = np.random.default_rng(seed).normal(size=patch.structure.shape)
    sky = sum(gaussian_filter(noise, sigma, mode="wrap") * sigma for sigma in (2.0, 6.0, 18.0))
    cloud = np.clip((sky - np.quantile(sky, 0.95)) / sky.std(), 0, 1).astype(np.float32)
    moved = np.roll(cloud, (12, 4), (0, 1))
    fixed, moving = (
        np.where(cover > 0, 1 + 2 * cover, image) for image, cover in ((patch.fixed, cloud), (patch.moving, moved))
    )
    return replace(patch, fixed=fixed, moving=moving)


@dataclass(frozen=True)
class Hardship:
    """A pair, the part of it that is used (all if there is no side), what displaces it, and what makes it hard."""

    pair: Callable[[], PairOptions]
    side: int | None = SIDE
    field: Callable[[tuple[int, int], int], Field] = smooth
    spoil: Callable[[Patch, int], Patch] = lambda patch, _: patch
    times: int = 1


HARDSHIPS = {
    **{
        f"coarse_{band}_{times}": Hardship(partial(sample_pair, band), times=times)
        for band in ("B04", "B08")
        for times in (2, 5, 8, 10)
    },
    "naip_turned": Hardship(naip_pair, None, turned(5, 1.0, (20, -10))),
    "naip_stretched": Hardship(naip_pair, None, turned(0, 1.08, (0, 0))),
    "naip_both": Hardship(naip_pair, None, turned(5, 1.05, (-30, 20))),
    "swir_both": Hardship(sample_pair, None, turned(-5, 1.05, (40, 30))),
    "radar_far": Hardship(partial(radar_pair, 3), None, turned(0, 1.0, (50, -40))),
    "radar_turned": Hardship(partial(radar_pair, 9), None, turned(4, 1.0, (10, 10))),
    **{
        f"jitter_{band}_{degrees}": Hardship(partial(sample_pair, band), field=jitter(degrees))
        for band in ("B04", "B11")
        for degrees in (0, 12, 45)
    },
    "gaps": Hardship(partial(sample_pair, "B08"), spoil=with_gaps),
    "gaps_shifted": Hardship(partial(sample_pair, "B08"), field=turned(0, 1.0, (15, 8)), spoil=with_gaps),
    "salt": Hardship(partial(sample_pair, "B08"), spoil=with_salt),
    "clouds_moved": Hardship(partial(sample_pair, "B08"), field=still, spoil=with_clouds),
    **{f"tiny_{side}": Hardship(partial(sample_pair, "B08"), side=side) for side in (16, 24, 32, 48, 64, 96)},
}


def measure(name: str, seed: int) -> dict[str, Any]:
    """Make a case, register it, and compare."""
    hardship = HARDSHIPS[name]
    with PairReader(hardship.pair()) as reader:
        height, width = (hardship.side,) * 2 if hardship.side else reader.shape
        row, col = CORNER if hardship.side else (0, 0)
        patch = reader.read(row - MARGIN_PX, col - MARGIN_PX, height + 2 * MARGIN_PX, width + 2 * MARGIN_PX)
        crs, transform = reader.crs, reader.transform @ Affine.translation(col, row)
    true = hardship.field(patch.structure.shape, seed)
    moved = hardship.spoil(displaced(patch, true), seed)
    inner = slice(MARGIN_PX, -MARGIN_PX)
    true, moved = true[:, inner, inner], Patch(*(layer[..., inner, inner] for layer in vars(moved).values()))
    with TemporaryDirectory() as scratch:
        folder, times = Path(scratch), hardship.times
        moving = as_uint16(moved.moving, moved.moving_valid)
        squares = moving.reshape(len(moving), height // times, times, width // times, times).mean((2, 4))
        for file, values, size in (
            ("fixed", as_uint16(moved.fixed, moved.fixed_valid), 1),
            ("moving", np.rint(squares).astype(np.uint16), times),
        ):
            count, rows, cols = values.shape
            profile = {"driver": "GTiff", "count": count, "height": rows, "width": cols, "dtype": "uint16", "nodata": 0}
            profile |= {"crs": crs, "transform": transform @ Affine.scale(size)}
            with rasterio.open(folder / f"{file}.tif", "w", **profile) as target:
                target.write(values)
        options = RegisterOptions(str(folder / "fixed.tif"), str(folder / "moving.tif"), check_windows=0)
        share = register(options, folder / "out")
        with rasterio.open(folder / "out" / "displacement.tif") as source:
            found = source.read()
    known, error, none = np.isfinite(found[2]), np.hypot(*(found[:2] - true)), np.hypot(*true)
    result = {"case": name, "seed": seed, "none": float(none.mean()), "error": float(error.mean()), "share": share}
    if known.any():
        told = found[2][known]
        result |= {"error_registered": float(error[known].mean()), "expected": float(np.median(told))}
        bounds = {"within_50": 1.0, "within_90": BOUND_90}
        result |= {key: float((error[known] <= factor * told).mean()) for key, factor in bounds.items()}
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="file of the results")
    parser.add_argument("--cases", nargs="+", choices=list(HARDSHIPS), default=list(HARDSHIPS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1])
    arguments = parser.parse_args()
    results = []
    for name in arguments.cases:
        for seed in arguments.seeds:
            results.append(measure(name, seed))
            print({key: round(value, 3) if isinstance(value, float) else value for key, value in results[-1].items()})
    if arguments.json:
        arguments.json.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
