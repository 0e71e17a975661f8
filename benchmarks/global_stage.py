"""How many random shifts, rotations and scales the global stage finds: `python -m benchmarks.global_stage --json FILE`.

Real pairs that are known to be in place are put out of place by a random similarity about their middle (up to 64 px,
5 degrees, 5 %), one draw in four by none at all; it counts as found if no corner of the image is off by more than 2 px
of the working grid. A pair in place has to stay as it is.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from pathlib import Path
from typing import Any

import numpy as np
from affine import Affine

from benchmarks.pairs import SOURCES
from regnet.registration.edges import Matrix
from regnet.registration.matching import KEEP_PX
from regnet.registration.overall import FINEST_PX, farthest, find_overall, rescaled
from regnet.tiles.pair import PairReader

CASES = ("sample_swir", "naip", "banepa_buildings", "s1s2")


def draw(generator: np.random.Generator, size: tuple[int, int]) -> Matrix:
    """A random similarity about the middle of an image of (height, width)."""
    angle, stretch = math.radians(generator.uniform(-5, 5)), generator.uniform(0.95, 1.05)
    turn = stretch * np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
    middle = np.array(size[::-1]) / 2
    return np.column_stack([turn, middle - turn @ middle + generator.uniform(-64, 64, 2)])


def measure(name: str, draws: int) -> dict[str, Any]:
    """Put one pair out of place time and again."""
    source = SOURCES[name]
    pair, gsd_m = source.pair(), source.gsd_m
    generator, errors, seconds = np.random.default_rng(0), [], []
    with PairReader(pair, gsd_m) as reader:
        size = reader.shape
        coarse = reader.reduced(max(1.0, max(size) / FINEST_PX))
        ratio = size[0] / coarse.shape[0]
        for count in range(draws):
            true = draw(generator, size) if count % 4 else np.eye(2, 3)
            off = Affine(*rescaled(true, 1 / ratio).ravel().tolist())
            patch = coarse.pulled(~off).read(0, 0, *coarse.shape)
            start = time.process_time()
            found = find_overall(patch, ratio, KEEP_PX)
            seconds.append(time.process_time() - start)
            errors.append(farthest(found.matrix, true, size))
            print(f"{name} {count}: off by {errors[-1]:.2f} px; {found.reason}; {seconds[-1]:.1f} s", flush=True)
    return {
        "case": name,
        "draws": draws,
        "within_2px": float(np.mean(np.array(errors) <= 2)),
        "corner_error_median_px": float(np.median([error for count, error in enumerate(errors) if count % 4])),
        "corner_error_max_px": max(errors),
        "cpu_seconds_median": float(np.median(seconds)),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="file of the results")
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--draws", type=int, default=48)
    arguments = parser.parse_args()
    results = [measure(name, arguments.draws) for name in arguments.cases]
    print(json.dumps(results, indent=2))
    if arguments.json:
        arguments.json.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
