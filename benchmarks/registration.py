"""Accuracy, time and memory of registration, beside other tools: `python -m benchmarks.registration --json FILE`.

Real pairs are displaced by a known random field (`--family`: smooth with a peak of 8 px and a sigma of 80 px, rough,
bent, or far) and written as GeoTIFFs; polygons are drawn.
The cases `sample_3000`, `sample_10000` and `sample_10000_strip`, which have to be asked for, are the sample scene
repeated and mirrored to 3000 x 3000 px, to 10,000 x 10,000 px and to 1,000 rows of these, which takes the same memory
in a tenth of the time.
Every tool gets the same files and as many threads (`--threads`), but for elastix, which always runs on one: itk-elastix
0.25 crashes if it is told of several, and left to itself does nearly all of its work on one. A tool's time is that of
reading, matching and writing the field; that of `regnet`, and of `regnet_adapt` (with adapt=true), is that of the whole
command with all that it writes. Peak memory is that of the process (Linux).
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
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import cv2
import numpy as np
import rasterio
from numpy.typing import NDArray
from rasterio.windows import Window

from benchmarks.pairs import FAMILIES, SOURCES, STRIP_PX, write_case
from regnet import metrics
from regnet.baselines.registry import METHODS, find_method
from regnet.errors import InputError
from regnet.evaluation.memory import peak_memory
from regnet.tiles.patch import Patch

OURS = {"regnet": [], "regnet_adapt": ["adapt=true"]}
TOOLS = ["none", "regnet", "classical.dis", "classical.klt", "classical.bspline", "classical.elastix"]
BIG = [name for name, source in SOURCES.items() if source.size_px]
POLL_SECONDS = 0.5
MOST_PIXELS = 4_000_000
"""Errors of larger pairs are looked at every few pixels."""


def run_method(tool: str, folder: Path, threads: int = 1) -> dict[str, Any]:
    """Run somebody else's method on a case in this process; the field lands in `<tool>.npy`."""
    cv2.setNumThreads(threads)
    start, cpu, peak_mb = time.perf_counter(), time.process_time(), peak_memory()
    result: dict[str, Any] = {}
    try:
        (fixed, fixed_valid), (moving, moving_valid) = _read(folder / "fixed.tif"), _read(folder / "moving.tif")
        patch = Patch(fixed, moving, fixed_valid, moving_valid, structure=fixed_valid)
        np.save(folder / f"{tool}.npy", find_method(tool)(patch))
    except InputError as error:
        result["failure"] = str(error)
    result |= {"seconds": time.perf_counter() - start, "cpu_seconds": time.process_time() - cpu}
    return result | {"peak_mb": peak_mb()}


def _read(path: Path) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    with rasterio.open(path) as source:
        values = source.read()
    valid = (values > 0).all(0)
    scaled = np.subtract(values, np.float32(32_768), dtype=np.float32)
    scaled /= np.float32(10_000)
    scaled[:, ~valid] = 0
    return scaled, valid


def run_regnet(tool: str, folder: Path, threads: int = 1) -> dict[str, Any]:
    """Run the installed command on a case; its outputs land in a folder of the tool's name."""
    script = str(Path(sys.executable).with_name("regnet"))
    files = [f"fixed={folder / 'fixed.tif'}", f"moving={folder / 'moving.tif'}", f"output_dir={folder / tool}"]
    start, before = time.perf_counter(), os.times()
    with (folder / f"{tool}.log").open("w") as log:
        command = [script, "register", *files, f"threads={threads}", *OURS[tool]]
        process = subprocess.Popen(command, stdout=log, stderr=log)
        peak_mb = 0.0
        while process.poll() is None:
            peak_mb = max(peak_mb, _held_mb(process.pid))
            time.sleep(POLL_SECONDS)
    after = os.times()
    spent = after.children_user + after.children_system - before.children_user - before.children_system
    result = {"seconds": time.perf_counter() - start, "cpu_seconds": spent, "peak_mb": peak_mb}
    if process.returncode not in (0, 3):
        return result | {"failure": (folder / f"{tool}.log").read_text().splitlines()[-1]}
    summary = json.loads((folder / tool / "summary.json").read_text())
    return result | {"share_registered": summary["share_registered"], "adapt": summary["adapt"]}


def _held_mb(process: int) -> float:
    """Memory that a process and those that it started hold, what they share counted once."""
    try:
        kept = next(line for line in Path(f"/proc/{process}/smaps_rollup").read_text().splitlines() if "Pss:" in line)
        children = Path(f"/proc/{process}/task/{process}/children").read_text().split()
    except (OSError, StopIteration):
        return 0.0
    return int(kept.split()[1]) / 1024 + sum(_held_mb(int(child)) for child in children)


def measure(tool: str, case: str, folder: Path, threads: int = 1) -> dict[str, Any]:
    """Run a tool in a process of its own and compare its field with the truth."""
    if tool in OURS:
        result = run_regnet(tool, folder, threads)
    else:
        inside = ["--tool", tool, "--folder", str(folder), "--threads", str(threads)]
        command = [sys.executable, "-m", "benchmarks.registration", *inside]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            return {"tool": tool, "case": case, "failure": f"ended with {done.returncode}: {done.stderr[-200:]}"}
        result = json.loads(done.stdout.splitlines()[-1])
    result = {"tool": tool, "case": case, **result}
    if "failure" not in result:
        result |= compare(tool, folder)
        result["megapixels_per_second"] = result["megapixels"] / result["seconds"]
    return result


def compare(tool: str, folder: Path) -> dict[str, Any]:
    """Errors of a tool's field against the truth: with structure, of everything, and where regnet did not abstain."""
    errors, kinds, sure = [], [], []
    field = None if tool in OURS else np.load(folder / f"{tool}.npy", mmap_mode="r")
    with rasterio.open(folder / "truth.tif") as truth:
        height, width = truth.shape
        step = max(1, round((height * width / MOST_PIXELS) ** 0.5))
        for row in range(0, height, STRIP_PX):
            window = Window(0, row, width, min(STRIP_PX, height - row))
            wanted = truth.read(window=window)[:, ::step, ::step]
            if field is None:
                with rasterio.open(folder / tool / "displacement.tif") as source:
                    found = source.read(window=window)[:, ::step, ::step]
            else:
                found = np.asarray(field[:, row : row + STRIP_PX])[:, ::step, ::step]
            errors.append(metrics.epe(found, wanted).ravel())
            kinds.append(wanted[2].ravel())
            sure.append(np.isfinite(found[-1]).ravel())
    px, kind, known = (np.concatenate(parts) for parts in (errors, kinds, sure))
    return {
        "megapixels": height * width / 1e6,
        "structure": metrics.summarise(px[kind == 2]),
        "everything": metrics.summarise(px[kind > 0]),
        "where_not_abstained": metrics.summarise(px[(kind == 2) & known]),
    }


def describe(row: dict[str, Any]) -> str:
    """One line about a result."""
    error = row.get("failure") or "mean {epe_mean_px:.3f}, median {epe_median_px:.3f} px".format(**row["structure"])
    return f"{row['case']} {row['tool']}: {error}; {row.get('seconds', 0):.1f} s, {row.get('peak_mb', 0):.0f} MB"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="file of the results")
    cases = [name for name in SOURCES if name not in BIG]
    parser.add_argument("--cases", nargs="+", choices=list(SOURCES), default=cases)
    parser.add_argument("--tools", nargs="+", choices=[*OURS, *METHODS], default=TOOLS)
    parser.add_argument("--family", choices=list(FAMILIES), default="smooth", help="of the random displacement")
    parser.add_argument("--seed", type=int, default=0, help="of the random displacement")
    parser.add_argument("--threads", type=int, default=1, help="of every tool")
    parser.add_argument("--tool", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.tool:
        print(json.dumps(run_method(arguments.tool, arguments.folder, arguments.threads)))
        return
    for key in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        os.environ[key] = str(arguments.threads)
    results = []
    for case in arguments.cases:
        with tempfile.TemporaryDirectory() as scratch:
            write_case(case, Path(scratch), arguments.seed, arguments.family)
            for tool in arguments.tools:
                results.append(measure(tool, case, Path(scratch), arguments.threads))
                print(describe(results[-1]), flush=True)
                if arguments.json:
                    arguments.json.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
