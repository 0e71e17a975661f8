"""Fit and test the expected error of `register`: `python -m benchmarks.calibration FILE.npz --seconds 600`.

Windows, small and large, of real pairs that are in place are displaced by known random fields of many kinds (smooth and
rough, with and without a shift, a rotation and a scale, or not at all; a third of the clean pairs under noise of the
sensor) and matched without training. What the expected error is told from, and the error that was made, are kept in the
file; a file that is there already is added to. Then the coefficients of `regnet.registration.calibration` are fitted,
all pairs together, and tested: on each pair by coefficients that were fitted without it, and on each kind of pairs by
coefficients fitted without that kind; and so are those that ship. Last, what `register`'s rule of abstention makes of
the same windows by those that ship, beside doing nothing; in windows whose two images show different places, doing
nothing is right. As in `register`, the shift that all windows of a pair have in common counts only where it stands out
from what such images show in place.
"""

from __future__ import annotations

import argparse
import math
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("MKL_NUM_THREADS", "1")

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.pairs import buildings_pair, naip_pair, radar_pair, sample_pair
from regnet.config import default_data_root
from regnet.displacement import random_field
from regnet.registration.agreement import agreement, mean_fit
from regnet.registration.calibration import BOUND_90, CELL_PX, COEFFICIENTS, FEATURES, features, shift_doubt_px
from regnet.registration.common_shift import CommonShift
from regnet.registration.judgement import NEIGHBOURHOOD_PX, neighbourhood, taken_share
from regnet.registration.network import NetworkMatcher, load_network
from regnet.registration.options import RegisterOptions
from regnet.tiles.options import PairOptions
from regnet.tiles.pair import PairReader
from regnet.tiles.patch import Patch, displaced

SIDES_PX, MARGIN_PX = (160, 256, 512), 32
"""Sides of the windows, and what is read around them so that a displacement finds something to pull in."""
PLACES = 200
"""Places of a window whose features and error are kept."""
KINDS = ("smooth", "any", "rough", "any", "still", "other place")
NOISE = (0.1, 0.8)
"""Standard deviation of the noise added to clean pairs, in their 2nd to 98th percentile."""
LEVELS = (0.5, 0.9)
LOG_FLOOR_PX = 0.02
ROUNDS = 60


@dataclass(frozen=True)
class Source:
    """A real pair: its files, its kind (what is left out together), the working grid, and whether noise is added."""

    pair: PairOptions
    kind: str
    gsd_m: float | None = None
    clean: bool = True


@dataclass(frozen=True)
class Record:
    """One window that was matched, by cells of `CELL_PX`.

    Attributes:
        source: name of the pair; a `~` at its end stands for added noise.
        kind: of the displacement, one of `KINDS`.
        fit: mean agreement of the images at the fine resolution.
        told: (len(FEATURES), h, w).
        found: (2, h, w) px.
        true: (2, h, w) px; zero for another place.
        known: (h, w), where both images have data.
    """

    source: str
    kind: str
    fit: float
    told: NDArray[np.float32]
    found: NDArray[np.float32]
    true: NDArray[np.float32]
    known: NDArray[np.bool_]

    @property
    def pair(self) -> str:
        """Name of the pair."""
        return self.source.rstrip("~")

    @property
    def error_px(self) -> NDArray[np.float32]:
        """(h, w) end-point error that was made."""
        return np.asarray(np.hypot(*(self.found - self.true)), np.float32)


def sources() -> dict[str, Source]:
    """The pairs, easy and hard; ten of them of radar."""
    root = Path(default_data_root())
    image = str(root / "banepa" / "image.tif")
    fields = PairOptions("fields", str(root / "fields" / "image.tif"), str(root / "fields" / "fields.shp"))
    found = {
        "sample_swir": Source(sample_pair(), "sample"),
        "sample_nir": Source(sample_pair("B08"), "sample"),
        "naip": Source(naip_pair(), "naip"),
        "buildings": Source(buildings_pair(), "buildings", 0.26, clean=False),
        "bands": Source(PairOptions("bands", image, image, fixed_bands=[1], moving_bands=[3]), "bands", 0.26),
        "fields": Source(fields, "fields", clean=False),
    }
    places = range(len(list((root / "s1s2").glob("*_s2.tif"))))
    pairs = {Path(radar_pair(place).fixed).name[:3]: radar_pair(place) for place in places}
    return found | {f"radar_{name}": Source(pair, "radar", clean=False) for name, pair in pairs.items()}


def draw_field(kind: str, shape: tuple[int, int], generator: np.random.Generator) -> NDArray[np.float32]:
    """Draw a displacement of a kind: (2, H, W) px."""
    if kind in ("still", "other place"):
        return np.zeros((2, *shape), np.float32)
    if kind in ("smooth", "rough"):
        return random_field(shape, 8.0, 80.0 if kind == "smooth" else 20.0, generator)
    sigma = float(np.exp(generator.uniform(np.log(15), np.log(200))))
    # Steeper ones would fold.
    field = random_field(shape, generator.uniform(0.3, min(16, 0.4 * sigma)), sigma, generator)
    if generator.random() < 0.4:
        field = field + generator.uniform(-5, 5, (2, 1, 1)).astype(np.float32)
    if generator.random() < 0.25:
        angle, stretch = np.deg2rad(generator.uniform(-1, 1)), generator.uniform(-0.015, 0.015)
        change = np.array([[stretch, -angle], [angle, stretch]])
        middle = np.array(shape[::-1])[:, None, None] / 2
        turned = np.einsum("ij,jhw->ihw", change, np.mgrid[: shape[0], : shape[1]][::-1] - middle)
        field = field + turned.astype(np.float32)
    return field


def draw_patch(reader: PairReader, side_px: int, generator: np.random.Generator) -> Patch:
    """A window with a margin from anywhere on a pair."""
    size = [min(side_px + 2 * MARGIN_PX, side // 16 * 16) for side in reader.shape]
    row, col = (int(generator.integers(0, side - part + 1)) for side, part in zip(reader.shape, size, strict=True))
    return reader.read(row, col, *size)


def gather(seconds: float, seed: int) -> Iterator[Record]:
    """Draw windows in turn from every pair, displace and match them, as long as the time lasts."""
    found = sources()
    readers: dict[str, PairReader] = {}
    names, end = list(found), time.monotonic() + seconds
    draw = 0
    while time.monotonic() < end:
        name, kind = names[draw % len(names)], KINDS[(draw + draw // len(names)) % len(KINDS)]
        generator = np.random.default_rng([seed, draw])
        draw += 1
        side_px = int(generator.choice(SIDES_PX))
        patch = draw_patch(_reader(found, readers, name), side_px, generator)
        if kind == "other place":
            elsewhere = names[int(generator.integers(len(names)))]
            other = draw_patch(_reader(found, readers, elsewhere), side_px, generator)
            height, width = (min(sides) for sides in zip(patch.structure.shape, other.structure.shape, strict=True))
            here = np.s_[..., :height, :width]
            patch = Patch(**{key: values[here] for key, values in vars(patch).items()})
            moving = other.moving[here][[0] * len(patch.moving)]
            patch = replace(patch, moving=moving, moving_valid=other.moving_valid[here])
        if (patch.fixed_valid & patch.moving_valid).mean() < 0.5:
            continue
        true = draw_field(kind, patch.structure.shape, generator)
        moved = displaced(patch, true)
        if found[name].clean and generator.random() < 0.35:
            noise = generator.normal(0, generator.uniform(*NOISE), moved.moving.shape).astype(np.float32)
            moved, name = replace(moved, moving=moved.moving + noise), f"{name}~"
        yield _record(name, kind, moved, true)


def _reader(found: dict[str, Source], readers: dict[str, PairReader], name: str) -> PairReader:
    """The pair of a name, opened when it is first asked for."""
    if name not in readers:
        readers[name] = PairReader(found[name].pair, found[name].gsd_m)
    return readers[name]


@torch.inference_mode()
def _record(name: str, kind: str, patch: Patch, true: NDArray[np.float32]) -> Record:
    inner = np.s_[..., MARGIN_PX:-MARGIN_PX, MARGIN_PX:-MARGIN_PX]
    patch, true = Patch(**{key: values[inner].copy() for key, values in vars(patch).items()}), true[inner]
    model = load_network(None, "mind", ["band"] * len(patch.fixed), ["band"] * len(patch.moving))
    found = torch.from_numpy(NetworkMatcher(model)(patch).displacement)
    known = patch.fixed_valid & patch.moving_valid
    told = features(agreement(patch, found), found, torch.from_numpy(known)).numpy()
    fit_found = mean_fit(patch, found)
    at = np.s_[..., CELL_PX // 2 :: CELL_PX, CELL_PX // 2 :: CELL_PX]
    cells = known[at].shape
    return Record(name, kind, fit_found, told[:, : cells[0], : cells[1]], found.numpy()[at], true[at], known[at])


def save(path: Path, records: list[Record]) -> None:
    arrays = {f"{i}_{key}": value for i, record in enumerate(records) for key, value in vars(record).items()}
    np.savez_compressed(path, **arrays)


def load(path: Path) -> list[Record]:
    with np.load(path) as arrays:
        count = sum(key.endswith("_told") for key in arrays.files)
        keys = Record.__dataclass_fields__
        rows = [{key: arrays[f"{i}_{key}"] for key in keys} for i in range(count)]
    plain = {"source": str, "kind": str, "fit": float}
    return [Record(**row | {key: kind(row[key]) for key, kind in plain.items()}) for row in rows]


def settle(records: list[Record]) -> list[Record]:
    """Take the common shift of each pair off its windows as far as it is in doubt, and print what became of it."""
    settled = [record for record in records if record.kind == "other place"]
    print("pair: shift found of all windows, its doubt (px), share taken")
    for name in sorted({record.pair for record in records}):
        own = [record for record in records if record.pair == name and record.kind != "other place"]
        beyond = np.concatenate([(record.found - record.true)[:, record.known] for record in own], 1).mean(1)
        doubt_px = shift_doubt_px(float(np.mean([record.fit for record in own])))
        shift = CommonShift((float(beyond[0]), float(beyond[1])), doubt_px)
        print(f"  {name}: ({beyond[0]:.2f}, {beyond[1]:.2f}), {doubt_px:.2f}, {shift.taken:.2f}")
        settled += [replace(record, found=shift.without_doubtful(record.found)) for record in own]
    return settled


@dataclass(frozen=True)
class Sample:
    """Places of windows in one table: what is told of them (n, F), log error (n,), weight (n,), record (n,)."""

    told: NDArray[np.float64]
    error: NDArray[np.float64]
    weight: NDArray[np.float64]
    record: NDArray[np.intp]


def sample(records: list[Record], kinds: dict[str, str]) -> Sample:
    """Draw places; a pair counts as much as another of its kind, and a kind by the root of how many pairs it has."""
    generator = np.random.default_rng(0)
    rows: list[tuple[NDArray[Any], ...]] = []
    for index, record in enumerate(records):
        places = np.flatnonzero(record.known)
        if record.kind == "other place" or not places.size:
            continue
        chosen = generator.choice(places, min(PLACES, places.size), replace=False)
        alike = [other for other in records if other.kind != "other place" and kinds[other.pair] == kinds[record.pair]]
        pairs = len({other.pair for other in alike})
        own = sum(other.pair == record.pair for other in alike)
        weight = np.full(chosen.size, 1 / (chosen.size * own * math.sqrt(pairs)))
        told = record.told.reshape(len(FEATURES), -1)[:, chosen].T.astype(np.float64)
        error = np.log(record.error_px.ravel()[chosen] + LOG_FLOOR_PX)
        rows.append((told, error, weight, np.full(chosen.size, index)))
    return Sample(*(np.concatenate(parts) for parts in zip(*rows, strict=True)))


def fit(told: NDArray[np.float64], error: NDArray[np.float64], weight: NDArray[np.float64]) -> NDArray[np.float64]:
    """Composite quantile regression by reweighted least squares: the coefficients at 50 %, and what 90 % adds."""
    design = np.concatenate([np.column_stack([told, np.full(len(told), float(level))]) for level in (0, 1)])
    wanted, weights = np.tile(error, 2), np.tile(weight, 2)
    level = np.repeat(LEVELS, len(told))
    found = np.zeros(design.shape[1])
    for _ in range(ROUNDS):
        apart = wanted - design @ found
        share = weights * np.where(apart > 0, level, 1 - level) / np.maximum(np.abs(apart), 0.02)
        normal = (design * share[:, None]).T
        found = np.linalg.solve(normal @ design, normal @ wanted)
    return found


def left_out(table: Sample, group: NDArray[np.str_]) -> NDArray[np.float64]:
    """Coefficients for every place from all that is not of its group: (n, F + 1)."""
    found = np.zeros((len(table.error), len(FEATURES) + 1))
    for name in np.unique(group):
        own = group == name
        found[own] = fit(table.told[~own], table.error[~own], table.weight[~own])
    return found


def coverage(table: Sample, coefficients: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Whether the error of every place is within the stated bounds, (2, n): at 50 % and at 90 %."""
    median = (table.told * coefficients[..., :-1]).sum(-1)
    return np.stack([table.error <= median, table.error <= median + coefficients[..., -1]])


def print_coverage(records: list[Record], kinds: dict[str, str]) -> None:
    """Fit all, and print how often errors of pairs, and of kinds of pairs, left out of the fit are within bounds."""
    table = sample(records, kinds)
    coefficients = fit(table.told, table.error, table.weight)
    print("coefficients", dict(zip(FEATURES, coefficients[:-1].round(3).tolist(), strict=True)))
    print(
        f"90 % bound: {math.exp(coefficients[-1]):.3f} times the expected error; {len(np.unique(table.record))} windows"
    )
    pair = np.array([records[index].pair for index in table.record])
    kind = np.array([kinds[name] for name in pair])
    side = np.array([min(SIDES_PX, key=lambda px: abs(px - _side_px(records[index]))) for index in table.record])
    shipped = np.broadcast_to([*COEFFICIENTS, math.log(BOUND_90)], (len(pair), len(FEATURES) + 1))
    tested = {"left out by pair": left_out(table, pair), "left out by kind": left_out(table, kind), "shipped": shipped}
    for title, used in tested.items():
        within = coverage(table, used)
        by_pair = np.array([within[:, pair == name].mean(1) for name in np.unique(pair)])
        print(f"{title}: mean over pairs {by_pair.mean(0).round(3)}")
        for px in SIDES_PX:
            here = side == px
            by_kind = [within[:, here & (kind == name)].mean(1) for name in np.unique(kind[here])]
            print(f"  {px} px: mean over kinds {np.mean(by_kind, 0).round(2)}")
        for name in np.unique(kind):
            here = np.unique(pair[kind == name])
            each = np.array([within[:, pair == one].mean(1) for one in here])
            spread = f", pairs {each[:, 0].min():.2f} to {each[:, 0].max():.2f}" if len(here) > 1 else ""
            print(f"  {name} ({len(here)}): {each.mean(0).round(2)}{spread}")


def _side_px(record: Record) -> float:
    """Side of a window, px."""
    return CELL_PX * math.sqrt(record.known.size)


def taken(record: Record) -> NDArray[np.float32]:
    """The share of a window's displacement that `register` takes, (h, w)."""
    log = np.einsum("f,fhw->hw", np.array(COEFFICIENTS), record.told)
    error, weight = torch.from_numpy(np.exp(log)).float(), torch.from_numpy(record.known).float()
    found = torch.from_numpy(record.found)
    misalignment, doubt = neighbourhood(found, error, weight, NEIGHBOURHOOD_PX / CELL_PX).numpy()
    limit = RegisterOptions("", "").max_error_px
    share = taken_share(misalignment, doubt, limit)
    return np.where(error.numpy() < limit, share, np.float32(0))


def print_abstention(records: list[Record], kinds: dict[str, str]) -> None:
    """Print the mean error of doing nothing, of the match, and of what is taken of it."""
    rows: dict[tuple[str, str], list[tuple[str, NDArray[np.float64]]]] = {}
    for name in sorted({record.pair for record in records}):
        for record in (record for record in records if record.pair == name):
            still = "displaced" if record.kind in ("smooth", "any", "rough") else record.kind
            share = taken(record)
            lengths = (record.true, record.found - record.true, record.found * share - record.true)
            means = [float(np.hypot(*length)[record.known].mean()) for length in lengths]
            row = np.array([*means, float(share[record.known].mean())])
            rows.setdefault((still, kinds[name]), []).append((name, row))
    print("windows: nothing done, matched, taken (mean error, px), share taken")
    for key in sorted(rows):
        mean = np.mean([row for _, row in rows[key]], 0)
        print(f"  {key[0]}, {key[1]} ({len(rows[key])}): " + ", ".join(f"{value:.2f}" for value in mean))
    displaced_rows = [part for (still, _), parts in rows.items() if still == "displaced" for part in parts]
    ratios = {}
    for name in sorted({name for name, _ in displaced_rows}):
        mean = np.mean([row for own, row in displaced_rows if own == name], 0)
        ratios[name] = mean[2] / mean[0]
    print("displaced, taken over nothing, by pair:", {name: round(float(ratio), 2) for name, ratio in ratios.items()})


def main() -> None:
    """Gather windows if asked, fit, and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path, help="windows that were matched, .npz")
    parser.add_argument("--seconds", type=float, default=0, help="match new windows for so long and add them")
    parser.add_argument("--seed", type=int, default=0, help="of the new windows")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    records = load(arguments.file) if arguments.file.exists() else []
    if arguments.seconds:
        records += list(gather(arguments.seconds, arguments.seed))
        save(arguments.file, records)
    kinds = {name: source.kind for name, source in sources().items()}
    records = settle(records)
    print_coverage(records, kinds)
    print_abstention(records, kinds)


if __name__ == "__main__":
    main()
