"""Which similarity says whose label noise was averaged away? Weights of every kind, judged on replicas.

Every contestant proposes weights `w_ij`: label j counts so much in prediction i. Replicas tell by how much the noise on
the labels moved every prediction; the score is the noise transfer of `regnet.denoising.validation`. The error of
averaged labels is told too, but is no judge of its own: neighbours have other displacements, so that a similarity that
is right about the noise can still average labels that differ.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from regnet.denoising.operators import Array
from regnet.denoising.validation import correlation, moved_by_noise
from regnet.similarity.neighbours import largest

COUNTS = (5, 10)
OWN_LABEL = "own label alone"
POWERS = (0.25, 1.0, 4.0, 16.0)


@dataclass(frozen=True)
class Contestant:
    """Weights of n tiles with d outputs.

    Attributes:
        name: of the similarity and of what was made of it.
        similarity: whose weights they are.
        kind: of the similarity: gradient, perceptual, pixels, features; or control.
        own: whether a tile's own label counts.
        weights: (n, d, n, d), or (n, n) that count alike for every output; row i says how prediction i is made of the
            labels.
    """

    name: str
    similarity: str
    kind: str
    own: bool
    weights: Array

    def described(self) -> dict[str, Any]:
        """All but the weights."""
        return {"name": self.name, "similarity": self.similarity, "kind": self.kind, "own": self.own}


@dataclass(frozen=True)
class Contest:
    """Scores of the contestants.

    Attributes:
        table: a row a contestant: name, similarity, kind, own, noise_transfer, noise_transfer_tile_median (of the
            tiles' own scores), noise_transfer_region_mean, outputs_apart_px (mean distance between the outputs of a
            tile and of those it is averaged with) and averaged_label_error_px (NaN where the truth is not known).
        tiles: (n, contestants) noise transfer over replicas and outputs of every tile.
        regions: (regions, contestants) noise transfer over the tiles of a region; regions by name.
        outputs_apart_px: mean distance between the outputs of any two tiles, to compare with.
    """

    table: pd.DataFrame
    tiles: pd.DataFrame
    regions: pd.DataFrame
    outputs_apart_px: float

    def best(self, kind: str, own: bool = True) -> str:
        """Name of the contestant of a kind, with or without own label, that has the highest noise transfer."""
        rows = self.table[(self.table["kind"] == kind) & (self.table["own"] == own)]
        return str(rows.loc[rows["noise_transfer"].idxmax(), "name"])

    def duel(self, own: bool = True, one: str = "gradient", other: str = "perceptual") -> dict[str, object]:
        """The best of one kind against the best of another: scores, ratio, share of the regions that the first wins.

        Narrow weights with own label are little but that label, which explains much by itself; without own label,
        neighbours alone are judged.
        """
        first, second = self.best(one, own), self.best(other, own)
        scores = self.table.set_index("name")["noise_transfer"]
        ratio = float(scores[first] / scores[second]) if scores[second] > 0 else float("inf")
        return {
            one: first,
            other: second,
            f"noise_transfer_{one}": float(scores[first]),
            f"noise_transfer_{other}": float(scores[second]),
            "ratio": ratio,
            "regions": len(self.regions),
            "regions_won_share": float((self.regions[first] > self.regions[second]).mean()),
        }


def own_label(n: int) -> Contestant:
    """A tile's own label alone: what weights with own label have to beat before they say anything of neighbours."""
    return Contestant(OWN_LABEL, OWN_LABEL, "control", True, np.eye(n))


def by_weights(name: str, kind: str, weights: Array) -> list[Contestant]:
    """A linear map of labels, (n, d, n, d), a smoother for instance, with and without the tile's own label."""
    return _both_ways(name, name, kind, weights, _without_own(weights))


def by_kernel(name: str, kind: str, similarities: Array, power: float = 1) -> list[Contestant]:
    """Labels averaged by a power of the similarity, (n, n), negative ones counting for nothing."""
    positive = np.maximum(similarities, 0) ** power
    others = positive * ~np.eye(len(positive), dtype=bool)
    return _both_ways(f"{name}, power {power:g}", name, kind, _rows_to_one(positive), _rows_to_one(others))


def by_nearest(name: str, kind: str, similarities: Array, k: int) -> list[Contestant]:
    """Labels of the k most similar tiles averaged: the tile itself among them, and k others; none if it is alone."""
    own = similarities.astype(np.float64).copy()
    lists = []
    for value in (np.inf, -np.inf):
        np.fill_diagonal(own, value)
        chosen = largest(own, min(k, len(own) - 1))
        weights = np.zeros_like(own)
        np.put_along_axis(weights, chosen, 1 / max(chosen.shape[1], 1), axis=1)
        lists.append(weights)
    return _both_ways(f"{name}, {k} nearest", name, kind, *lists)


def contestants_by(name: str, kind: str, similarities: Array) -> Iterator[Contestant]:
    """All that is made of one similarity: kernel weights at several sharpnesses, and lists of nearest tiles.

    Args:
        name: of the similarity.
        kind: of the similarity.
        similarities: (n, n), at most 1; `POWERS` of the positive ones are tried, which for a Gaussian are widths.
    """
    for power in POWERS:
        yield from by_kernel(name, kind, similarities, power)
    for k in COUNTS:
        yield from by_nearest(name, kind, similarities, k)


def hold_contest(
    contestants: Iterable[Contestant],
    predictions: Array,
    noise: Array,
    regions: Sequence[str],
    truth: Array | None = None,
) -> Contest:
    """Score contestants on replicas.

    Args:
        contestants: with different names; looked at one by one.
        predictions: (R, n, d) px of R replicas.
        noise: (R, n, d) px on their labels.
        regions: (n,) name of every tile's region; empty: in none.
        truth: (n, d) px the labels without noise, if known.
    """
    names = np.asarray(regions)
    inside = {str(name): names == name for name in np.unique(names[names != ""])}
    moved, cause = moved_by_noise(predictions), moved_by_noise(noise)
    apart = outputs_apart(predictions.mean(0))
    labels = None if truth is None else truth + noise
    rows, tiles, by_region = [], {}, {}
    for one in contestants:
        explained = _apply(one.weights, cause)
        tiles[one.name] = [correlation(explained[:, i], moved[:, i]) for i in range(moved.shape[1])]
        by_region[one.name] = {
            name: correlation(explained[:, chosen], moved[:, chosen]) for name, chosen in inside.items()
        }
        rows.append(
            {
                **one.described(),
                "noise_transfer": correlation(explained, moved),
                "noise_transfer_tile_median": float(np.nanmedian(tiles[one.name])),
                "noise_transfer_region_mean": float(np.nanmean(list(by_region[one.name].values()))),
                **tell_neighbours(one, apart, labels, truth),
            }
        )
    return Contest(pd.DataFrame(rows), pd.DataFrame(tiles), pd.DataFrame(by_region), mean_apart(apart))


def tell_neighbours(one: Contestant, apart: Array, labels: Array | None, truth: Array | None) -> dict[str, Any]:
    """What can be said of a tile's neighbours without replicas.

    Args:
        one: the weights.
        apart: (n, n) px, as `outputs_apart` gives it.
        labels: (R, n, d) px of R trainings.
        truth: (n, d) px the labels without noise, NaN for tiles where it is not known; None: not known of any.

    Returns:
        `outputs_apart_px`, the mean distance of a tile's output to those of the tiles that it is averaged with, and
        `averaged_label_error_px`, the mean error of the averaged labels (NaN without labels or truth).
    """
    error = float("nan")
    if labels is not None and truth is not None:
        error = mean_error(_apply(one.weights, labels), truth)
    return {"outputs_apart_px": _apart_of_neighbours(one.weights, apart), "averaged_label_error_px": error}


def mean_error(values: Array, truth: Array) -> float:
    """Mean distance of values (..., n, d) from the truth (n, d), px, over tiles whose truth is known; NaN for none."""
    known = np.isfinite(truth).all(1)
    return float(np.linalg.norm((values - truth)[..., known, :], axis=-1).mean()) if known.any() else float("nan")


def outputs_apart(outputs: Array) -> Array:
    """Distances (n, n) px between the outputs (n, d) of tiles."""
    distances: Array = np.linalg.norm(outputs[:, None] - outputs, axis=2)
    return distances


def mean_apart(apart: Array) -> float:
    """Mean of the distances (n, n) between two different tiles; NaN for a single one."""
    others = apart[~np.eye(len(apart), dtype=bool)]
    return float(others.mean()) if others.size else float("nan")


def _apply(weights: Array, values: Array) -> Array:
    """Average (R, n, d) values by a contestant's weights."""
    n, d = values.shape[1:]
    if weights.ndim == 2:
        return np.asarray(weights @ values)
    result: Array = (values.reshape(len(values), n * d) @ weights.reshape(n * d, n * d).T).reshape(-1, n, d)
    return result


def _apart_of_neighbours(weights: Array, apart: Array) -> float:
    """Mean distance of a tile's output to the others', each counting by the size of its weight; own tiles left out."""
    size = np.abs(weights) if weights.ndim == 2 else np.sqrt(np.square(weights).sum((1, 3)))
    np.fill_diagonal(size, 0)
    return float((_rows_to_one(size) * apart).sum(1).mean())


def _rows_to_one(values: Array) -> Array:
    """Rows divided by their sum; a tile that is like no other keeps a row of zeros."""
    total = values.sum(1, keepdims=True)
    result: Array = np.where(total > 0, values / np.where(total > 0, total, 1), 0)
    return result


def _without_own(weights: Array) -> Array:
    places = np.arange(len(weights))
    rest = weights.copy()
    rest[places, :, places] = 0
    return rest


def _both_ways(name: str, similarity: str, kind: str, with_own: Array, without: Array) -> list[Contestant]:
    return [
        Contestant(f"{name}, with own", similarity, kind, True, with_own),
        Contestant(f"{name}, without own", similarity, kind, False, without),
    ]
