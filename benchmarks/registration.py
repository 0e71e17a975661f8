"""Accuracy, time and memory of registration, beside other tools: `python -m benchmarks.registration --json FILE`.

Two real pairs are displaced by a known smooth field (peak 8 px, sigma 80 px) and written as GeoTIFFs: the sample scene
(visible to short-wave infrared) and 3000 x 3000 px of `banepa` (red band to a negative of the blue one with another
gamma). The case `banepa_10000`, which has to be asked for, is the second one mirrored to 10,000 x 10,000 px, 8 bit.
Every tool gets the same files in a process of its own, on one thread; its time is that of reading, matching and
writing the field, and `regnet` writes all of `register`'s outputs. Peak memory is that of the process (Linux).
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("MKL_NUM_THREADS", "1")

import cv2
import numpy as np
import rasterio
from numpy.typing import NDArray

from data_prep.sentinel2_sample import fetch
from regnet import metrics
from regnet.baselines.registry import METHODS, find_method
from regnet.config import default_cache, default_data_root
from regnet.errors import InputError
from regnet.evaluation.cases import SceneField, displaced
from regnet.evaluation.options import FamilyOptions
from regnet.registration.options import RegisterOptions
from regnet.registration.register import register
from regnet.tiles.options import PairOptions
from regnet.tiles.pair import PairReader
from regnet.tiles.patch import Patch

FAMILY = FamilyOptions("smooth", 8.0, 80.0)
TOOLS = [
    "none",
    "regnet",
    "classical.dis",
    "classical.klt",
    "classical.bspline",
    "classical.elastix",
    "classical.phase",
]


def sample_pair() -> PairOptions:
    folder = fetch(Path(default_cache()))
    return PairOptions(
        "sample", "|".join(str(folder / f"s2_B0{band}.jp2") for band in (2, 3, 4)), str(folder / "s2_B11.jp2")
    )


def banepa_pair() -> PairOptions:
    image = str(Path(default_data_root()) / "banepa" / "image.tif")
    return PairOptions("banepa", image, image, fixed_bands=[1], moving_bands=[3])


CASES = {"sample": (sample_pair, 1900), "banepa_3000": (banepa_pair, 3000), "banepa_10000": (banepa_pair, 2500)}
MIRRORED = {"banepa_10000": 4}
"""How many times a case is repeated along each axis, every other time mirrored."""


def make_case(name: str, folder: Path) -> None:
    """Write fixed.tif, moving.tif and truth.npz (the true displacement and where it is evaluated)."""
    make_pair, side = CASES[name]
    with PairReader(make_pair()) as reader:
        patch = reader.read(0, 0, side, side)
        crs, transform = reader.crs, reader.transform
    true = SceneField((side, side), FAMILY, np.random.default_rng(0)).window(0, 0, side, side)
    moved = displaced(patch, true)
    moving = moved.moving
    if name != "sample":
        moving = -(np.clip(moving + 1, 0, None) ** 0.6)
    times = MIRRORED.get(name, 1)
    for file, bands, valid in (("fixed", patch.fixed, patch.fixed_valid), ("moving", moving, moved.moving_valid)):
        values, nodata = np.where(valid, bands, np.float32("nan")), np.nan
        if times > 1:
            low, high = np.nanmin(values), np.nanmax(values)
            scaled = 1 + 254 * (values - low) / (high - low)
            values, nodata = np.where(valid, scaled, 0).astype(np.uint8), 0
        values = mirrored(values, times)
        profile = {"driver": "GTiff", "dtype": values.dtype, "count": len(bands), "nodata": nodata, "tiled": True}
        shape = {"height": values.shape[1], "width": values.shape[2], "crs": crs, "transform": transform}
        with rasterio.open(folder / f"{file}.tif", "w", **profile, **shape) as target:
            target.write(values)
    valid = patch.fixed_valid & moved.moving_valid
    signs = np.where(np.arange(times) % 2, -1, 1).repeat(side)
    full = mirrored(true, times) * np.stack(np.broadcast_arrays(signs, signs[:, None])).astype(np.float32)
    masks = {"valid": valid, "structure": valid & patch.structure}
    np.savez(folder / "truth.npz", true=full, **{key: mirrored(mask, times) for key, mask in masks.items()})


def mirrored(values: NDArray[Any], times: int) -> NDArray[Any]:
    """Repeat (..., H, W) along both axes, every other time mirrored."""
    for axis in (-2, -1):
        copies = [np.flip(values, axis) if copy % 2 else values for copy in range(times)]
        values = np.concatenate(copies, axis)
    return values


def read(path: Path) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    with rasterio.open(path) as source:
        values = source.read()
    valid = np.isfinite(values).all(0)
    return np.where(valid, values, np.float32(0)), valid


def peak_mb() -> float:
    """Peak memory of this process; `getrusage` would count what the parent held when it started this one."""
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) / 1024


def run_tool(tool: str, folder: Path) -> dict[str, Any]:
    """Run one tool on a case in this process; the field lands in `<tool>.npy`."""
    cv2.setNumThreads(1)
    start, cpu = time.perf_counter(), time.process_time()
    result: dict[str, Any] = {}
    try:
        if tool == "regnet":
            out = folder / "regnet"
            options = RegisterOptions(str(folder / "fixed.tif"), str(folder / "moving.tif"))
            result["share_registered"] = register(options, out)
        else:
            (fixed, fixed_valid), (moving, moving_valid) = read(folder / "fixed.tif"), read(folder / "moving.tif")
            patch = Patch(fixed, moving, fixed_valid, moving_valid, structure=fixed_valid)
            np.save(folder / f"{tool}.npy", find_method(tool)(patch))
    except InputError as error:
        result["failure"] = str(error)
    result |= {"seconds": time.perf_counter() - start, "cpu_seconds": time.process_time() - cpu}
    return result | {"peak_mb": peak_mb()}


def measure(tool: str, case: str, folder: Path) -> dict[str, Any]:
    """Run a tool in a child process and compare its field with the truth."""
    command = [sys.executable, "-m", "benchmarks.registration", "--tool", tool, "--folder", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    result: dict[str, Any] = {"tool": tool, "case": case, **json.loads(done.stdout.splitlines()[-1])}
    if "failure" in result:
        return result
    with np.load(folder / "truth.npz") as truth:
        true, valid, structure = truth["true"], truth["valid"], truth["structure"]
    if tool == "regnet":
        with rasterio.open(folder / "regnet" / "displacement.tif") as source:
            found, error = source.read((1, 2)), source.read(3)
    else:
        found, error = np.load(folder / f"{tool}.npy"), np.zeros(valid.shape)
    px = metrics.epe(found, true)
    result["megapixels_per_second"] = valid.size / 1e6 / result["seconds"]
    result["structure"] = metrics.summarise(px[structure])
    result["everything"] = metrics.summarise(px[valid])
    result["where_not_abstained"] = metrics.summarise(px[structure & np.isfinite(error)])
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="file of the results")
    parser.add_argument(
        "--cases", nargs="+", choices=list(CASES), default=[name for name in CASES if name not in MIRRORED]
    )
    parser.add_argument("--tools", nargs="+", choices=["regnet", *METHODS], default=TOOLS)
    parser.add_argument("--tool", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.tool:
        print(json.dumps(run_tool(arguments.tool, arguments.folder)))
        return
    results = []
    for case in arguments.cases:
        with tempfile.TemporaryDirectory() as scratch:
            make_case(case, Path(scratch))
            for tool in arguments.tools:
                results.append(measure(tool, case, Path(scratch)))
                row = results[-1]
                error = row.get("failure") or "mean {epe_mean_px:.3f}, median {epe_median_px:.3f} px".format(
                    **row["structure"]
                )
                print(f"{case} {tool}: {error}; {row['seconds']:.1f} s, {row['peak_mb']:.0f} MB", flush=True)
    if arguments.json:
        arguments.json.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
